"""A data module or loaders that are given as objects: each trial gets a copy, and none sees the state of another."""

import copy
from collections.abc import Callable
from functools import partial
from multiprocessing.reduction import ForkingPickler
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils._pytree import tree_leaves

from lightning_hpo.training.builder import Coded
from lightning_hpo.training.namespaces import is_a

_PLAIN = (int, float, str, bool, type(None))


class CopiedData(Coded):
    """Makes a data module for each trial from one that is given as an object.

    Args:
        data: is copied with all that it holds, unless its class says by ``__deepcopy__`` what trials may share.
        words: what was given, for messages.
    """

    def __init__(self, data: Any, words: str = "`datamodule` is an object") -> None:
        self._data = copy.copy(data)
        self._data.trainer = None  # of an earlier fit
        self.words = words
        self.__name__ = type(data).__name__
        self.code = data.code if isinstance(data, GivenLoaders) else [_settings(data)]
        ForkingPickler.register(torch.Generator, _sent)  # of a loader that is sent to a worker process

    def __call__(self) -> Any:
        """Return a copy.

        Raises:
            TypeError: if it cannot be copied.
        """
        try:
            copied = copy.deepcopy(self._data)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            raise TypeError(
                f"{self.words}, which cannot be copied for each trial ({why}): give a class, or a function that "
                "returns a new one."
            ) from error
        return copy.copy(copied) if copied is self._data else copied


class GivenLoaders(pl.LightningDataModule, Coded):
    """Loaders for training and validation, or functions that return new ones, as a data module."""

    def __init__(self, train: Any, val: Any) -> None:
        super().__init__()
        self._train, self._val = train, val
        parts = [part for given in (train, val) for part in _parts(given)]
        self.code = [part if callable(part) else _settings(part) for part in parts]

    def train_dataloader(self) -> Any:
        """Return the loaders, which are copies already, or new ones."""
        return self._train() if callable(self._train) else self._train

    def val_dataloader(self) -> Any:
        """Return the loaders, as above."""
        return self._val() if callable(self._val) else self._val


def given_data(datamodule: Any, train_dataloaders: Any, val_dataloaders: Any) -> Callable[..., Any] | None:
    """Return what makes the data module of a trial; None if the module brings its own loaders.

    Args:
        datamodule: a class or function, which is returned, or an object.
        train_dataloaders: a loader or a collection of loaders, as ``Trainer.fit`` takes them, or a function that
            returns new ones.
        val_dataloaders: the same, for validation.

    Raises:
        TypeError: for a combination that means nothing.
    """
    if train_dataloaders is None and val_dataloaders is None:
        made: Callable[..., Any] | None = datamodule
        return CopiedData(datamodule) if is_a(datamodule, pl.LightningDataModule) else made
    if datamodule is not None:
        raise TypeError("`datamodule` and loaders are both given: leave one of them out.")
    missing = "val_dataloaders" if val_dataloaders is None else "train_dataloaders"
    if train_dataloaders is None or val_dataloaders is None:
        raise TypeError(f"`{missing}` is missing: give loaders for training and for validation.")
    for name, given in (("train_dataloaders", train_dataloaders), ("val_dataloaders", val_dataloaders)):
        if is_a(given, pl.LightningDataModule) or pl.LightningDataModule in getattr(given, "__mro__", ()):
            raise TypeError(f"`{name}` is a data module: write datamodule=...")
        if not callable(given) and not hasattr(given, "__iter__"):
            raise TypeError(f"`{name}` must be a loader, or a function that returns a new one, got {given!r}.")
    return CopiedData(GivenLoaders(train_dataloaders, val_dataloaders), "loaders are given")


def _sent(generator: torch.Generator) -> tuple[Any, ...]:
    """How a generator goes to another process: torch's own way loses its state on the way."""
    return _received, (str(generator.device), generator.get_state().numpy().tobytes())


def _received(device: str, state: bytes) -> torch.Generator:
    return torch.Generator(device).set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))


def _parts(given: Any) -> list[Any]:
    """Loaders with their datasets, or the function that makes them."""
    if callable(given):
        return [given]
    loaders = tree_leaves(getattr(given, "iterables", given))  # of a CombinedLoader
    return [part for loader in loaders for part in (loader, getattr(loader, "dataset", None)) if part is not None]


def _settings(owner: Any) -> Callable[..., Any]:
    """A class with the plain values that an object of it holds."""
    held = {**vars(owner), **getattr(owner, "hparams", {})} if hasattr(owner, "__dict__") else {}
    plain = {str(name): value for name, value in sorted(held.items()) if _is_plain(value) and str(name)[:1] != "_"}
    kind: Callable[..., Any] = type(owner)
    return partial(kind, **plain)


def _is_plain(value: Any) -> bool:
    """Whether a value is a setting; a tuple may hold data, such as the tensors of a ``TensorDataset``."""
    return all(map(_is_plain, value)) if isinstance(value, tuple) else isinstance(value, _PLAIN)
