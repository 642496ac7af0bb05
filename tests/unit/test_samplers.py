"""GaussianProcessSampler: Optuna's contract, exact resumption, what it learns from, and bad input."""

import json
import math
import os
import pickle
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState, create_trial
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from lightning_hpo.samplers import (
    GaussianProcessSampler,
    expected_improvement_share,
    importance,
    plot_slices,
    predicted_best,
    recommended,
    slices,
    surrogate,
)
from lightning_hpo.samplers.accidents import without_accidents
from lightning_hpo.samplers.acquisition import log_expected_improvement, lower_confidence_bound
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import Fitter
from lightning_hpo.samplers.targets import fit_targets
from lightning_hpo.space import from_unit, to_unit

optuna.logging.set_verbosity(optuna.logging.WARNING)
OPTIMISTIC = partial(lower_confidence_bound, beta=3.0)
MIXED = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.5, step=0.05),
    "units": IntDistribution(16, 512, log=True),
    "layers": IntDistribution(1, 6),
    "activation": CategoricalDistribution(["relu", "tanh", "gelu"]),
    "batch": CategoricalDistribution([32, 8, 16, 64]),
}


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: GaussianProcessSampler(seed=0, n_startup_trials=1)


def new_study(direction="minimize", **arguments):
    return optuna.create_study(direction=direction, sampler=GaussianProcessSampler(**{"seed": 0, **arguments}))


def branin(trial):
    a, b = trial.suggest_float("a", -5, 10), trial.suggest_float("b", 0, 15)
    return (
        (b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10
    )


def mixed_loss(params):
    return (
        (math.log10(params["lr"]) + 3) ** 2
        + params["dropout"]
        + abs(math.log2(params["units"]) - 7) / 4
        + {"relu": 0.0, "tanh": 0.4, "gelu": 0.2}[params["activation"]]
        + abs(math.log2(params["batch"]) - 4) / 2
        + 0.1 * params["layers"]
    )


# ----------------------------------------------------------------------------------------------------------- resumption
RESUMED = """
import sys, json, optuna
sys.path.insert(0, sys.argv[3])
from test_samplers import MIXED, mixed_loss
from lightning_hpo.samplers import GaussianProcessSampler
optuna.logging.set_verbosity(optuna.logging.ERROR)
study = optuna.create_study(
    storage=sys.argv[1], study_name="s", load_if_exists=True, sampler=GaussianProcessSampler(seed=3)
)
def objective(trial):
    params = {name: trial._suggest(name, distribution) for name, distribution in MIXED.items()}
    branch = trial.suggest_float("momentum", 0, 1) if params["activation"] == "tanh" else 0.0
    loss = mixed_loss(params) + branch
    if trial.number % 11 == 5:
        raise ArithmeticError
    for step in (1, 3):
        trial.report(loss + 1 / step, step)
        if trial.number % 4 == 1:
            raise optuna.TrialPruned
    return loss
study.optimize(objective, n_trials=int(sys.argv[2]), catch=ArithmeticError)
print(json.dumps([trial.params for trial in study.trials]))
"""


def resumed(storage, count, hash_seed):
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", RESUMED, storage, str(count), str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_resumed_study_equals_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = resumed(f"sqlite:///{tmp_path}/whole.db", 32, "1")
    resumed(f"sqlite:///{tmp_path}/parts.db", 21, "2")
    assert resumed(f"sqlite:///{tmp_path}/parts.db", 11, "3") == whole
    assert len({json.dumps(params) for params in whole}) == 32


@pytest.mark.parametrize("size", [103, 309])
def test_between_refits_a_new_sampler_suggests_the_same(size):
    rng = np.random.default_rng(0)
    space = {name: FloatDistribution(0, 1) for name in "xyz"}
    study = new_study()
    for row in rng.random((size, 3)):
        params = dict(zip(space, row.tolist(), strict=True))
        value = float(np.sin(5 * row).sum())
        study.add_trial(create_trial(params=params, distributions=space, value=value))
    for _ in range(3):
        cold = GaussianProcessSampler(seed=0)
        trial = study.ask(space)
        frozen = study.trials[trial.number]
        assert (
            cold.sample_relative(study, frozen, study.sampler.infer_relative_search_space(study, frozen))
            == trial.params
        )
        study.tell(trial, float(np.sin(5 * np.array(list(trial.params.values()))).sum()))


def test_a_used_sampler_can_be_pickled_and_goes_on_the_same():
    study = new_study()
    study.optimize(branin, n_trials=14)
    copied = pickle.loads(pickle.dumps(study))
    for each in (study, copied):
        each.optimize(branin, n_trials=2)
    assert [trial.params for trial in copied.trials] == [trial.params for trial in study.trials]


def test_threads_share_a_sampler():
    study = new_study(n_startup_trials=4)
    study.optimize(branin, n_trials=16, n_jobs=4)
    assert len({tuple(trial.params.values()) for trial in study.trials}) == 16


def test_trials_that_ask_for_their_parameters_in_turn_get_points_apart():
    """As threads do: each has asked for one parameter when the next one asks."""
    study = new_study()
    study.optimize(branin, n_trials=12)
    trials = [study.ask() for _ in range(4)]
    first = [trial.suggest_float("a", -5, 10) for trial in trials]
    second = [trial.suggest_float("b", 0, 15) for trial in trials]
    points = np.column_stack([first, second])
    apart = np.abs(points[:, None] - points).max(axis=2)[np.triu_indices(4, 1)]
    assert apart.min() > 0.01


def test_other_seeds_give_other_suggestions_and_no_seed_a_new_one():
    firsts = {GaussianProcessSampler(seed=seed).seed for seed in (None, None, 1, 2)}
    assert len(firsts) == 4
    studies = [new_study(seed=seed) for seed in (1, 2)]
    for study in studies:
        study.optimize(branin, n_trials=12)
    assert studies[0].trials[0].params != studies[1].trials[0].params
    assert studies[0].trials[11].params != studies[1].trials[11].params


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_every_second_trial_is_optimistic_under_noise_and_local_in_a_stalled_search(noise):
    rng = np.random.default_rng(0)
    told = new_study()
    told.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2 + noise * rng.standard_normal(), n_trials=21)
    functions = {"default": None, "improvement": log_expected_improvement, "bound": OPTIMISTIC}
    for number in (20, 21):
        asked = {}
        for name, function in functions.items():
            study = new_study(acquisition=function)
            study.add_trials(told.trials[:number])
            asked[name] = study.ask(told.trials[0].distributions).params
        bound = noise > 0 and number == 21
        local = noise == 0 and number == 20  # the search has stalled
        assert (asked["default"] == asked["bound"]) == bound
        assert (asked["default"] == asked["improvement"]) == (not bound and not local)
        assert not local or abs(asked["default"]["x"] - 0.3) < 1e-3


