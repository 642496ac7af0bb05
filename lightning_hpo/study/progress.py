"""How far the running job of a trial has come: a small file in the trial's folder, replaced at most twice a second.

The study holds scores, each written durably before anything is decided from it. Progress is for people: it is written
without a sync, by the process that trains, so every executor has it, and so has a process that only looks.
"""

import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo.atomic import open_new

FILE = "progress.json"
INTERVAL = 0.5
"""Seconds between two writes."""
_CURVE = 40  # validations that are kept, for a sparkline


@dataclass(frozen=True)
class Progress:
    """How far a trial has come.

    Args:
        trial: its number.
        step: optimizer step where it stands; below 0 for a function, which does not tell.
        begin: step at which the job began.
        target: step that the job trains to.
        steps: optimizer steps of the job that are timed: those after its first one, so that start-up does not count.
        seconds: that the timed steps have taken, validations and checkpoints included.
        curve: (step, value) of the monitored metric at validations, oldest first; a long curve is thinned out.
        at: time of writing, in seconds since the epoch.
        pid: process that trains.
        host: machine that it runs on; empty in a file of an older version, which is of this one.
    """

    trial: int
    step: int
    begin: int
    target: int
    steps: int = 0
    seconds: float = 0.0
    curve: Sequence[tuple[int, float]] = ()
    at: float = 0.0
    pid: int = 0
    host: str = ""

    @property
    def is_here(self) -> bool:
        """Whether the process is one of this machine."""
        return self.host in ("", platform.node())

    @property
    def value(self) -> float | None:
        """The last value of the monitored metric."""
        return self.curve[-1][1] if self.curve else None

    @property
    def rate(self) -> float | None:
        """Optimizer steps per second; None before two steps are timed."""
        return self.steps / self.seconds if self.steps and self.seconds > 0 else None


def read_progress(folder: Path) -> Progress | None:
    """Return the progress of the trial in a folder; None if there is none to read."""
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
        curve = tuple((int(step), float(value)) for step, value in content.pop("curve"))
        host = str(content.pop("host", ""))
        numbers = {field.name: content[field.name] for field in fields(Progress) if field.name not in ("curve", "host")}
        if not all(math.isfinite(value) for value in numbers.values()):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None
    return Progress(**numbers, curve=curve, host=host)


def write_progress(folder: Path, progress: Progress) -> None:
    """Replace the file of a trial, with the time and this process; on a full disk the search does without."""
    fresh = folder / f".{FILE}.tmp"
    content = asdict(replace(progress, at=time.time(), pid=os.getpid(), host=platform.node()))
    with suppress(OSError):
        fresh.unlink(missing_ok=True)
        with os.fdopen(open_new(fresh), "w", encoding="utf-8") as file:
            json.dump(content, file)
        fresh.replace(folder / FILE)


def note_job(folder: Path, trial: int, target: int) -> None:
    """Write that a job of this process is at work, where it will not say how far it has come, as that of a function."""
    before = read_progress(folder)
    if before is None or before.step < 0:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
        write_progress(folder, Progress(trial, step=-1, begin=0, target=target))


class Training(Protocol):
    """A Trainer, as far as progress needs it."""

    @property
    def global_step(self) -> int:
        """Optimizer step where it stands."""

    @property
    def is_global_zero(self) -> bool:
        """Whether it is the one of rank 0."""

    def place(self) -> Mapping[str, int]:
        """Return how much of the budget it has had (``step``); with ``global_step`` if that is not in steps."""


class Judged(Protocol):
    """A job that notes its validations."""

    @property
    def values(self) -> Mapping[int, float]:
        """Optimizer step -> monitored metric."""


class ProgressFile:
    """Writes the progress of a job into its trial's folder, at most every :data:`INTERVAL` seconds.

    A job asks after every optimizer step and validation batch whether to pause; progress is noted then, so
    it needs no hook in a training step and no thread.

    Args:
        folder: of the trial.
        trial: its number.
        begin: optimizer step at which the job begins.
        target: step that it trains to.
        should_pause: asked by :meth:`pause_wanted`.
        earlier: steps of the trial in earlier fits, of other folds.
        clock: in seconds.
    """

    def __init__(
        self,
        folder: Path,
        trial: int,
        begin: int,
        target: int,
        should_pause: Callable[[], bool],
        *,
        earlier: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._begin, self._earlier = begin, earlier
        self._head: dict[str, Any] = {"trial": trial, "begin": earlier + begin, "target": earlier + target}
        self._should_pause = should_pause
        self._clock = clock
        self._followed: tuple[Training, Judged] | None = None
        before = read_progress(folder) if begin else None
        self._before = [] if before is None else [point for point in before.curve if point[0] <= earlier + begin]
        self._first: tuple[float, int] | None = None
        self._due = clock() + INTERVAL

    def follow(self, trainer: Training, job: Judged) -> None:
        """Write the progress of a job from now on; ranks above 0 write none."""
        self._followed = (trainer, job) if trainer.is_global_zero else None

    def pause_wanted(self) -> bool:
        """Whether to pause; most calls only look at the clock before they ask."""
        if self._followed is not None:
            trainer, job = self._followed
            now = self._clock()
            if self._first is None and trainer.global_step > self._begin:
                self._first = now, trainer.place()["step"]
            if now >= self._due:
                self._due = now + INTERVAL
                self._write(now, trainer, job)
        return self._should_pause()

    def next_job(self, trial: int, target: int, score: tuple[int, float | None]) -> None:
        """Go on with the next job of a fit that stays alive, as those of a population's members do."""
        step, value = score
        self._begin, self._first = step, None
        self._head |= {"trial": trial, "begin": step, "target": target}
        if value is not None:
            self._before = [*(point for point in self._before if point[0] < step), (step, value)]

    def close(self) -> None:
        """Write where the job has ended, and let go of it."""
        followed, self._followed = self._followed, None
        if followed is not None:
            self._write(self._clock(), *followed)

    def _write(self, now: float, trainer: Training, job: Judged) -> None:
        place = trainer.place()
        step, values = place["step"], {} if "global_step" in place else job.values  # these are at optimizer steps
        started, first = (now, step) if self._first is None else self._first
        points = [(self._earlier + at, value) for at, value in sorted(values.items()) if math.isfinite(value)]
        seen = {at for at, _ in points}
        curve = thinned([*(point for point in self._before if point[0] not in seen), *points])
        seconds = round(now - started, 4)
        content = Progress(step=self._earlier + step, steps=step - first, seconds=seconds, curve=curve, **self._head)
        write_progress(self._folder, content)


def thinned(points: Sequence[Any], count: int = _CURVE) -> list[Any]:
    """Return at most ``count`` points of a curve, the first and the last among them.

    Example:
        >>> thinned(range(10), 4)
        [0, 3, 6, 9]
    """
    if len(points) <= count:
        return list(points)
    return [points[round(index * (len(points) - 1) / (count - 1))] for index in range(count)]
