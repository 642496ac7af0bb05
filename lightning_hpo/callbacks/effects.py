"""Hyperparameters of a module that trains: where each of them takes effect, how to change it, what is in effect now.

A name of the space is bound to its places once, before training, while everything still holds the values that it was
built with. So ``lr`` finds parameter groups that were built with a tenth of it, ``weight_decay`` leaves alone the
groups that were built without, and ``dropout`` finds the layers it was given to.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import Optimizer

from lightning_hpo import live
from lightning_hpo.failures import ParameterMismatchError
from lightning_hpo.space import split_name

_LEARNING_RATES = ("lr", "learning_rate")
_BETAS = {"beta1": 0, "beta2": 1, "momentum": 0}
# Settings of the Trainer that it reads at every step.
_TRAINER = ("gradient_clip_val",)
HOOK = "on_hyperparameters"


class Place(Protocol):
    """Where one hyperparameter takes effect."""

    def write(self, value: Any) -> None:
        """Change it."""

    def read(self) -> Iterable[Any]:
        """Return what is in effect, once for each place."""


class Effects:
    """All hyperparameters of a space, bound to a Trainer and its module.

    Create it in ``on_fit_start``, before a checkpoint is restored.

    Args:
        names: of the space.
        trainer: with its optimizers.
        module: that it trains.

    Raises:
        MisconfigurationException: if a hyperparameter takes effect nowhere (a hidden size, say).
    """

    def __init__(self, names: Iterable[str], trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._owners = {"model": module, "data": getattr(trainer, "datamodule", None)}
        self._places: dict[str, Place] = {}
        for name in names:
            place = _bind(name, trainer, module)
            if place is not None:
                self._places[name] = place
            elif not hasattr(self._owners.get(split_name(name)[0]), HOOK):
                raise MisconfigurationException(_refusal(name))

    def apply(self, params: Mapping[str, Any]) -> None:
        """Change every place, ``hparams``, and call the module's and the data module's ``on_hyperparameters``.

        Raises:
            ParameterMismatchError: if a value that was asked for is not in effect afterwards.
        """
        for name, place in self._places.items():
            place.write(params[name])
        for head, owner in self._owners.items():
            own = {split_name(name)[1]: value for name, value in params.items() if split_name(name)[0] == head}
            if owner is None or not own:
                continue
            owner.hparams.update({name: value for name, value in own.items() if name in owner.hparams})
            hook: Callable[[dict[str, Any]], None] | None = getattr(owner, HOOK, None)
            if hook is not None:
                hook(own)
        self.read_back(params)

    def prepare(self, params: Mapping[str, Any]) -> None:
        """Change only what a new epoch needs before it begins, ahead of :meth:`apply`."""
        for name, place in self._places.items():
            if isinstance(place, BatchSize):
                place.write(params[name])

    def read_back(self, params: Mapping[str, Any]) -> None:
        """Compare what was asked with what is in effect.

        Raises:
            ParameterMismatchError: naming the hyperparameter and both values.
        """
        for name, place in self._places.items():
            for effective in place.read():
                if not _same(effective, params[name]):
                    raise ParameterMismatchError(f"{name}={params[name]!r} was asked for, {effective!r} is in effect.")
        for name, value in params.items():
            head, key = split_name(name)
            owner = self._owners.get(head)
            if owner is not None and key in owner.hparams and not _same(owner.hparams[key], value):
                raise ParameterMismatchError(f"{name}={value!r} was asked for, hparams hold {owner.hparams[key]!r}.")

    def on_epoch_start(self) -> None:
        """Read back what takes effect with a new epoch only."""
        for place in self._places.values():
            if isinstance(place, BatchSize):
                place.check_loader()


@dataclass
class LearningRate:
    """Base learning rate of every parameter group and of the LR schedules over it."""

    trainer: pl.Trainer
    ratios: dict[tuple[int, int], float]
    """(optimizer, group) -> what the group was built with, as a multiple of the hyperparameter."""

    def write(self, value: float) -> None:
        """Scale, which keeps the place on every schedule."""
        for (index, group), ratio in self.ratios.items():
            optimizer = self.trainer.optimizers[index]
            schedules = self._schedules(optimizer)
            live.scale_lr(
                optimizer, schedules, group, value * ratio / float(live.base_lr(optimizer.param_groups[group]))
            )

    def read(self) -> Iterable[float]:
        """Read the groups, and the base values that schedules keep of their own."""
        for (index, group), ratio in self.ratios.items():
            optimizer = self.trainer.optimizers[index]
            yield float(live.base_lr(optimizer.param_groups[group])) / ratio
            for schedule in self._schedules(optimizer):
                if getattr(schedule, "base_lrs", None):
                    yield float(schedule.base_lrs[group]) / ratio

    def _schedules(self, optimizer: Optimizer) -> list[Any]:
        found = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        return [schedule for schedule in found if schedule.optimizer is optimizer]


@dataclass
class GroupSetting:
    """A setting of parameter groups, or one element of it (``betas``)."""

    groups: list[tuple[Optimizer, int]]
    key: str
    element: int | None = None

    def write(self, value: Any) -> None:
        """Set it in every group."""
        for group in self._settings():
            if self.element is None:
                group[self.key] = value
            else:
                pair = list(group[self.key])
                pair[self.element] = value
                group[self.key] = tuple(pair)

    def read(self) -> Iterable[Any]:
        """Read it from every group."""
        return [
            group[self.key] if self.element is None else group[self.key][self.element] for group in self._settings()
        ]

    def _settings(self) -> list[dict[str, Any]]:
        return [optimizer.param_groups[index] for optimizer, index in self.groups]


@dataclass
class Attributes:
    """The same attribute of several objects."""

    owners: list[Any]
    key: str

    def write(self, value: Any) -> None:
        """Set it."""
        for owner in self.owners:
            setattr(owner, self.key, value)

    def read(self) -> Iterable[Any]:
        """Read it."""
        return [getattr(owner, self.key) for owner in self.owners]


@dataclass
class BatchSize:
    """The attribute that ``train_dataloader()`` reads; a new loader is made for the next epoch."""

    trainer: Any
    owner: Any
    key: str
    asked: int | None = None
    reload_every: int = field(init=False)

    def __post_init__(self) -> None:
        self.reload_every = self.trainer.reload_dataloaders_every_n_epochs

    def write(self, value: int) -> None:
        """Set it and have the loader made again."""
        if hasattr(self.owner, self.key):
            setattr(self.owner, self.key, value)
        if self.key in self.owner.hparams:
            self.owner.hparams[self.key] = value
        self.asked = value
        if self.trainer.train_dataloader is not None and _batch_size(self.trainer) != value:
            self.trainer.reload_dataloaders_every_n_epochs = 1

    def read(self) -> Iterable[int]:
        """Read the attribute; the loader follows with the epoch."""
        return [getattr(self.owner, self.key, self.owner.hparams.get(self.key))]

    def check_loader(self) -> None:
        """Compare the loader of a new epoch with what was asked for."""
        if self.asked is None:
            return
        asked, self.asked = self.asked, None
        self.trainer.reload_dataloaders_every_n_epochs = self.reload_every
        if _batch_size(self.trainer) != asked:
            raise ParameterMismatchError(
                f"{self.key}={asked!r} was asked for, the loader has {_batch_size(self.trainer)!r}: "
                f"let train_dataloader() read self.{self.key}."
            )


def _bind(name: str, trainer: pl.Trainer, module: pl.LightningModule) -> Place | None:
    head, key = split_name(name)
    if head == "trainer":
        return Attributes([trainer], key) if key in _TRAINER else None
    owner: Any = module if head == "model" else trainer.datamodule  # type: ignore[attr-defined]  # set by fit
    if key == "batch_size":
        return BatchSize(trainer, owner, key) if hasattr(owner, key) or key in getattr(owner, "hparams", {}) else None
    if head not in ("model", "optimizer"):
        return None
    key = key.removeprefix("init_args.")  # a command line writes optimizer.lr or optimizer.init_args.lr
    built = module.hparams.get(key) if head == "model" else None
    if key in _LEARNING_RATES:
        return _bind_lr(name, trainer, built)
    if head == "model" and "dropout" in key:
        layers = [one for one in module.modules() if isinstance(one, _DropoutNd) and built in (None, one.p)]
        return Attributes(layers, "p") if layers else None
    return _bind_setting(name, key, trainer, built)


def _bind_lr(name: str, trainer: pl.Trainer, built: float | None) -> LearningRate | None:
    groups = {
        (index, group): float(live.base_lr(values))
        for index, optimizer in enumerate(trainer.optimizers)
        for group, values in enumerate(optimizer.param_groups)
    }
    reference = next(iter(groups.values()), 0.0) if built is None else built
    if reference == 0 or 0 in groups.values():
        raise MisconfigurationException(
            f"{name}: the optimizer was built with a learning rate of 0; give it any other."
        )
    return LearningRate(trainer, {place: base / reference for place, base in groups.items()})


def _bind_setting(name: str, key: str, trainer: pl.Trainer, built: Any) -> GroupSetting | None:
    places = [(one, index) for one in trainer.optimizers for index in range(len(one.param_groups))]
    element = None
    moved = any(getattr(config.scheduler, "cycle_momentum", False) for config in trainer.lr_scheduler_configs)
    if moved and key in ("momentum", "beta1", "betas"):
        raise MisconfigurationException(
            f"{name} is in the space, but the LR schedule moves the momentum: give it cycle_momentum=False."
        )
    if not any(key in one.param_groups[index] for one, index in places) and key in _BETAS:
        key, element = "betas", _BETAS[key]
    setting = GroupSetting([(one, index) for one, index in places if key in one.param_groups[index]], key, element)
    values = list(setting.read())
    setting.groups = [
        place
        for place, value in zip(setting.groups, values, strict=True)
        if _same(value, values[0] if built is None else built)
    ]
    return setting if setting.groups else None


def _refusal(name: str) -> str:
    head, key = split_name(name)
    if head == "trainer":
        return f"{name!r} cannot change while training; of the Trainer only {', '.join(_TRAINER)} can."
    if key == "batch_size":
        return f"{name!r} needs a data module whose train_dataloader() reads self.batch_size."
    return (
        f"{name!r} cannot change while training: no optimizer setting, dropout layer or batch size was built with it. "
        f"What needs a new module (a hidden size) does not belong into the space of a population; for anything else "
        f"define {HOOK}(self, hparams) in the {'module' if head == 'model' else 'data module'}."
    )


def _batch_size(trainer: Any) -> Any:
    loader = trainer.train_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    return getattr(sampler, "batch_size", getattr(loader, "batch_size", None))


def _same(effective: Any, asked: Any) -> bool:
    if isinstance(effective, float) and isinstance(asked, int | float):
        return bool(abs(effective - asked) <= 1e-9 * max(abs(asked), abs(effective)))
    return bool(effective == asked)
