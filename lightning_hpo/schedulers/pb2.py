"""Population-Based Bandits: a Gaussian process chooses what a loser goes on with, instead of a random step.

Each interval of each member so far is an observation: hyperparameters and time in, change of the score out. The model
is Bayesian in the time too, so what an old interval says about now counts less the faster the best values move. A
loser gets the maximiser of an upper confidence bound at the present time. Members that lose at the same step get
different points: the model takes each point that was chosen before as seen, with its own prediction (Desautels et al.
2014, GP-BUCB).

Three things are ours. Changes are standardised within each step, since a loss falls by much more in the first interval
than in the tenth; so the target is how much better an interval was than others at that time, and an interval that ended
in NaN is the worst of its step. The kernel is the Matérn kernel of :mod:`lightning_hpo.samplers.gp` with a length
scale for time that is learned, in place of a squared exponential times (1 - ε)^(|t - t'| / 2). And where an interval
began (the score before, standardised as well) is one more input, because members that are behind catch up whatever they
train with.

Source: Parker-Holder, Nguyen & Roberts 2020, *Provably Efficient Online Hyperparameter Optimization with
Population-Based Bandits* (arXiv 2002.02518), Algorithm 1 and section 4.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from optuna.distributions import BaseDistribution

from lightning_hpo.samplers.acquisition import lower_confidence_bound
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.gp import GaussianProcess, fit, prior_mode
from lightning_hpo.schedulers.explore import ExploreContext, Interval, Params

_MOST = 200  # observations, the latest; the cost grows with the third power
_LEAST = 4
_CANDIDATES = 1000
_MOST_DEVIATIONS = 3.0  # an interval that diverged counts as this far from the median of its step
_SPREAD = 0.05  # of the candidates around the best one, in the unit cube


@dataclass(frozen=True)
class PB2:
    """Chooses hyperparameters by a time-varying Gaussian process; an ``explore`` of :class:`Rules`.

    Args:
        optimism: standard deviations that a point's prediction is moved towards the good side, at least 0.

    Raises:
        ValueError: if ``optimism`` is negative.
    """

    optimism: float = 1.0

    def __post_init__(self) -> None:
        if not self.optimism >= 0:
            raise ValueError(f"`optimism` must be at least 0 standard deviations, got {self.optimism!r}.")

    def advise(
        self,
        params: Params,
        space: Mapping[str, BaseDistribution],
        generator: np.random.Generator,
        context: ExploreContext,
    ) -> Params:
        """Return the hyperparameters that promise the best next interval.

        Args:
            params: of the donor; used where the model has seen too little.
            space: name -> distribution.
            generator: of the candidates.
            context: the step, and what training has shown so far.
        """
        encoding = Encoding(space)
        history = [interval for interval in context.history if encoding.holds(interval.params)][-_MOST:]
        if len(history) < _LEAST:
            return {**params, **encoding.decode(encoding.place(generator.random((1, len(encoding))))[0])}
        seen = _features(
            encoding, encoding.encode([interval.params for interval in history]), *_circumstances(history, context)
        )
        process = _fitted(seen.tobytes(), _targets(history, context.mode).tobytes(), tuple(encoding.groups))
        latest = np.array([interval.after for interval in history if interval.step == context.step])
        start = float(_standardised(np.array([context.score]), latest)[0])

        def now(units: Floats) -> Floats:
            return _features(encoding, units, np.ones(len(units)), np.full(len(units), start))

        if context.taken:
            taken = now(encoding.encode(context.taken))
            process = process.grow(taken, process.posterior(taken)[0])

        def best(units: Floats) -> Floats:
            mean, sd = process.posterior(now(units))
            chosen: Floats = units[int(np.argmax(lower_confidence_bound(mean, sd, beta=self.optimism)[0]))]
            return chosen

        found = best(encoding.place(generator.random((_CANDIDATES, len(encoding)))))
        moving = np.array([column.kind != "categorical" for column in encoding.columns])
        near = found + moving * generator.normal(0.0, _SPREAD, (_CANDIDATES // 4, len(encoding)))
        near[:, moving] = near[:, moving].clip(0.0, 1.0)
        return {**params, **encoding.decode(best(encoding.snap(np.concatenate([found[None], near]))))}


@lru_cache(maxsize=8)  # every loser of a step asks for the same one
def _fitted(features: bytes, targets: bytes, groups: tuple[int, ...]) -> GaussianProcess:
    y = np.frombuffer(targets)
    x = np.frombuffer(features).reshape(len(y), -1)
    owners = np.array([*groups, max(groups) + 1, max(groups) + 2])
    found, _ = fit(x, y, owners, [prior_mode(len(set(owners.tolist())))])
    return GaussianProcess(x, y, owners, found)


def _features(encoding: Encoding, units: Floats, times: Floats, starts: Floats) -> Floats:
    """Feature columns of the hyperparameters, then the time, then where the interval began; shape (n, D + 2)."""
    return np.column_stack([encoding.features(units), times, starts])


def _circumstances(history: Sequence[Interval], context: ExploreContext) -> tuple[Floats, Floats]:
    """Time of each interval as a share of now, and its score before, standardised within the step."""
    times = np.array([interval.step / context.step for interval in history])
    before = np.array([math.nan if interval.before is None else interval.before for interval in history])
    return times, _within_steps(history, before, unknown=0.0)


def _targets(history: Sequence[Interval], mode: str) -> Floats:
    """Change of the score, lower is better, standardised within each step."""
    sign = 1.0 if mode == "min" else -1.0
    changes = np.array(
        [sign * (interval.after - (0.0 if interval.before is None else interval.before)) for interval in history]
    )
    return _within_steps(history, changes, unknown=_MOST_DEVIATIONS)


def _within_steps(history: Sequence[Interval], values: Floats, *, unknown: float) -> Floats:
    steps = np.array([interval.step for interval in history])
    result = np.empty(len(values))
    for step in set(steps.tolist()):
        group = values[steps == step]
        result[steps == step] = _standardised(group, group)
    return np.where(np.isfinite(values), result, unknown)


def _standardised(values: Floats, among: Floats) -> Floats:
    """Deviations from the median in units of the spread that a normal sample's quartiles show; a few at most."""
    finite = among[np.isfinite(among)]
    if len(finite) < 2:
        return np.zeros(len(values))
    low, middle, high = np.quantile(finite, (0.25, 0.5, 0.75))
    spread = (high - low) / 1.349 or float(finite.std()) or 1.0
    with np.errstate(invalid="ignore"):
        deviations: Floats = np.clip((values - middle) / spread, -_MOST_DEVIATIONS, _MOST_DEVIATIONS)
    return deviations
