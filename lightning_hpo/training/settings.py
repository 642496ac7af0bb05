"""Settings of optimizers and LR schedules that a trial was built with: they win over those of a restored checkpoint.

A trial that continues the checkpoint of its parent with other hyperparameters gets the parent's settings back with the
optimizer's state. Settings in which the two builds differ are then set again, at the step of the restored schedules. A
trial that continues its own checkpoint was built in the same way, so nothing is touched, and changes by its own code
stay.
"""

import copy
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_hpo.training.leaves import Path, get, leaves, put_and_check
from lightning_hpo.training.rebuild import advance, differing, is_rate, note_base_lrs, with_share

_STORED = (bool, int, float, str, type(None), torch.Tensor)


class BuiltSettings:
    """Settings that a Trainer's optimizers and schedules were built with; create it before a checkpoint is restored.

    Args:
        trainer: in ``on_fit_start``.
        before: :attr:`values` of the checkpoint that will be restored; None if there is none.
    """

    def __init__(self, trainer: pl.Trainer, before: Sequence[tuple[Any, Any]] | None = None) -> None:
        note_base_lrs(trainer.optimizers)
        own = _values(trainer)
        self.values = [
            (path, value.detach().cpu().clone() if isinstance(value, torch.Tensor) else value)
            for path, value in own.items()
        ]
        """Path and value of each setting, as a checkpoint can hold them."""
        self._changed: dict[Path, Any] = {}
        self._before: dict[Path, Any] = {}
        if before is not None:
            self._before = {tuple(tuple(step) for step in path): value for path, value in before}
            moved = differing({path: self._before[path] for path in own if path in self._before}, own)
            self._changed = {path: own[path] for path in moved if path in self._before}
        # The restore overwrites the originals.
        self._fresh = copy.deepcopy(_roots(trainer)) if self._changed else {}

    def apply(self, trainer: pl.Trainer) -> None:
        """Set the values that differ from the build of the restored checkpoint, and read them back.

        Raises:
            ParameterMismatchError: naming a setting that is not in effect.
        """
        if not self._changed:
            return
        live = _roots(trainer)
        advance(self._fresh["schedules"], live["schedules"])
        touched = {path[1] for path in self._changed if path[0] == ("item", "optimizers")}
        rates = {path for path in _values(trainer) if is_rate(path) and path[1] in touched}
        for path in sorted(self._changed.keys() | rates, key=repr):
            value = self._rate(path, live) if is_rate(path) else get(self._fresh, path)
            put_and_check(live, path, value)
        self._fresh = {}

    def _rate(self, path: Path, live: Any) -> Any:
        """Return the learning rate at the step of its schedule; without a schedule, reduced by as much as now."""
        own, optimizer = get(self._fresh, path), get(live, path[:2])
        clocks = [s for s in live["schedules"] if s.optimizer is optimizer and not isinstance(s, ReduceLROnPlateau)]
        return own if clocks else with_share(own, get(live, path), self._before.get(path))


def names_in_groups(optimizers: Sequence[Optimizer], module: pl.LightningModule) -> list[list[list[str]]]:
    """Return the names of the parameters in each group of each optimizer."""
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    return [
        [[names.get(id(parameter), "") for parameter in group["params"]] for group in optimizer.param_groups]
        for optimizer in optimizers
    ]


def add_groups(optimizers: Sequence[Optimizer], module: pl.LightningModule, names: list[list[list[str]]]) -> None:
    """Add groups to optimizers as they are built, so that a checkpoint with these groups can be restored."""
    parameters = dict(module.named_parameters())
    for optimizer, groups in zip(optimizers, names, strict=False):
        for group in groups[len(optimizer.param_groups) :]:
            if all(name in parameters for name in group):
                optimizer.add_param_group({"params": [parameters[name] for name in group]})


def _roots(trainer: pl.Trainer) -> dict[str, list[Any]]:
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    return {"optimizers": list(trainer.optimizers), "schedules": schedules}


def _values(trainer: pl.Trainer) -> dict[Path, Any]:
    return {
        path: value
        for path, value in leaves(_roots(trainer)).items()
        if all(isinstance(part, _STORED) for part in (value if isinstance(value, tuple) else (value,)))
    }
