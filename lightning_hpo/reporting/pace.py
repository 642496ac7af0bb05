"""How long a search will still take, from steps that were timed; silent while the answer may be wrong by a factor of 2.

A job costs some time of its own (a proposal, building, checkpoints) and time for each step. Both are measured, so that
many short jobs at the beginning say something about the long ones that follow.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from lightning_hpo.study.progress import Progress

_LEAST_SECONDS = 0.2  # a job that was timed for less says nothing yet about its pace
_PRIOR = 0.3  # spread of the logarithm of the pace among trials, before more than one is known


@dataclass(frozen=True)
class Timed:
    """Optimizer steps and the seconds that they took, start-up excluded."""

    steps: int
    seconds: float


class Pace:
    """Measures the jobs of this call."""

    def __init__(self, workers: int = 1, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._workers = workers
        self._clock = clock
        self._began = clock()
        self._starts: dict[int, float] = {}
        self._timed: list[Timed] = []
        self._warm: tuple[float, float, int] | None = None  # when every worker has ended a job; seconds and jobs so far

    @property
    def elapsed(self) -> float:
        """Seconds since the search began."""
        return self._clock() - self._began

    def started(self, trial: int) -> None:
        """Take note of a job that starts."""
        self._starts[trial] = self._clock()

    def running(self, trial: int) -> float | None:
        """Seconds since the job of a trial started; None if none is at work."""
        return None if trial not in self._starts else self._clock() - self._starts[trial]

    def ended(self, trial: int, steps: int, progress: Progress | None) -> None:
        """Take note of a job that has ended.

        Args:
            trial: its number.
            steps: that it has added.
            progress: of its trial; None for a function, which is timed as a whole.
        """
        now = self._clock()
        wall = now - self._starts.pop(trial, now)
        if steps > 0:
            self._timed.append(Timed(steps, wall) if progress is None else Timed(progress.steps, progress.seconds))
        if self._warm is None and len(self._timed) >= self._workers:
            self._warm = now, sum(job.seconds for job in self._timed), len(self._timed)

    def left(self, steps: int, jobs: int, running: Iterable[Progress] = ()) -> float | None:
        """Return the seconds that are left, or None as long as they are not known within a factor of 2."""
        at_work = [Timed(job.steps, job.seconds) for job in running]
        timed = [job for job in (*self._timed, *at_work) if job.steps > 0 and job.seconds > 0]
        if not is_known(timed):
            return None
        per_step = sum(job.seconds for job in timed) / sum(job.steps for job in timed)
        at_once = min(self._workers, max(jobs, 0) + len(at_work)) or self._workers  # the last jobs leave workers idle
        return (max(jobs, 0) * self._per_job(at_work) + max(steps, 0) * per_step) / at_once

    def _per_job(self, running: Sequence[Timed]) -> float:
        """Seconds of a worker for each job that are not steps: what is left of the time since all workers are warm."""
        if self._warm is None:
            return 0.0
        since, seconds, jobs = self._warm
        ended = len(self._timed) - jobs
        if not ended:
            return 0.0
        in_steps = sum(job.seconds for job in (*self._timed, *running)) - seconds
        return max(self._workers * (self._clock() - since) - in_steps, 0.0) / ended


def is_known(timed: Sequence[Timed]) -> bool:
    """Whether the pace of a search is known within a factor of 2: twice its standard error is below log 2.

    The pace varies from trial to trial, with the width of a layer for example, so a few trials say little if theirs
    differ much.
    """
    if sum(job.seconds for job in timed) < _LEAST_SECONDS:
        return False
    logs = [math.log(job.seconds / job.steps) for job in timed]
    middle = statistics.fmean(logs)
    spread = math.sqrt((_PRIOR**2 + sum((value - middle) ** 2 for value in logs)) / len(logs))
    return 2 * spread / math.sqrt(len(logs)) < math.log(2)
