"""Synchronous schedulers: a rung is judged when all its trials have a value."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lightning_hpo.records import Job, Mode, Row
from lightning_hpo.schedulers.base import (
    Bracket,
    Coverage,
    hyperband_brackets,
    make_bracket,
    require_halving,
    rung_steps,
)
from lightning_hpo.text import require_int


@dataclass(frozen=True)
class SuccessiveHalving:
    """One bracket: of ``eta`` trials the best goes on to ``eta`` times the steps, rung by rung.

    Args:
        max_steps: R, >= ``min_steps``.
        min_steps: r, >= 1. The first rung is R / eta**s_max, so it can lie a little above r.
        eta: an integer >= 2.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.
        n_trials: configurations to start, >= eta**s_max, which is the default.

    Raises:
        ValueError: if an argument is outside its range.

    Source: Jamieson and Talwalkar 2016; one bracket of Li et al. 2018, Algorithm 1.
    """

    max_steps: int
    min_steps: int = 1
    eta: int = 3
    mode: Mode = "min"
    n_trials: int | None = None
    plan_covers: ClassVar[Coverage] = "all"

    def __post_init__(self) -> None:
        require_halving(self.max_steps, self.min_steps, self.eta, self.mode)
        if self.n_trials is not None:
            levels = len(rung_steps(self.max_steps, self.min_steps, self.eta))
            require_int("n_trials", self.n_trials, self.eta ** (levels - 1))

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Fill the first rung, then promote rung by rung, best first."""
        return _walk(self.plan()[0], rows, self.mode)[0]

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials that a finished rung did not promote."""
        return _walk(self.plan()[0], rows, self.mode)[1]

    def plan(self) -> tuple[Bracket, ...]:
        """Return the one bracket."""
        steps = rung_steps(self.max_steps, self.min_steps, self.eta)
        return (make_bracket(self.n_trials or self.eta ** (len(steps) - 1), steps, self.eta),)


@dataclass(frozen=True)
class Hyperband:
    """Brackets of successive halving from the most aggressive to the full budget, as a hedge over early stopping.

    Synchronous within a bracket (a rung is judged when all its trials have a value), but while a rung waits, trials of
    later brackets start.

    Args:
        max_steps: R, >= ``min_steps``.
        min_steps: r, >= 1.
        eta: an integer >= 2.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.
        iterations: how many times to run all brackets, >= 1.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [bracket.trials for bracket in Hyperband(81).plan()]
        [81, 34, 15, 8, 5]

    Source: Li et al. 2018 (JMLR 18-185), Algorithm 1, in integer arithmetic.
    """

    max_steps: int
    min_steps: int = 1
    eta: int = 3
    mode: Mode = "min"
    iterations: int = 1
    plan_covers: ClassVar[Coverage] = "all"

    def __post_init__(self) -> None:
        require_halving(self.max_steps, self.min_steps, self.eta, self.mode)
        require_int("iterations", self.iterations, 1)

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Return the first job that any bracket has, earlier brackets first."""
        for bracket, part in self._open(rows):
            job = _walk(bracket, part, self.mode)[0]
            if job is not None:
                return job
        return None

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials that a finished rung did not promote."""
        return [number for bracket, part in self._open(rows) for number in _walk(bracket, part, self.mode)[1]]

    def plan(self) -> tuple[Bracket, ...]:
        """Return the brackets in the order they start."""
        return hyperband_brackets(rung_steps(self.max_steps, self.min_steps, self.eta), self.eta) * self.iterations

    def _open(self, rows: Sequence[Row]) -> "Iterator[tuple[Bracket, Sequence[Row]]]":
        """Brackets that can still have a job, each with its trials.

        New trials fill the brackets in order, so a trial's number alone says which bracket owns it.
        """
        states = [row.state for row in rows]
        start = 0
        for bracket in self.plan():
            end = start + bracket.trials
            if end > len(rows) or "running" in states[start:end]:
                yield bracket, rows[start:end]
            start = end


def _walk(bracket: Bracket, rows: Sequence[Row], mode: Mode) -> tuple[Job | None, list[int]]:
    """Go up the rungs of one bracket.

    Args:
        bracket: to walk.
        rows: its trials in order of number; more may follow while there are fewer than ``bracket.trials``.
        mode: which values are better.

    Returns:
        The next job of the bracket, and the running trials that it has left behind.
    """
    left: list[int] = []
    entrants: Sequence[Row] = rows[: bracket.trials]
    above = [rung.trials for rung in bracket.rungs[1:]]
    for rung, promoted in zip(bracket.rungs, [*above, 0], strict=True):
        waiting = [row for row in entrants if row.state == "running" and row.at(rung.max_steps) is None]
        for row in waiting:
            if row.idle:
                return Job(rung.max_steps, trial=row.number), left
        if rung is bracket.rungs[0] and len(rows) < bracket.trials:
            return Job(rung.max_steps), left
        if waiting:
            return None, left
        if promoted:
            best = _best(entrants, rung.max_steps, promoted, mode)
            kept = {row.number for row in best}
            left += [row.number for row in entrants if row.number not in kept and row.state == "running"]
            entrants = best
    return None, left


def _best(rows: Sequence[Row], step: int, count: int, mode: Mode) -> "list[Row]":
    """Return the ``count`` best rows by their finite value at ``step``; ties go to the lower number.

    Infeasible trials come last, those that violate their constraints least before the others. A trial that finished by
    itself below ``step`` is among them with its last value, and needs no job to get there.
    """
    sign = 1 if mode == "min" else -1
    stands = [(at, row) for row in rows if (at := row.step_at(step)) is not None and math.isfinite(row.values[at])]
    ordered = sorted(
        stands, key=lambda pair: (pair[1].violation(pair[0]), sign * pair[1].values[pair[0]], pair[1].number)
    )
    return [row for _, row in ordered[:count]]
