"""The Gaussian process against scikit-learn and finite differences."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.distributions import FloatDistribution
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.gp import (
    GaussianProcess,
    Hyperparameters,
    fit,
    log_marginal_likelihood,
    log_prior,
    prior_mode,
)
from lightning_hpo.samplers.kernel import COMPONENTS
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import Fitter

GROUPS = np.array([0, 1, 1, 2])  # two columns share a length scale


def problem(seed, n=20):
    rng = np.random.default_rng(seed)
    theta = np.append(rng.normal(-0.5, 0.5, 3), [rng.normal(0, 1), rng.uniform(-7, -1)])
    return rng.random((n, 4)), rng.standard_normal(n), theta


def reference(x, y, theta):
    lengthscales = np.exp(theta[:-2])[GROUPS]
    kernel = np.exp(theta[-2]) * Matern(lengthscales, nu=2.5) + ConstantKernel(1.0) + WhiteKernel(np.exp(theta[-1]))
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=1e-300).fit(x, y)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_likelihood_and_posterior_equal_scikit_learn(seed):
    x, y, theta = problem(seed)
    expected = reference(x, y, theta)
    value, _ = log_marginal_likelihood(theta, x, y, GROUPS)
    np.testing.assert_allclose(value, expected.log_marginal_likelihood_value_, rtol=1e-8, atol=1e-8)

    points = np.random.default_rng(seed + 1).random((7, 4))
    mean, sd = GaussianProcess(x, y, GROUPS, Hyperparameters.from_log(theta)).posterior(points)
    expected_mean, expected_sd = expected.predict(points, return_std=True)
    np.testing.assert_allclose(mean, expected_mean, atol=1e-8)
    # scikit-learn's WhiteKernel counts the noise of a new observation
    np.testing.assert_allclose(sd**2 + np.exp(theta[-1]), expected_sd**2, atol=1e-8)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([None, *COMPONENTS]))
def test_gradients_equal_finite_differences(seed, component):
    x, y, theta = problem(seed)
    theta = theta if component is None else np.append(theta, 0.3)
    adds = None if component is None else COMPONENTS[component].of_rows(x, GROUPS)
    h = 1e-6
    for function in (
        lambda t: log_marginal_likelihood(t, x, y, GROUPS, adds),
        lambda t: log_prior(t, component),
    ):
        numeric = [(function(theta + h * e)[0] - function(theta - h * e)[0]) / (2 * h) for e in np.eye(len(theta))]
        np.testing.assert_allclose(function(theta)[1], numeric, rtol=1e-5, atol=1e-5)
    process = GaussianProcess(x, y, GROUPS, Hyperparameters.from_log(theta, component))
    point = np.random.default_rng(seed + 2).random(4)
    mean, sd, mean_gradient, sd_gradient = process.posterior_gradient(point)
    np.testing.assert_allclose([mean, sd], np.ravel(process.posterior(point[None])), rtol=1e-9)
    ends = [(process.posterior((point + h * e)[None]), process.posterior((point - h * e)[None])) for e in np.eye(4)]
    numeric = np.array([[(up[i][0] - down[i][0]) / (2 * h) for up, down in ends] for i in (0, 1)])
    np.testing.assert_allclose([mean_gradient, sd_gradient], numeric, rtol=1e-4, atol=1e-6)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 19), st.sampled_from([None, *COMPONENTS]))
def test_a_grown_posterior_equals_one_made_at_once(seed, first, component):
    x, y, theta = problem(seed)
    theta = theta if component is None else np.append(theta, 0.3)
    hyperparameters = Hyperparameters.from_log(theta, component)
    whole = GaussianProcess(x, y, GROUPS, hyperparameters)
    grown = GaussianProcess(x[:first], y[:first], GROUPS, hyperparameters).grow(x[first:], y[first:])
    points = np.random.default_rng(seed).random((5, 4))
    np.testing.assert_allclose(grown.posterior(points), whole.posterior(points), atol=1e-9)
    means = whole.posterior_mean_at_observations()
    np.testing.assert_allclose(means, whole.posterior(x)[0], atol=1e-9)


def test_fit_finds_the_relevant_column_and_the_noise():
    rng = np.random.default_rng(0)
    x = rng.random((80, 3))
    y = np.sin(8 * x[:, 1]) + 0.1 * rng.standard_normal(80)
    y = (y - y.mean()) / y.std()
    found, density = fit(x, y, np.arange(3), [prior_mode(3)])
    assert np.argmin(found.lengthscales) == 1
    assert 0.003 < found.noise < 0.06  # the truth: 0.02
    start = prior_mode(3).to_log()
    assert density > log_marginal_likelihood(start, x, y, np.arange(3))[0] + log_prior(start)[0]


@pytest.mark.parametrize(
    ("function", "component"),
    [
        (lambda x: np.abs(x - 0.3).sum(axis=1), "additive"),
        (lambda x: (x - 0.3).sum(axis=1) ** 2, "quadratic"),
        (lambda x: np.sin(7 * x[:, 0] * x[:, 1] + 5 * x[:, 2]) * np.cos(9 * x[:, 1] * x[:, 3]), None),
    ],
)
def test_the_model_of_a_study_has_the_component_that_fits_its_rows(function, component):
    x = np.random.default_rng(0).random((40, 4))
    encoding = Encoding({f"x{i}": FloatDistribution(0.0, 1.0) for i in range(4)})
    observations = Observations(x, np.ones(40), function(x), np.empty((0, 4)))
    found = Fitter().model(encoding, observations).process.hyperparameters
    assert found.component == component


def test_length_scales_stay_relatives_until_enough_rows_say_otherwise():
    rng = np.random.default_rng(0)
    ratios = []
    for n in (8, 80):
        x = rng.random((n, 2))
        y = np.sin(8 * x[:, 0])
        found, _ = fit(x, (y - y.mean()) / y.std(), np.arange(2), [prior_mode(2)])
        ratios.append(found.lengthscales[1] / found.lengthscales[0])
    assert ratios[0] < 8.0
    assert ratios[1] > 10 * ratios[0]


@pytest.mark.parametrize("groups", [1, 2, 6, 100])
def test_the_prior_mode_is_where_the_prior_is_flat(groups):
    mode = prior_mode(groups)
    np.testing.assert_allclose(log_prior(mode.to_log())[1], 0.0, atol=1e-9)
    assert mode.lengthscales[0] > 0.1


def test_a_dozen_unrelated_rows_do_not_make_the_model_rough():
    rng = np.random.default_rng(0)
    for _ in range(10):
        found, _ = fit(rng.random((12, 6)), rng.standard_normal(12), np.arange(6), [prior_mode(6)])
        assert found.lengthscales.min() > 0.1


def test_repeated_points_and_constant_targets_stay_finite():
    x = np.zeros((30, 2))
    process = GaussianProcess(x, np.zeros(30), np.arange(2), Hyperparameters(np.ones(2), 1.0, 1e-16))
    mean, sd = process.posterior(np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert np.isfinite(mean).all()
    assert sd[0] < 1e-4 < sd[1]


def test_bad_input_is_refused():
    x, y = np.zeros((3, 1)), np.zeros(3)
    with pytest.raises(ValueError, match="`noise` must be positive and finite, got 0"):
        Hyperparameters(np.ones(1), 1.0, 0.0)
    with pytest.raises(ValueError, match="shape"):
        GaussianProcess(x, y[:2], np.zeros(1, dtype=int), prior_mode(1))
    with pytest.raises(ValueError, match="finite"):
        fit(x, np.array([0.0, np.nan, 1.0]), np.zeros(1, dtype=int), [prior_mode(1)])
    with pytest.raises(ValueError, match="`starts`"):
        fit(x, y, np.zeros(1, dtype=int), [])


@pytest.mark.parametrize("module", ["gp", "acquisition"])
def test_imports_numpy_and_scipy_only(module):
    script = (
        f"import sys, lightning_hpo.samplers.{module}; "
        "sys.exit(' '.join({'optuna', 'torch', 'lightning', 'sklearn'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert not done.stderr.strip(), done.stderr
