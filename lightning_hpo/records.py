"""The words of a search: trial rows, jobs, tasks and outcomes, and which trial is best. Standard library only."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, TypeAlias

Mode: TypeAlias = Literal["min", "max"]
State: TypeAlias = Literal["running", "complete", "pruned", "failed"]

Kept: TypeAlias = tuple[tuple[int, float], ...]
"""Validations that a score is made of: (optimizer step, value of the metric), in order of their step."""

CHECKPOINT = "last.ckpt"
"""In the folder of a trial: it is continued from here."""
BEST_CHECKPOINT = "best.ckpt"
"""In the folder of a trial whose best validation is its score: the checkpoint of that validation."""

BUDGET = "budget"
"""The job reached its ``max_steps``."""
FOLDS = "folds"
"""User attribute of a trial: its score on each fold so far."""
PAUSED = "paused"
"""A signal asked for a pause; the checkpoint holds everything."""


@dataclass(frozen=True)
class Job:
    """Take one trial to a budget.

    Args:
        max_steps: train until the trial has seen this many optimizer steps, and validate there. In a search whose
            budgets are in epochs or samples, it counts these.
        trial: number of the trial to continue; None starts a new one.
        parent: for a new trial, the trial whose weights it starts from; None starts from scratch.
        params: for a new trial, its parameters; None asks the sampler.
        replaces: for a new trial of a population, the trial of the same member that ends here. The new one goes on in
            its fit: step, place in the data and clocks are those of the member.
        confirms: for a new trial, the trial whose parameters train once more, with another seed.
        seed: of everything random in the trial, as ``lightning.seed_everything`` takes it; the study has it, so
            schedulers leave it out. None in a trial that an earlier version has begun.
        fold: of the data, counted from 0, that the job trains on from scratch; None in a search without folds.
    """

    max_steps: int
    trial: int | None = None
    parent: int | None = None
    params: Mapping[str, Any] | None = None
    replaces: int | None = None
    confirms: int | None = None
    seed: int | None = None
    fold: int | None = None

    @property
    def fit_steps(self) -> int:
        """How far its fit goes: to ``max_steps``, of which each fold has an equal part."""
        return self.max_steps if self.fold is None else self.max_steps // (self.fold + 1)


@dataclass(frozen=True)
class Task:
    """A job with all that is needed to carry it out in another process.

    Args:
        job: what to do; ``job.trial`` is the trial's number.
        params: of the trial.
        folder: of the trial, for its checkpoint and metrics.
        source: checkpoint of the parent to start from, or None.
        identity: ``{"study": id, "trial": number, "params": {...}}`` in plain values, which every checkpoint of the
            trial carries; empty where there is no study.
        member: number of the first trial of the member of a population that the trial belongs to; else its own.
        scored_from: validations of earlier jobs of the trial that its score is made of.
    """

    job: Job
    params: Mapping[str, Any]
    folder: Path
    source: Path | None = None
    identity: Mapping[str, Any] = field(default_factory=dict)
    member: int = 0
    scored_from: Kept = ()


@dataclass(frozen=True)
class Outcome:
    """Outcome of a job.

    Args:
        score: of the trial at ``step``, by the rule of the search; None if the job was paused before its end.
        step: optimizer step at which the Trainer stood (``trainer.global_step``); of a function, the job's budget. In a
            search whose budgets are in epochs or samples, how many of these the trial has had.
        metrics: all that was logged at the last validation, training metrics included where training went on to it.
        pruned: whether a pruner has stopped the trial there.
        values: optimizer step -> score there, for each validation of this job.
        ended: why the job ended: :data:`BUDGET`, :data:`PAUSED`, or what has finished the trial before its budget, such
            as ``"EarlyStopping at step 48"`` or ``"max_epochs=3 reached at step 48"``.
        stopped: whether a callback asked to stop a member of a population, which then trains on.
        remark: for people to read, e.g. an error that came after the end and costs no score.
        global_step: optimizer step at which the Trainer stood, where ``step`` counts epochs or samples; else None.
        full_steps: optimizer steps of the trial's full budget, where that is in epochs or samples; else None.
        notes: user attributes for the trial.
        scored_from: validations that the score is made of; empty where it is the last one.
        validations: step as the study counts -> monitored metric, where the score may be another number.
    """

    score: float | None
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict, compare=False)
    pruned: bool = False
    values: Mapping[int, float] = field(default_factory=dict, compare=False)
    ended: str = BUDGET
    stopped: bool = False
    remark: str = ""
    global_step: int | None = None
    full_steps: int | None = None
    notes: Mapping[str, Any] = field(default_factory=dict, compare=False)
    scored_from: Kept = ()
    validations: Mapping[int, float] = field(default_factory=dict, compare=False)

    @property
    def finished_early(self) -> bool:
        """Whether the trial has ended by itself below the job's budget, and so needs no further job."""
        return self.ended not in (BUDGET, PAUSED)

    def is_whole(self, budget: int) -> bool:
        """Whether the trial has had its full budget, and is complete."""
        if self.global_step is None or self.full_steps is None or FOLDS in self.notes:  # the last fit is of one fold
            return self.step >= budget
        return self.global_step >= self.full_steps

    def early_end(self, asked: int) -> str | None:
        """Why the trial is finished before its full budget; None if it may go on.

        Args:
            asked: ``max_steps`` of the job. A Trainer that stands below it, for whatever reason, goes no further.
        """
        if self.finished_early:
            return self.ended
        return f"training ended at step {self.step}" if self.step < asked else None


