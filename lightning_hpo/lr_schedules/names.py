# ruff: noqa: PYI041  # int and float differ here: a number of steps, or a fraction
"""Schedules by name, so that a schedule can be a plain value in a config or a search space."""

import inspect
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from torch.optim import Optimizer

from lightning_hpo.lr_schedules.closed_form import ClosedFormLR, write_lr
from lightning_hpo.lr_schedules.shapes import (
    CosineLR,
    CosineRestartsLR,
    InverseSqrtLR,
    LinearDecayLR,
    StepDecayLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
)
from lightning_hpo.text import check_range, nearest

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
