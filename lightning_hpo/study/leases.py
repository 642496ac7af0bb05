"""Several processes on one study: one at a time decides, and a process that trains a trial holds a lease on it.

A process takes the study lock, reads what the others have written, records what came of its job, decides which job is
next, leases the trial, and frees the study lock; training happens without it. A lease is a lock in the trial's folder,
with the step that the process trains to in its file. When the process dies, the kernel frees both locks: the others see
the trial idle and continue it from its checkpoint. Nothing depends on a clock.
"""

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

from lightning_hpo.study.locks import Lock

WORKER_LOCK = "worker.lock"
"""In a trial's folder: held by a worker elsewhere, which may outlive the process that has sent it the job."""


class Leases:
    """Which trials are at work, in whatever process. To be used under the study lock only."""

    def __init__(self, trials: Path) -> None:
        self._trials = trials
        self._own: dict[int, tuple[Lock, int]] = {}

    def take(self, number: int, target: int) -> None:
        """Lease an idle trial, and say up to which step it will be trained."""
        lock = Lock(self._path(number))
        lock.path.parent.mkdir(parents=True, exist_ok=True)
        if not lock.take():
            raise RuntimeError(
                f"trial {number} is at work in another process."
            )  # the table was not read under the lock
        lock.write(str(target))
        self._own[number] = lock, target

    def free(self, number: int) -> None:
        """Give a trial back."""
        if number in self._own:
            self._own.pop(number)[0].free()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Give all trials back."""
        for number in list(self._own):
            self.free(number)

    def target(self, number: int) -> int | None:
        """Step that a trial at work is trained to; None if it is idle."""
        if number in self._own:
            return self._own[number][1]
        lock = Lock(self._path(number))
        if not lock.path.exists():
            return None
        if lock.take():
            lock.free()
            return None
        with contextlib.suppress(ValueError):
            return int(lock.path.read_text())
        return None  # its holder has died this moment

    def _path(self, number: int) -> Path:
        return self._trials / f"{number:04d}" / "lease"


@contextmanager
def study_lock(run: Path) -> Iterator[None]:
    """Wait until no other process decides, and keep it so while the block runs."""
    lock = Lock(run / "turn")
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.free()


@contextmanager
def trial_held(folder: Path) -> Iterator[None]:
    """Wait until no worker of a driver that was killed writes in a trial's folder, and keep it so in the block."""
    if not folder.is_dir():  # a function keeps nothing in a folder
        yield
        return
    lock = Lock(folder / WORKER_LOCK)
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.free()