Work: TypeAlias = Callable[[Task, Callable[[], bool]], Outcome]
"""Carries out a task; the second argument says whether to pause."""


def never() -> bool:
    """Say that no pause is wanted."""
    return False


@dataclass(frozen=True, slots=True)
class Row:
    """One trial, as a scheduler sees it.

    In a search whose budgets are in epochs or samples, its steps are counts of these.

    Args:
        number: of the trial in its study, counted from 0.
        params: name as typed in the space -> plain Python value; never changes.
        values: optimizer step -> score there, which is the monitored metric or what the rule of the search makes of it.
        target: step that a running job trains to; None when no job works on the trial.
        parent: number of the trial whose weights it started from, or None.
        state: ``"running"`` covers a trial that trains and a paused one; the other states are final.
        start: step at which its own training began; above 0 where it goes on from its parent.
        ended: why training finished by itself below the full budget, e.g. ``"EarlyStopping at step 48"``; else None.
        scored: whether its last value is a score that it competes with, and not a report from a running fit.
        feasible: whether it keeps all constraints of the search, at its last value.
        violations: step -> sum of all constraints above 0 there; steps without any are left out.
        member: number of the first trial of the member of a population that it belongs to; None if it is the first.
        forked_at: step of its parent at which its weights were taken; None if it has no parent.
        stopped: steps at which a callback asked to stop it, although it is to train on.
        global_steps: step -> optimizer step at which the Trainer stood; empty where both are the same.
        full_steps: optimizer steps of its full budget, where that is in epochs or samples.
        seed: of everything random in it; None if an earlier version has begun it.
        decided: step that a member of a population was last decided to go on to, unchanged; None if that needs no note.
        confirms: number of the trial whose parameters it trains once more; None for a trial of the search.
        folds: score on each fold so far; its value is their mean.
        scored_from: validations that its last score is made of; empty where it is the last one.
        validations: step -> monitored metric there, where the score may be another number.
        step: of its last value, or where its training began.
        score: value that the trial competes with: its last one, if that is a finite number.
    """

    number: int
    params: Mapping[str, Any] = field(default_factory=dict)
    values: Mapping[int, float] = field(default_factory=dict)
    target: int | None = None
    parent: int | None = None
    state: State = "running"
    start: int = 0
    ended: str | None = None
    scored: bool = True
    feasible: bool = True
    violations: Mapping[int, float] = field(default_factory=dict)
    member: int | None = None
    forked_at: int | None = None
    stopped: tuple[int, ...] = ()
    global_steps: Mapping[int, int] = field(default_factory=dict)
    full_steps: int | None = None
    seed: int | None = None
    decided: int | None = None
    confirms: int | None = None
    folds: tuple[float, ...] = ()
    scored_from: Kept = ()
    validations: Mapping[int, float] = field(default_factory=dict)
    step: int = field(init=False, repr=False, compare=False)
    score: float | None = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        step = max(self.values, default=self.start)
        value = self.values[step] if self.values and self.scored else math.nan
        # Computed once, as a search reads them of all its trials after each job.
        object.__setattr__(self, "step", step)
        object.__setattr__(self, "score", value if math.isfinite(value) else None)

    @property
    def global_step(self) -> int:
        """Optimizer step of its last value."""
        return self.global_steps.get(self.step, self.step)

    @property
    def spread(self) -> float | None:
        """Standard deviation of its scores over folds (n - 1 in the denominator); None of fewer than two."""
        return statistics.stdev(self.folds) if len(self.folds) > 1 else None

    @property
    def checkpoint_step(self) -> int:
        """Optimizer step of the checkpoint that its score came from."""
        return self.scored_from[-1][0] if self.scored_from else self.global_step

    @property
    def home(self) -> int:
        """Number of the trial in whose folder it trains: the first of its member, or itself."""
        return self.number if self.member is None else self.member

    @property
    def idle(self) -> bool:
        """Whether the trial may be given a job: it is not finished, and no job works on it."""
        # A job that reports while it trains may have reported at its target and still be running.
        reached = self.target is None or (self.scored and bool(self.values) and self.step >= self.target)
        return self.state == "running" and reached

    def at(self, rung: int, following: float = math.inf) -> float | None:
        """Return the trial's value at a rung, or None if it has none there.

        Args:
            rung: in optimizer steps. A Trainer can stand beyond it, so the first value at or after it counts.
            following: values from this step on belong to the next rung. By default they count here too.

        Returns:
            The value there. A trial that finished by itself counts with its last value at every higher rung.
        """
        step = self.step_at(rung, following)
        return None if step is None else self.values[step]

    def step_at(self, rung: int, following: float = math.inf) -> int | None:
        """Return the step of the value that :meth:`at` returns."""
        if rung in self.values:
            return rung
        first = min((step for step in self.values if rung < step < following), default=None)
        if first is not None:
            return first
        return self.step if self.ended is not None and self.values and self.step < rung else None

    def violation(self, step: int) -> float:
        """Return the sum of all constraints above 0 at a step with a value; infinite if only the end is known."""
        return self.violations.get(step, 0.0) if self.feasible or self.violations else math.inf


