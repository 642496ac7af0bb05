"""The model of a study: which hyperparameters of the Gaussian process hold for which rows, and when they are fitted.

Everything here is a pure function of the rows, so that a new process suggests exactly as the old process would have. A
fit must not start from whatever the process happened to fit last; it starts from the fit at the last *anchor*, which
itself starts from the prior, and both are functions of the first rows alone:

=========  ==================================================  ==================================================
           at n rows, it uses the first ... of them            it decides
=========  ==================================================  ==================================================
anchor     1, 2, 3, ... growing by a fifth                     output transform, component of the kernel and
                                                               hyperparameters, from the prior with little and
                                                               with much noise
refit      every n to 50, 2nd to 100, 5th to 300, then 20th    hyperparameters, from those of the anchor
growth     n                                                   the Cholesky factor gains rows
=========  ==================================================  ==================================================

The cache keeps fits by the bytes of the rows that they saw: it saves time and changes nothing.
"""

import copy
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_hpo.samplers.arrays import Floats, Groups
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.gp import GaussianProcess, Hyperparameters, fit, prior_mode
from lightning_hpo.samplers.kernel import offered
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.targets import Targets, WarpName, fit_targets

MOST_ROWS = 1000  # a larger study is modelled by its best half thousand, an even sample of the rest, and the newest
MOST_ANCHOR_ROWS = 400
_CACHED_FITS = 16
_LITTLE_NOISE = 1e-4
MARGIN = 0.5  # by which a component must make the rows more probable


