"""The seam of executors: where jobs run."""

from concurrent.futures import Future
from typing import Protocol

from lightning_hpo.records import Outcome, Task


class Executor(Protocol):
    """Runs jobs. An exception of a job is raised by its future, never by ``submit``."""

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""

    def submit(self, task: Task) -> "Future[Outcome]":
        """Start a job."""