def test_a_search_that_stays_stalled_changes_one_parameter():
    study = new_study()
    study.optimize(lambda t: (t.suggest_float("x", 0, 1) - 0.3) ** 2 + (t.suggest_float("y", 0, 1) - 0.6) ** 2, 33)
    asked = study.ask(study.trials[0].distributions).params
    assert sum(asked[name] != value for name, value in study.best_params.items()) == 1


def test_recommends_by_the_mean_under_noise_only():
    rng = np.random.default_rng(0)
    for noise in (0.0, 0.1):
        study = new_study()
        study.optimize(
            lambda t, noise=noise: (t.suggest_float("x", 0, 1) - 0.3) ** 2 + noise * rng.standard_normal(), n_trials=24
        )
        found = recommended(study)
        assert found.params == study.trials[found.trial].params
        assert found.rule == ("model's mean" if noise else "best value")
        assert (found.trial == study.best_trial.number) == (noise == 0)
        assert not noise or found.params["x"] == pytest.approx(predicted_best(study).params["x"])


# ------------------------------------------------------------------------------------------------------------- progress
def test_finds_the_minimum_of_branin_and_maximising_is_the_same_search():
    down, up = new_study(), new_study("maximize")
    down.optimize(branin, n_trials=45)
    up.optimize(lambda trial: -branin(trial), n_trials=45)
    assert down.best_value - 0.397887 < 1e-2  # the best of 45 random points: about 1
    assert [trial.params for trial in up.trials] == [trial.params for trial in down.trials]


