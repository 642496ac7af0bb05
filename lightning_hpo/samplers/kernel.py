"""The kernel of the Gaussian process: Matérn 5/2, and a component that may be added to it.

A dozen rows say little of a function of five parameters in general, and much of a simple one. Two simple kinds are
common among losses: each parameter acts alone (Duvenaud, Nickisch & Rasmussen 2011, arXiv 1112.4394), or the loss is
about a bowl. Each is a kernel that is added to the Matérn kernel with a scale of its own, t, where that makes the rows
more probable. Length scales are those of the Matérn kernel, shorter by √g in the additive one: in g dimensions a length
scale is longer than along one parameter by as much (Hvarfner et al. 2024, arXiv 2402.02229, section 4).

===========  ==========================================================
component    k(x, x')
===========  ==========================================================
additive     t/g Σ_i m(√g |x_i - x'_i| / ℓ_i), m the Matérn function
quadratic    t ((1 + zᵀz')² - 1), z = (x - ½) / ℓ
===========  ==========================================================

Symbols are those of :mod:`lightning_hpo.samplers.gp`; x_i is the part of x in group i.
"""

import math
from collections.abc import Callable
from typing import Protocol, TypeAlias

import numpy as np
from scipy.linalg import blas

from lightning_hpo.samplers.arrays import Floats, Groups

Adds: TypeAlias = Callable[[Floats, float, Floats], Callable[[Floats], Floats]]
"""Adds a component's covariance of the rows, given ℓ and t, to the upper triangle of an (n, n) matrix.

Returns the function from the upper triangle of P to ½ tr(P ∂K/∂θ) for θ = (log ℓ, log t), shape (g + 1,).
"""


class Component(Protocol):
    """A kernel that is added to the Matérn kernel, with its hyperparameters."""

    def __init__(self, lengthscales: Floats, scale: float, groups: Groups) -> None: ...

    @staticmethod
    def of_rows(features: Floats, groups: Groups) -> Adds:
        """Return what the marginal likelihood of rows needs."""

    def cross(self, first: Floats, second: Floats) -> Floats:
        """Return k of all pairs, shape (n, m)."""

    def variance(self, features: Floats) -> Floats:
        """Return k(x, x) of each row, shape (n,)."""

    def at(self, rows: Floats, feature: Floats) -> tuple[Floats, Floats, Floats]:
        """Return k(x, rows), shape (n,), its gradient in x, shape (D, n), and ½ ∇ k(x, x), shape (D,)."""


class Additive:
    """Functions of one parameter each."""

    def __init__(self, lengthscales: Floats, scale: float, groups: Groups) -> None:
        self.inverse = math.sqrt(5.0 * len(lengthscales)) / lengthscales
        self.scale, self.groups = scale, groups

    @staticmethod
    def of_rows(features: Floats, groups: Groups) -> Adds:
        """Return what the marginal likelihood of rows needs."""
        n = len(features)
        first, second = np.triu_indices(n, 1)
        upper = first * n + second
        apart = _apart(features[first], features[second], groups)

        def add(lengthscales: Floats, scale: float, covariance: Floats) -> Callable[[Floats], Floats]:
            distance = apart * (math.sqrt(5.0 * len(lengthscales)) / lengthscales)[:, None]
            decay = np.exp(-distance)
            decay *= scale / len(lengthscales)
            third = distance * distance
            third *= 1.0 / 3.0
            distance += 1.0
            slopes = decay * distance
            slopes *= third  # ∂/∂log ℓ of (1 + √5 r + 5/3 r²) exp(-√5 r)
            distance += third
            k = np.einsum("gm,gm->m", decay, distance)
            covariance.flat[upper] += k
            covariance.flat[:: n + 1] += scale

            def gradient(pull: Floats) -> Floats:
                among = pull.flat[upper]
                return np.append(slopes @ among, k @ among + 0.5 * scale * np.trace(pull))

            return gradient

        return add

    def cross(self, first: Floats, second: Floats) -> Floats:
        """Return k of all pairs, shape (n, m)."""
        k = np.zeros((len(first), len(second)))
        for group, inverse in enumerate(self.inverse):  # one by one, as all at once take too much memory
            columns = self.groups == group
            distance = _apart(first[:, None, columns], second[None, :, columns], np.zeros(columns.sum(), np.intp))[0]
            distance *= inverse
            k += np.exp(-distance) * (1.0 + distance + distance * distance / 3.0)
        return k * (self.scale / len(self.inverse))

    def variance(self, features: Floats) -> Floats:
        """Return k(x, x) of each row, shape (n,)."""
        return np.full(len(features), self.scale)

    def at(self, rows: Floats, feature: Floats) -> tuple[Floats, Floats, Floats]:
        """Return k(x, rows), shape (n,), its gradient in x, shape (D, n), and ½ ∇ k(x, x), shape (D,)."""
        distance = _apart(rows, feature, self.groups)
        distance *= self.inverse[:, None]
        decay = np.exp(-distance)
        decay *= self.scale / len(self.inverse)
        slope = decay * (1.0 + distance)
        distance *= distance
        distance *= decay
        k: Floats = slope.sum(axis=0) + distance.sum(axis=0) * (1.0 / 3.0)
        slope *= (self.inverse**2 / 3.0)[:, None]  # -2 ∂k/∂d², d the plain distance
        return k, slope[self.groups] * (rows - feature).T, np.zeros_like(feature)


