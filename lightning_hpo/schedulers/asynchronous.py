"""Asynchronous schedulers: nobody waits for a rung to fill.

A rung holds every trial that was judged at its steps so far. As soon as it holds ``eta`` times as many as it has
promoted, its best trial that was not promoted goes on; otherwise a new trial starts. So no worker is ever idle while a
trial may still start. A trial that failed on its way to a rung counts there as judged, and worse than any other.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

from lightning_hpo.schedulers.base import (
    Bracket,
    Job,
    Mode,
    Rung,
    hyperband_brackets,
    make_bracket,
    require_halving,
    require_int,
    s_max_of,
)

if TYPE_CHECKING:  # this package needs the standard library only
    from lightning_hpo.trials import Row


@dataclass(frozen=True)
class ASHA:
    """Asynchronous successive halving: promote a trial as soon as it is among the best 1/eta of its rung.

    Args:
        max_steps: R, >= ``min_steps``.
        min_steps: r, >= 1. The first rung is R / eta**s_max, so it can lie a little above r.
        eta: an integer >= 2.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.
        n_trials: configurations to start, >= eta**s_max, so that one can reach the full budget. None for no end: new
            trials then start until the search is stopped by its time or its steps.

    Raises:
        ValueError: if an argument is outside its range.

    Source: Li et al. 2020, *A System for Massively Parallel Hyperparameter Tuning* (arXiv 1810.05934), Algorithm 2.
    """

    max_steps: int
    min_steps: int = 1
    eta: int = 3
    mode: Mode = "min"
    n_trials: int | None = None

    def __post_init__(self) -> None:
        require_halving(self.max_steps, self.min_steps, self.eta, self.mode)
        if self.n_trials is not None:
            require_int("n_trials", self.n_trials, self.eta ** s_max_of(self.max_steps, self.min_steps, self.eta))

    def next(self, rows: "Sequence[Row]") -> Job | None:
        """Finish what was begun, else promote from the highest rung that can, else start a new trial."""
        return self._ladder.next(rows, self.n_trials)

    @property
    def _ladder(self) -> "Ladder":
        s = s_max_of(self.max_steps, self.min_steps, self.eta)
        steps = tuple(rung.max_steps for rung in make_bracket(self.eta**s, s, self.max_steps, self.eta).rungs)
        return Ladder(steps, (0,), self.eta, self.mode)


@dataclass(frozen=True)
class AsyncHyperband:
    max_steps: int
    min_steps: int = 1
    eta: int = 3
    mode: Mode = "min"
    iterations: int | None = 1

    def __post_init__(self) -> None:
        require_halving(self.max_steps, self.min_steps, self.eta, self.mode)
        if self.iterations is not None:
            require_int("iterations", self.iterations, 1)

    def next(self, rows: "Sequence[Row]") -> Job | None:
        lad = self._ladder
        return lad.next(rows, None if self.iterations is None else self.iterations * len(lad.entries))

    @property
    def _ladder(self) -> "Ladder":
        brackets = hyperband_brackets(self.max_steps, self.min_steps, self.eta)
        steps = tuple(rung.max_steps for rung in brackets[0].rungs)
        entries = tuple(level for level, bracket in enumerate(brackets) for _ in range(bracket.trials))
        return Ladder(steps, entries, self.eta, self.mode)


@dataclass(frozen=True)
class Ladder:
    steps: tuple[int, ...]
    entries: tuple[int, ...]
    eta: int
    mode: Mode

    def entry(self, number: int) -> int:
        return self.entries[number % len(self.entries)]

    def next(self, rows: "Sequence[Row]", n_trials: int | None) -> Job | None:
        for row in rows:
            if row.idle and not row.values:
                return Job(self.steps[self.entry(row.number)], trial=row.number)
        promotion = self.promotion(rows)
        if promotion is not None:
            return promotion
        if n_trials is None or len(rows) < n_trials:
            return Job(self.steps[self.entry(len(rows))])
        return None

    def promotion(self, rows):
        level_of = {step: level for level, step in enumerate(self.steps)}
        sign = 1 if self.mode == "min" else -1
        judged = [0] * len(self.steps)
        ranked = [[] for _ in self.steps]
        for row in rows:
            top = self.entry(row.number) - 1
            for step, value in row.values.items():
                level = level_of.get(step)
                if level is None:
                    continue
                top = max(top, level)
                judged[level] += 1
                if math.isfinite(value):
                    ranked[level].append((sign * value, row.number))
            if row.state == "failed" and top + 1 < len(self.steps):
                judged[top + 1] += 1
        for level in range(len(self.steps) - 2, -1, -1):
            best = sorted(ranked[level])[: judged[level] // self.eta]
            for _, number in best:
                row = rows[number]
                if row.idle and self.steps[level + 1] not in row.values and max(row.values) == self.steps[level]:
                    return Job(self.steps[level + 1], trial=number)
        return None