def best_row(rows: Sequence[Row], mode: Mode) -> Row | None:
    """Return the best trial, or None without any score; :func:`ranked` says what is better.

    Where configurations were confirmed, it is the best trial among the confirmations of the best one.
    """
    if (confirmed := confirmations(rows, mode)) and confirmed[0].n:
        rows = [row for row in rows if row.confirms == confirmed[0].trial]
    left = [row for row in rows if row.score is not None]  # in stages: one key for all takes 10 ms for 10,000 trials
    left = [row for row in left if row.feasible] or left
    furthest = max(map(reach, left), default=0)
    left = [row for row in left if reach(row) == furthest]
    return (min if mode == "min" else max)(left, key=attrgetter("score"), default=None)


def changed(before: Sequence[Row], rows: Sequence[Row]) -> list[int]:
    """Return the numbers of the rows that are new or other objects than before."""
    shown = min(len(before), len(rows))
    blocks = [slice(start, min(start + 100, shown)) for start in range(0, shown, 100)]  # equal ones are passed over
    numbers = [i for block in blocks if before[block] != rows[block] for i in range(block.start, block.stop)]
    return [*(number for number in numbers if before[number] is not rows[number]), *range(shown, len(rows))]


def searched(rows: Sequence[Row]) -> Sequence[Row]:
    """Return the trials of the search, without confirmations, numbered from 0 as if there were no others."""
    own = [row for row in rows if row.confirms is None]
    if len(own) == len(rows):
        return rows
    place: dict[int | None, int | None] = {row.number: index for index, row in enumerate(own)}
    place[None] = None
    return [
        row if row.number == index else replace(row, number=index, parent=place[row.parent], member=place[row.member])
        for index, row in enumerate(own)
    ]


