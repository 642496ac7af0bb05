"""What happens in a search, as values that observers are given. Observers show or keep it; they change nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from lightning_hpo.records import Row, Task


@dataclass(frozen=True)
class StudyRead:
    """The table of trials is up to date, and the next decisions follow.

    Args:
        rows: all trials.
    """

    rows: Sequence[Row]


@dataclass(frozen=True)
class JobStarted:
    """A job was given to the executor.

    Args:
        task: the job.
    """

    task: Task


@dataclass(frozen=True)
class JobEnded:
    """The outcome of a job is recorded.

    Args:
        row: its trial.
        steps: optimizer steps that the job added.
        rows: all trials.
        reason: why the trial failed; empty if it did not.
        remark: of the job, for people to read.
    """

    row: Row
    steps: int
    rows: Sequence[Row]
    reason: str = ""
    remark: str = ""


@dataclass(frozen=True)
class SearchEnded:
    """The search is over; it was not paused.

    Args:
        rows: all trials.
    """

    rows: Sequence[Row]


Event: TypeAlias = StudyRead | JobStarted | JobEnded | SearchEnded


class Observer(Protocol):
    """Is told what happens in a search, in the process that decides and in order."""

    def on(self, event: Event) -> None:
        """Show or keep what has happened."""
