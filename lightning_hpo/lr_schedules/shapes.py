# ruff: noqa: PYI041  # int and float differ here: a number of steps, or a fraction
"""The schedules, a class per shape, and the same by name: a plain value in a config or a search space.

Every class takes the arguments of :class:`ClosedFormLR` (``max_steps``, ``warmup``, ``min_lr``, ``min_lr_ratio``,
``initial_lr``, ``last_epoch``) and documents only its own. LightningCLI follows ``**options`` to the base class, so
each of them is a flag with its default and its text.
"""

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from torch.optim import Optimizer

from lightning_hpo.lr_schedules import factors
from lightning_hpo.lr_schedules.closed_form import ClosedFormLR, write_lr
from lightning_hpo.text import check_range, check_steps, nearest


class CosineLR(ClosedFormLR):
    """Half a cosine from the base learning rate, at the end of the warm-up, to the minimum at ``max_steps``.

    Source: Loshchilov and Hutter 2017, SGDR (arXiv 1608.03983), a single cycle.

    Example:
        >>> import torch
        >>> CosineLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), max_steps=1000, min_lr=0.001).lr_at(1000)
        0.001
    """

    def factor(self, step: int) -> float:
        """Return :func:`factors.cosine` over the steps that the warm-up leaves."""
        return factors.cosine(step, self.span)


class WarmupCosineLR(CosineLR):
    """:class:`CosineLR` that warms up over the first tenth of training unless told otherwise.

    Source: Goyal et al. 2017 (arXiv 1706.02677), section 2.2, for the linear warm-up.

    Example:
        >>> import torch
        >>> WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), max_steps=1000).lr_at(50)
        0.05
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int | None = None,
        *,
        warmup: int | float = 0.1,
        **options: Any,
    ) -> None:
        super().__init__(optimizer, max_steps, warmup=warmup, **options)


class LinearDecayLR(ClosedFormLR):
    """A straight line from the base learning rate, at the end of the warm-up, to the minimum at ``max_steps``.

    Source: Bergsma et al. 2025 (arXiv 2502.15938), linear decay to zero.
    """

    def factor(self, step: int) -> float:
        """Return :func:`factors.linear` over the steps that the warm-up leaves."""
        return factors.linear(step, self.span)


class WarmupStableDecayLR(ClosedFormLR):
    """Warm-up, constant, then a short cool-down to the minimum at ``max_steps``.

    Before the cool-down nothing depends on ``max_steps`` (with a warm-up in steps), so one trunk serves any length:
    a Hyperband promotion or a longer run loses no step.

    Args:
        optimizer: as in :class:`ClosedFormLR`.
        max_steps: as in :class:`ClosedFormLR`.
        warmup: as in :class:`ClosedFormLR`; default the first twentieth.
        decay: length of the cool-down: steps (int >= 1) or a fraction of ``max_steps`` (float in (0, 1]).
        form: ``"linear"``, ``"1-sqrt"``, ``"cosine"`` or ``"1-square"``.
        **options: as in :class:`ClosedFormLR`.

    Raises:
        ValueError: if warm-up and cool-down together are longer than ``max_steps``, or ``form`` is unknown.

    Source: MiniCPM, Hu et al. 2024 (arXiv 2404.06395); forms and lengths in Haegele et al. 2024 (arXiv 2405.18392).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int | None = None,
        *,
        warmup: int | float = 0.05,
        decay: int | float = 0.2,
        form: factors.Cooldown = "1-sqrt",
        **options: Any,
    ) -> None:
        if form not in factors.COOLDOWNS:
            raise ValueError(
                f"`form` must be one of {list(factors.COOLDOWNS)}, got {form!r}.{nearest(form, factors.COOLDOWNS)}"
            )
        self.decay = decay
        self.form = form
        self._cooldown = factors.COOLDOWNS[form]
        super().__init__(optimizer, max_steps, warmup=warmup, **options)

    def _set_horizon(self, max_steps: int | None) -> None:
        super()._set_horizon(max_steps)
        self._decay_steps = self._in_steps("decay", self.decay, at_least=1)
        self._stable_steps = self.span - self._decay_steps if self.max_steps is not None else 1
        if self._stable_steps < 0:
            raise ValueError(
                f"`warmup` and `decay` must fit into `max_steps`, got {self.warmup_steps} + {self._decay_steps}"
                f" > {self.max_steps}."
            )

    def factor(self, step: int) -> float:
        """Return 1 while it is stable, then the curve of the cool-down."""
        return 1.0 if step < self._stable_steps else self._cooldown(step - self._stable_steps, self._decay_steps)


