"""The best configurations of a search again, with other seeds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lightning_hpo.records import Job, Mode, Row, ranked, searched
from lightning_hpo.schedulers.base import Bracket, Coverage, Rung, Scheduler
from lightning_hpo.schedulers.folds import fit_steps, next_fold
from lightning_hpo.text import require_int

_SEEDS = 5  # of a configuration


@dataclass(frozen=True)
class Confirmed:
    """A search by another scheduler; then its best configurations train at the full budget again, with other seeds.

    The other scheduler is shown the trials of the search only. A confirmation that has begun is finished before the
    search goes on, for example with more trials.

    Args:
        scheduler: of the search.
        configurations: how many of the best are confirmed, >= 1.
        seeds: times that each of them trains, >= 2.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.

    Raises:
        ValueError: if an argument is outside its range.
    """

    scheduler: Scheduler
    configurations: int = 3
    seeds: int = 5
    mode: Mode = "min"

    def __post_init__(self) -> None:
        require_int("configurations", self.configurations, 1)
        require_int("seeds", self.seeds, 2)

    @property
    def max_steps(self) -> int:
        """Full budget of a trial."""
        return self.scheduler.max_steps

    @property
    def folds(self) -> int:
        """Folds that each trial is trained on; 0 in a search without."""
        return getattr(self.scheduler, "folds", 0)

    @property
    def fold_steps(self) -> int:
        """Full budget of a single fit."""
        return fit_steps(self.scheduler)

    @property
    def plan_covers(self) -> Coverage:
        """What :meth:`plan` counts."""
        covers: Coverage = getattr(self.scheduler, "plan_covers", "all")
        return covers

    @property
    def reserve(self) -> int:
        """Steps of all confirmations."""
        return self.configurations * self.seeds * self.max_steps

    def plan(self) -> tuple[Bracket, ...]:
        """Return the brackets of the search, and one more for the confirmations; none if the search has none."""
        make = getattr(self.scheduler, "plan", None)
        brackets: Sequence[Bracket] = () if make is None else make()
        label = f"the best {self.configurations} again, with {self.seeds} seeds each"
        steps = range(self.fold_steps, self.max_steps + 1, self.fold_steps)
        rungs = tuple(Rung(self.configurations * self.seeds, step) for step in steps)
        return (*brackets, Bracket(rungs, label)) if brackets else ()

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Finish what is being confirmed, then search, then confirm."""
        has_begun = any(row.confirms is not None for row in rows)
        if has_begun and (job := self.confirm(rows)) is not None:
            return job
        if any(row.confirms is not None and row.state == "running" for row in rows):
            return None
        numbers = [row.number for row in rows if row.confirms is None]
        job = self.scheduler.next(searched(rows))
        if job is None:
            return self.confirm(rows)
        places = {name: getattr(job, name) for name in ("trial", "parent", "replaces")}
        return replace(job, **{name: numbers[place] for name, place in places.items() if place is not None})

    def confirm(self, rows: Sequence[Row]) -> Job | None:
        """Return the next job of the confirmation of the best so far, whatever the search would do next.

        Args:
            rows: all trials. While one of the search is at work, there is no job.
        """
        own = [row for row in rows if row.confirms is None]
        at_work = [row.target for row in own if row.state == "running" and not row.idle]
        if any(target is not None and target <= self.max_steps for target in at_work):  # others are somebody else's
            return None
        for row in rows:
            if row.confirms is not None and row.idle:
                return self._job(row)
        begun = [row.confirms for row in rows if row.confirms is not None]
        for count in range(self.seeds):
            for number in self._chosen(own, begun):
                if begun.count(number) <= count:
                    return self._job(confirms=number)
        return None

    def _job(self, row: Row | None = None, confirms: int | None = None) -> Job:
        number, values = (None, {}) if row is None else (row.number, row.values)
        if self.folds:
            return next_fold(self.fold_steps, values, number, confirms)
        return Job(self.max_steps, trial=number, confirms=confirms)

    def _chosen(self, rows: Sequence[Row], begun: Sequence[int]) -> list[int]:
        """Numbers of the best trials with different parameters; of equal ones, the one whose confirmation has begun."""
        chosen: list[Row] = []
        for row in ranked(rows, self.mode):
            if len(chosen) < self.configurations and all(row.params != other.params for other in chosen):
                equal = [other for other in rows if other.number in begun and other.params == row.params]
                chosen.append(equal[0] if equal else row)
        feasible = [row.number for row in chosen if row.feasible]
        return feasible or [row.number for row in chosen]

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials of the search that get no further job."""
        own = getattr(self.scheduler, "retired", None)
        numbers = [row.number for row in rows if row.confirms is None]
        return [] if own is None else [numbers[place] for place in own(searched(rows))]


def read_confirm(given: Any) -> tuple[int, int] | None:
    """Return configurations and seeds, from the argument ``confirm`` of a tuner.

    Raises:
        ValueError: for another value.

    Example:
        >>> read_confirm(3), read_confirm((3, 8))
        ((3, 5), (3, 8))
    """
    if given is None:
        return None
    pair = given if isinstance(given, list | tuple) else (given, _SEEDS)
    if len(pair) != 2 or any(type(count) is not int for count in pair) or pair[0] < 1 or pair[1] < 2:
        raise ValueError(
            "`confirm` must be a number of configurations >= 1, e.g. 3, or that and a number of seeds >= 2, e.g. "
            f"(3, 5); got {given!r}."
        )
    return pair[0], pair[1]


def confirmed(scheduler: Scheduler, confirm: Any, mode: Mode, total: int | None) -> Scheduler:
    """Return a scheduler that also confirms, if that is wanted.

    Args:
        scheduler: of the search.
        confirm: as for a tuner.
        mode: whether lower or higher values are better.
        total: how much may be spent in all, as the scheduler counts; None without end.

    Raises:
        ValueError: if nothing is left for the search.
    """
    if (pair := read_confirm(confirm)) is None:
        return scheduler
    made = Confirmed(scheduler, *pair, mode)
    if total is not None and made.reserve >= total:
        raise ValueError(
            f"`confirm` takes {pair[0]} x {pair[1]} trainings at the full budget, which is all of `total` or "
            "`total_steps` and leaves nothing for the search: give more, or confirm less."
        )
    return made
