"""A module built a second time with other hyperparameters: they change whatever differs between the two builds."""

import copy
import importlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from optuna.distributions import BaseDistribution, CategoricalDistribution
from torch.nn.parameter import is_lazy
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_hpo.lr_schedules.closed_form import ClosedFormLR
from lightning_hpo.space import SearchSpace, from_unit, split_name
from lightning_hpo.space.names import part
from lightning_hpo.training.builder import accepts
from lightning_hpo.training.leaves import Fixed, Path, copy_of, leaves, same
from lightning_hpo.training.lr_schedule import LRSchedule, nested
from lightning_hpo.training.random_state import seeded
from lightning_hpo.training.usage import BUILDING, is_used

Build: TypeAlias = Callable[[Mapping[str, Any]], tuple[pl.LightningModule, pl.LightningDataModule | None]]
"""Builds module and data module; from the parameters it is given, by their names in the space."""
Roots: TypeAlias = dict[str, list[Any]]

_PROBES = (0.25, 0.75, 0.5)  # places in a distribution where a hyperparameter is tried
_MOST_CHOICES = 4
_LIBRARIES = ("lightning", "pytorch_lightning", "lightning_hpo")  # whose callbacks read no hyperparameters


@dataclass(frozen=True)
class Effect:
    """The values that a hyperparameter changes.

    Args:
        paths: of values that training reads.
        fixed: whether something changes that cannot change after construction, such as a shape.
        unread: paths of values that change but that no code of training reads.
        weights: whether initial weights change.
        error: why the module could not be built with other values, or None.
    """

    paths: frozenset[Path]
    fixed: bool = False
    unread: frozenset[Path] = frozenset()
    weights: bool = False
    error: str | None = None


@dataclass(frozen=True)
class Rebuild:
    """How a module that trains can be built again.

    Args:
        build: builds it.
        params: hyperparameters that the live module was built with; others are as ``build`` has them.
        takes: whether ``build`` takes a name of the space.
        building: methods that have run before training, see :func:`~lightning_hpo.training.usage.is_used`.
        effects: of each name, found once for all that share it.
    """

    build: Build
    params: Mapping[str, Any] = field(default_factory=dict)
    takes: Callable[[str], bool] = lambda _: True
    building: frozenset[str] = BUILDING
    effects: dict[str, Effect] = field(default_factory=dict)

    def find_effects(self, wanted: Iterable[str], space: SearchSpace, trainer: pl.Trainer) -> None:
        """Find the effect of some names of a space, unless it is known."""
        names = [name for name in wanted if name not in self.effects and self.takes(name)]
        if names:
            base = twin(trainer, self.build, self.params)
            for name in names:
                self.effects[name] = _effect(name, space, base, self, trainer)


def of_module(trainer: pl.Trainer, module: pl.LightningModule, space: SearchSpace) -> Rebuild | None:
    """Return how to build a module again from its class and its saved hparams; None if they do not allow it."""
    data = getattr(trainer, "datamodule", None)
    owners = {"model": module, "data": data}

    def build(params: Mapping[str, Any]) -> tuple[pl.LightningModule, pl.LightningDataModule | None]:
        values = space.deliver(params)
        again = {head: _again(owner, part(values, head)) for head, owner in owners.items() if owner is not None}
        return again["model"], again.get("data")

    def takes(name: str) -> bool:
        head, key = split_name(name)
        owner = owners.get(head)
        return owner is not None and key in getattr(owner, "hparams", {}) and accepts(type(owner), key)

    if not module.hparams:
        return None
    try:
        twin(trainer, build, {})
    except Exception:  # noqa: BLE001  # the constructor is the user's; without it only certain names are bound
        return None
    return Rebuild(build, {}, takes)


@dataclass
class Twin:
    """A second build of a module with its optimizers, schedules and data, which never trains.

    Args:
        roots: optimizers, schedules, module and data module.
        weights: initial ones.
        trainer: that it is attached to; kept, as the module may only refer to it.
    """

    roots: Roots
    weights: dict[str, torch.Tensor]
    trainer: pl.Trainer

    def leaves(self) -> dict[Path, Any]:
        """Every plain value, as it is now."""
        return {path: copy_of(value) for path, value in leaves(self.roots).items()}


def live_roots(trainer: pl.Trainer, module: pl.LightningModule) -> Roots:
    """Return the live objects in the form of a twin's roots."""
    return {
        "optimizers": list(trainer.optimizers),
        "schedules": [config.scheduler for config in trainer.lr_scheduler_configs],
        "model": [module],
        "data": [getattr(trainer, "datamodule", None)],
    }


def twin(trainer: pl.Trainer, build: Build, params: Mapping[str, Any]) -> Twin:
    """Build module, optimizers and schedules again, attached to a copy of the Trainer; no random number is used up."""
    with seeded(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, data = build(params)
        other = _attached(trainer, module)
        if is_overridden("setup", module, pl.LightningModule):
            module.setup("fit")
        module.configure_model()
        other.strategy.setup_optimizers(other)
        roots = live_roots(other, module)
        roots["data"] = [data]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]  # set by Trainer
            if isinstance(callback, LRSchedule) and not roots["schedules"]:
                roots["schedules"] = callback.bring(other.optimizers)
        note_base_lrs(roots["optimizers"])
        weights = {name: copy_of(weight) for name, weight in module.named_parameters() if not is_lazy(weight)}
        return Twin(roots, weights, other)


