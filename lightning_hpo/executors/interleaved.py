"""Fits of one process that take turns: each is suspended inside ``Trainer.fit`` between two jobs.

A job of a trial goes on in the suspended fit of its member, and a trial that copies takes the state of its parent from
memory. Where no such fit is alive, because it failed or the process was started anew, the job begins from checkpoints.
"""

import gc
from collections.abc import Callable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeAlias

from lightning_hpo.errors import let_go
from lightning_hpo.executors.fiber import Fiber
from lightning_hpo.quiet import CHATTY, warnings_only
from lightning_hpo.records import Outcome, Task

HandOver: TypeAlias = Callable[[Outcome, Callable[[], Any]], tuple[Task, Any]]
"""Called by a fit at the end of a job, with the outcome and how to get at its state; returns the next job, and the
state of another fit to take over first, or None."""
Train: TypeAlias = Callable[[Task, Any, Callable[[], bool], HandOver], Outcome]
"""Fits for one job after the other: the first job, the state to take over first, whether to pause, and what to call at
the end of each job but the last, whose outcome it returns."""


class Interleaved:
    """Runs each job here and now, in a fit that stays alive for the next job of the same member.

    Args:
        train: fits a trial; see :data:`Train`.
        should_pause: handed to ``train``.
    """

    workers = 1

    def __init__(self, train: Train, should_pause: Callable[[], bool]) -> None:
        self._train = train
        self._should_pause = should_pause
        self._fits: dict[int, _Fit] = {}  # by member

    def __enter__(self) -> Self:
        # Around all fits: each of them restores what it found, at whatever time it ends.
        self._quiet = warnings_only(*CHATTY)
        self._quiet.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for fit in self._fits.values():
            fit.fiber.cancel()
        self._fits.clear()
        self._quiet.__exit__(kind, error, traceback)

    def pause(self) -> None:
        """Do nothing: jobs ask ``should_pause``."""

    def submit(self, task: Task) -> "Future[Outcome]":
        """Run the job to its end and return its finished future."""
        future: Future[Outcome] = Future()
        fit = self._fits.pop(task.member, None)
        copied = None
        if fit is None:
            fit = _Fit(self._train, self._should_pause)
        elif fit.trial != task.job.trial and task.job.parent not in (None, fit.trial):
            donor = next((other for other in self._fits.values() if other.trial == task.job.parent), None)
            copied = None if donor is None else donor.state()
            if copied is None:  # from its checkpoint, in a new fit
                fit.fiber.cancel()
                fit = _Fit(self._train, self._should_pause)
        fit.run(task, copied)
        if fit.fiber.error is not None:
            _raise_interrupt(fit.fiber.error)
            let_go(fit.fiber.error)
            future.set_exception(fit.fiber.error)
        else:
            assert fit.outcome is not None
            future.set_result(fit.outcome)
        if fit.fiber.done:
            gc.collect()  # a Trainer and its module refer to each other
        else:
            self._fits[task.member] = fit
        return future


class _Fit:
    """A fit in a fiber, which hands over after each job."""

    def __init__(self, train: Train, should_pause: Callable[[], bool]) -> None:
        self._train = train
        self._should_pause = should_pause
        self.fiber = Fiber(self._begin)
        self.trial: int | None = None
        self.outcome: Outcome | None = None
        self.state: Callable[[], Any] = lambda: None
        self._next: tuple[Task, Any] | None = None

    def run(self, task: Task, copied: Any) -> None:
        """Let it do one job."""
        self.trial, self.outcome, self._next = task.job.trial, None, (task, copied)
        self.fiber.resume()

    def _begin(self) -> None:
        task, copied = self._take()
        self.outcome = self._train(task, copied, self._should_pause, self._hand_over)

    def _hand_over(self, outcome: Outcome, state: Callable[[], Any]) -> tuple[Task, Any]:
        self.outcome, self.state = outcome, state
        self.fiber.suspend()
        return self._take()

    def _take(self) -> tuple[Task, Any]:
        """Keep nothing of what is copied: it belongs to a fit that trains on."""
        taken, self._next = self._next, None
        assert taken is not None
        return taken


def _raise_interrupt(error: BaseException) -> None:
    """Let Ctrl-C through; Lightning makes an exit of it, and an error where it cannot set a signal handler."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error.__context__, KeyboardInterrupt):
        raise KeyboardInterrupt from error
