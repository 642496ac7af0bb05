"""No early stopping."""

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_hpo.records import Job, Row
from lightning_hpo.schedulers.base import Bracket, Rung
from lightning_hpo.text import require_int


@dataclass(frozen=True)
class FullBudget:
    """Every trial gets the full budget at once.

    Args:
        max_steps: budget of one trial, in optimizer steps, >= 1.
        n_trials: trials in all, failed ones included, >= 1.

    Raises:
        ValueError: if an argument is no integer in its range.
    """

    max_steps: int
    n_trials: int

    def __post_init__(self) -> None:
        require_int("max_steps", self.max_steps, 1)
        require_int("n_trials", self.n_trials, 1)

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Continue the first trial that lacks its value, else start a new one."""
        for row in [row for row in rows if row.state == "running"]:  # few of many
            if row.idle and not (row.scored and row.at(self.max_steps) is not None):
                return Job(self.max_steps, trial=row.number)
        return Job(self.max_steps) if len(rows) < self.n_trials else None

    def retired(self, rows: Sequence[Row]) -> list[int]:  # the protocol's signature
        """Return no trial: none is ever paused."""
        return []

    def plan(self) -> tuple[Bracket, ...]:
        """Return the one bracket of one rung."""
        return (Bracket((Rung(self.n_trials, self.max_steps),)),)
