"""A user's function in place of a fit."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lightning_hpo.errors import JobError
from lightning_hpo.records import Job, Outcome, Task


class FunctionWork:
    """A user's function as the work of a job; it cannot be paused in the middle.

    Args:
        function: of a job and its trial's parameters.
        deliver: makes what the function receives of the parameters that a study stores.
        amount: what the function is told as ``job.max_steps``, from what the scheduler counts.
    """

    def __init__(
        self,
        function: Callable[[Job, Mapping[str, Any]], float],
        deliver: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
        amount: Callable[[int], Any] = int,
    ) -> None:
        self._function, self._deliver, self._amount = function, deliver, amount

    def __call__(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        """Call the function."""
        job = replace(task.job, max_steps=self._amount(task.job.fit_steps))
        score = self._function(job, self._deliver(task.params))
        if score is None:  # in an Outcome that means paused
            raise JobError("the function returned None; it must return a number")
        return Outcome(score, task.job.fit_steps)
