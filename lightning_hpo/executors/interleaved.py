"""Fits of one process that take turns: each is suspended inside ``Trainer.fit`` between two jobs.

A job of a trial goes on in the suspended fit of its member, and a trial that copies takes the state of its parent from
memory. Where no such fit is alive, because it failed or the process was started anew, the job begins from checkpoints.
"""

import gc
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeAlias

from lightning_hpo.errors import free_frames
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
        gc.freeze()  # objects that exist already, so that each collection is short
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
        gc.unfreeze()
        self._quiet.__exit__(kind, error, traceback)

    def pause(self) -> None:
        """Do nothing: jobs ask ``should_pause``."""

    def submit(self, task: Task) -> "Future[Outcome]":
        """Run the job to its end and return its finished future."""
        future: Future[Outcome] = Future()
        fit = self._fit_for(task)
        with fit.fiber.resumed() as suspended:  # here, so that few frames stand between a search and its Trainers
            suspended.acquire()
        if fit.fiber.error is not None:
            _raise_interrupt(fit.fiber.error)
            free_frames(fit.fiber.error)
            future.set_exception(fit.fiber.error)
            gc.collect()  # a Trainer and its module refer to each other
        else:
            outcome: Outcome | None = fit.fiber.result if fit.fiber.done else fit.outcome
            assert outcome is not None
            future.set_result(outcome)
        if not fit.fiber.done:
            self._fits[task.member] = fit
        return future

    def _fit_for(self, task: Task) -> "_Fit":
        """Take the suspended fit of the job's member and tell it what comes next, or make a new one."""
        fit = self._fits.pop(task.member, None)
        if fit is None:
            return _Fit(self._train, task, self._should_pause)
        copied = None
        if fit.trial != task.job.trial and task.job.parent not in (None, fit.trial):
            donor = next((other for other in self._fits.values() if other.trial == task.job.parent), None)
            if donor is None:  # the state is read from its checkpoint when a fit begins
                fit.fiber.cancel()
                return _Fit(self._train, task, self._should_pause)
            copied = donor.state()
        fit.trial, fit.following = task.job.trial, (task, copied)
        return fit


class _Fit:
    """A fit in a fiber, which hands over after each job."""

    def __init__(self, train: Train, task: Task, should_pause: Callable[[], bool]) -> None:
        self.fiber = Fiber(partial(train, task, None, should_pause, self._hand_over))
        self.trial = task.job.trial
        self.outcome: Outcome | None = None
        self.state: Callable[[], Any] = lambda: None
        self.following: tuple[Task, Any] | None = None

    def _hand_over(self, outcome: Outcome, state: Callable[[], Any]) -> tuple[Task, Any]:
        self.outcome, self.state = outcome, state
        self.fiber.suspend()
        following, self.following = self.following, None  # what is copied belongs to a fit that trains on
        assert following is not None
        return following


def _raise_interrupt(error: BaseException) -> None:
    """Let Ctrl-C through; Lightning makes an exit of it, and an error where it cannot set a signal handler."""
    if isinstance(error, KeyboardInterrupt):
        raise error
    if isinstance(error.__context__, KeyboardInterrupt):
        raise KeyboardInterrupt from error