class _ClampedLR(ClosedFormLR):
    """A curve without an end: the minimum cuts it off, where the others are stretched to meet theirs."""

    ends: ClassVar[bool] = False

    def _decay_terms(self, f: float) -> tuple[float, float, float]:
        return max(f, self.min_lr_ratio), 0.0, self.min_lr


class StepDecayLR(_ClampedLR):
    """The base learning rate times ``decay_rate`` after every ``decay_steps`` steps, never below the minimum.

    Args:
        optimizer: as in :class:`ClosedFormLR`.
        max_steps: as in :class:`ClosedFormLR`; only fractions need it.
        decay_rate: factor of one decay, in [0, 1].
        decay_steps: steps between two decays (int >= 1) or a fraction of ``max_steps`` (float in (0, 1]).
        **options: as in :class:`ClosedFormLR`.

    Source: He et al. 2016 (arXiv 1512.03385), section 3.4, which divides by ten when the error plateaus.

    Example:
        >>> import torch
        >>> StepDecayLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), decay_rate=0.5, decay_steps=30).lr_at(60)
        0.025
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int | None = None,
        *,
        decay_rate: float = 0.1,
        decay_steps: int | float = 0.3,
        **options: Any,
    ) -> None:
        self.decay_rate = check_range("decay_rate", decay_rate, 0.0, 1.0)
        self.decay_steps = decay_steps
        super().__init__(optimizer, max_steps, **options)

    def _lengths(self) -> tuple[int | float, ...]:
        return (self.warmup, self.decay_steps)

    def _set_horizon(self, max_steps: int | None) -> None:
        super()._set_horizon(max_steps)
        self._every = self._in_steps("decay_steps", self.decay_steps, at_least=1)

    def factor(self, step: int) -> float:
        """Return the staircase decay_rate ^ floor(step / decay_steps)."""
        return self.decay_rate ** (step // self._every)


class InverseSqrtLR(_ClampedLR):
    """Falls as one over the square root of the step: for runs whose length is not known.

    Args:
        optimizer: as in :class:`ClosedFormLR`.
        max_steps: as in :class:`ClosedFormLR`; only a fractional warm-up needs it.
        timescale: steps after the warm-up until the learning rate has fallen to 0.71 of the base value, >= 1;
            None = as long as the warm-up (10 000 where there is none).
        **options: as in :class:`ClosedFormLR`.

    Source: Vaswani et al. 2017 (arXiv 1706.03762), section 5.3; timescale: Zhai et al. 2022 (arXiv 2106.04560).
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int | None = None,
        *,
        timescale: int | None = None,
        **options: Any,
    ) -> None:
        self.timescale = None if timescale is None else check_steps("timescale", timescale, at_least=1)
        super().__init__(optimizer, max_steps, **options)

    def _set_horizon(self, max_steps: int | None) -> None:
        super()._set_horizon(max_steps)
        self._timescale = self.timescale or self.warmup_steps or 10_000

    def factor(self, step: int) -> float:
        """Return sqrt(timescale / (timescale + step)): it halves when ``step`` grows to three timescales."""
        return math.sqrt(self._timescale / (self._timescale + step))


class CosineRestartsLR(ClosedFormLR):
    """Cosine cycles, each ``mult`` times as long as the one before, with peaks that fall by ``decay``.

    The warm-up comes before the first cycle; each cycle ends at the minimum.

    Args:
        optimizer: as in :class:`ClosedFormLR`.
        max_steps: as in :class:`ClosedFormLR`; only fractions need it.
        cycle_steps: length of the first cycle: steps (int >= 1) or a fraction of ``max_steps`` (float in (0, 1]).
        mult: ratio of the lengths of two successive cycles, a whole number >= 1.
        decay: ratio of the peaks above the minimum of two successive cycles, in [0, 1].
        **options: as in :class:`ClosedFormLR`.

    Source: Loshchilov and Hutter 2017, SGDR (arXiv 1608.03983); the decay of the peaks is an addition.
    """

    ends: ClassVar[bool] = False

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int | None = None,
        *,
        cycle_steps: int | float = 0.25,
        mult: int = 1,
        decay: float = 1.0,
        **options: Any,
    ) -> None:
        self.cycle_steps = cycle_steps
        self.mult = check_steps("mult", mult, at_least=1)
        self.decay = check_range("decay", decay, 0.0, 1.0)
        super().__init__(optimizer, max_steps, **options)

    def _lengths(self) -> tuple[int | float, ...]:
        return (self.warmup, self.cycle_steps)

    def _set_horizon(self, max_steps: int | None) -> None:
        super()._set_horizon(max_steps)
        self._first = self._in_steps("cycle_steps", self.cycle_steps, at_least=1)

    def factor(self, step: int) -> float:
        """Return decay^k times :func:`factors.cosine` over cycle k, which is cycle_steps * mult^k steps long."""
        cycle, length = 0, self._first
        if self.mult == 1:
            cycle, step = divmod(step, length)
        while step >= length:
            cycle, step, length = cycle + 1, step - length, length * self.mult
        return self.decay**cycle * factors.cosine(step, length)