def test_mixed_space_is_solved():
    study = new_study()
    study.optimize(lambda trial: mixed_loss({k: trial._suggest(k, d) for k, d in MIXED.items()}), n_trials=60)
    assert study.best_value < 0.15  # the best is 0.1, the median of random configurations 3.1
    assert study.best_params["activation"] == "relu"
    assert study.best_params["batch"] == 16


def test_conditional_parameters_are_modelled_not_drawn():
    def objective(trial):
        if trial.suggest_categorical("optimizer", ["sgd", "adam"]) == "sgd":
            return (
                0.5
                + (trial.suggest_float("momentum", 0, 1) - 0.9) ** 2
                + (trial.suggest_float("decay", 0, 1) - 0.2) ** 2
            )
        return (trial.suggest_float("beta", 0, 1) - 0.3) ** 2 + (trial.suggest_float("eps", 0, 1) - 0.7) ** 2

    study = new_study()
    study.optimize(objective, n_trials=40)
    assert study.best_params["optimizer"] == "adam"
    assert study.best_value < 1e-4  # 30 random points of a square: about 1e-2
    late = [trial.params for trial in study.trials[25:]]
    assert sum(params["optimizer"] == "adam" for params in late) > len(late) / 2


def test_start_up_spreads_each_parameter_over_its_range():
    study = new_study(n_startup_trials=8)
    study.optimize(branin, n_trials=8)
    for name, low, high in (("a", -5, 10), ("b", 0, 15)):
        cells = sorted(int(8 * (trial.params[name] - low) / (high - low)) for trial in study.trials)
        assert cells == list(range(8))


# -------------------------------------------------------------------------------------------------- parallel and finite
def test_parallel_asks_are_distinct_and_spread():
    study = new_study()
    study.optimize(branin, n_trials=15)
    space = study.trials[0].distributions
    asked = [study.ask(space).params for _ in range(8)]
    points = np.array([[params["a"] / 15, params["b"] / 15] for params in asked])
    distances = np.linalg.norm(points[:, None] - points, axis=2)[np.triu_indices(8, 1)]
    assert distances.min() > 1e-4
    assert np.median(distances) > 0.05


def test_a_batch_does_not_gather_where_its_first_suggestion_will_be_better_than_the_best():
    medians = []
    for seed in range(4):
        study = new_study(seed=seed)
        study.optimize(lambda trial: sum((trial.suggest_float(name, 0, 1) - 0.4) ** 2 for name in "xyz"), n_trials=15)
        space = study.trials[0].distributions
        points = np.array([list(study.ask(space).params.values()) for _ in range(16)])
        apart = np.abs(points[:, None] - points).max(axis=2)[np.triu_indices(16, 1)]
        medians.append(np.median(apart))
    assert np.mean(medians) > 0.005  # 0.002 if what a pending trial is expected to reach is not the value to undercut


def test_a_finite_space_is_not_searched_twice_and_may_be_exhausted():
    study = new_study(n_startup_trials=3)

    def objective(trial):
        return trial.suggest_int("x", 0, 4) + {"p": 0, "q": 2}[trial.suggest_categorical("y", ["p", "q"])]

    study.optimize(objective, n_trials=10)
    modelled = [tuple(trial.params.values()) for trial in study.trials[3:]]
    assert len(set(modelled)) == 7
    assert not set(modelled) & {tuple(trial.params.values()) for trial in study.trials[:3]}
    study.optimize(objective, n_trials=4)
    assert len(study.trials) == 14


def test_noise_with_repeated_values_still_works():
    rng = np.random.default_rng(0)
    study = new_study()
    study.optimize(
        lambda trial: round((trial.suggest_float("x", 0, 1) - 0.6) ** 2 + 0.05 * rng.standard_normal(), 1), 30
    )
    assert abs(predicted_best(study).params["x"] - 0.6) < 0.2


# --------------------------------------------------------------------------------------------- what it learns from
SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


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


IN_THREADS = """
import optuna
from threadpoolctl import threadpool_info
from lightning_hpo.samplers import GaussianProcessSampler

def threads():
    return [one["num_threads"] for one in threadpool_info() if one["user_api"] == "blas"]

optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(sampler=GaussianProcessSampler(seed=0))
before = threads()
study.optimize(lambda trial: trial.suggest_float("x", 0, 1) ** 2, n_trials=40, n_jobs=4)
assert threads() == before, (before, threads())
"""


