"""Where jobs run."""

import gc
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Protocol, Self

from lightning_hpo.objective import Outcome, Task

Work = Callable[[Task, Callable[[], bool]], Outcome]


class Executor(Protocol):
    """Runs jobs; ``submit`` never raises what the job raises, the future does."""

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""

    def submit(self, task: Task) -> "Future[Outcome]":
        """Start a job."""


class InProcess:
    """Runs each job here and now.

    Args:
        work: carries out a task; its second argument says whether to pause.
        should_pause: handed to ``work``.
    """

    workers = 1

    def __init__(self, work: Work, should_pause: Callable[[], bool]) -> None:
        self._work = work
        self._should_pause = should_pause

    def __enter__(self) -> Self:
        # A Trainer and its module refer to each other, so only the collector frees them. What exists already stays;
        # set aside, it need not be looked through after every job.
        gc.freeze()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gc.unfreeze()

    def submit(self, task: Task) -> "Future[Outcome]":
        """Run the job to its end and return its finished future."""
        future: Future[Outcome] = Future()
        try:
            future.set_result(self._work(task, self._should_pause))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001  # the future carries it, SystemExit of user code too
            future.set_exception(error)
        gc.collect()
        return future
