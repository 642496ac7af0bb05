"""BOHB's model: a kernel density of the good configurations, and another of the rest.

A suggestion is the draw, of many near good configurations, whose density among the good is largest
in relation to that among the others. Kernels are products over the parameters:

* a number: a Gaussian on its position in [0, 1], with bandwidth 1.06 sd n**(-1 / (d + 4)) (Scott's rule of thumb)
* a choice without order: the same choice with probability 1 - h + h / k, each other choice with h / k

A configuration that lacks a conditional parameter is given a random value of it, anew for each suggestion, as BOHB's
implementation does; what the suggestion itself lacks is left out.

=======  ======================================================
n        number of configurations in a density
d        number of parameters
k        number of choices
h        bandwidth
=======  ======================================================
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.joint import JointSampler, violation
from lightning_hpo.space import SearchSpace

Floats = NDArray[np.float64]

_GOOD = 0.15  # share of the values that count as good
_CANDIDATES = 64
_WIDER = 3.0  # bandwidths of a draw, so that draws go beyond the known configurations
_NARROWEST = 1e-3  # bandwidth of a number on [0, 1]
_LEAST_CHANGE = 0.2  # bandwidth of a choice


class KernelDensitySampler(JointSampler):
    """Suggests configurations that resemble the best ones, and not the others.

    Cheap (well below a millisecond for hundreds of trials) and wide: unimportant parameters stay nearly uniform. It
    waits for d + 3 complete trials, d the number of parameters, and draws at random before. Trials without a finite
    value do not count, and infeasible ones come after feasible ones. A suggestion is a function of seed, trial number
    and the complete trials, so a resumed study continues as if it had not been interrupted (with one worker).

    Args:
        seed: keys all random numbers, with the trial's number; an integer >= 0.
        space: a parsed space with conditions: the densities are of all branches together. A tuner gives its own. None
            draws a parameter that not every trial has at random.

    Raises:
        ValueError: if ``seed`` is negative or no integer; at the first suggestion, if the study has several objectives.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=KernelDensitySampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -5.0, 5.0) ** 2, n_trials=60)
        >>> study.best_value < 0.05
        True

    Source: Falkner et al. 2018, *BOHB* (arXiv 1807.01774), section 3.2 and Algorithm 2; its constants.
    """

    def __init__(self, seed: int = 0, *, space: SearchSpace | None = None) -> None:
        super().__init__(seed, space)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that all complete trials have."""
        del trial
        self.sign(study)
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        modelled = self.modelled(intersection_search_space(complete))
        return {name: distribution for name, distribution in modelled.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest all shared parameters jointly; at random while there are too few values."""
        sign = self.sign(study)
        if not search_space:
            return {}
        encoding = self.encoding(search_space)
        rng = np.random.default_rng([self.seed, trial.number])
        ranked = sorted(
            (violation(other), sign * other.value, other.number, other.params)
            for other in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            if other.value is not None and math.isfinite(other.value) and encoding.holds(other.params)
        )
        d, n = len(encoding), len(ranked)
        if n < d + 3:
            return self.at_random(encoding, rng)
        good = min(max(math.ceil(_GOOD * n), min(d + 1, n // 2)), n - 2)
        units = encoding.filled(encoding.encode([params for *_, params in ranked]), rng)
        return encoding.decode(_suggest(encoding, units[:good], units[good:], rng))


def _suggest(encoding: Encoding, good: Floats, other: Floats, rng: np.random.Generator) -> Floats:
    """Return the best of many draws near ``good``, shape (d,)."""
    width = _bandwidths(encoding, good)
    draws = good[rng.integers(len(good), size=_CANDIDATES)]
    for i, column in enumerate(encoding.columns):
        if column.kind == "categorical":
            change = rng.random(_CANDIDATES) < width[i]
            draws[change, i] = rng.integers(len(column.positions), size=int(change.sum()))
        else:
            draws[:, i] = _truncated_normal(draws[:, i], _WIDER * width[i], rng)
    ratio = _log_density(encoding, draws, good, width) - _log_density(
        encoding, draws, other, _bandwidths(encoding, other)
    )
    best: Floats = draws[int(ratio.argmax())]
    return best


def _truncated_normal(means: Floats, sd: float, rng: np.random.Generator) -> Floats:
    """Draw within [0, 1] by trying again; a mean in [0, 1] succeeds often enough however wide ``sd`` is here."""
    draws = means + sd * rng.standard_normal(len(means))
    while (outside := (draws < 0) | (draws > 1)).any():
        draws[outside] = means[outside] + sd * rng.standard_normal(int(outside.sum()))
    return draws


def _bandwidths(encoding: Encoding, units: Floats) -> Floats:
    n, d = units.shape
    shrink = n ** (-1 / (d + 4))
    return np.array(
        [
            max(0.5 * shrink, _LEAST_CHANGE) if column.kind == "categorical" else max(1.06 * sd * shrink, _NARROWEST)
            for column, sd in zip(encoding.columns, units.std(axis=0), strict=True)
        ]
    )


def _log_density(encoding: Encoding, at: Floats, units: Floats, width: Floats) -> Floats:
    """Logarithm of the mean kernel, up to a constant, at rows of ``at`` (m, d); shape (m,)."""
    kernels = np.zeros((len(at), len(units)))
    for i, column in enumerate(encoding.columns):
        if column.kind == "categorical":
            spread = width[i] / len(column.positions)
            same = at[:, None, i] == units[None, :, i]
            kernels += np.log(np.where(same, 1 - width[i] + spread, spread))
        else:
            kernels -= ((at[:, None, i] - units[None, :, i]) / width[i]) ** 2 / 2 + math.log(width[i])
    top = kernels.max(axis=1)
    return np.asarray(top + np.log(np.exp(kernels - top[:, None]).mean(axis=1)))