LR_SCHEDULES: Mapping[str, type[ClosedFormLR]] = MappingProxyType(
    {
        "cosine": CosineLR,
        "linear_warmup_cosine": WarmupCosineLR,
        "step": StepDecayLR,
        "linear": LinearDecayLR,
        "warmup_stable_decay": WarmupStableDecayLR,
        "inverse_sqrt": InverseSqrtLR,
        "cosine_restarts": CosineRestartsLR,
    }
)
"""Every schedule by its name."""


def make_lr_schedule(
    name: str,
    optimizer: Optimizer,
    *,
    max_lr: float | None = None,
    min_lr: float | None = None,
    min_lr_ratio: float | None = None,
    max_steps: int | None = None,
    warmup: int | float | None = None,
    warmup_steps: int | None = None,
    initial_lr: float | None = None,
    decay_rate: float | None = None,
    decay_steps: int | float | None = None,
    **arguments: Any,
) -> ClosedFormLR:
    """Construct a schedule by name; an argument left at None takes the default of the schedule's class.

    Args:
        name: a key of :data:`LR_SCHEDULES`.
        optimizer: whose groups are scheduled.
        max_lr: base learning rate of every group; None = each group's own ``lr``.
        min_lr: learning rate at the end.
        min_lr_ratio: the same as a share of each group's base learning rate.
        max_steps: horizon in optimizer steps; None = unbound, see :class:`ClosedFormLR`.
        warmup: length of the warm-up: steps (int) or a fraction of ``max_steps`` (float).
        warmup_steps: another name for ``warmup``.
        initial_lr: learning rate at step 0 of the warm-up.
        decay_rate: of ``"step"``.
        decay_steps: of ``"step"``.
        **arguments: the other arguments of the class.

    Returns:
        The schedule, its learning rate for step 0 written into the optimizer.

    Raises:
        ValueError: if the name is unknown (the nearest is suggested) or a value is out of range.
        TypeError: if the schedule has no such argument (the nearest is suggested), or one is given twice.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
        >>> make_lr_schedule("step", optimizer, max_lr=0.2, decay_rate=0.5, decay_steps=30).lr_at(30)
        0.1
    """
    if name not in LR_SCHEDULES:
        raise ValueError(f"`name` must be one of {list(LR_SCHEDULES)}, got {name!r}.{nearest(name, LR_SCHEDULES)}")
    if warmup is not None and warmup_steps is not None:
        raise TypeError("`warmup_steps` and `warmup` are the same argument; give one of them.")
    named = {
        "min_lr": min_lr,
        "min_lr_ratio": min_lr_ratio,
        "max_steps": max_steps,
        "warmup": warmup_steps if warmup is None else warmup,
        "initial_lr": initial_lr,
        "decay_rate": decay_rate,
        "decay_steps": decay_steps,
    }
    arguments |= {key: value for key, value in named.items() if value is not None}
    schedule_class = LR_SCHEDULES[name]
    accepted = _arguments_of(schedule_class)
    for key in arguments:
        if key not in accepted:
            raise TypeError(
                f"the LR schedule {name!r} has no argument {key!r}; it takes {['max_lr', *accepted]}."
                f"{nearest(key, accepted)}"
            )
    if max_lr is not None:
        check_range("max_lr", max_lr, 0.0, math.inf)
        for group in optimizer.param_groups:
            write_lr(group, "lr", max_lr)
            write_lr(group, "initial_lr", max_lr)
    return schedule_class(optimizer, **arguments)


def _arguments_of(schedule_class: type[ClosedFormLR]) -> list[str]:
    """Return the names of a schedule's arguments: its own, then those that it passes on to its base."""
    signatures = [inspect.signature(kind) for kind in schedule_class.__mro__ if issubclass(kind, ClosedFormLR)]
    names = dict.fromkeys(name for signature in signatures for name in signature.parameters)
    return [name for name in names if name not in ("optimizer", "last_epoch", "options")]
