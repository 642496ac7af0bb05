"""What all schedulers share: jobs, the protocol, and the arithmetic of rungs and brackets."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias

from lightning_hpo.records import Job, Row
from lightning_hpo.text import require_int

Coverage: TypeAlias = Literal["all", "least", "round"]
Rungs: TypeAlias = Literal["up", "down"]


class Scheduler(Protocol):
    """Decides from the table of trials which job comes next."""

    @property
    def max_steps(self) -> int:
        """Full budget of one trial, in optimizer steps. A trial with a value there, or beyond it, is complete."""

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Return the next job, or None if nothing can be started now.

        Args:
            rows: all trials of the study in order of their number.
        """


class Planning(Scheduler, Protocol):
    """A scheduler that knows beforehand what it will do, if no trial fails."""

    @property
    def plan_covers(self) -> Coverage:
        """What a plan counts: all that happens, the least that happens, or the least of one of endless rounds."""

    def plan(self) -> "tuple[Bracket, ...]":
        """Return brackets in the order they start."""


class Retiring(Scheduler, Protocol):
    """A scheduler that can say early which paused trials it will never continue."""

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Numbers of the running trials that will get no further job."""


@dataclass(frozen=True)
class Rung:
    """``trials`` configurations are judged after ``max_steps`` optimizer steps."""

    trials: int
    max_steps: int


@dataclass(frozen=True)
class Bracket:
    """Rungs of one run of successive halving, smallest budget first.

    Args:
        rungs: of the bracket.
        label: what it is for people, if it is something else.
        jobs_each: times that a trial is started or continued on the way to a rung.
        copies: trials that are started in addition at most, each in place of another one, as in a population.
    """

    rungs: tuple[Rung, ...]
    label: str = ""
    jobs_each: int = 1
    copies: int = 0

    @property
    def trials(self) -> int:
        """Configurations that the bracket starts."""
        return self.rungs[0].trials

    @property
    def jobs(self) -> int:
        """Times that a trial is started or continued, if none fails."""
        return sum(rung.trials for rung in self.rungs) * self.jobs_each

    @property
    def steps(self) -> int:
        """Optimizer steps, if none fails and a promoted trial continues from its checkpoint."""
        reached = [0, *(rung.max_steps for rung in self.rungs)]
        return sum(rung.trials * (rung.max_steps - below) for rung, below in zip(self.rungs, reached, strict=False))

    @property
    def retrain_steps(self) -> int:
        """Optimizer steps, if a promoted trial had to start again."""
        return sum(rung.trials * rung.max_steps for rung in self.rungs)


def rung_steps(max_steps: int, min_steps: int, eta: int, rungs: Rungs = "down") -> tuple[int, ...]:
    """Return the steps at which trials are judged, rising; the last are R.

    Args:
        max_steps: R.
        min_steps: r.
        eta: from rung to rung the steps grow by this factor.
        rungs: ``"down"`` counts from R: R / eta**i, rounded half up, as long as r * eta**i <= R. ``"up"`` counts from
            r: r * eta**i below R, without a last one that is nearer to R than by a factor of sqrt(eta).

    Example:
        >>> rung_steps(50, 1, 3), rung_steps(50, 1, 3, "up")
        ((2, 6, 17, 50), (1, 3, 9, 27, 50))
    """
    steps = []
    if rungs == "up":
        step = min_steps
        while step**2 * eta <= max_steps**2:
            steps.append(step)
            step *= eta
        return (*steps, max_steps)
    power = 1  # a loop, because floating-point logarithms miss exact powers
    while min_steps * power <= max_steps:
        steps.append((2 * max_steps + power) // (2 * power))
        power *= eta
    return tuple(reversed(steps))


def make_bracket(n: int, steps: Sequence[int], eta: int) -> Bracket:
    """Rungs at ``steps``, of which rung i judges floor(n / eta**i) trials."""
    return Bracket(tuple(Rung(n // eta**i, step) for i, step in enumerate(steps)))


def hyperband_brackets(steps: Sequence[int], eta: int) -> tuple[Bracket, ...]:
    """Brackets s = s_max..0 on the last s + 1 rungs, with n = ceil((s_max + 1) / (s + 1) * eta**s), in integers."""
    levels = len(steps)
    return tuple(
        make_bracket(-(-levels * eta**s // (s + 1)), steps[levels - 1 - s :], eta) for s in range(levels - 1, -1, -1)
    )


def require_halving(max_steps: int, min_steps: int, eta: int, mode: str, rungs: str = "down") -> None:
    """Raise ValueError for settings that no halving scheduler can have."""
    require_int("min_steps", min_steps, 1)
    require_int("max_steps", max_steps, 1)
    if max_steps < min_steps:
        raise ValueError(
            f"`max_steps` must be at least `min_steps`, got max_steps={max_steps} < min_steps={min_steps}."
        )
    require_int("eta", eta, 2)
    if rungs not in ("up", "down"):
        raise ValueError(f"`rungs` must be 'up' or 'down', got {rungs!r}.")
    if mode not in ("min", "max"):
        raise ValueError(f"`mode` must be 'min' or 'max', got {mode!r}.")