def note_base_lrs(optimizers: Sequence[Any]) -> None:
    """Have every parameter group know its learning rate before any schedule, as torch's schedules do."""
    for optimizer in optimizers:
        for group in getattr(optimizer, "param_groups", ()):
            if "lr" in group:
                group.setdefault("initial_lr", copy_of(group["lr"]))


def differing(before: Mapping[Path, Any], after: Mapping[Path, Any]) -> set[Path]:
    """Return the paths whose values differ, or that only one side has."""
    missing = object()
    return {
        path for path in before.keys() | after.keys() if not same(before.get(path, missing), after.get(path, missing))
    }


def other_values(distribution: BaseDistribution) -> list[Any]:
    """Return values of a hyperparameter to try, spread over its distribution."""
    if distribution.single():
        return []
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)[:_MOST_CHOICES]
    return list(dict.fromkeys(from_unit(distribution, place) for place in _PROBES))


def unread_names(space: SearchSpace, rebuild: Rebuild, trainer: pl.Trainer) -> list[str]:
    """Return the names of a plain search's space that change nothing that training reads."""
    names = [
        name
        for name, distribution in space.items()
        if split_name(name)[0] != "trainer" and not distribution.single() and rebuild.takes(name)
        if name not in space.conditions or name in rebuild.params
    ]
    rebuild.find_effects(names, space, trainer)
    effects = ((name, rebuild.effects[name]) for name in names)
    return [name for name, own in effects if not (own.paths or own.fixed or own.weights or own.error)]


def _effect(name: str, space: SearchSpace, base: Twin, rebuild: Rebuild, trainer: pl.Trainer) -> Effect:
    # Another branch of a conditional space has parameters of its own.
    complete = space.middle if space.conditions else dict
    before = base.leaves()
    read, unread, error = set[Path](), set[Path](), None
    fixed = weights = False
    callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Trainer
    readers = [callback for callback in callbacks if type(callback).__module__.partition(".")[0] not in _LIBRARIES]
    for value in other_values(space[name]):
        try:
            other = twin(trainer, rebuild.build, complete({**rebuild.params, name: value}))
        except Exception as failed:  # noqa: BLE001  # the constructor is the user's
            error = f"{type(failed).__name__}: {failed}"
            continue
        after = other.leaves()
        moved = differing(before, after)
        rigid = {path for path in moved if isinstance(after.get(path, Fixed(None)), Fixed) or path not in before}
        fixed = fixed or bool(rigid)
        weights = weights or any(not same(weight, base.weights.get(key)) for key, weight in other.weights.items())
        used = {path for path in moved - rigid if is_used(path, other.roots, readers, rebuild.building)}
        read |= used
        unread |= moved - rigid - used
        if read:
            break
    return Effect(frozenset(read), fixed, frozenset(unread - read), weights, error)


def advance(schedules: Sequence[Any], live: Sequence[Any]) -> None:
    """Bring schedules that have just been built to the step of the live ones, but for ReduceLROnPlateau."""
    for own, other in zip(schedules, live, strict=False):
        if type(own) is type(other):
            _advance(own, other)


def is_rate(path: Path) -> bool:
    """Whether a path is that of a parameter group's learning rate."""
    return path[0] == ("item", "optimizers") and path[-1] == ("item", "lr")


def with_share(wanted: Any, current: Any, before: Any) -> Any:
    """Return a learning rate to write where code of the user may have moved the rate: the share of the move stays.

    Args:
        wanted: rate by the hyperparameters.
        current: rate in effect.
        before: rate by the hyperparameters before, at the same step; None if it is not known.
    """
    if before is None or float(before) == 0 or same(current, before):
        return wanted
    rate = float(current) * (float(wanted) / float(before))
    return torch.tensor(rate, dtype=current.dtype) if isinstance(current, torch.Tensor) else rate


def _advance(own: Any, other: Any) -> None:
    for inner, live in zip(nested(own), nested(other), strict=False):
        if isinstance(inner, ClosedFormLR) and live.max_steps is not None:
            inner.bind(live.max_steps)
    if isinstance(own, ClosedFormLR):
        own.load_state_dict({"last_epoch": other.last_epoch})
    elif isinstance(own, LRScheduler) and not isinstance(own, ReduceLROnPlateau):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the optimizer has not stepped
            for _ in range(_position(other) - _position(own)):
                own.step()


def _position(schedule: Any) -> int:
    inner = getattr(schedule, "_schedulers", None)
    return int(schedule.last_epoch) if hasattr(schedule, "last_epoch") else _position(inner[0]) if inner else 0


def _attached(trainer: pl.Trainer, module: pl.LightningModule) -> pl.Trainer:
    """Attach a module to a copy of a Trainer with optimizers of its own."""
    other = copy.copy(trainer)
    connector: Any = copy.copy(trainer._accelerator_connector)  # noqa: SLF001  # where a Trainer keeps its strategy
    connector.strategy = copy.copy(trainer.strategy)
    other._accelerator_connector = connector  # noqa: SLF001
    other.strategy.connect(module)
    module.trainer = other
    return other


def _again(owner: Any, params: Mapping[str, Any]) -> Any:
    hparams = {**copy.deepcopy(dict(owner.hparams)), **params}
    instantiator = hparams.pop("_instantiator", None)  # a LightningCLI builds with it
    if instantiator is not None:
        module, _, name = str(instantiator).rpartition(".")
        return getattr(importlib.import_module(module), name)(type(owner), hparams)
    return type(owner)(**{key: value for key, value in hparams.items() if accepts(type(owner), key)})
