"""A run as its files tell it: what the report and the figures are made of."""

import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial

from lightning_hpo.records import Mode, Row
from lightning_hpo.schedulers.units import Unit


@dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Args:
        path: of the run folder.
        rows: all trials.
        mode: whether lower or higher scores are better, in the first objective.
        monitor: what the score is called.
        failures: trial number -> reason.
        distributions: of every parameter, as the study has them.
        owner: process id at work on it, or None.
        study_id: of the study; empty if it was made by an older version.
        trials: as Optuna has them, in the order of ``rows``.
        directions: of all objectives.
        settings: what the search was called with, as its fingerprint has it.
        running: trials that another process trains.
    """

    path: Path
    rows: Sequence[Row]
    mode: Mode
    monitor: str
    failures: Mapping[int, str]
    distributions: Mapping[str, BaseDistribution]
    owner: int | None
    study_id: str = ""
    trials: Sequence[FrozenTrial] = field(default=(), repr=False)
    directions: Sequence[StudyDirection] = (StudyDirection.MINIMIZE,)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    running: Collection[int] = ()

    @property
    def metric(self) -> str:
        """Name of the metric that the score is made of."""
        return self.monitor.removesuffix(f" ({self.settings.get('score')})")

    @property
    def unit(self) -> Unit:
        """Unit of the budget."""
        return Unit.from_settings(self.settings.get("unit"))

    def amount(self, count: int) -> str:
        """Return an amount of training in the unit of the budget."""
        return self.unit.amount(count)

    @property
    def axis(self) -> str:
        """Name of an axis of budgets."""
        return self.unit.count_label.removesuffix("s")

    @property
    def at_work(self) -> bool:
        """Whether another process works on it; this one writes a report when its work is over."""
        return self.owner not in (None, os.getpid())

    @property
    def counts(self) -> str:
        """How many trials are in which state."""
        return f"{len(self.rows)} trials: " + ", ".join(
            f"{count} {state}" for state, count in sorted(Counter(map(self.state, self.rows)).items())
        )

    def state(self, row: Row) -> str:
        """Return the state of a trial in words; one that no process trains is paused."""
        return "paused" if row.state == "running" and row.number not in self.running else row.state
