"""Places of hyperparameters that no build shows: the Trainer's own, batch sizes, optimizer settings by their name."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch

from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.space import split_name

_LEARNING_RATES = ("lr", "learning_rate")
_BETAS = {"beta1": 0, "beta2": 1, "momentum": 0}


@dataclass
class TrainerSetting:
    """A setting that the Trainer reads at every step."""

    trainer: Any
    key: str

    def write(self, value: Any) -> None:
        """Set it."""
        setattr(self.trainer, self.key, value)

    def read(self) -> Iterable[Any]:
        """Read what is in effect."""
        return [getattr(self.trainer, self.key)]


@dataclass
class Setting:
    """A setting of parameter groups, or one element of it (``betas``), where the module cannot be built again."""

    groups: list[dict[str, Any]]
    key: str
    element: int | None = None

    @classmethod
    def of(cls, name: str, trainer: Any) -> "Setting | None":
        """Bind what only one value can be meant by: that of all groups, or of all but those that have none (0)."""
        head, key = split_name(name)
        key = key.removeprefix("init_args.")  # a command line writes optimizer.lr or optimizer.init_args.lr
        key = "lr" if key in _LEARNING_RATES else key
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        element = None
        if head not in ("model", "optimizer"):
            return None
        if not any(key in group for group in groups) and key in _BETAS:
            key, element = "betas", _BETAS[key]
        if key == "lr" and any(config.scheduler for config in trainer.lr_scheduler_configs):
            return None  # the base values of a schedule are its own
        setting = cls([group for group in groups if key in group], key, element)
        values = list(setting.read())
        setting.groups = [group for group, value in zip(setting.groups, values, strict=True) if value != 0]
        return (
            setting
            if len({float(one) for one in setting.read() if isinstance(one, int | float | torch.Tensor)}) == 1
            else None
        )

    def write(self, value: Any) -> None:
        """Set it."""
        for group in self.groups:
            if self.element is None and isinstance(group[self.key], torch.Tensor):
                group[self.key].fill_(value)
            elif self.element is None:
                group[self.key] = value
            else:
                pair = list(group[self.key])
                pair[self.element] = value
                group[self.key] = tuple(pair)

    def read(self) -> Iterable[Any]:
        """Read what is in effect."""
        return [group[self.key] if self.element is None else group[self.key][self.element] for group in self.groups]


@dataclass
class Loaders:
    """Has the training loaders made again for the next epoch, with new workers."""

    trainer: Any
    reload_every: int | None = None

    def renew(self) -> None:
        """Ask for new loaders."""
        if self.trainer.train_dataloader is None:
            return  # the first is yet to be made
        if self.reload_every is None:
            self.reload_every = self.trainer.reload_dataloaders_every_n_epochs
        self.trainer.reload_dataloaders_every_n_epochs = 1

    def restore(self) -> None:
        """Make them as seldom as before."""
        if self.reload_every is not None:
            self.trainer.reload_dataloaders_every_n_epochs, self.reload_every = self.reload_every, None


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
        """Set it, and have the loader made again."""
        if hasattr(self.owner, self.key):
            setattr(self.owner, self.key, value)
        if self.key in self.owner.hparams:
            self.owner.hparams[self.key] = value
        self.asked = value
        if not self.is_in_loader:
            self.trainer.reload_dataloaders_every_n_epochs = 1

    @property
    def is_in_loader(self) -> bool:
        """Whether the loader has what was asked for, or is yet to be made."""
        return self.trainer.train_dataloader is None or _batch_size(self.trainer) == self.asked

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


def _batch_size(trainer: Any) -> Any:
    loader = trainer.train_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    return getattr(sampler, "batch_size", getattr(loader, "batch_size", None))
