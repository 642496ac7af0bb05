"""Change the hyperparameters of optimizers and LR schedules that are at work, and read them back.

``optimizer.load_state_dict`` brings back the hyperparameters of the checkpoint, and most LR schedules compute the next
learning rate from base values of their own. So a value counts as changed only when the parameter group and every
schedule over it have changed: the learning rate is *scaled*, which keeps its place on the schedule.
"""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

from lightning_hpo.failures import ParameterMismatchError

# Base values that torch's schedules keep per parameter group: in lists of their own, or in the group (OneCycleLR).
_PER_GROUP_LISTS = ("base_lrs", "max_lrs", "min_lrs")
_IN_GROUP = ("initial_lr", "max_lr", "min_lr")


def settings(optimizer: Optimizer) -> list[dict[str, Any]]:
    """Copy what each parameter group is configured with; ``lr`` is the value before any schedule."""
    groups = []
    for group in optimizer.param_groups:
        values = {name: value for name, value in group.items() if name not in ("params", *_IN_GROUP)}
        groups.append({**values, "lr": float(base_lr(group))})
    return groups


def base_lr(group: dict[str, Any]) -> Any:
    """Learning rate of a parameter group before any schedule."""
    return group.get("initial_lr", group["lr"])


def changed(before: list[dict[str, Any]], asked: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Keep of ``asked`` what differs from ``before``, group by group.

    Only these are to be applied: other settings may move during training (OneCycleLR moves the momentum).
    """
    return [
        {name: value for name, value in new.items() if name not in old or old[name] != value}
        for old, new in zip(before, asked, strict=True)
    ]


def apply(changes: list[dict[str, Any]], optimizer: Optimizer, schedules: Iterable[Any]) -> None:
    """Change settings of each parameter group.

    Args:
        changes: of each group: name -> new value, ``lr`` meaning the value before any schedule.
        optimizer: to change.
        schedules: the LR schedules of this optimizer.

    Raises:
        ParameterMismatchError: if a base learning rate of 0 would have to be scaled.
    """
    schedules = list(schedules)
    for index, (values, group) in enumerate(zip(changes, optimizer.param_groups, strict=True)):
        group.update({name: value for name, value in values.items() if name != "lr"})
        current = float(base_lr(group))
        if values.get("lr", current) == current:
            continue
        if current == 0:
            raise ParameterMismatchError(f"parameter group {index} has a base lr of 0, which cannot be scaled.")
        scale_lr(optimizer, schedules, index, values["lr"] / current)


def scale_lr(optimizer: Optimizer, schedules: Iterable[Any], index: int, factor: float) -> None:
    """Multiply the learning rate of one parameter group, now and for the rest of every schedule."""
    group = optimizer.param_groups[index]
    group["lr"] *= factor
    for name in _IN_GROUP:
        if name in group:
            group[name] *= factor
    for schedule in schedules:
        _scale_schedule(schedule, index, factor)


def read_back(changes: list[dict[str, Any]], optimizer: Optimizer) -> None:
    """Compare what was asked with what is in effect.

    Raises:
        ParameterMismatchError: naming the group, the setting, and both values.
    """
    for index, (values, effective) in enumerate(zip(changes, settings(optimizer), strict=True)):
        for name, value in values.items():
            same = abs(effective[name] - value) <= 1e-9 * abs(value) if name == "lr" else effective[name] == value
            if not same:
                raise ParameterMismatchError(
                    f"parameter group {index}: {name}={value!r} was asked for, {effective[name]!r} is in effect."
                )


def _scale_schedule(schedule: Any, index: int, factor: float) -> None:
    for inner in getattr(schedule, "_schedulers", ()):  # of SequentialLR and ChainedScheduler
        _scale_schedule(inner, index, factor)
    for name in _PER_GROUP_LISTS:
        values = getattr(schedule, name, None)
        if isinstance(values, list):
            values[index] *= factor