def test_blas_has_its_threads_back_after_a_study_in_threads():
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "2", "OMP_NUM_THREADS": "2"}
    ended = subprocess.run(
        [sys.executable, "-c", IN_THREADS], env=environment, check=False, capture_output=True, text=True, timeout=120
    )
    assert ended.returncode == 0, ended.stderr


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


# ------------------------------------------------------------------------------------------------------------ surrogate
class Forest(RandomForestRegressor):
    def predict(self, X, return_std=False):
        trees = np.array([tree.predict(X) for tree in self.estimators_])
        return (trees.mean(axis=0), trees.std(axis=0)) if return_std else trees.mean(axis=0)


@pytest.mark.parametrize(
    "surrogate", [GaussianProcessRegressor(Matern(nu=2.5), alpha=1e-6, normalize_y=True), Forest(n_estimators=20)]
)
def test_scikit_learn_surrogates(surrogate):
    runs = []
    for _ in range(2):
        study = new_study(surrogate=surrogate)
        study.optimize(branin, n_trials=25)
        runs.append([trial.params for trial in study.trials])
    assert runs[0] == runs[1]
    assert not hasattr(surrogate, "X_train_")  # the caller's object is not fitted
    assert study.best_value < 4.0  # the median of the best of 25 random points


@pytest.mark.parametrize("warp", ["none", "half_log", "better_log", "half_rank"])
def test_each_warp_optimises(warp):
    study = new_study(warp=warp)
    study.optimize(branin, n_trials=30)
    assert study.best_value < 0.5


@pytest.mark.parametrize("warp", ["none", "half_log", "better_log", "half_rank"])
def test_targets_keep_the_order_and_can_be_undone(warp):
    values = np.random.default_rng(0).standard_normal(41) ** 3
    targets = fit_targets(values, warp)
    forward = targets.forward(values)
    assert (np.argsort(forward) == np.argsort(values)).all()
    np.testing.assert_allclose(targets.inverse(forward), values, atol=1e-9)
    if warp != "half_rank":
        h = 1e-6
        slopes = (targets.forward(values + h) - targets.forward(values - h)) / (2 * h)
        assert targets.log_jacobian(values) == pytest.approx(np.log(slopes).sum(), abs=0.1)  # a kink at the median


def test_the_warp_follows_the_shape_of_the_objective():
    x = np.random.default_rng(0).random((40, 2))
    bowl = ((x - 0.4) ** 2).sum(axis=1)
    encoding = Encoding(SPACE)
    for values, warp in ((np.exp(12 * bowl), "half_log"), (-np.exp(-60 * bowl), "better_log")):
        rows = Observations(x, np.ones(40), values, np.empty((0, 2)))
        assert Fitter().model(encoding, rows).targets.warp == warp


# ------------------------------------------------------------------------------------------------------------- encoding
def test_encoding_agrees_with_the_space_and_is_undone():
    encoding = Encoding(MIXED)
    rng = np.random.default_rng(0)
    configurations = [
        {k: from_unit(d, u) for (k, d), u in zip(MIXED.items(), row, strict=True)} for row in rng.random((50, 6))
    ]
    units = encoding.encode(configurations)
    for name in ("lr", "dropout", "units", "layers"):
        expected = [to_unit(MIXED[name], configuration[name]) for configuration in configurations]
        np.testing.assert_allclose(units[:, encoding.names.index(name)], expected, atol=1e-12)
    for row, configuration in zip(units, configurations, strict=True):
        decoded = encoding.decode(row)
        for name, value in configuration.items():
            assert decoded[name] == (pytest.approx(value) if isinstance(value, float) else value)
    features = encoding.features(units)
    assert features.shape == (50, 8)  # the activation has three columns
    batch = encoding.columns[encoding.names.index("batch")]
    np.testing.assert_allclose(batch.encode([8, 16, 32, 64]), [0, 1 / 3, 2 / 3, 1])


