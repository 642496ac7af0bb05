"""Schedulers: which trial gets how many steps next. Pure functions of the table of trials.

A scheduler is frozen configuration. ``next(rows)`` reads the whole table and names the next job, or None while nothing
can be started; the search is over when nothing can be started and nothing runs. A job that died has not written its
value, so the same call hands it out again.

Symbols, as in Li et al. 2018, *Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization*, Algorithm 1:

=======  ==================================================================================================
R        ``max_steps``, the full budget of one trial in optimizer steps
r        ``min_steps``, the smallest budget a trial is judged at
eta      of ``eta`` trials in a rung one is promoted
s_max    the largest s with r * eta**s <= R; there are s_max + 1 brackets, s = s_max, ..., 0
n_i      trials in rung i: floor(n * eta**-i) with n = ceil((s_max + 1) / (s + 1) * eta**s)
r_i      steps at which rung i is judged: R * eta**(i - s), rounded, so the last rung is exactly R
=======  ==================================================================================================
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeAlias

if TYPE_CHECKING:  # this module needs the standard library only
    from lightning_hpo.trials import Row

Mode: TypeAlias = Literal["min", "max"]


@dataclass(frozen=True)
class Job:
    """Take one trial to a number of optimizer steps.

    Args:
        max_steps: train until the trial has seen this many optimizer steps, and validate there.
        trial: number of the trial to continue; None starts a new one.
        parent: for a new trial, the trial whose weights it starts from; None starts from scratch.
        params: for a new trial, its parameters; None asks the sampler.
    """

    max_steps: int
    trial: int | None = None
    parent: int | None = None
    params: Mapping[str, Any] | None = None


class Scheduler(Protocol):
    """Decides from the table of trials which job comes next."""

    @property
    def max_steps(self) -> int:
        """Full budget of one trial, in optimizer steps. A trial with a value there is complete."""

    def next(self, rows: "Sequence[Row]") -> Job | None:
        """Return the next job, or None if nothing can be started now.

        Args:
            rows: all trials of the study in order of their number.
        """


class Retiring(Scheduler, Protocol):
    """A scheduler that can say early which paused trials it will never continue."""

    def retired(self, rows: "Sequence[Row]") -> list[int]:
        """Numbers of the running trials that will get no further job."""


@dataclass(frozen=True)
class Rung:
    """``trials`` configurations are judged after ``max_steps`` optimizer steps."""

    trials: int
    max_steps: int


@dataclass(frozen=True)
class Bracket:
    """Rungs of one run of successive halving, smallest budget first."""

    rungs: tuple[Rung, ...]

    @property
    def trials(self) -> int:
        """Configurations that the bracket starts."""
        return self.rungs[0].trials

    @property
    def jobs(self) -> int:
        """Times that a trial is started or continued, if none fails."""
        return sum(rung.trials for rung in self.rungs)

    @property
    def steps(self) -> int:
        """Optimizer steps, if none fails and a promoted trial continues from its checkpoint."""
        reached = [0, *(rung.max_steps for rung in self.rungs)]
        return sum(rung.trials * (rung.max_steps - below) for rung, below in zip(self.rungs, reached, strict=False))

    @property
    def retrain_steps(self) -> int:
        """Optimizer steps, if a promoted trial had to start again."""
        return sum(rung.trials * rung.max_steps for rung in self.rungs)


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
        _require_int("max_steps", self.max_steps, 1)
        _require_int("n_trials", self.n_trials, 1)

    def next(self, rows: "Sequence[Row]") -> Job | None:
        """Continue the first trial that lacks its value, else start a new one."""
        for row in _running(rows):
            if row.idle and self.max_steps not in row.values:
                return Job(self.max_steps, trial=row.number)
        return Job(self.max_steps) if len(rows) < self.n_trials else None

    def retired(self, rows: "Sequence[Row]") -> list[int]:  # the protocol's signature
        """Return no trial: none is ever paused."""
        return []

    def plan(self) -> tuple[Bracket, ...]:
        """Return the one bracket of one rung."""
        return (Bracket((Rung(self.n_trials, self.max_steps),)),)


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

    def __post_init__(self) -> None:
        _require_halving(self.max_steps, self.min_steps, self.eta, self.mode)
        least = self.eta ** _s_max(self.max_steps, self.min_steps, self.eta)
        if self.n_trials is not None:
            _require_int("n_trials", self.n_trials, least)

    def next(self, rows: "Sequence[Row]") -> Job | None:
        """Fill the first rung, then promote rung by rung, best first."""
        return _walk(self.plan()[0], rows, self.mode)[0]

    def retired(self, rows: "Sequence[Row]") -> list[int]:
        """Trials that a finished rung did not promote."""
        return _walk(self.plan()[0], rows, self.mode)[1]

    def plan(self) -> tuple[Bracket, ...]:
        """Return the one bracket."""
        s = _s_max(self.max_steps, self.min_steps, self.eta)
        return (_bracket(self.n_trials or self.eta**s, s, self.max_steps, self.eta),)


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

    def __post_init__(self) -> None:
        _require_halving(self.max_steps, self.min_steps, self.eta, self.mode)
        _require_int("iterations", self.iterations, 1)

    def next(self, rows: "Sequence[Row]") -> Job | None:
        """Return the first job that any bracket has, earlier brackets first."""
        for bracket, part in self._open(rows):
            job = _walk(bracket, part, self.mode)[0]
            if job is not None:
                return job
        return None

    def retired(self, rows: "Sequence[Row]") -> list[int]:
        """Trials that a finished rung did not promote."""
        return [number for bracket, part in self._open(rows) for number in _walk(bracket, part, self.mode)[1]]

    def plan(self) -> tuple[Bracket, ...]:
        """Return the brackets in the order they start."""
        s_max = _s_max(self.max_steps, self.min_steps, self.eta)
        once = tuple(
            _bracket(-(-(s_max + 1) * self.eta**s // (s + 1)), s, self.max_steps, self.eta)
            for s in range(s_max, -1, -1)
        )
        return once * self.iterations

    def _open(self, rows: "Sequence[Row]") -> "Iterator[tuple[Bracket, Sequence[Row]]]":
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


def _walk(bracket: Bracket, rows: "Sequence[Row]", mode: Mode) -> tuple[Job | None, list[int]]:
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
        waiting = [row for row in entrants if row.state == "running" and rung.max_steps not in row.values]
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


def _best(rows: "Sequence[Row]", step: int, count: int, mode: Mode) -> "list[Row]":
    """Return the ``count`` best rows by their finite value at ``step``; ties go to the lower number."""
    sign = 1 if mode == "min" else -1
    ranked = [
        (sign * row.values[step], row.number, row) for row in rows if math.isfinite(row.values.get(step, math.nan))
    ]
    return [row for _, _, row in sorted(ranked, key=lambda entry: entry[:2])[:count]]


def _bracket(n: int, s: int, max_steps: int, eta: int) -> Bracket:
    """Rungs i = 0..s with n_i = floor(n / eta**i) and r_i = R / eta**(s - i), rounded half up."""
    return Bracket(
        tuple(Rung(n // eta**i, (2 * max_steps + eta ** (s - i)) // (2 * eta ** (s - i))) for i in range(s + 1))
    )


def _s_max(max_steps: int, min_steps: int, eta: int) -> int:
    """Largest s with r * eta**s <= R; a loop, because floating-point logarithms miss exact powers."""
    s = 0
    while min_steps * eta ** (s + 1) <= max_steps:
        s += 1
    return s


def _running(rows: "Sequence[Row]") -> "list[Row]":
    return [row for row in rows if row.state == "running"]


def _require_halving(max_steps: int, min_steps: int, eta: int, mode: str) -> None:
    _require_int("min_steps", min_steps, 1)
    _require_int("max_steps", max_steps, 1)
    if max_steps < min_steps:
        raise ValueError(
            f"`max_steps` must be at least `min_steps`, got max_steps={max_steps} < min_steps={min_steps}."
        )
    _require_int("eta", eta, 2)
    if mode not in ("min", "max"):
        raise ValueError(f"`mode` must be 'min' or 'max', got {mode!r}.")


def _require_int(name: str, value: object, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an int >= {least}, got {value!r}.")
