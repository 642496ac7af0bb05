"""Wrong arguments of GaussianProcessSampler, and spaces and objectives at their limits."""

import math

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor

from lightning_hpo.samplers import GaussianProcessSampler
from tests.support.samplers import SPACE, new_study, run


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
