"""Folds of the data: how a data module, or a model with loaders of its own, is told which part validates."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Subset

from lightning_hpo.text import require_int
from lightning_hpo.training.builder import Builder, TrialComponents, fold_arguments

METHODS = ("setup_folds", "setup_fold_index")
"""Of a data module that is told its fold by them."""


class KFold(pl.LightningDataModule):
    """A dataset in parts, one of which validates and the others train.

    With ``folds`` of a tuner, each part validates in turn. In a plain fit it is the part ``fold``.

    Args:
        dataset: with a length, and samples that torch's ``DataLoader`` can collate.
        batch_size: of both loaders.
        folds: parts, >= 2.
        fold: the part that validates, counted from 0.
        parts: number of the part of each sample, such as those that scikit-learn's ``StratifiedKFold`` or
            ``GroupKFold`` makes. Default: equal parts, drawn from ``seed``.
        seed: of the parts. They are the same in all trials, processes and runs.
        **loader: more arguments of both loaders, such as ``num_workers``.

    Raises:
        TypeError, ValueError: if an argument is outside its range.

    Example:
        >>> data = KFold(range(10), folds=5, fold=1)
        >>> len(data.train_dataloader().dataset), len(data.val_dataloader().dataset)
        (8, 2)
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 32,
        *,
        folds: int = 5,
        fold: int = 0,
        parts: Sequence[int] | None = None,
        seed: int = 0,
        **loader: Any,
    ) -> None:
        super().__init__()
        if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise TypeError(f"`dataset` must have a length and samples by their number, got {dataset!r}.")
        require_int("batch_size", batch_size, 1)
        if "shuffle" in loader:
            raise TypeError(
                "`shuffle` is not an argument: parts are drawn at random from `seed`, or given as `parts`, training is "
                "shuffled, and validation is not."
            )
        self.dataset, self.batch_size, self.seed, self.loader = dataset, batch_size, seed, loader
        self.parts = None if parts is None else [*map(int, parts)]
        if parts is not None and self.parts != [*parts]:
            raise TypeError("`parts` must be integers, the number of the part of each sample.")
        if self.parts is not None and len(self.parts) != len(dataset):
            raise ValueError(
                f"`parts` must have a number for each sample, got {len(self.parts)} for {len(dataset)} samples."
            )
        self.setup_folds(folds)
        self.setup_fold_index(fold)

    def setup_folds(self, folds: int) -> None:
        """Cut the dataset into so many parts."""
        require_int("folds", folds, 2)
        self.folds = folds
        if empty := [fold for fold, part in enumerate(self._parts()) if not part]:
            raise ValueError(
                f"`folds` is {folds}, but no sample is in part {empty[0]}: {len(self.dataset)} samples"
                f"{'' if self.parts is None else f' with `parts` from {min(self.parts)} to {max(self.parts)}'}."
            )
        if self.parts is not None and not 0 <= min(self.parts) <= max(self.parts) < folds:
            raise ValueError(
                f"`parts` must be from 0 to {folds - 1}, as `folds` is {folds}, got {min(self.parts)} to "
                f"{max(self.parts)}."
            )

    def setup_fold_index(self, fold: int) -> None:
        """Choose the part that validates."""
        require_int("fold", fold, 0)
        if fold >= self.folds:
            raise ValueError(f"`fold` must be below `folds` {self.folds}, got {fold}.")
        self.fold = fold

    def train_dataloader(self) -> Any:
        """All parts but the one of the fold, shuffled."""
        parts = self._parts()
        return self._load([index for fold, part in enumerate(parts) if fold != self.fold for index in part], True)

    def val_dataloader(self) -> Any:
        """The part of the fold."""
        return self._load(self._parts()[self.fold], False)

    def _load(self, indices: list[int], shuffle: bool) -> Any:
        return DataLoader(
            Subset(self.dataset, indices), **{"shuffle": shuffle, "batch_size": self.batch_size, **self.loader}
        )

    def _parts(self) -> list[list[int]]:
        if self.parts is not None:
            return [[i for i, part in enumerate(self.parts) if part == fold] for fold in range(self.folds)]
        generator = torch.Generator().manual_seed(self.seed)
        order: list[int] = torch.randperm(len(self.dataset), generator=generator).tolist()
        return [order[part :: self.folds] for part in range(self.folds)]


class FoldSetup(pl.Callback):
    """Tells a data module with ``setup_folds`` and ``setup_fold_index`` its fold, after its ``setup``."""

    def __init__(self, fold: int, folds: int) -> None:
        self._fold, self._folds = fold, folds

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        """Call both."""
        if has_methods(trainer.datamodule):
            trainer.datamodule.setup_folds(self._folds)
            trainer.datamodule.setup_fold_index(self._fold)


def has_methods(data: Any) -> bool:
    """Whether a data module is told its fold by methods."""
    return all(callable(getattr(data, name, None)) for name in METHODS)


def has_attribute(owner: Any) -> bool:
    """Whether a data module, or a model with loaders of its own, holds a fold."""
    return hasattr(owner, "fold") or "fold" in getattr(owner, "hparams", {})


def build_fold(builder: Builder, params: Mapping[str, Any], fold: int | None, folds: int) -> TrialComponents:
    """Build the components of a trial that trains on a fold.

    Arguments of the data are filled in. Data that are copied, or made by a function without these arguments, get
    attributes. What has methods is told later, by :class:`FoldSetup`.
    """
    arguments = fold_arguments(builder, fold, folds)
    components = builder.build({**params, **arguments})
    owner = components.loader_owner
    for name, value in {"fold": fold, "folds": folds}.items():
        if fold is not None and not arguments and not has_methods(components.data):
            if name in getattr(owner, "hparams", {}):
                owner.hparams[name] = value
            if hasattr(owner, name):
                setattr(owner, name, value)
    return components
