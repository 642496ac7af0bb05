"""Two legs equal one leg: what Lightning leaves out of a checkpoint, so that training can be cut at any step.

Lightning stores weights, optimizers, LR schedules and counters. Missing are the state of the random number generators
and the position in the data: after a cut inside an epoch it starts the loader at its first sample again. A
:class:`Resumable` callback adds both through public hooks: Lightning asks a loader that has ``state_dict`` for its
state, and calls a callback around training and validation.

Exact for sized loaders (``torch.utils.data.DataLoader`` over a dataset with a length), shuffled or not, with the global
generator or one of their own, with and without workers. Limits: persistent workers whose dataset draws random numbers,
several training loaders at once, ``ReduceLROnPlateau`` cut at the end of an epoch, and a LightningModule that changes
its own state in its ``on_train_batch_end``. An unsized loader starts again at its first sample, as in plain Lightning.
"""

import random
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

_NUMPY_WORDS = 624  # of the Mersenne twister


def rng_state() -> dict[str, Any]:
    """Copy the global random number generators of torch, CUDA, numpy and Python, as values a checkpoint can hold.

    The words of numpy and Python go into one tensor: every value on its own costs time in a checkpoint.
    """
    version, internal, gauss_next = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # user code may draw from the global generator
    words = np.concatenate([numpy_state["state"]["key"], np.asarray(internal, np.uint32)])
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if _uses_cuda() else [],
        "words": torch.from_numpy(words.view(np.int32)),
        "numpy": (int(numpy_state["state"]["pos"]), int(numpy_state["has_gauss"]), float(numpy_state["gauss"])),
        "python": (version, gauss_next),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put back what :func:`rng_state` returned."""
    torch.set_rng_state(state["torch"])
    if state["cuda"]:
        torch.cuda.set_rng_state_all(state["cuda"])
    words = state["words"].numpy().view(np.uint32)
    key, internal = words[:_NUMPY_WORDS], words[_NUMPY_WORDS:]
    np.random.set_state(("MT19937", key, *state["numpy"]))  # noqa: NPY002  # the global generator
    version, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))


def _uses_cuda() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]  # torch leaves it untyped


class Resumable(pl.Callback):
    """Makes training independent of where it is cut, and of validations in between.

    Give it to the Trainer, and pass what ``train_dataloader()`` returns through :meth:`follow`.
    """

    def __init__(self) -> None:
        self._after_step: torch.Tensor | None = None
        self._before_validation: dict[str, Any] | None = None

    @staticmethod
    def follow(loaders: Any) -> Any:
        """Let every sized DataLoader in a collection tell and take back its position; others pass unchanged."""
        return apply_to_collection(loaders, DataLoader, _follow_one)

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Remember torch's generator: a validation loader draws from it before any validation hook is called."""
        self._after_step = torch.get_rng_state()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the other generators."""
        if self._after_step is not None:
            self._before_validation = {**rng_state(), "torch": self._after_step}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue training as if no validation had happened."""
        if self._before_validation is not None:
            set_rng_state(self._before_validation)
            self._before_validation = None


def _follow_one(loader: DataLoader[Any]) -> DataLoader[Any]:
    try:
        len(loader)
    except TypeError:
        return loader
    if hasattr(loader, "state_dict"):
        return loader
    # The loader stays an instance of the user's class, so that Lightning treats it as before.
    kind = type(loader)
    loader.__class__ = type(kind.__name__, (_Positioned, kind), {"__module__": kind.__module__})
    return loader


class _Positioned(DataLoader[Any]):
    """Mixed into a user's DataLoader: counts its batches, and replays them after a restore."""

    _batches = 0
    _start: Mapping[str, Any] = MappingProxyType({})
    _restored: Mapping[str, Any] | None = None

    def __iter__(self) -> Any:
        restored, self._restored = self._restored, None
        if restored is None:
            return self._begin()
        if restored["batches"] < len(self):  # start the epoch as it was started, and pass over what was seen
            self._set_random(restored["start"])
            iterator = self._begin()
            for _ in range(restored["batches"]):
                next(iterator)
            self._set_random(restored["now"])
        else:
            iterator = self._begin()
        return _with_random_numbers(rng_state(), iterator)

    def state_dict(self) -> dict[str, Any]:
        """Position and random numbers of now; Lightning stores it with the training loop."""
        return {"batches": self._batches, "start": dict(self._start), "now": self._random()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue there at the next iteration."""
        self._restored = state
        self._set_random(state["now"])

    def _begin(self) -> Iterator[Any]:
        self._batches = 0
        self._start = self._random()
        return self._counted(super().__iter__())

    def _counted(self, iterator: Iterator[Any]) -> Iterator[Any]:
        for batch in iterator:
            self._batches += 1
            yield batch

    def _random(self) -> dict[str, Any]:
        return {"global": rng_state(), "own": [generator.get_state() for generator in self._generators()]}

    def _set_random(self, state: Mapping[str, Any]) -> None:
        set_rng_state(state["global"])
        for generator, own in zip(self._generators(), state["own"], strict=True):
            generator.set_state(own)

    def _generators(self) -> list[torch.Generator]:
        """Generators of the loader's own: its ``generator``, and those of its samplers where they differ."""
        owners = (self, self.sampler, self.batch_sampler, getattr(self.batch_sampler, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def _with_random_numbers(state: dict[str, Any], iterator: Iterator[Any]) -> Iterator[Any]:
    """Undo what was drawn between a restore and the first batch: Lightning sets up validation in between."""
    set_rng_state(state)
    yield from iterator