# ------------------------------------------------------------------------------------------------------------ bad input
def test_arguments_are_checked():
    with pytest.raises(TypeError, match="`seed` must be an integer >= 0, got 'x'"):
        GaussianProcessSampler(seed="x")
    with pytest.raises(ValueError, match="`n_startup_trials` must be an integer >= 1, got 0"):
        GaussianProcessSampler(n_startup_trials=0)
    with pytest.raises(ValueError, match=r"`warp` must be one of .*'half_rank'.* got 'rank'"):
        GaussianProcessSampler(warp="rank")
    with pytest.raises(TypeError, match="`surrogate` must be a scikit-learn regressor"):
        GaussianProcessSampler(surrogate=object())
    for wrong in (GaussianProcessRegressor, RandomForestRegressor()):  # a class; no spread
        with pytest.raises(
            TypeError, match="`surrogate` must be a scikit-learn regressor whose predict takes return_std"
        ):
            GaussianProcessSampler(surrogate=wrong)
    with pytest.raises(TypeError, match="`acquisition` must be a function"):
        GaussianProcessSampler(acquisition="ei")
    with pytest.raises(ValueError, match="`constraints_func` is not supported"):
        GaussianProcessSampler(constraints_func=lambda trial: [0.0])
    study = optuna.create_study(directions=["minimize", "minimize"], sampler=GaussianProcessSampler(seed=0))
    with pytest.raises(ValueError, match="optimises one objective, the study has 2"):
        study.ask({"x": FloatDistribution(0, 1)})


@pytest.mark.parametrize(
    "suggest", [lambda t: t.suggest_float("x", 1, 0), lambda t: t.suggest_float("x", 0, 1, log=True)]
)
def test_reversed_bounds_and_the_logarithm_of_zero_are_errors(suggest):
    with pytest.raises(ValueError, match=r"low|log"):
        new_study().optimize(suggest, n_trials=1)


def run(objective, n_trials, **arguments):
    study = new_study(**arguments)
    study.optimize(objective, n_trials=n_trials, catch=ArithmeticError)
    return study


def test_a_space_with_one_point():
    study = run(lambda t: t.suggest_float("x", 2, 2) + t.suggest_categorical("c", [1]), 15)
    assert {tuple(trial.params.values()) for trial in study.trials} == {(2.0, 1)}


def test_all_trials_failed():
    def objective(trial):
        trial.suggest_float("x", 0, 1)
        raise ArithmeticError

    xs = [trial.params["x"] for trial in run(objective, 20, n_startup_trials=5).trials]
    assert len(set(xs)) == 20
    assert max(np.diff(np.sort(xs))) < 0.3  # it goes on looking everywhere


@pytest.mark.parametrize("value", [1.0, 0.0, 1e300, math.nan, math.inf, -math.inf])
def test_a_constant_or_not_finite_objective(value):
    xs = [
        trial.params["x"]
        for trial in run(lambda t: t.suggest_float("x", 0, 1) * 0 + value, 16, n_startup_trials=5).trials
    ]
    assert len(set(xs)) == 16


def test_an_infinite_value_is_never_best_for_the_model():
    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        return -math.inf if x < 0.3 else (x - 0.6) ** 2

    late = [trial.params["x"] for trial in run(objective, 25).trials[12:]]
    assert np.mean(np.array(late) < 0.3) < 0.2


def test_a_diverged_loss_does_not_set_the_scale():
    def objective(trial):
        x = trial.suggest_float("x", 0, 1)
        return 1e30 if x > 0.8 else (x - 0.35) ** 2

    assert run(objective, 25).best_value < 1e-4


def test_two_hundred_choices():
    names = [f"c{i}" for i in range(200)]
    study = run(
        lambda t: (names.index(t.suggest_categorical("c", names)) - 50) ** 2 / 1e4 + t.suggest_float("x", 0, 1), 30
    )
    assert len(study.trials) == 30
    assert len({trial.params["c"] for trial in study.trials}) > 5


def test_one_hundred_dimensions():
    study = run(lambda t: sum((t.suggest_float(f"x{i}", 0, 1) - 0.3) ** 2 for i in range(100)), 40)
    start = min(trial.value for trial in study.trials[:10])
    assert study.best_value < 0.8 * start


