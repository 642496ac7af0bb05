"""Acquisition functions against quadrature, finite differences and high precision."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from lightning_hpo.samplers.acquisition import (
    expected_improvement,
    log_expected_improvement,
    lower_confidence_bound,
    probability_of_improvement,
)

FUNCTIONS = [
    expected_improvement,
    log_expected_improvement,
    probability_of_improvement,
    partial(lower_confidence_bound, beta=1.5),
]


def at(function, mean, sd, best=0.0):
    return [float(term[0]) for term in function(np.array([mean]), np.array([sd]), best)]


@settings(max_examples=50, deadline=None)
@given(st.floats(-3, 3), st.floats(0.1, 3), st.floats(-2, 2))
def test_expected_improvement_equals_quadrature(mean, sd, best):
    expected, _ = quad(lambda f: (best - f) * norm.pdf(f, mean, sd), mean - 12 * sd, best, epsabs=1e-12)
    assert at(expected_improvement, mean, sd, best)[0] == pytest.approx(expected, abs=1e-8)
    assert np.exp(at(log_expected_improvement, mean, sd, best)[0]) == pytest.approx(expected, abs=1e-8)
    assert np.exp(at(probability_of_improvement, mean, sd, best)[0]) == pytest.approx(norm.cdf(best, mean, sd))


@settings(max_examples=100, deadline=None)
@given(st.floats(-5, 40), st.floats(0.05, 5))
@pytest.mark.parametrize("function", FUNCTIONS)
def test_derivatives_equal_finite_differences(function, mean, sd):
    h = 1e-6 * sd
    _, by_mean, by_sd = at(function, mean, sd)
    numeric_mean = (at(function, mean + h, sd)[0] - at(function, mean - h, sd)[0]) / (2 * h)
    numeric_sd = (at(function, mean, sd + h)[0] - at(function, mean, sd - h)[0]) / (2 * h)
    # the difference quotient loses digits in proportion to the value
    slack = 1e-9 * abs(at(function, mean, sd)[0]) / h * 1e-5 + 1e-6
    assert by_mean == pytest.approx(numeric_mean, rel=1e-4, abs=slack)
    assert by_sd == pytest.approx(numeric_sd, rel=1e-4, abs=slack)


def test_nothing_overflows_in_ten_thousand_cases():
    rng = np.random.default_rng(0)
    mean = rng.standard_normal(10_000) * 10.0 ** rng.uniform(-5, 5, 10_000)
    sd = 10.0 ** rng.uniform(-5, 3, 10_000)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        for function in FUNCTIONS:
            assert all(np.isfinite(term).all() for term in function(mean, sd, 0.3))


def test_log_ei_is_right_far_out_and_continuous_at_its_seams():
    # h(z) = φ(z)/z² (1 - 3/z² + ...): Abramowitz & Stegun 26.2.12
    z = np.array([-1e5])
    asymptotic = -0.5 * z**2 - 0.5 * np.log(2 * np.pi) - 2 * np.log(-z) + np.log1p(-3 / z**2)
    value, by_mean, _ = log_expected_improvement(-z, np.ones(1), 0.0)
    np.testing.assert_allclose(value, asymptotic, rtol=1e-15)
    np.testing.assert_allclose(by_mean, z, rtol=1e-9)  # d log EI/dμ = -Φ/h, about z
    for seam in (-1.0, -50.0):
        for below, above in log_expected_improvement(-np.array([seam - 1e-9, seam + 1e-9]), np.ones(2), 0.0):
            assert below == pytest.approx(above, rel=1e-8)


@settings(max_examples=100, deadline=None)
@given(st.floats(-1e5, 10), st.floats(1e-3, 10))
def test_log_ei_falls_with_the_mean_and_stays_below_its_bound(z, gap):
    values = log_expected_improvement(-np.array([z, z - gap]), np.ones(2), 0.0)[0]
    assert values[1] < values[0]
    if z < 0:  # h(z) = φ(z) + z Φ(z) < φ(z)
        assert values[0] <= -0.5 * z * z - 0.5 * np.log(2 * np.pi) + 1e-9


def test_confidence_bound_refuses_negative_beta():
    with pytest.raises(ValueError, match="`beta` must be >= 0, got -1"):
        lower_confidence_bound(np.zeros(1), np.ones(1), beta=-1)
