"""Explore: which hyperparameters a member of a population goes on with, after it has copied another one's weights."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.records import Mode
from lightning_hpo.space.unit import from_unit

Params: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Interval:
    """What one interval of training with constant hyperparameters brought.

    Args:
        params: trained with.
        step: optimizer step of the member at the interval's end.
        before: score where it began; None if it began with training, or if that score is not known.
        after: score at its end.
    """

    params: Params
    step: int
    before: float | None
    after: float


class Segment(Protocol):
    """A trial of a population: a part of one member's training with constant hyperparameters."""

    @property
    def number(self) -> int:
        """Of the trial."""

    @property
    def params(self) -> Params:
        """Its hyperparameters."""

    @property
    def values(self) -> Mapping[int, float]:
        """Optimizer step -> score."""

    @property
    def parent(self) -> int | None:
        """Trial that its weights come from."""

    @property
    def forked_at(self) -> int | None:
        """Step of the parent at which they were taken."""


def intervals(segments: Iterable[Segment], until: float = math.inf) -> list[Interval]:
    """Return what every interval of training brought, in order of the step at its end.

    Args:
        segments: of all members.
        until: last step.
    """
    segments = list(segments)
    values = {segment.number: segment.values for segment in segments}
    ended = []
    for segment in segments:
        before = None if segment.parent is None else values.get(segment.parent, {}).get(segment.forked_at or 0)
        for step in sorted(step for step in segment.values if step <= until):
            ended.append((step, segment.number, Interval(segment.params, step, before, segment.values[step])))
            before = segment.values[step]
    return [interval for _, _, interval in sorted(ended, key=lambda entry: entry[:2])]


@dataclass(frozen=True)
class ExploreContext:
    """What an :class:`Adviser` may know when a member loses.

    Args:
        step: optimizer steps the member has seen.
        mode: whether small or large scores are good.
        score: of the donor.
        history: all intervals up to now, of every member.
        taken: what members that lose at this step too go on with, as far as decided.
    """

    step: int
    mode: Mode
    score: float
    history: Sequence[Interval]
    taken: Sequence[Params]


@runtime_checkable
class Adviser(Protocol):
    """An explore that looks at what training has shown so far, such as :class:`lightning_hpo.schedulers.pb2.PB2`."""

    def advise(
        self,
        params: Params,
        space: Mapping[str, BaseDistribution],
        generator: np.random.Generator,
        context: ExploreContext,
    ) -> Params:
        """Return new hyperparameters for a member that copies from one with ``params``."""


Explore: TypeAlias = Callable[[Params, Mapping[str, BaseDistribution], np.random.Generator], Params] | Adviser


def explore(
    params: Params,
    space: Mapping[str, BaseDistribution],
    generator: np.random.Generator,
    *,
    resample: float = 0.25,
    factor: float = 1.2,
) -> dict[str, Any]:
    """Change every hyperparameter of the space: drawn anew with probability ``resample``, else perturbed.

    Args:
        params: to change; names outside the space are kept.
        space: name -> distribution. The result is inside it.
        generator: of the random decisions.
        resample: probability of a new draw.
        factor: see :func:`perturb`.
    """
    changed = dict(params)
    for name, distribution in space.items():
        if generator.random() < resample:
            changed[name] = from_unit(distribution, generator.random())
        else:
            changed[name] = perturb(distribution, params[name], generator, factor=factor)
    return changed


def perturb_some(
    params: Params,
    space: Mapping[str, BaseDistribution],
    generator: np.random.Generator,
    *,
    probability: float = 0.25,
    factor: float = 1.2,
) -> dict[str, Any]:
    """Perturb each hyperparameter of the space with a probability."""
    changed = dict(params)
    for name, distribution in space.items():
        if generator.random() < probability:
            changed[name] = perturb(distribution, params[name], generator, factor=factor)
    return changed


def perturb(distribution: BaseDistribution, value: Any, generator: np.random.Generator, *, factor: float = 1.2) -> Any:
    """Take a step from ``value`` that stays inside the distribution.

    * A number is multiplied or divided by ``factor``; one with steps moves by one step at least.
    * Where the range includes 0, which no factor leaves, a normal deviate is added instead, with a standard deviation
      of a tenth of the range.
    * Choices that are numbers in order go to a neighbour; other choices are drawn anew.
    """
    if isinstance(distribution, CategoricalDistribution):
        return _other_choice(distribution, value, generator)
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")
    if distribution.low > 0:
        moved = value * factor if generator.random() < 0.5 else value / factor
    else:
        moved = value + generator.normal(0.0, 0.1 * (distribution.high - distribution.low))
    if distribution.step is not None and abs(moved - value) < distribution.step:
        moved = value + math.copysign(distribution.step, moved - value)
    return clip(distribution, moved)


def clip(distribution: BaseDistribution, value: Any) -> Any:
    """Return the value of a distribution that is nearest to ``value``.

    Raises:
        ValueError: if ``value`` is not one of a distribution's choices.
    """
    if isinstance(distribution, FloatDistribution | IntDistribution):
        if distribution.step is not None:
            value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
        kind = int if isinstance(distribution, IntDistribution) else float
        return kind(min(max(value, distribution.low), distribution.high))
    if isinstance(distribution, CategoricalDistribution) and value not in distribution.choices:
        raise ValueError(f"{value!r} is not one of the choices {distribution.choices}.")
    return value


def sample(space: Mapping[str, BaseDistribution], generator: np.random.Generator) -> dict[str, Any]:
    """Draw a point of the space."""
    return {name: from_unit(distribution, generator.random()) for name, distribution in space.items()}


def _other_choice(distribution: CategoricalDistribution, value: Any, generator: np.random.Generator) -> Any:
    choices = distribution.choices
    numbers = [choice for choice in choices if isinstance(choice, int | float) and not isinstance(choice, bool)]
    if len(numbers) < len(choices) or list(choices) not in (sorted(numbers), sorted(numbers, reverse=True)):
        return choices[int(generator.integers(len(choices)))]
    here = choices.index(value)
    neighbours = [index for index in (here - 1, here + 1) if 0 <= index < len(choices)] or [here]
    return choices[neighbours[int(generator.integers(len(neighbours)))]]
