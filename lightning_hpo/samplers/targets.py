"""Output transforms: values of the objective as targets for a Gaussian process, and back.

A Gaussian process expects targets about standard normal. Losses are not: the worse half of a random design often spans
orders of magnitude that do not matter for finding the best; a function with a few deep holes is the opposite, flat for
the most part, and a model of its plain values is certain that no other hole can be as deep as the first one found.
Monotone transforms compress one half and leave the other as it is; m is the median and c = m - min y:

* ``half_log``: above m, y becomes m + c log(1 + (y - m)/c).
* ``better_log``: below m, y becomes m - 0.3 c log(1 + (m - y)/(0.3 c)).
* ``half_rank``: above m, y becomes the normal quantile of its rank, scaled by the spread of the better half
  (Song et al. 2024, arXiv 2408.11527, section on output warping).

The first two are smooth, so that their Jacobian is known and the choice among them and none can be made by the marginal
likelihood of the *original* values (Snelson, Rasmussen & Ghahramani 2004, eq. 6).
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.special import ndtri

from lightning_hpo.samplers.arrays import Floats

WarpName = Literal["none", "half_log", "better_log", "half_rank"]
# Rows gather at the optimum, and the transform follows them, but not without end: the spread is at least a hundredth of
# that of the first rows.
_EARLY, _LEAST = 20, 1e-2
_KNEE = 0.3  # of better_log: compression begins at this share of the better half's depth
_FURTHEST = 1e3  # values above median + 1e3 (median - min) count as that: a diverged loss must not set the scale


@dataclass(frozen=True)
class Targets:
    """A fitted transform.

    Args:
        warp: its name.
        median: of the fitted values.
        spread: about median - min, > 0.
        knots: values and warped values to interpolate between, shape (2, k); used by ``half_rank`` only.
        mean: of the warped values.
        scale: standard deviation of the warped values, > 0.
        worst: the largest target among the fitted values; failed trials are given it.
    """

    warp: WarpName
    median: float
    spread: float
    knots: Floats
    mean: float
    scale: float
    worst: float

    def forward(self, values: Floats) -> Floats:
        """Return the targets of values, shape (n,); NaN (failed) becomes the worst target seen."""
        targets = (self._warp(np.minimum(values, self.median + _FURTHEST * self.spread)) - self.mean) / self.scale
        return np.where(np.isnan(values), self.worst, targets)

    def inverse(self, targets: Floats) -> Floats:
        """Return the values of targets, shape (n,)."""
        warped = targets * self.scale + self.mean
        if self.warp == "half_rank":
            return np.where(warped > self.median, np.interp(warped, self.knots[1], self.knots[0]), warped)
        side, knee = self._log_side()
        beyond = np.maximum(side * (warped - self.median), 0.0)
        return np.where(beyond > 0, self.median + side * knee * np.expm1(beyond / knee), warped)

    def log_jacobian(self, values: Floats) -> float:
        """Return Σ log |∂target/∂value| over the values that are not NaN; not defined for ``half_rank``."""
        values = np.minimum(values[~np.isnan(values)], self.median + _FURTHEST * self.spread)
        side, knee = self._log_side()
        slope = -np.log1p(np.maximum(side * (values - self.median), 0.0) / knee)
        return float(slope.sum() - len(values) * np.log(self.scale))

    def _warp(self, values: Floats) -> Floats:
        if self.warp == "half_rank":
            return np.where(values > self.median, np.interp(values, self.knots[0], self.knots[1]), values)
        side, knee = self._log_side()
        beyond = np.maximum(side * (values - self.median), 0.0)
        return np.where(beyond > 0, self.median + side * knee * np.log1p(beyond / knee), values)

    def _log_side(self) -> tuple[float, float]:
        """Which side of the median is compressed (1 above, -1 below, 0 none), and from which distance on."""
        return {"half_log": (1.0, self.spread), "better_log": (-1.0, _KNEE * self.spread)}.get(self.warp, (0.0, 1.0))


def fit_targets(values: Floats, warp: WarpName) -> Targets:
    """Fit a transform to values of an objective that is minimised.

    Args:
        values: shape (n,); NaN marks a failed trial.
        warp: name of the transform.

    Returns:
        The transform; for no finite or only equal values, a plain shift.

    Example:
        >>> targets = fit_targets(np.array([0.0, 1.0, 2.0, 3.0, 1e6]), "half_log")
        >>> targets.forward(np.array([0.0, 2.0, 1e6, np.nan])).round(1)
        array([-0.7, -0.4,  2. ,  2. ])
    """
    finite = np.sort(values[~np.isnan(values)])
    if not len(finite):
        return Targets("none", 0.0, 1.0, np.zeros((2, 1)), 0.0, 1.0, 1.0)
    early = float(np.median(values[~np.isnan(values)][:_EARLY]))
    median = float(np.median(finite))
    spread = max(median - float(finite[0]), _LEAST * (early - float(finite[0])))
    if spread <= 0:
        spread = float(finite[-1] - finite[0]) or 1.0  # most values are the best value
    finite = np.minimum(finite, median + _FURTHEST * spread)
    plain = Targets(warp, median, spread, _knots(finite, median), 0.0, 1.0, 0.0)
    warped = plain._warp(finite)  # noqa: SLF001  # a half-built instance of the same class
    mean = float(warped.mean())
    deviation = warped - mean
    largest = float(np.abs(deviation).max())
    if largest == 0:
        return Targets(warp, median, spread, plain.knots, mean, 1.0, 1.0)
    scale = largest * float(np.sqrt(np.mean((deviation / largest) ** 2)))  # no overflow near 1e300
    return Targets(warp, median, spread, plain.knots, mean, scale, float(deviation[-1] / scale))


def _knots(ordered: Floats, median: float) -> Floats:
    """Half-rank: values above the median and the normal quantiles of their ranks, scaled by the better half."""
    better = ordered[ordered <= median]
    deviation = float(np.sqrt(np.mean((better - median) ** 2)))
    values, first = np.unique(ordered[ordered > median], return_index=True)
    ranks = 0.5 + 0.5 * (first + 0.5) / (len(ordered) - len(better)) if len(values) else first  # within the worse half
    warped = median + deviation * ndtri(ranks)
    return np.stack([np.append(median, values), np.append(median, warped)])