class Quadratic:
    """Polynomials of degree two."""

    def __init__(self, lengthscales: Floats, scale: float, groups: Groups) -> None:
        self.scale, self.weights = scale, lengthscales[groups] ** -2.0

    @staticmethod
    def of_rows(features: Floats, groups: Groups) -> Adds:
        """Return what the marginal likelihood of rows needs."""
        n, centred = len(features), np.asfortranarray(features - 0.5)

        def add(lengthscales: Floats, scale: float, covariance: Floats) -> Callable[[Floats], Floats]:
            weights = lengthscales[groups] ** -2.0
            one_more = 1.0 + (centred * weights) @ centred.T  # 1 + zᵀz'
            k = scale * (one_more * one_more - 1.0)
            covariance += k

            def gradient(pull: Floats) -> Floats:
                product = blas.dsymm(1.0, (pull * one_more).T, centred, lower=1)
                by_column = -2.0 * scale * weights * (centred * product).sum(axis=0)
                by_scale = np.vdot(np.triu(pull), k) - 0.5 * pull.flat[:: n + 1] @ k.flat[:: n + 1]
                return np.append(np.bincount(groups, by_column, minlength=len(lengthscales)), by_scale)

            return gradient

        return add

    def cross(self, first: Floats, second: Floats) -> Floats:
        """Return k of all pairs, shape (n, m)."""
        one_more = 1.0 + ((first - 0.5) * self.weights) @ (second - 0.5).T
        k: Floats = self.scale * (one_more * one_more - 1.0)
        return k

    def variance(self, features: Floats) -> Floats:
        """Return k(x, x) of each row, shape (n,)."""
        one_more = 1.0 + ((features - 0.5) ** 2) @ self.weights
        k: Floats = self.scale * (one_more * one_more - 1.0)
        return k

    def at(self, rows: Floats, feature: Floats) -> tuple[Floats, Floats, Floats]:
        """Return k(x, rows), shape (n,), its gradient in x, shape (D, n), and ½ ∇ k(x, x), shape (D,)."""
        scaled = self.weights * (feature - 0.5)
        one_more = 1.0 + (rows - 0.5) @ scaled
        slopes = (2.0 * self.scale) * self.weights[:, None] * (rows - 0.5).T * one_more
        own = 2.0 * self.scale * (1.0 + (feature - 0.5) @ scaled) * scaled
        return self.scale * (one_more * one_more - 1.0), slopes, own


COMPONENTS: dict[str, type[Component]] = {"additive": Additive, "quadratic": Quadratic}
_MOST_ROWS, _MOST_ADDITIVE_GROUPS = 300, 20


def offered(rows: int, groups: int) -> tuple[str, ...]:
    """Return the components worth their cost: none of one parameter, or where rows say enough by themselves."""
    if groups == 1 or rows > _MOST_ROWS:
        return ()
    return ("additive", "quadratic") if groups <= _MOST_ADDITIVE_GROUPS else ("quadratic",)


def squared_distances(first: Floats, second: Floats, weights: Floats) -> Floats:
    """r² of all pairs; rounding in the expanded square is harmless, as k is flat (in r²: smooth) at r = 0."""
    root = np.sqrt(weights)
    a = first * root
    b = a if second is first else second * root
    squared = a @ b.T
    squared *= -2.0
    squared += np.einsum("ij,ij->i", a, a)[:, None]
    squared += np.einsum("ij,ij->i", b, b)
    return np.maximum(squared, 0.0, out=squared)


def matern(squared: Floats, scale: float) -> tuple[Floats, Floats]:
    """Return k without τ², and ∂k/∂r² = -5/6 s (1 + √5 r) exp(-√5 r)."""
    distance = np.sqrt(5.0 * squared)
    decay = np.exp(-distance)
    decay *= scale
    distance += 1.0
    slope = decay * distance
    k = slope + decay * squared * (5.0 / 3.0)
    slope *= -5.0 / 6.0
    return k, slope


def _apart(first: Floats, second: Floats, groups: Groups) -> Floats:
    """Distance in each group of columns, shape (g, ...); features are the last axis."""
    difference = np.moveaxis(first - second, -1, 0)
    count = int(groups.max()) + 1
    if count == len(groups):
        return np.abs(difference, order="C")
    squared = np.zeros((count, *difference.shape[1:]))
    for column, group in enumerate(groups):
        squared[group] += difference[column] ** 2
    return np.sqrt(squared)
