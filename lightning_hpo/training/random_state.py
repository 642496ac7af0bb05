"""The global random number generators: who may draw from them, seeds, and values that a checkpoint can hold."""

import os
import random
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

_NUMPY_WORDS = 624  # of the Mersenne twister


_SEEDING = ("PL_GLOBAL_SEED", "PL_SEED_WORKERS")  # variables of ``lightning.seed_everything``


_TRAINS = threading.RLock()  # a trial may train others inside, in its own thread


@contextmanager
def one_thread() -> Iterator[None]:
    """Refuse a second thread: both would draw from the same random numbers, and no trial could be repeated.

    Raises:
        RuntimeError: if another thread trains.
    """
    if not _TRAINS.acquire(blocking=False):
        raise RuntimeError(
            "another thread of this process trains a trial, and both would draw from the same random numbers: "
            "use `n_jobs=1`, or OptunaTuner(workers=2) for two trials at a time in processes of their own"
        )
    try:
        yield
    finally:
        _TRAINS.release()


@contextmanager
def seeded_everything(seed: int) -> Iterator[None]:
    """Seed as ``lightning.seed_everything(seed, workers=True)`` does, while the block runs."""
    before = {name: os.environ.get(name) for name in _SEEDING}
    os.environ |= dict(zip(_SEEDING, (str(seed), "1"), strict=True))
    try:
        with seeded((seed, seed, seed)):
            yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def seeded(seeds: Sequence[int] = (0, 0, 0)) -> Iterator[None]:
    """Seed torch, numpy and Python while the block runs; the caller gets its random numbers back afterwards."""
    before = rng_state()
    # Without an accelerator, torch.manual_seed formats the stack for each kind of them, which takes .4 ms.
    (torch if torch.accelerator.is_available() else torch.default_generator).manual_seed(seeds[0])
    np.random.seed(seeds[1])  # noqa: NPY002  # user code may draw from the global generator
    random.seed(seeds[2])
    try:
        yield
    finally:
        set_rng_state(before)


def rng_state() -> dict[str, Any]:
    """Copy the global random number generators of torch, its accelerator (CUDA, MPS, ...), numpy and Python.

    The words of numpy and Python go into one tensor: every value on its own costs time in a checkpoint.
    """
    version, internal, gauss_next = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  # user code may draw from the global generator
    words = np.concatenate([numpy_state["state"]["key"], np.asarray(internal, np.uint32)])
    return {
        "torch": torch.get_rng_state(),
        "devices": _device_states(),
        "words": torch.from_numpy(words.view(np.int32)),
        "numpy": (int(numpy_state["state"]["pos"]), int(numpy_state["has_gauss"]), float(numpy_state["gauss"])),
        "python": (version, gauss_next),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the result of :func:`rng_state` back."""
    torch.set_rng_state(state["torch"])
    _set_device_states(state.get("devices") or {"cuda": state.get("cuda", [])})  # older checkpoints have the latter
    words = state["words"].numpy().view(np.uint32)
    key, internal = words[:_NUMPY_WORDS], words[_NUMPY_WORDS:]
    np.random.set_state(("MT19937", key, *state["numpy"]))  # noqa: NPY002  # the global generator
    version, gauss_next = state["python"]
    random.setstate((version, tuple(internal.tolist()), gauss_next))


def _accelerator() -> str | None:
    """Kind of accelerator of this machine, as torch names it: ``"cuda"``, ``"mps"``; asking does not initialise it."""
    device = torch.accelerator.current_accelerator(check_available=True)
    return None if device is None else device.type


def _device_states() -> dict[str, list[torch.Tensor]]:
    """State of each visible device by kind of accelerator; empty before the first use of one."""
    kind = _accelerator()
    if kind is None:
        return {}
    module = torch.get_device_module(kind)
    if not getattr(module, "is_initialized", lambda: True)():  # MPS has no such function
        return {}
    return {kind: [module.get_rng_state(index) for index in range(torch.accelerator.device_count())]}


def _set_device_states(states: Mapping[str, Sequence[torch.Tensor]]) -> None:
    """Put states back, as far as this machine has such devices: a search may go on with fewer, or without."""
    kind = _accelerator()
    if kind is not None and kind in states:
        for index, state in enumerate(states[kind][: torch.accelerator.device_count()]):
            torch.get_device_module(kind).set_rng_state(state, index)