def test_many_rows_are_modelled_by_a_part_of_them():
    rng = np.random.default_rng(0)
    study = new_study()
    study.add_trials(
        [
            create_trial(
                params=dict(zip("xy", row, strict=True)), distributions=SPACE, value=float(((row - 0.3) ** 2).sum())
            )
            for row in rng.random((1500, 2))
        ]
    )
    trial = study.ask(SPACE)
    assert abs(trial.params["x"] - 0.3) < 0.05
    assert abs(trial.params["y"] - 0.3) < 0.05


# -------------------------------------------------------------------------------------------------------------- beliefs
def believer(direction="minimize"):
    """x matters much, on a logarithmic scale; y little; z is a category; the noise is real."""
    sign = 1.0 if direction == "minimize" else -1.0

    def objective(trial):
        x, y = trial.suggest_float("x", 1e-4, 1.0, log=True), trial.suggest_float("y", 0, 1)
        z = {"p": 0.0, "q": 0.3}[trial.suggest_categorical("z", ["p", "q"])]
        noise = 0.05 * np.random.default_rng(trial.number).standard_normal()
        return sign * (10 + (math.log10(x) + 2) ** 2 + 0.05 * y + z + noise)

    study = new_study(direction)
    study.optimize(objective, n_trials=35)
    return study


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_the_model_says_what_it_believes(direction):
    study = believer(direction)
    best = predicted_best(study)
    assert best.params in [trial.params for trial in study.trials]
    assert abs(math.log10(best.params["x"]) + 2) < 0.3
    assert best.mean == pytest.approx(10.0 if direction == "minimize" else -10.0, abs=0.15)
    assert 0 < best.sd < 0.1

    shares = importance(study)
    assert next(iter(shares)) == "x"
    assert sum(shares.values()) == pytest.approx(1.0)

    parts = slices(study, points=21)
    assert parts["x"].log
    assert len(parts["x"].values) == 21
    assert parts["z"].values == ["p", "q"]
    truth = 10 + (np.log10(parts["x"].values) + 2) ** 2 + 0.05 * best.params["y"]
    error = np.abs(parts["x"].mean - (truth if direction == "minimize" else -truth))
    assert np.median(error) < 0.15
    assert (parts["x"].sd > 0).all()


def test_expected_improvement_left_shrinks_as_the_study_goes_on():
    study = new_study()
    study.optimize(branin, n_trials=12)
    early = expected_improvement_share(study)
    study.optimize(branin, n_trials=48)
    late = expected_improvement_share(study)
    assert early > 1e-3
    assert late < early / 20
    assert expected_improvement_share(run(lambda t: t.suggest_float("x", 0, 1) * 0, 5)) == math.inf


def test_expected_improvement_left_has_the_sampler_s_model_of_constraints(monkeypatch):
    asked, offered = [], surrogate.offered
    monkeypatch.setattr(surrogate, "offered", lambda *size: asked.append(size) or offered(*size))
    place = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}
    for constrained in (False, True):
        study = new_study()
        for x, y in np.random.default_rng(0).random((12, 2)).tolist():
            more = {"constraints": {"c": x - 0.8}} if constrained else {}
            study.add_trial(create_trial(params={"x": x, "y": y}, distributions=place, value=x + y, **more))
        expected_improvement_share(study)
        asked.append(None)
    middle = asked.index(None)
    assert asked[: middle + 1] == asked[middle + 1 :]  # a component is offered to the model of the objective only


def test_slices_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    figure = plot_slices(believer(), tmp_path / "slices.png", points=9)
    assert [axes.get_xlabel() for axes in figure.axes] == ["x", "y", "z"]
    assert (tmp_path / "slices.png").stat().st_size > 1000


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-hpo-suite\[plot\]'"):
        plot_slices(new_study())


def test_nothing_to_believe_is_an_error():
    with pytest.raises(ValueError, match="no finished trials"):
        predicted_best(new_study())
    study = new_study(surrogate=Forest(n_estimators=5))
    study.optimize(branin, n_trials=12)
    assert predicted_best(study).sd >= 0
    with pytest.raises(ValueError, match="`importance` needs the built-in Gaussian process"):
        importance(study)
    with pytest.raises(ValueError, match="`points` must be >= 2, got 1"):
        slices(study, points=1)
