"""Stopping rules: a trial runs on from look to look until it falls behind the others."""

import math
import statistics
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_hpo.records import Job, Mode, Row
from lightning_hpo.schedulers.base import require_halving
from lightning_hpo.text import require_int


@dataclass(frozen=True)
class MedianStopping:
    """Stop a trial whose best value so far is worse than the median of what earlier trials had on average by then.

    A trial is compared with those that started before it, so with one worker a verdict never changes. What it has where
    it is infeasible counts as worse than anything.

    Args:
        max_steps: R, the full budget of a trial in optimizer steps, >= ``interval``.
        n_trials: trials in all, failed ones included, >= 1. None for no end.
        interval: steps between two looks, >= 1. The last look is at R. Default: R / 10, at least 1.
        min_trials: nothing is stopped at a step before so many earlier trials have a value there, >= 1.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.

    Raises:
        ValueError: if an argument is outside its range.

    Source: Golovin et al. 2017, *Google Vizier*, section 3.2.2.
    """

    max_steps: int
    n_trials: int | None
    interval: int | None = None
    min_trials: int = 5
    mode: Mode = "min"

    def __post_init__(self) -> None:
        require_int("max_steps", self.max_steps, 1)
        require_halving(self.max_steps, 1, 2, self.mode)
        if self.n_trials is not None:
            require_int("n_trials", self.n_trials, 1)
        if self.interval is not None:
            require_int("interval", self.interval, 1)
            if self.interval > self.max_steps:
                raise ValueError(
                    f"`interval` must be at most `max_steps`, got interval={self.interval} > "
                    f"max_steps={self.max_steps}."
                )
        require_int("min_trials", self.min_trials, 1)

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Continue the first trial that keeps up, else start a new one."""
        behind = set(self._behind(rows))
        for row in rows:
            if row.idle and row.number not in behind:
                return Job(self._look_after(row.step if row.values else 0), trial=row.number)
        return Job(self._look_after(0)) if self.n_trials is None or len(rows) < self.n_trials else None

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials that have fallen behind."""
        return self._behind(rows)

    @property
    def _interval(self) -> int:
        return self.interval or max(self.max_steps // 10, 1)

    def _look_after(self, step: int) -> int:
        return min((step // self._interval + 1) * self._interval, self.max_steps)

    def _looks(self, row: "Row") -> list[tuple[int, float]]:
        """Step and value of each look at a trial.

        A Trainer can stand beyond a look; what it has by the next one counts. A trial that finished by itself is looked
        at up to the full budget.
        """
        full, interval = self.max_steps, self._interval
        steps = {full if step >= full else step // interval * interval for step in row.values}
        if row.ended is not None and row.values:
            steps |= {*range(self._look_after(row.step), full, interval), full}
        following = {step: math.inf if step == full else self._look_after(step) for step in steps}
        stands = [(step, row.step_at(step, following[step])) for step in sorted(steps) if step > 0]
        worst = math.inf if self.mode == "min" else -math.inf
        return [(step, worst if row.violation(at) else row.values[at]) for step, at in stands if at is not None]

    def _behind(self, rows: Sequence[Row]) -> list[int]:
        """Idle trials that are stopped. One pass in order of number: what is known at each step is kept sorted."""
        sign = 1 if self.mode == "min" else -1
        averages: dict[int, list[float]] = {}  # step -> running averages of the trials so far, sorted
        behind: list[int] = []
        for row in rows:
            values = [(step, sign * value) for step, value in self._looks(row)]
            if row.idle and values:
                best = min((value for _, value in values if math.isfinite(value)), default=math.inf)
                known = averages.get(values[-1][0], [])
                diverged = not math.isfinite(row.values[row.step])
                if diverged or (len(known) >= self.min_trials and best > statistics.median(known)):
                    behind.append(row.number)
            total = 0.0
            for count, (step, value) in enumerate(values, start=1):
                total += value
                if not math.isfinite(total):
                    break
                insort(averages.setdefault(step, []), total / count)
        return behind
