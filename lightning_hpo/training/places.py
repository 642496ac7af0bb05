"""Values that a hyperparameter's name alone leads to: of the Trainer, of the loaders, of parameter groups."""

from dataclasses import dataclass
from typing import Any

import torch

from lightning_hpo.space.names import split_name
from lightning_hpo.training.leaves import Path, get

BATCH_SIZE = "batch_size"
TRAINER = ("gradient_clip_val",)
"""Settings of the Trainer that it reads at every step."""
_LEARNING_RATES = ("lr", "learning_rate")
_BETAS = {"beta1": 0, "beta2": 1, "momentum": 0}


def trainer_path(key: str) -> Path:
    """Return the path of a setting of the Trainer."""
    return (("item", "trainer"), ("item", 0), ("attribute", key))


def batch_size_paths(head: str, owner: Any) -> list[Path]:
    """Return the paths, from a root ``head``, of the batch size that ``train_dataloader()`` may read, if any."""
    root = (("item", head), ("item", 0))
    paths: list[Path] = []
    if hasattr(owner, BATCH_SIZE):
        paths.append((*root, ("attribute", BATCH_SIZE)))
    if BATCH_SIZE in getattr(owner, "hparams", {}):
        paths.append((*root, ("attribute", "_hparams"), ("item", BATCH_SIZE)))
    return paths


def group_paths(name: str, trainer: Any) -> list[Path]:
    """Return the paths of the optimizer setting, or of its element (``betas``), that a name means.

    A name can only mean a setting of which all groups that have it, or have it other than 0, hold one value.

    There may be none: the base values of an LR schedule, too, are the schedule's own.
    """
    head, key = split_name(name)
    key = key.removeprefix("init_args.")  # a command line writes optimizer.lr or optimizer.init_args.lr
    key = "lr" if key in _LEARNING_RATES else key
    if head not in ("model", "optimizer"):
        return []
    if key == "lr" and any(config.scheduler for config in trainer.lr_scheduler_configs):
        return []
    steps: Path = (("item", key),)
    roots = {"optimizers": list(trainer.optimizers)}
    groups: dict[Path, dict[str, Any]] = {
        (("item", "optimizers"), ("item", index), ("attribute", "param_groups"), ("item", place)): group
        for index, optimizer in enumerate(trainer.optimizers)
        for place, group in enumerate(optimizer.param_groups)
    }
    if key in _BETAS and not any(key in group for group in groups.values()):
        steps = (("item", "betas"), ("item", _BETAS[key]))
    paths = [(*path, *steps) for path, group in groups.items() if steps[0][1] in group]
    values = {path: value for path in paths if (value := get(roots, path)) != 0}
    numbers = {float(value) for value in values.values() if isinstance(value, int | float | torch.Tensor)}
    return list(values) if len(numbers) == 1 else []


def batch_size_in_use(trainer: Any) -> Any:
    """Return the batch size of the training loader; None if it has none."""
    loader = trainer.train_dataloader
    sampler = getattr(loader, "batch_sampler", None)
    return getattr(sampler, BATCH_SIZE, getattr(loader, BATCH_SIZE, None))


@dataclass
class Loaders:
    """Has the training loaders made again for the next epoch, with new workers."""

    trainer: Any
    reload_every: int | None = None

    def renew(self) -> None:
        """Ask for new loaders."""
        if self.trainer.train_dataloader is None:
            return  # the first loader is yet to be made
        if self.reload_every is None:
            self.reload_every = self.trainer.reload_dataloaders_every_n_epochs
        self.trainer.reload_dataloaders_every_n_epochs = 1

    def restore(self) -> None:
        """Make them as seldom as before."""
        if self.reload_every is not None:
            self.trainer.reload_dataloaders_every_n_epochs, self.reload_every = self.reload_every, None
