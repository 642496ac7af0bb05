"""Gaussian process regression in float64: Matérn 5/2, a length scale per group of columns, MAP hyperparameters.

=============  ===========================================================================  ==============
symbol         meaning                                                                      shape
=============  ===========================================================================  ==============
n, D, g        observations, feature columns, groups of columns that share a length scale
X, y           features and targets; targets are about standardised (the priors expect it)  (n, D), (n,)
ℓ, w           length scale of each group; 1/ℓ² of each column                               (g,), (D,)
s, σ²          signal variance, noise variance
τ²             prior variance of the constant mean, which is integrated out (fixed at 1)
r²(x, x')      Σ_c w_c (x_c - x'_c)²
k(x, x')       s (1 + √5 r + 5/3 r²) exp(-√5 r) + τ²        (Rasmussen & Williams eq. 4.17, 2.40)
t              scale of a component that is added to k: :mod:`lightning_hpo.samplers.kernel`
K, L, α        k(X, X) + σ² I, its Cholesky factor, K⁻¹ y                                    (n, n), (n, n), (n,)
θ              (log ℓ, log s, log σ²), and log t as a last with a component                  (g + 2,)
=============  ===========================================================================  ==============

A category is one column per value, 0 or √½, in one group: two different values are then at squared distance 1.

Sources: Rasmussen & Williams 2006, chapters 2, 4, 5; length-scale prior: Hvarfner, Hellsten & Nardi 2024
(arXiv 2402.02229), eq. 6, with a lower end.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import LinAlgError, blas, lapack
from scipy.optimize import minimize
from scipy.special import lambertw

from lightning_hpo.samplers.arrays import Floats, Groups
from lightning_hpo.samplers.kernel import COMPONENTS, Adds, matern, squared_distances

MEAN_VARIANCE = 1.0  # τ²
_LOG_2PI = math.log(2.0 * math.pi)
_KINSHIP = 0.5  # κ, see log_prior
_SHORTEST = math.sqrt(0.02)  # ℓ₀, see log_prior
# LogNormal(location, spread) of s and t, and of σ², as densities of these (not of their logarithms).
_SCALE_PRIOR = (1.0, 1.0)
_NOISE_PRIOR = (-4.0, 1.5)
_LENGTHSCALE_BOUNDS = (5e-3, 1e3)
_SCALE_BOUNDS = (1e-3, 1e4)
_NOISE_BOUNDS = (1e-8, 1e1)


@dataclass(frozen=True)
class Hyperparameters:
    """Hyperparameters of the kernel and the noise.

    Args:
        lengthscales: ℓ, above 0, shape (g,), in units of the features.
        scale: signal variance s, above 0.
        noise: noise variance σ², above 0.
        component: that is added to the Matérn kernel: "additive", "quadratic" or None.
        component_scale: its t, above 0.

    Raises:
        ValueError: if one of them is not a positive finite number.

    Example:
        >>> Hyperparameters(lengthscales=np.array([0.5]), scale=1.0, noise=1e-4).to_log().round(3).tolist()
        [-0.693, 0.0, -9.21]
    """

    lengthscales: Floats
    scale: float
    noise: float
    component: str | None = None
    component_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lengthscales", "scale", "noise", "component_scale"):
            value = getattr(self, name)
            if not np.all(np.isfinite(value) & (np.asarray(value) > 0)):
                raise ValueError(f"`{name}` must be positive and finite, got {value!r}.")

    def to_log(self) -> Floats:
        """Return θ."""
        last = () if self.component is None else (self.component_scale,)
        theta: Floats = np.log(np.append(self.lengthscales, (self.scale, self.noise, *last)))
        return theta

    @classmethod
    def from_log(cls, theta: Floats, component: str | None = None) -> "Hyperparameters":
        """Return the hyperparameters of θ."""
        natural = np.exp(theta)
        if component is None:
            return cls(natural[:-2], float(natural[-2]), float(natural[-1]))
        return cls(natural[:-3], float(natural[-3]), float(natural[-2]), component, float(natural[-1]))


def prior_mode(groups: int) -> Hyperparameters:
    """Return the hyperparameters that are most probable before any data.

    Args:
        groups: g, the number of length scales (the dimension in the length-scale prior).

    Example:
        >>> prior_mode(6).lengthscales.round(3)[0]
        np.float64(0.66)
    """
    location, spread = _lengthscale_prior(groups)
    # (location - log ℓ)/spread² - 1 + 2 (ℓ₀/ℓ)², the slope in log ℓ, is zero where t eᵗ = b, with t = 4 (spread ℓ₀/ℓ)²
    b = 4.0 * (spread * _SHORTEST) ** 2 * math.exp(2.0 * (spread**2 - location))
    return Hyperparameters(
        np.full(groups, 2.0 * spread * _SHORTEST / math.sqrt(lambertw(b).real)),
        math.exp(_SCALE_PRIOR[0] - _SCALE_PRIOR[1] ** 2),
        math.exp(_NOISE_PRIOR[0] - _NOISE_PRIOR[1] ** 2),
    )


def log_marginal_likelihood(
    theta: Floats, features: Floats, targets: Floats, groups: Groups, adds: Adds | None = None
) -> tuple[float, Floats]:
    """Return log p(y | X, θ) and its gradient (Rasmussen & Williams eq. 2.30 and 5.9).

    Args:
        theta: θ.
        features: X, shape (n, D).
        targets: y, shape (n,).
        groups: the group of each column, 0 to g - 1, shape (D,).
        adds: of the component (:meth:`Component.of_rows`), if there is one.

    Returns:
        The log likelihood and its gradient in θ.

    Raises:
        scipy.linalg.LinAlgError: if K is not positive definite in float64.
    """
    n = len(targets)
    natural = np.exp(theta)
    g = len(theta) - (2 if adds is None else 3)
    scale, noise = natural[g], natural[g + 1]
    weights = natural[groups] ** -2.0
    k, slope = matern(squared_distances(features, features, weights), scale)
    covariance = k + MEAN_VARIANCE
    component_gradient = None if adds is None else adds(natural[:g], natural[-1], covariance)
    covariance.flat[:: n + 1] += noise
    factor, info = lapack.dpotrf(covariance.T, lower=1, clean=1, overwrite_a=1)
    if info:
        raise LinAlgError("the covariance matrix is not positive definite")
    log_determinant = 2.0 * np.log(np.diagonal(factor)).sum()
    alpha, _ = lapack.dpotrs(factor, targets, lower=1)
    value = -0.5 * (targets @ alpha + log_determinant + n * _LOG_2PI)

    inverse, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # the lower triangle only
    inverse = inverse.T  # as C order: the upper triangle, zeros below
    trace = np.trace(inverse)
    gradient = np.zeros_like(theta)
    # ½ tr((α αᵀ - K⁻¹) ∂K/∂θ)   (eq. 5.9)
    gradient[g] = 0.5 * (alpha @ (k @ alpha) - 2.0 * np.vdot(inverse, k) + trace * scale)
    gradient[g + 1] = 0.5 * noise * (alpha @ alpha - trace)
    pull = np.multiply.outer(alpha, alpha)
    pull -= inverse  # upper triangle
    if component_gradient is not None:
        gradient[[*range(g), -1]] = component_gradient(pull)
    pull *= slope  # (α αᵀ - K⁻¹) ∘ ∂k/∂r²
    columns = np.empty((n, features.shape[1] + 1), order="F")
    columns[:, 0] = 1.0
    columns[:, 1:] = features
    product = blas.dsymm(1.0, pull.T, columns, lower=1)
    # Σ_ab P_ab (x_a - x_b)² = 2 Σ_a (P 1)_a x_a² - 2 xᵀ P x, column by column
    spread = 2.0 * (product[:, 0] @ features**2 - (features * product[:, 1:]).sum(axis=0))
    gradient[:g] -= np.bincount(groups, weights * spread, minlength=g)
    return float(value), gradient


def log_prior(theta: Floats, component: str | None = None) -> tuple[float, Floats]:
    """Return the log prior density of the hyperparameters at θ, up to a constant, and its gradient in θ.

    The density is that of (ℓ, s, σ²) themselves: hence the term -log in each (without it the mode of ℓ is far higher).

    Length scales are relatives: log ℓ_i - mean(log ℓ) ~ N(0, κ²). Rows gather around the first good optimum, and a
    parameter that does not matter there may matter elsewhere; a length scale of ten ranges learned there would make
    the model certain of regions where it has never been. Enough rows overrule it.

    None is much shorter than a seventh of the range, ℓ₀: a factor exp(-(ℓ₀/ℓ)²), as an inverse gamma density has it. A
    dozen rows cannot tell a function that is rough everywhere from one that they are too few for. The likelihood is
    flat there, the density above rises towards zero, and a model of unrelated rows spends trials on the closest
    neighbourhood of the best row.
    """
    g = len(theta) - (2 if component is None else 3)
    others = (_SCALE_PRIOR, _NOISE_PRIOR, _SCALE_PRIOR)[: len(theta) - g]
    locations, spreads = np.array([_lengthscale_prior(g)] * g + [*others]).T
    z = (theta - locations) / spreads
    apart = (theta[:g] - theta[:g].mean()) / _KINSHIP
    short = (_SHORTEST * np.exp(-theta[:g])) ** 2
    gradient = -z / spreads - 1.0
    gradient[:g] += 2.0 * short - apart / _KINSHIP  # Σ apart = 0: the mean's own part vanishes
    return float(-0.5 * (z @ z + apart @ apart) - theta.sum() - short.sum()), gradient


def fit(
    features: Floats, targets: Floats, groups: Groups, starts: Sequence[Hyperparameters], *, iterations: int = 60
) -> tuple[Hyperparameters, float]:
    """Find the hyperparameters of maximal posterior density (MAP) by L-BFGS-B from each start.

    Args:
        features: X, shape (n, D).
        targets: y, shape (n,), about standardised.
        groups: the group of each column, shape (D,).
        starts: one or more starting points, with the same component; the best end point wins, the earlier start at a
            tie.
        iterations: L-BFGS-B iterations per start.

    Returns:
        The hyperparameters and their log density, log p(y | X, θ) + log p(θ).

    Raises:
        ValueError: if ``starts`` is empty, or X and y differ in length or are not finite.
    """
    if not starts:
        raise ValueError("`starts` must hold at least one Hyperparameters, got none.")
    _check(features, targets)

    component = starts[0].component
    adds = None if component is None else COMPONENTS[component].of_rows(features, groups)

    def negative(theta: Floats) -> tuple[float, Floats]:
        prior, prior_gradient = log_prior(theta, component)
        try:
            value, gradient = log_marginal_likelihood(theta, features, targets, groups, adds)
        except LinAlgError:
            return 1e10, np.zeros_like(theta)  # the line search steps back
        return -value - prior, -gradient - prior_gradient

    count = len(starts[0].lengthscales)
    others = [_SCALE_BOUNDS, _NOISE_BOUNDS] + ([] if component is None else [_SCALE_BOUNDS])
    bounds = np.log(np.array([_LENGTHSCALE_BOUNDS] * count + others))
    best: Any = None
    climb: Any = minimize  # the stubs cannot match a function that returns value and gradient
    for start in starts:
        first = np.clip(start.to_log(), bounds[:, 0], bounds[:, 1])
        options = {"maxiter": iterations, "gtol": 1e-2, "ftol": 1e-5}
        found = climb(negative, first, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
        if best is None or found.fun < best.fun:
            best = found
    return Hyperparameters.from_log(best.x, component), -float(best.fun)


class GaussianProcess:
    """The posterior of a Gaussian process given observations; immutable.

    Args:
        features: X, shape (n, D).
        targets: y, shape (n,).
        groups: the group of each column, shape (D,).
        hyperparameters: ℓ of shape (g,), s and σ².

    Raises:
        ValueError: if X and y differ in length or are not finite.

    Example:
        >>> x = np.linspace(0.0, 1.0, 9)[:, None]
        >>> process = GaussianProcess(x, np.sin(6.0 * x[:, 0]), np.zeros(1, dtype=int), prior_mode(1))
        >>> mean, sd = process.posterior(np.array([[0.3]]))
        >>> bool(abs(mean[0] - np.sin(1.8)) < 0.05)
        True
    """

    def __init__(self, features: Floats, targets: Floats, groups: Groups, hyperparameters: Hyperparameters) -> None:
        _check(features, targets)
        self.hyperparameters = hyperparameters
        self.groups = groups
        self.features = features
        self.targets = targets
        self.weights = hyperparameters.lengthscales[groups] ** -2.0
        make = COMPONENTS.get(hyperparameters.component or "")
        lengthscales, scale = hyperparameters.lengthscales, hyperparameters.component_scale
        self.component = make(lengthscales, scale, groups) if make else None
        self.factor, self.jitter = _cholesky(self._cross(features, features), hyperparameters.noise)
        self._solve()

    def _solve(self) -> None:
        self.alpha: Floats = lapack.dpotrs(self.factor, self.targets, lower=1)[0]

    def grow(self, features: Floats, targets: Floats) -> "GaussianProcess":
        """Return the posterior with m more observations, at O(n² m) instead of O((n + m)³).

        The new rows of the Cholesky factor are (L⁻¹ K₁₂)ᵀ and the factor of the Schur complement.

        Args:
            features: shape (m, D).
            targets: shape (m,).
        """
        _check(features, targets)
        if not len(targets):
            return self
        n, total = len(self.targets), len(self.targets) + len(targets)
        cross = blas.dtrsm(1.0, self.factor, self._cross(self.features, features), lower=1)
        block = self._cross(features, features) - cross.T @ cross
        grown = object.__new__(GaussianProcess)
        grown.hyperparameters, grown.groups, grown.weights = self.hyperparameters, self.groups, self.weights
        grown.component = self.component
        grown.features = np.concatenate([self.features, features])
        grown.targets = np.concatenate([self.targets, targets])
        corner, grown.jitter = _cholesky(block, self.hyperparameters.noise)
        grown.factor = np.zeros((total, total), order="F")
        grown.factor[:n, :n] = self.factor
        grown.factor[n:, :n] = cross.T
        grown.factor[n:, n:] = corner
        grown._solve()
        return grown

    def posterior(self, features: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of the noise-free function (Rasmussen & Williams eq. 2.25, 2.26).

        Args:
            features: shape (m, D).

        Returns:
            Two arrays of shape (m,).
        """
        cross = self._cross(self.features, features)
        mean = cross.T @ self.alpha
        solved = blas.dtrsm(1.0, self.factor, cross, lower=1, overwrite_b=1)
        variance = self._variance(features) - np.einsum("ij,ij->j", solved, solved)
        return mean, np.sqrt(np.maximum(variance, _MINIMAL_VARIANCE))

    def posterior_gradient(self, feature: Floats) -> tuple[float, float, Floats, Floats]:
        """Return mean and standard deviation at one point, and their gradients.

        Args:
            feature: shape (D,).

        Returns:
            mean, sd, ∂mean/∂x and ∂sd/∂x, the gradients of shape (D,).
        """
        difference = self.features - feature
        squared = (difference * difference) @ self.weights
        k, slope = matern(squared, self.hyperparameters.scale)
        k += MEAN_VARIANCE
        slopes, own = np.zeros((1, 1)), np.zeros(1)
        if self.component is not None:
            more, slopes, own = self.component.at(self.features, feature)
            k += more
        mean = float(k @ self.alpha)
        solved = blas.dtrsv(self.factor, k, lower=1)
        variance = float(self._variance(feature[None])[0]) - float(solved @ solved)
        # ∂k/∂x_c = -2 w_c (X_c - x_c) ∂k/∂r²
        both = np.empty((2, len(k)))
        both[0] = self.alpha
        both[1] = blas.dtrsv(self.factor, solved, lower=1, trans=1)
        gradients = (both * slope) @ difference * (-2.0 * self.weights)
        if self.component is not None:
            gradients += both @ slopes.T
        if variance <= _MINIMAL_VARIANCE:
            return mean, math.sqrt(_MINIMAL_VARIANCE), gradients[0], np.zeros_like(feature)
        sd = math.sqrt(variance)
        return mean, sd, gradients[0], (own - gradients[1]) / sd

    def posterior_mean_at_observations(self) -> Floats:
        """Return the posterior mean of the noise-free function at X, shape (n,): y - σ² α."""
        return self.targets - (self.hyperparameters.noise + self.jitter) * self.alpha

    def _cross(self, first: Floats, second: Floats) -> Floats:
        # computed as k(second, first) and transposed: Fortran order without a copy
        k, _ = matern(squared_distances(second, first, self.weights), self.hyperparameters.scale)
        k += MEAN_VARIANCE
        if self.component is not None:
            k += self.component.cross(second, first)
        return k.T

    def _variance(self, features: Floats) -> Floats:
        plain = self.hyperparameters.scale + MEAN_VARIANCE
        return np.full(len(features), plain) if self.component is None else plain + self.component.variance(features)


