"""What GaussianProcessSampler learns from: failed, pruned, running and enqueued trials."""

from functools import partial

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from lightning_hpo.samplers import GaussianProcessSampler, predicted_best
from lightning_hpo.samplers.accidents import without_accidents
from lightning_hpo.samplers.acquisition import lower_confidence_bound
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import Fitter
from tests.support.samplers import SPACE, branin, new_study, run


def test_failed_and_nan_trials_keep_the_search_away():
    def objective(trial):
        x, y = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
        if x < 0.5:
            if trial.number % 2:
                raise ArithmeticError
            return float("nan")
        return (x - 0.7) ** 2 + (y - 0.4) ** 2

    late = 0
    for seed in range(4):
        study = new_study(seed=seed)
        study.optimize(objective, n_trials=40, catch=ArithmeticError)
        late += sum(trial.state == TrialState.FAIL for trial in study.trials[15:])
        assert study.best_value < 1e-3
    assert late <= 4 * 3  # of 100; at random: half


def test_what_fails_before_all_is_asked_is_learned_from():
    def early(trial):
        if trial.suggest_float("x", 0, 1) < 0.5:
            raise ArithmeticError
        return (trial.params["x"] - 0.7) ** 2 + (trial.suggest_float("y", 0, 1) - 0.4) ** 2

    def branch(trial):
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
            trial.suggest_float("momentum", 0, 1)
            raise ArithmeticError
        return (trial.suggest_float("lr", 0, 1) - 0.3) ** 2

    for objective in (early, branch):
        study = run(objective, 40)
        assert sum(trial.state == TrialState.FAIL for trial in study.trials[15:]) <= 5
        assert study.best_value < 1e-2


def test_a_trial_that_was_pruned_before_it_asked_for_anything_says_nothing():
    def objective(trial):
        if trial.number == 0:
            raise optuna.TrialPruned
        return trial.suggest_float("x", 0, 1) ** 2

    study = run(objective, 15)
    assert set(study.sampler.infer_relative_search_space(study, study.trials[-1])) == {"x"}
    assert predicted_best(study).params["x"] < 0.1


def test_numpy_integers_are_numbers():
    study = new_study()
    space = {"n": IntDistribution(1, 100)}
    study.add_trials(
        [
            create_trial(params={"n": np.int64(n)}, distributions=space, value=float(abs(n - 60)))
            for n in range(5, 100, 5)
        ]
    )
    assert study.ask(space).params["n"] in range(55, 66)


def test_accidents_do_not_mislead_the_search():
    for seed in range(4):
        study, luck = new_study(seed=seed), np.random.default_rng(seed)
        for _ in range(50):
            trial = study.ask(SPACE)
            x, y = trial.params["x"], trial.params["y"]
            if luck.random() < 0.2:
                study.tell(trial, state=TrialState.FAIL)
            else:
                study.tell(trial, (x - 0.7) ** 2 + (y - 0.4) ** 2)
        assert study.best_value < 1e-5


def test_an_accident_is_a_failure_that_its_neighbours_do_not_share():
    units = np.random.default_rng(0).random((40, 2))
    values = np.where(units[:, 0] > 0.6, np.nan, units[:, 1])  # one side fails
    values[np.argmin(abs(units - [0.2, 0.5]).sum(axis=1))] = np.nan  # and one on the other
    rows = without_accidents(
        Fitter("none"), Encoding(SPACE), Observations(units, np.ones(40), values, np.zeros((0, 2)))
    )
    assert len(rows.pending) == 1
    assert rows.pending[0, 0] < 0.6
    assert np.isnan(rows.values).sum() == (units[:, 0] > 0.6).sum()


def pruned_study(sampler):
    """Complete trials know the left half only; pruned ones say that the right half is better."""
    study = optuna.create_study(sampler=sampler)
    for i, x in enumerate(np.linspace(0.02, 0.98, 24).tolist()):
        loss, y = 1.0 - x, (7 * i % 24) / 24
        curve = {step: loss + 1 / step for step in (1, 2, 4)}
        if x < 0.5:
            trial = create_trial(
                params={"x": x, "y": y}, distributions=SPACE, value=loss, intermediate_values={**curve, 8: loss}
            )
        else:
            trial = create_trial(
                params={"x": x, "y": y}, distributions=SPACE, state=TrialState.PRUNED, intermediate_values=curve
            )
        study.add_trial(trial)
    return study


def test_pruned_trials_inform_the_model_at_their_step():
    study = pruned_study(GaussianProcessSampler(seed=0))
    assert study.ask(SPACE).params["x"] > 0.8
    best = predicted_best(study)
    assert best.params["x"] > 0.8
    assert best.mean == pytest.approx(0.02, abs=0.15)  # the loss at the end of training, not the 0.27 seen at step 4


def test_running_trials_that_have_reported_count_too():
    study = new_study(n_startup_trials=4)
    for x in np.linspace(0.05, 0.95, 8).tolist():
        study.enqueue_trial({"x": x, "y": 0.5})
        trial = study.ask(SPACE)
        trial.report(1.0 - x, 1)  # paused: never told
    assert study.ask(SPACE).params["x"] > 0.8


def test_enqueued_and_added_trials_are_a_warm_start():
    study = new_study()
    study.enqueue_trial({"a": 1.0, "b": 2.0})
    study.optimize(branin, n_trials=1)
    assert study.trials[0].params == {"a": 1.0, "b": 2.0}
    earlier = new_study(seed=9)
    earlier.optimize(branin, n_trials=30)
    # the lowest mean, no exploration: what it has learned, and no start-up is spent
    warm = new_study(seed=1, acquisition=partial(lower_confidence_bound, beta=0.0))
    warm.add_trials(earlier.trials)
    warm.optimize(branin, n_trials=3)
    assert max(trial.value for trial in warm.trials[30:]) < 1.0  # the least: 0.398; the median of random points: 37


def test_the_open_half_of_an_enqueued_trial_is_chosen_given_the_other():
    study = new_study(acquisition=partial(lower_confidence_bound, beta=0.0))  # the lowest mean, no exploration
    study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.5) ** 2 + (t.suggest_float("y", 0, 1) - 0.3) ** 2, 20)
    study.enqueue_trial({"x": 0.9})
    trial = study.ask(SPACE)
    assert trial.params["x"] == 0.9
    assert abs(trial.params["y"] - 0.3) < 0.1
