"""Jobs in this process, one after the other."""

import contextlib
import gc
import time
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Self

from lightning_hpo.errors import free_frames
from lightning_hpo.executors.watchdog import Watchdog
from lightning_hpo.records import Outcome, Task, Work


class InProcess:
    """Runs each job in this process, to its end, when it is submitted.

    Args:
        work: carries out a task; its second argument returns whether to pause.
        should_pause: handed to ``work``, which calls it after every optimizer step and validation batch.
        trial_timeout: seconds without a call of ``should_pause`` after which the job counts as hanging. A thread cannot
            be stopped from outside, so the stacks of all threads are printed and the process exits with code 1; the
            same command continues the trial from its checkpoint. None waits for ever.
    """

    workers = 1

    def __init__(self, work: Work, should_pause: Callable[[], bool], *, trial_timeout: float | None = None) -> None:
        self._work = work
        self._should_pause = should_pause
        self._watchdog = None if trial_timeout is None else Watchdog(trial_timeout)
        self._collecting = self._since = 0.0  # seconds of the last garbage collection, and of the jobs since

    def __enter__(self) -> Self:
        # A Trainer and its module refer to each other, so only the collector frees them: after each job, or after
        # several if they are shorter than a collection, which looks through the rows of all trials. Objects that exist
        # already are frozen, so that each collection is short.
        gc.freeze()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._since:
            gc.collect()
        gc.unfreeze()

    def submit(self, task: Task) -> "Future[Outcome]":
        """Run the job to its end and return its finished future."""
        future: Future[Outcome] = Future()
        begun = time.monotonic()
        try:
            with contextlib.nullcontext() if self._watchdog is None else self._watchdog.watching(task):
                future.set_result(self._work(task, self._pause_wanted))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the future carries it, SystemExit of user code too
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns Ctrl-C into SystemExit
                raise KeyboardInterrupt from error
            free_frames(error)
            future.set_exception(error)
        ended = time.monotonic()
        self._since += ended - begun
        if self._since >= self._collecting or future.exception() is not None:  # a failed one may hold a full device
            gc.collect()
            self._collecting, self._since = time.monotonic() - ended, 0.0
        return future

    def _pause_wanted(self) -> bool:
        if self._watchdog is not None:
            self._watchdog.progress += 1
        return self._should_pause()
