"""Acquisition functions for minimisation, with their derivatives: how much is an evaluation worth?

Each function maps the posterior of the objective at m points to a value that is to be *maximised*, and returns it with
its derivatives in mean and standard deviation; the gradient in the point follows by the chain rule:
∇a = ∂a/∂μ ∇μ + ∂a/∂σ ∇σ.

=========  =================================================================================  =====
symbol     meaning                                                                            shape
=========  =================================================================================  =====
μ, σ       posterior mean and standard deviation of the noise-free objective, σ > 0           (m,)
best       the value to be undercut: the lowest posterior mean at an observed point where there
           is noise (the lowest observed value is then a lucky draw), else the lowest value
z          (best - μ) / σ                                                                     (m,)
φ, Φ       density and distribution function of the standard normal
h(z)       φ(z) + z Φ(z), so that EI = σ h(z)
=========  =================================================================================  =====

Sources: Jones, Schonlau & Welch 1998 (EI); Ament et al. 2023, arXiv 2310.20708, section 4.1 (log EI); Srinivas et al.
2010 (UCB); Kushner 1964 (PI).
"""

import math
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx, log_ndtr, ndtr

Floats: TypeAlias = NDArray[np.float64]
Terms: TypeAlias = tuple[Floats, Floats, Floats]
AcquisitionFunction: TypeAlias = Callable[[Floats, Floats, float], Terms]

_SQRT_HALF_PI = math.sqrt(0.5 * math.pi)
_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_ASYMPTOTIC = -50.0  # below it, 1 + z m(z) cancels and its series in 1/z² has an error below 1e-12


def expected_improvement(mean: Floats, sd: Floats, best: float) -> Terms:
    """Return EI = E[max(best - f, 0)] = σ h(z) (Jones et al. 1998, eq. 15).

    It is exactly zero, with zero gradient, where z < -38: optimise :func:`log_expected_improvement` instead.

    Args:
        mean: μ, shape (m,), in units of the objective.
        sd: σ > 0, shape (m,).
        best: the value to undercut.

    Returns:
        EI, ∂EI/∂μ = -Φ(z) and ∂EI/∂σ = φ(z), each of shape (m,).

    Example:
        >>> value, _, _ = expected_improvement(np.array([0.0]), np.array([1.0]), 0.0)
        >>> value.round(4)
        array([0.3989])
    """
    z = (best - mean) / sd
    return sd * np.exp(_h_terms(z)[0]), -ndtr(z), _density(z)


def log_expected_improvement(mean: Floats, sd: Floats, best: float) -> Terms:
    """Return log EI = log σ + log h(z), accurate where EI itself underflows (z = -1e5 and below).

    For z ≤ -1 with m(z) = Φ(z)/φ(z): h = φ (1 + z m); far out, 1 + z m is taken from its series in 1/z²
    (Ament et al. 2023, eq. 9, has the same three regions).

    Args:
        mean: μ, shape (m,), in units of the objective.
        sd: σ > 0, shape (m,).
        best: the value to undercut.

    Returns:
        log EI, its derivative in μ, -Φ/(σ h), and in σ, φ/(σ h), each of shape (m,).

    Example:
        >>> value, _, _ = log_expected_improvement(np.array([1e5]), np.array([1.0]), 0.0)
        >>> value.round(1)
        array([-5.00000002e+09])
    """
    z = (best - mean) / sd
    log_h, share, density = _h_terms(z)
    return np.log(sd) + log_h, -share / sd, density / sd


def probability_of_improvement(mean: Floats, sd: Floats, best: float) -> Terms:
    """Return log PI = log Φ(z), the log probability that the objective lies below ``best`` (Kushner 1964).

    Args:
        mean: μ, shape (m,), in units of the objective.
        sd: σ > 0, shape (m,).
        best: the value to undercut.

    Returns:
        log Φ(z) and its derivatives in μ and σ, each of shape (m,).

    Example:
        >>> value, _, _ = probability_of_improvement(np.array([0.0]), np.array([1.0]), 0.0)
        >>> np.exp(value)
        array([0.5])
    """
    z = (best - mean) / sd
    hazard = np.empty_like(z)  # φ/Φ
    low = z < -1.0
    hazard[low] = 1.0 / (_SQRT_HALF_PI * erfcx(-z[low] / math.sqrt(2.0)))
    hazard[~low] = _density(z[~low]) / ndtr(z[~low])
    return log_ndtr(z), -hazard / sd, -z * hazard / sd


def lower_confidence_bound(mean: Floats, sd: Floats, best: float = 0.0, *, beta: float = 2.0) -> Terms:
    """Return -(μ - β σ): UCB of the negated objective, optimistic by β standard deviations (Srinivas et al. 2010).

    Args:
        mean: μ, shape (m,), in units of the objective.
        sd: σ > 0, shape (m,).
        best: not used; it is here so that all acquisition functions are called alike.
        beta: standard deviations of optimism, ≥ 0.

    Returns:
        The value, and its derivatives -1 and β, each of shape (m,).

    Raises:
        ValueError: if ``beta`` is negative.

    Example:
        >>> lower_confidence_bound(np.array([1.0]), np.array([0.5]), beta=2.0)[0]
        array([0.])
    """
    del best
    if not beta >= 0:
        raise ValueError(f"`beta` must be >= 0, got {beta}.")
    return beta * sd - mean, np.full_like(mean, -1.0), np.full_like(sd, beta)


def _density(z: Floats) -> Floats:
    density: Floats = np.exp(-0.5 * z * z - _LOG_SQRT_2PI)
    return density


def _h_terms(z: Floats) -> Terms:
    """Log h(z), and Φ/h and φ/h: its derivatives in z and (by way of log σ) in σ."""
    low = z < -1.0
    if low.all():
        return _tail_terms(z)
    if not low.any():
        return _near_terms(z)
    terms = np.empty((3, len(z)))
    terms[:, low] = _tail_terms(z[low])
    terms[:, ~low] = _near_terms(z[~low])
    return terms[0], terms[1], terms[2]


def _near_terms(z: Floats) -> Terms:
    density, share = _density(z), ndtr(z)
    h = density + z * share
    return np.log(h), share / h, density / h


def _tail_terms(z: Floats) -> Terms:
    """For z ≤ -1, from m = Φ/φ and the gap 1 + z m = h/φ."""
    m = _SQRT_HALF_PI * erfcx(z * -math.sqrt(0.5))
    gap = 1.0 + z * m
    far = z < _ASYMPTOTIC
    if far.any():
        u = z[far] ** -2.0
        gap[far] = u * (1.0 - u * (3.0 - u * (15.0 - u * (105.0 - 945.0 * u))))
    return np.log(gap) - 0.5 * z * z - _LOG_SQRT_2PI, m / gap, 1.0 / gap
