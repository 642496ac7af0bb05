"""Asynchronous schedulers: nobody waits for a rung to fill.

A rung holds every trial that was judged at its steps so far, and a trial goes on as soon as it is among the best 1/eta
of its rung; if none is, a new trial starts. So no worker is ever idle while a trial may still start. A trial that
failed on its way to a rung counts there as judged, and worse than any other. Infeasible trials come after feasible
ones, those that violate their constraints least before the others. A trial that finished by itself counts
with its last value at every higher rung.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from lightning_hpo.records import Job, Mode, Row
from lightning_hpo.schedulers.base import (
    Bracket,
    Coverage,
    Rungs,
    hyperband_brackets,
    make_bracket,
    require_halving,
    rung_steps,
)
from lightning_hpo.text import require_int


@dataclass(frozen=True)
class ASHA:
    """Asynchronous successive halving: a trial is promoted as soon as it is among the best 1/eta of its rung.

    Args:
        max_steps: R, >= ``min_steps``.
        min_steps: r, >= 1.
        eta: an integer >= 2.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.
        n_trials: configurations to start, >= eta**(rungs - 1), so that one can reach the full budget. None for no end:
            new trials then start until the search is stopped by its steps or its time.
        rungs: ``"up"`` judges after r, r * eta, r * eta**2, ... steps and after R; ``"down"`` after R, R / eta,
            R / eta**2, ..., as Li et al. do, so that the first rung can lie a little above r. They are the same where R
            is r times a power of eta; else the first rung of ``"up"`` is cheaper.

    Raises:
        ValueError: if an argument is outside its range.

    Source: Li et al. 2020, *A System for Massively Parallel Hyperparameter Tuning* (arXiv 1810.05934), Algorithm 2.
    """

    max_steps: int
    min_steps: int = 1
    eta: int = 3
    mode: Mode = "min"
    n_trials: int | None = None
    rungs: Rungs = "up"

    def __post_init__(self) -> None:
        require_halving(self.max_steps, self.min_steps, self.eta, self.mode, self.rungs)
        if self.n_trials is not None:
            require_int("n_trials", self.n_trials, self.eta ** (len(self._steps) - 1))

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Finish what was begun, else promote from the highest rung that can, else start a new trial."""
        return self._ladder.next(rows)

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials that stay below the best 1/eta however the rest turns out; none if there is no end."""
        return self._ladder.retired(rows)

    @property
    def plan_covers(self) -> Coverage:
        """The least of all, or of one round if there is no end."""
        return "round" if self.n_trials is None else "least"

    def plan(self) -> tuple[Bracket, ...]:
        """Return one bracket; with no end, the smallest that takes a trial to the full budget.

        A trial that was promoted early and overtaken later comes on top.
        """
        n_trials = self.n_trials or self.eta ** (len(self._steps) - 1)
        return (make_bracket(n_trials, self._steps, self.eta),)

    @property
    def _steps(self) -> tuple[int, ...]:
        return rung_steps(self.max_steps, self.min_steps, self.eta, self.rungs)

    @cached_property
    def _ladder(self) -> "_Ladder":
        return _Ladder(self._steps, (0,), self.eta, self.mode, self.n_trials)


@dataclass(frozen=True)
class AsyncHyperband:
    """Hyperband without a barrier: new trials enter at the first rung of their bracket, and nobody waits.

    Brackets have Hyperband's sizes, so a trial's number alone says where it enters. Run once, each bracket starts once,
    in Hyperband's order. With more to spend, the most aggressive one starts again before each of the others, so that
    half of the budget hedges against short runs that mislead, and half trusts them.

    All trials with a value at the same number of steps are compared, whichever bracket and iteration they came from:
    more trials to be compared with, and later brackets spend only where they are better than what earlier ones have
    promoted.

    Args:
        max_steps: R, >= ``min_steps``.
        min_steps: r, >= 1.
        eta: an integer >= 2.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.
        iterations: how many times to run all brackets, >= 1. None for no end: rounds then follow each other until the
            search is stopped by its steps or its time.
        rungs: ``"up"`` judges after r, r * eta, r * eta**2, ... steps and after R; ``"down"`` after R, R / eta,
            R / eta**2, ..., as Li et al. do, so that the first rung can lie a little above r. They are the same where R
            is r times a power of eta; else the first rung of ``"up"`` is cheaper.

    Raises:
        ValueError: if an argument is outside its range.

    Source: Li et al. 2020 (arXiv 1810.05934), section 3.2, with the brackets of Li et al. 2018, Algorithm 1.
    """

    max_steps: int
    min_steps: int = 1
    eta: int = 3
    mode: Mode = "min"
    iterations: int | None = 1
    rungs: Rungs = "up"

    def __post_init__(self) -> None:
        require_halving(self.max_steps, self.min_steps, self.eta, self.mode, self.rungs)
        if self.iterations is not None:
            require_int("iterations", self.iterations, 1)

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Finish what was begun, else promote from the highest rung that can, else start a new trial."""
        return self._ladder.next(rows)

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials that stay below the best 1/eta however the rest turns out; none if there is no end."""
        return self._ladder.retired(rows)

    @property
    def plan_covers(self) -> Coverage:
        """The least of all, or of one round if there is no end."""
        return "round" if self.iterations is None else "least"

    def plan(self) -> tuple[Bracket, ...]:
        """Return the brackets in the order they start; of one round if there is no end.

        A trial that was promoted early and overtaken later comes on top.
        """
        return self._round() * (self.iterations or 1)

    def _round(self) -> tuple[Bracket, ...]:
        steps = rung_steps(self.max_steps, self.min_steps, self.eta, self.rungs)
        brackets = hyperband_brackets(steps, self.eta)
        if self.iterations == 1 or len(brackets) == 1:
            return brackets
        return tuple(bracket for other in brackets[1:] for bracket in (brackets[0], other))

    @cached_property
    def _ladder(self) -> "_Ladder":
        brackets = self._round()
        steps = tuple(rung.max_steps for rung in brackets[0].rungs)
        entries = tuple(
            level for bracket in brackets for level in [len(steps) - len(bracket.rungs)] for _ in range(bracket.trials)
        )
        n_trials = None if self.iterations is None else self.iterations * len(entries)
        return _Ladder(steps, entries, self.eta, self.mode, n_trials)


@dataclass(frozen=True)
class _Ladder:
    """Rungs that all trials share.

    Args:
        steps: at which each rung is judged, rising.
        entries: level at which a new trial enters, by its number; from the start again when they are used up.
        eta: of ``eta`` trials in a rung one is promoted.
        mode: which values are better.
        n_trials: to start in all, or None for no end.
    """

    steps: tuple[int, ...]
    entries: tuple[int, ...]
    eta: int
    mode: Mode
    n_trials: int | None

    def next(self, rows: Sequence[Row]) -> Job | None:
        for row in rows:
            if row.idle and not row.values:
                return Job(self.steps[self._entry(row.number)], trial=row.number)
        judged, ranking = self._judge(rows)
        for level in range(len(self.steps) - 2, -1, -1):
            for number in ranking[level][: judged[level] // self.eta]:
                if rows[number].idle and self._place(rows[number]) == level:
                    return Job(self.steps[level + 1], trial=number)
        if self.n_trials is None or len(rows) < self.n_trials:
            return Job(self.steps[self._entry(len(rows))])
        return None

    def retired(self, rows: Sequence[Row]) -> list[int]:
        if self.n_trials is None:
            return []
        entering = self._entering
        ranking = self._judge(rows)[1]
        places = [self._place(row) for row in rows]
        lost: list[int] = []
        climbing = 0  # an upper bound: trials that have gone on from the level below, or may do so
        for level in range(len(self.steps) - 1):
            reaching = entering[level] + climbing
            hopeful = set(ranking[level][: reaching // self.eta])
            here = [row for row, place in zip(rows, places, strict=True) if place == level]
            fallen = [row.number for row in here if row.idle and row.number not in hopeful]
            climbing = reaching - len(fallen) - sum(row.state != "running" for row in here)
            lost += fallen
        return sorted(lost)

    @cached_property
    def _entering(self) -> Counter[int]:
        """Trials that enter at each level, in all."""
        return Counter(self._entry(number) for number in range(self.n_trials or 0))

    def _entry(self, number: int) -> int:
        return self.entries[number % len(self.entries)]

    def _judged_at(self, row: "Row") -> "list[int]":
        """Steps of what a trial was judged by, at each level from the one at which it entered."""
        steps = (row.step_at(step) for step in self.steps[self._entry(row.number) :])
        return list(takewhile(lambda step: step is not None, steps))  # type: ignore[arg-type]  # None is left out

    def _place(self, row: "Row") -> int:
        """Highest level at which a trial was judged, -1 if at none; a failed one was judged where it was heading."""
        if not row.values and row.state != "failed":
            return -1
        place = self._entry(row.number) + len(self._judged_at(row)) - 1
        return min(place + (row.state == "failed"), len(self.steps) - 1)

    def _judge(self, rows: Sequence[Row]) -> tuple[list[int], list[list[int]]]:
        """Of each level: how many trials were judged there, and those with a finite value, best first."""
        sign = 1 if self.mode == "min" else -1
        judged = [0] * len(self.steps)
        finite: list[list[tuple[float, float, int]]] = [[] for _ in self.steps]
        for row in rows:
            for level, step in enumerate(self._judged_at(row), start=self._entry(row.number)):
                judged[level] += 1
                if math.isfinite(row.values[step]):
                    finite[level].append((row.violation(step), sign * row.values[step], row.number))
            if row.state == "failed":
                judged[self._place(row)] += 1
        return judged, [[number for _, _, number in sorted(scored)] for scored in finite]
