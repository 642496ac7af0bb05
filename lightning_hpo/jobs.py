"""A job as data: what is asked of a worker, and what comes of it.

Only the standard library is needed, so that a worker process for a plain function starts in a moment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from lightning_hpo.failures import JobError
from lightning_hpo.schedulers import Job

CHECKPOINT = "last.ckpt"
"""In the folder of a trial."""

BUDGET = "budget"
"""The job reached its ``max_steps``."""
PAUSED = "paused"
"""A signal asked for a pause; the checkpoint holds everything."""


@dataclass(frozen=True)
class Task:
    """A job with all that is needed to carry it out in another process.

    Args:
        job: what to do; ``job.trial`` is the trial's number.
        params: of the trial.
        folder: of the trial, for its checkpoint and metrics.
        source: checkpoint of the parent to start from, or None.
        identity: ``{"study": id, "trial": number, "params": {...}}`` in plain values, which every checkpoint of the
            trial carries; empty where there is no study.
    """

    job: Job
    params: Mapping[str, Any]
    folder: Path
    source: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a job came to.

    Args:
        score: the monitored metric at ``step``; None if the job was paused before its end.
        step: optimizer step at which the Trainer stood (``trainer.global_step``); of a function, the job's budget.
        metrics: all that was logged at the last validation, training metrics included where training went on to it.
        pruned: whether a pruner has stopped the trial there.
        values: optimizer step -> monitored metric, for each validation of this job.
        ended: why the job ended: :data:`BUDGET`, :data:`PAUSED`, or what has finished the trial before its budget, such
            as ``"EarlyStopping at step 48"`` or ``"max_epochs=3 reached at step 48"``.
    """

    score: float | None
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict, compare=False)
    pruned: bool = False
    values: Mapping[int, float] = field(default_factory=dict, compare=False)
    ended: str = BUDGET

    @property
    def finished_early(self) -> bool:
        """Whether the trial has ended by itself below the job's budget, and so needs no further job."""
        return self.ended not in (BUDGET, PAUSED)

    def early_end(self, asked: int) -> str | None:
        """Why the trial is finished before its full budget; None if it may go on.

        Args:
            asked: ``max_steps`` of the job. A Trainer that stands below it, for whatever reason, goes no further.
        """
        if self.finished_early:
            return self.ended
        return f"training ended at step {self.step}" if self.step < asked else None


Work: TypeAlias = Callable[[Task, Callable[[], bool]], Outcome]
"""Carries out a task; the second argument says whether to pause."""


def never() -> bool:
    """Say that no pause is wanted."""
    return False


class FunctionWork:
    """A user's function as the work of a job; it cannot be paused in the middle."""

    def __init__(self, function: Callable[[Job, Mapping[str, Any]], float]) -> None:
        self._function = function

    def __call__(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        """Call the function."""
        score = self._function(task.job, task.params)
        if score is None:  # in an Outcome that means paused
            raise JobError("the function returned None; it must return a number")
        return Outcome(score, task.job.max_steps)