_MINIMAL_VARIANCE = 1e-16


def _check(features: Floats, targets: Floats) -> None:
    if features.ndim != 2 or features.shape[0] != len(targets):
        raise ValueError(f"X must have shape (n, D) with n = {len(targets)} targets, got {features.shape}.")
    if not (np.isfinite(features).all() and np.isfinite(targets).all()):
        raise ValueError("features and targets must be finite; leave out or impute failed observations first.")


def _lengthscale_prior(dimension: int) -> tuple[float, float]:
    return math.sqrt(2.0) + 0.5 * math.log(dimension), math.sqrt(3.0)  # Hvarfner et al. 2024, eq. 6


def _cholesky(covariance: Floats, noise: float) -> tuple[Floats, float]:
    """Lower factor of covariance + noise I, with the least jitter out of 0, 1e-10, 1e-9, ... that makes it exist."""
    n = len(covariance)
    largest = float(covariance.diagonal().max())
    for jitter in (0.0, *(largest * 10.0**power for power in range(-12, 1))):
        noisy = covariance.copy(order="F")
        noisy[np.arange(n), np.arange(n)] += noise + jitter
        factor, info = lapack.dpotrf(noisy, lower=1, clean=1, overwrite_a=1)
        if not info:
            return factor, jitter
    raise LinAlgError("the covariance matrix is not positive definite, even with jitter")