@dataclass(frozen=True)
class Confirmation:
    """A configuration of the search that was trained again with other seeds.

    Args:
        trial: number of the trial in the search.
        params: of the configuration.
        seen: score that the search had seen; None if that trial had not its full budget.
        scores: of the confirmations.
        mode: whether lower or higher scores are better.
        failed: number of confirmations that have failed.
        feasible: whether all confirmations keep the constraints of the search.
        tied: whether its mean is within one standard error (of the difference) of that of the best, or, of the best
            itself, of any other.
    """

    trial: int
    params: Mapping[str, Any]
    seen: float | None
    scores: tuple[float, ...]
    mode: Mode
    failed: int = 0
    feasible: bool = True
    tied: bool = False

    @property
    def n(self) -> int:
        """Number of scores."""
        return len(self.scores)

    @property
    def mean(self) -> float:
        """Mean of the scores; NaN without any."""
        return statistics.fmean(self.scores) if self.scores else math.nan

    @property
    def std(self) -> float:
        """Standard deviation of the scores (n - 1 in the denominator); NaN of fewer than two."""
        return statistics.stdev(self.scores) if self.n > 1 else math.nan

    @property
    def optimism(self) -> float | None:
        """By how much the search had seen a better score than the mean; below 0 if a worse one."""
        return None if self.seen is None else (self.mean - self.seen) * (1 if self.mode == "min" else -1)

    def is_near(self, other: "Confirmation") -> bool:
        """Whether the means differ by at most one standard error of their difference."""
        error = math.sqrt(self.std**2 / self.n + other.std**2 / other.n) if min(self.n, other.n) > 1 else math.nan
        return abs(self.mean - other.mean) <= error


def confirmations(rows: Sequence[Row], mode: Mode) -> list[Confirmation]:
    """Return the configurations that were confirmed, best first.

    A feasible one comes before an infeasible one, then one of which no confirmation has failed; then the mean decides.
    """
    found = []
    for number in dict.fromkeys(row.confirms for row in rows if row.confirms is not None):
        own = [row for row in rows if row.confirms == number]
        scores = tuple(row.score for row in own if row.state == "complete" and row.score is not None)
        origin = rows[number]
        seen = origin.score if origin.state == "complete" else None
        failed, feasible = sum(row.state == "failed" for row in own), all(row.feasible for row in own)
        found.append(Confirmation(number, origin.params, seen, scores, mode, failed, feasible))
    sign = 1 if mode == "min" else -1
    found.sort(key=lambda each: (not each.n, not each.feasible, each.failed > 0, sign * each.mean, each.trial))
    near = [each.n > 0 and each.is_near(found[0]) for each in found]
    return [replace(each, tied=near[index] if index else any(near[1:])) for index, each in enumerate(found)]


def ranked(rows: Sequence[Row], mode: Mode) -> list[Row]:
    """Return the trials that have a score, best first.

    A feasible trial comes before an infeasible one. A finished trial, at the full budget or ended by itself, comes
    before an unfinished one, and of two unfinished trials the one with more steps comes first: a value after few steps
    does not compete with a value after many. Then the score decides, and then the lower number. A trial that failed on
    its way to another rung keeps the score that it had.
    """
    sign = 1 if mode == "min" else -1
    scored = [row for row in rows if row.score is not None]
    return sorted(scored, key=lambda row: (not row.feasible, -reach(row), sign * (row.score or 0.0), row.number))


def reach(row: Row) -> float:
    """Last step of a trial, or infinity if it is finished."""
    return math.inf if row.state == "complete" else row.step


def spent(rows: Sequence[Row]) -> int:
    """Optimizer steps that have led to a recorded value; those of a parent count once."""
    return sum(row.step - row.start for row in rows)
