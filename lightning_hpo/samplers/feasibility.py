"""How likely a configuration keeps its constraints: a Gaussian process for each, learned from the values it has had.

Every fifth trial has the logarithm of that probability added to its acquisition function, which for the expected
improvement is the expected *feasible* improvement (Gardner et al. 2014; Gelbart, Snoek & Adams 2014, arXiv 1403.5607).
It finds new feasible regions; but where the best feasible configuration lies on the edge of the feasible region, as it
mostly does, more than half of its trials lie beyond. So the other trials are held where the probability is at least
0.95. While no trial is feasible, the probability alone counts.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from lightning_hpo.samplers.acquisition import Terms, probability_of_improvement
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import Fitter, GaussianProcessModel

_SURE = math.log(0.95)
_PRICE = 1e7  # of a unit of log probability below it: more than any improvement is worth
_RHYTHM = 5  # every so many trials one is not held there
_CAREFUL = 0.25  # where between kept and broken labels the limit stands for the trials that are held; halfway else


@dataclass(frozen=True)
class Feasibility:
    """Models of all constraints of a study.

    Args:
        models: of each constraint.
        limits: value up to which each model takes its constraint for kept.
        known: whether a feasible trial is known.
        careful: whether a probability below 0.95 costs more than any improvement is worth.
    """

    models: tuple[GaussianProcessModel, ...] = ()
    limits: tuple[float, ...] = ()
    known: bool = True
    careful: bool = False

    def worth(self, units: Floats) -> Floats:
        """Return what is added to the acquisition function at search columns, shape (m,)."""
        probability = self.log_probability(units)
        return _PRICE * np.minimum(probability - _SURE, 0.0) if self.careful else probability

    def log_probability(self, units: Floats) -> Floats:
        """Return the log probability that all constraints are kept at search columns, shape (m,)."""
        total = np.zeros(len(units))
        for model, limit in zip(self.models, self._targets(), strict=True):
            total += probability_of_improvement(*model.posterior(units), limit)[0]
        return total

    def gradient(self, unit: Floats) -> tuple[float, Floats | float]:
        """Return the worth at one point, shape (d,), with its gradient in the continuous search columns."""
        total, slope = 0.0, np.zeros(1)
        for model, limit in zip(self.models, self._targets(), strict=True):
            mean, sd, mean_gradient, sd_gradient = model.gradient(unit)
            value, by_mean, by_sd = probability_of_improvement(np.array([mean]), np.array([sd]), limit)
            total += float(value[0])
            slope = slope + by_mean[0] * mean_gradient + by_sd[0] * sd_gradient
        if not self.careful:
            return total, slope
        return (_PRICE * (total - _SURE), _PRICE * slope) if total < _SURE else (0.0, 0.0)

    def _targets(self) -> list[float]:
        return [
            float(model.targets.forward(np.array([limit]))[0])
            for model, limit in zip(self.models, self.limits, strict=True)
        ]


def fit_feasibility(fitter: Fitter, encoding: Encoding, observations: Observations, number: int = 0) -> Feasibility:
    """Fit a model to each constraint.

    Args:
        fitter: keeps its fits, which saves time and changes nothing.
        encoding: of the space.
        observations: of the study.
        number: of the trial that is suggested.
    """
    if observations.constraints is None:
        return Feasibility()
    valued = ~np.isnan(observations.values)
    known = bool((valued & (observations.constraints <= 0).all(axis=1)).any())
    careful = known and number % _RHYTHM != 0
    models, limits = [], []
    for values in observations.constraints.T:
        has = ~np.isnan(values)
        if has.any():
            rows = replace(
                observations, units=observations.units[has], fidelity=observations.fidelity[has], values=values[has],
                constraints=None,
            )  # fmt: skip
            models.append(fitter.model(encoding, rows))
            limits.append(_limit(values[has], _CAREFUL if careful else 0.5))
    return Feasibility(tuple(models), tuple(limits), known, careful)


def _limit(values: Floats, share: float) -> float:
    """Return 0; for a label, or a value that never falls below 0, a point between kept and broken ones."""
    kept, broken = values[values <= 0], values[values > 0]
    if not len(kept) or not len(broken) or (kept.max() < 0 and len(np.unique(values)) > 2):
        return 0.0
    return float(kept.max() + share * (broken.min() - kept.max()))


def no_objective(mean: Floats, sd: Floats, best: float) -> Terms:
    """Acquisition function while no trial is feasible: all points are worth the same."""
    del sd, best
    return np.zeros_like(mean), np.zeros_like(mean), np.zeros_like(mean)