@dataclass(frozen=True)
class GaussianProcessModel:
    """A Gaussian process over the search columns of a space.

    Args:
        encoding: of the space.
        process: over the feature columns, and the fidelity as a last one if ``partial``.
        targets: the output transform.
        partial: whether some rows are not fully trained.
        best: the lowest posterior mean at full fidelity at an observed row (failed ones aside).
        means: these means, shape (k,).
        units: the search columns of these rows, shape (k, d).
    """

    encoding: Encoding
    process: GaussianProcess
    targets: Targets
    partial: bool
    best: float
    means: Floats
    units: Floats

    def posterior(self, units: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at search columns, shape (m, d), at full fidelity."""
        return self.process.posterior(_features(self.encoding, units, 1.0 if self.partial else None))

    def gradient(self, unit: Floats) -> tuple[float, float, Floats, Floats]:
        """Return mean, sd and their gradients in the continuous search columns, at one point, shape (d,)."""
        feature = _features(self.encoding, unit[None], 1.0 if self.partial else None)[0]
        mean, sd, mean_gradient, sd_gradient = self.process.posterior_gradient(feature)
        continuous = self.encoding.continuous
        columns, widths = self.encoding.first[continuous], self.encoding.widths[continuous]
        return mean, sd, mean_gradient[columns] / widths, sd_gradient[columns] / widths

    @property
    def lengthscales(self) -> Floats:
        """The length scale of each search column, shape (d,)."""
        return self.process.hyperparameters.lengthscales[: len(self.encoding)] * self.encoding.widths


@dataclass(frozen=True)
class RegressorModel:
    """A scikit-learn regressor with ``predict(X, return_std=True)`` over the feature columns of a space."""

    encoding: Encoding
    regressor: Any
    targets: Targets
    partial: bool
    best: float
    means: Floats
    units: Floats

    def posterior(self, units: Floats) -> tuple[Floats, Floats]:
        """Return mean and standard deviation at search columns, shape (m, d), at full fidelity."""
        features = _features(self.encoding, units, 1.0 if self.partial else None)
        mean, sd = self.regressor.predict(features, return_std=True)
        return np.asarray(mean, dtype=float), np.maximum(np.asarray(sd, dtype=float), 1e-9)


@dataclass(frozen=True)
class _Fit:
    hyperparameters: Hyperparameters
    targets: Targets
    rows: NDArray[np.intp]
    process: GaussianProcess


class Fitter:
    """Fits the Gaussian process of a study on the schedule above.

    Args:
        warp: "auto" chooses among none, ``half_log`` and ``better_log`` by marginal likelihood at each anchor; or one
            by name.
        components: whether a component may be added to the kernel where that makes the rows more probable.
    """

    def __init__(self, warp: WarpName | str = "auto", *, components: bool = True) -> None:
        self.warps: tuple[Any, ...] = ("none", "half_log", "better_log") if warp == "auto" else (warp,)
        self.components = components
        self._cache: dict[bytes, _Fit] = {}

    def model(self, encoding: Encoding, observations: Observations) -> GaussianProcessModel:
        """Return the model of one or more rows; pending rows are taken to have the value that the model expects.

        That keeps parallel suggestions apart (kriging believer: Ginsbourger, Le Riche & Carraro 2010, section 4.1).
        """
        partial = bool((observations.fidelity < 1.0).any())
        features = _features(encoding, observations.units, observations.fidelity if partial else None)
        groups = np.append(encoding.groups, len(encoding)) if partial else encoding.groups
        n = len(observations)
        first = _refit_point(n)
        found = self._refit(features[:first], observations.values[:first], groups)
        rows = np.append(found.rows, np.arange(first, n))
        process = found.process.grow(features[first:], found.targets.forward(observations.values[first:]))
        means = process.posterior_mean_at_observations()
        feasible = observations.candidates()[rows]
        units = observations.units[rows][feasible]
        if partial:
            means, _ = process.posterior(_features(encoding, units, 1.0))
        else:
            means = means[feasible]
        process = _believing(process, _features(encoding, observations.pending, 1.0 if partial else None))
        return GaussianProcessModel(encoding, process, found.targets, partial, float(means.min()), means, units)

    def _refit(self, features: Floats, values: Floats, groups: Groups) -> _Fit:
        key = _key(b"refit", features, values, groups)
        known = self._cache.get(key)
        if known is not None:
            return known
        first = _anchor_point(len(values))
        anchor = self._anchor(features[:first], values[:first], groups)
        rows = subset(values, MOST_ROWS)
        if len(rows) == len(anchor.rows):
            return anchor
        targets = fit_targets(values, anchor.targets.warp)
        y = targets.forward(values[rows])
        hyperparameters, _ = fit(features[rows], y, groups, [anchor.hyperparameters])
        process = GaussianProcess(features[rows], y, groups, hyperparameters)
        return self._remember(key, _Fit(hyperparameters, targets, rows, process))

    def _anchor(self, features: Floats, values: Floats, groups: Groups) -> _Fit:
        key = _key(b"anchor", features, values, groups)
        known = self._cache.get(key)
        if known is not None:
            return known
        rows = subset(values, MOST_ANCHOR_ROWS)
        mode = prior_mode(int(groups.max()) + 1)
        # little or much noise: the likelihood often has an optimum for each (Rasmussen & Williams, figure 5.5)
        starts = [Hyperparameters(mode.lengthscales, mode.scale, noise) for noise in (_LITTLE_NOISE, 1e-1)]
        transforms = [fit_targets(values, warp) for warp in self.warps]

        def fitted(targets: Targets, first: Sequence[Hyperparameters]) -> tuple[float, Targets, Hyperparameters]:
            found, density = fit(features[rows], targets.forward(values[rows]), groups, first)
            if len(self.warps) > 1:
                density += targets.log_jacobian(values[rows])
            return density, targets, found

        candidates = [fitted(targets, starts) for targets in transforms]
        components = offered(len(rows), len(mode.lengthscales)) if self.components else ()
        if components:
            best = max(candidates, key=lambda candidate: candidate[0])
            for _, targets, plain in {id(found): found for found in (candidates[0], best)}.values():
                for component in components:
                    first = Hyperparameters(mode.lengthscales, 0.5 * mode.scale, plain.noise, component)
                    density, _, found = fitted(targets, [first])
                    candidates.append((density - MARGIN, targets, found))
        _, targets, found = max(candidates, key=lambda candidate: candidate[0])
        process = GaussianProcess(features[rows], targets.forward(values[rows]), groups, found)
        return self._remember(key, _Fit(found, targets, rows, process))

    def _remember(self, key: bytes, found: _Fit) -> _Fit:
        # a new dictionary: other threads may be reading the old
        self._cache = dict([*self._cache.items(), (key, found)][-_CACHED_FITS:])
        return found


def fit_few(encoding: Encoding, observations: Observations) -> GaussianProcessModel:
    """Fit a model to a few fully trained rows, from the prior with little noise.

    The output transform is none or ``half_log``, by marginal likelihood.

    Args:
        encoding: of the box around the rows.
        observations: with a value each; pending rows are taken to have the value that the model expects.
    """
    features, values = encoding.features(observations.units), observations.values
    mode = prior_mode(len(encoding))
    start = Hyperparameters(mode.lengthscales, mode.scale, _LITTLE_NOISE)
    warps: tuple[WarpName, ...] = ("none", "half_log")
    candidates = []
    for targets in (fit_targets(values, warp) for warp in warps):
        found, density = fit(features, targets.forward(values), encoding.groups, [start])
        candidates.append((density + targets.log_jacobian(values), targets, found))
    _, targets, found = max(candidates, key=lambda candidate: candidate[0])
    process = GaussianProcess(features, targets.forward(values), encoding.groups, found)
    means, pending = process.posterior_mean_at_observations(), encoding.features(observations.pending)
    best = min(means.min(), process.posterior(pending)[0].min(initial=math.inf))
    process = _believing(process, pending)
    return GaussianProcessModel(encoding, process, targets, False, float(best), means, observations.units)


def fit_regressor(regressor: Any, encoding: Encoding, observations: Observations, seed: int) -> RegressorModel:
    """Fit a copy of a scikit-learn regressor to the rows, with z-scored targets.

    Args:
        regressor: with ``fit`` and ``predict(X, return_std=True)``; an unset ``random_state`` is set from ``seed``.
        encoding: of the space.
        observations: one or more rows; pending rows are taken to have the value that the model expects.
        seed: of the fit.
    """
    regressor = copy.deepcopy(regressor)
    if "random_state" in regressor.get_params() and regressor.get_params()["random_state"] is None:
        regressor.set_params(random_state=seed)
    partial = bool((observations.fidelity < 1.0).any())
    features = _features(encoding, observations.units, observations.fidelity if partial else None)
    targets = fit_targets(observations.values, "none")
    y = targets.forward(observations.values)
    regressor.fit(features, y)
    feasible = observations.candidates()
    units = observations.units[feasible]
    full = _features(encoding, units, 1.0 if partial else None)
    means = np.asarray(regressor.predict(full, return_std=True)[0], dtype=float)
    if len(observations.pending):
        pending = _features(encoding, observations.pending, 1.0 if partial else None)
        expected = regressor.predict(pending, return_std=True)[0]
        regressor.fit(np.concatenate([features, pending]), np.concatenate([y, expected]))
    return RegressorModel(encoding, regressor, targets, partial, float(means.min()), means, units)


def _believing(process: GaussianProcess, pending: Floats) -> GaussianProcess:
    """Take pending rows to have the value that the model expects."""
    return process.grow(pending, process.posterior(pending)[0]) if len(pending) else process


def _features(encoding: Encoding, units: Floats, fidelity: Floats | float | None) -> Floats:
    features = encoding.features(units)
    if fidelity is None:
        return features
    return np.column_stack([features, np.broadcast_to(fidelity, len(units))])


def _refit_point(n: int) -> int:
    return n - n % (1 if n <= 50 else 2 if n <= 100 else 5 if n <= 300 else 20)


def _anchor_point(n: int) -> int:
    anchor = 1
    while (following := anchor + max(1, anchor // 5)) <= n:
        anchor = following
    return anchor


def subset(values: Floats, most: int) -> NDArray[np.intp]:
    """At most so many rows, in order: all, or the best ones for half of them and an even sample of the others."""
    n = len(values)
    if n <= most:
        return np.arange(n)
    order = np.argsort(values, kind="stable")  # NaN last
    rest = np.sort(order[most // 2 :])
    sample = rest[np.linspace(0, len(rest) - 1, most - most // 2).astype(int)]
    return np.sort(np.concatenate([order[: most // 2], sample]))


def _key(kind: bytes, features: Floats, values: Floats, groups: Groups) -> bytes:
    digest = hashlib.blake2b(kind, digest_size=16)
    parts: Sequence[NDArray[Any]] = (np.array(features.shape), features, values, groups)
    for part in parts:
        digest.update(np.ascontiguousarray(part).tobytes())
    return digest.digest()
