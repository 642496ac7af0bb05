"""The models of GaussianProcessSampler: other surrogates, warped targets, encodings, and what a model says."""

import math
import sys

import numpy as np
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import create_trial
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Matern

from lightning_hpo.samplers import (
    expected_improvement_share,
    importance,
    plot_slices,
    predicted_best,
    slices,
    surrogate,
)
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import Fitter
from lightning_hpo.samplers.targets import fit_targets
from lightning_hpo.space import from_unit, to_unit
from tests.support.samplers import MIXED, SPACE, branin, new_study, run


# ------------------------------------------------------------------------------------------------------------ surrogate
class Forest(RandomForestRegressor):
    def predict(self, X, return_std=False):
        trees = np.array([tree.predict(X) for tree in self.estimators_])
        return (trees.mean(axis=0), trees.std(axis=0)) if return_std else trees.mean(axis=0)


@pytest.mark.parametrize(
    "surrogate", [GaussianProcessRegressor(Matern(nu=2.5), alpha=1e-6, normalize_y=True), Forest(n_estimators=20)]
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
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


def test_a_study_without_finished_trials_is_an_error():
    with pytest.raises(ValueError, match="no finished trials"):
        predicted_best(new_study())
    study = new_study(surrogate=Forest(n_estimators=5))
    study.optimize(branin, n_trials=12)
    assert predicted_best(study).sd >= 0
    with pytest.raises(ValueError, match="`importance` needs the built-in Gaussian process"):
        importance(study)
    with pytest.raises(ValueError, match="`points` must be >= 2, got 1"):
        slices(study, points=1)
