"""What can be said of a search at a moment: from its rows, its plan, and the progress of the jobs at work."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from lightning_hpo.atomic import atomic_write
from lightning_hpo.records import Mode, Row, best_row, ranked, spent
from lightning_hpo.reporting.events import Event, JobEnded, JobStarted, SearchEnded, StudyRead
from lightning_hpo.reporting.pace import Pace
from lightning_hpo.study.locks import OWNER
from lightning_hpo.study.progress import FILE, Progress, note_job, read_progress

PLAN = "plan.json"
_SURPLUS = 0.1  # of a plan, that asynchronous schedulers may need in addition
BEST = 5
"""Trials that a view shows beside the running ones."""


@dataclass(frozen=True)
class Plan:
    """What a search is going to do, as far as that is known beforehand.

    Args:
        title: the tuner and its run folder.
        steps: optimizer steps in all; 0 if that is not known.
        jobs: in all; 0 if that is not known.
        workers: jobs at a time.
        brackets: the rungs of each bracket as (trials, optimizer steps).
        stops: limits that end the search earlier, in words.
        is_least: whether the search may take more than that, as asynchronous schedulers do.
        unit: of all amounts of training, in words.
        each: full budget, where every trial of the plan trains to it unless it is stopped or fails; else 0.
    """

    title: str = ""
    steps: int = 0
    jobs: int = 0
    workers: int = 1
    brackets: Sequence[Sequence[tuple[int, int]]] = ()
    stops: Sequence[str] = ()
    is_least: bool = False
    unit: str = "optimizer steps"
    each: int = 0

    def without(self, rows: Sequence[Row]) -> "Plan":
        """Return the plan without what trials that have ended leave of it."""
        ended = [row for row in rows if row.state != "running"] if self.each else ()
        steps = sum(max(self.each - row.step, 0) for row in ended)
        jobs = sum(max(len(self.brackets[0]) - len(row.values), 0) for row in ended)
        return replace(self, steps=self.steps - steps, jobs=self.jobs - jobs)

    def left(self, done: int) -> int | None:
        """Return the optimizer steps that are left, or None if they are not known within a factor of 2."""
        left = self.steps - done
        surplus = self.steps * _SURPLUS if self.is_least else 0
        return left if left > surplus else None

    def write(self, folder: Path) -> None:
        """Keep the plan in a run folder, for those who look from outside; without it on a full disk."""
        with suppress(OSError):
            atomic_write(folder / PLAN, json.dumps(self.__dict__))


def read_plan(folder: Path) -> Plan:
    """Return the plan that a run folder holds; an empty one if it holds none."""
    try:
        content = json.loads((folder / PLAN).read_text(encoding="utf-8"))
        numbers = {name: int(content[name]) for name in ("steps", "jobs", "workers")}
        brackets = tuple(
            tuple((int(trials), int(steps)) for trials, steps in rungs) for rungs in content["brackets"] if rungs
        )  # fmt: skip
        stops, is_least = tuple(map(str, content["stops"])), bool(content["is_least"])
        unit = str(content.get("unit", "optimizer steps"))
        numbers["each"] = int(content.get("each", 0)) if brackets else 0
        return Plan(str(content["title"]), brackets=brackets, stops=stops, is_least=is_least, unit=unit, **numbers)
    except (OSError, ValueError, TypeError, KeyError):
        return Plan()


@dataclass(frozen=True)
class View:
    """A search at a moment.

    Args:
        plan: of the search.
        monitor: name of the score.
        mode: whether lower or higher scores are better.
        rows: all trials.
        running: trial -> seconds since its job started.
        progress: trial -> how far it has come, of trials that have told.
        elapsed: seconds of this call.
        left: seconds until the plan is done; None if that is not known.
        checkpoint: of the best trial, if there is one.
    """

    plan: Plan
    monitor: str
    mode: Mode
    rows: Sequence[Row]
    running: Mapping[int, float] = field(default_factory=dict)
    progress: Mapping[int, Progress] = field(default_factory=dict)
    elapsed: float = 0.0
    left: float | None = None
    checkpoint: Path | None = None

    @property
    def done(self) -> int:
        """Optimizer steps so far: the recorded ones, and those of the jobs at work."""
        return spent(self.rows) + sum(
            max(self.progress[number].step - self.rows[number].step, 0)
            for number in self.running
            if number in self.progress
        )

    @property
    def best(self) -> Row | None:
        """The best trial so far."""
        return best_row(self.rows, self.mode)

    def step(self, row: Row) -> int:
        """Optimizer step at which a trial stands."""
        job = self.progress.get(row.number) if row.number in self.running else None
        return row.step if job is None else max(row.step, job.step)

    def value(self, row: Row) -> float | None:
        """The last value of a trial: of its running job, else its score."""
        job = self.progress.get(row.number) if row.number in self.running else None
        value = None if job is None else job.value
        return row.score if value is None else value

    def curve(self, row: Row) -> list[float]:
        """Values of a trial in the order of their steps."""
        job = self.progress.get(row.number)
        points = {**(dict(job.curve) if job is not None else {}), **row.values}
        return [points[step] for step in sorted(points)]


class Watch:
    """Follows a search, and says how it stands; an observer.

    Args:
        plan: of the search.
        monitor: name of the score.
        mode: whether lower or higher scores are better.
        folder: of a trial by its number.
        best_checkpoint: where that of the best trial is kept.
        clock: in seconds.
    """

    def __init__(
        self,
        plan: Plan,
        monitor: str,
        mode: Mode,
        folder: Callable[[int], Path],
        best_checkpoint: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.plan = plan
        self._monitor = monitor
        self._mode = mode
        self._folder = folder
        self._best_checkpoint = best_checkpoint
        self._pace = Pace(plan.workers, clock=clock)
        self._rows: Sequence[Row] = ()
        self._running: tuple[int, ...] = ()
        self._jobs = 0

    def on(self, event: Event) -> None:
        """Take note of what has happened."""
        if isinstance(event, StudyRead | JobEnded | SearchEnded):
            self._rows = event.rows
        if isinstance(event, JobStarted):
            trial = event.task.job.trial
            assert trial is not None
            self._pace.started(trial)
            self._running = (*self._running, trial)
            if trial < len(self._rows) and self._rows[trial].values:  # another process takes it for paused otherwise
                note_job(event.task.folder, trial, event.task.job.max_steps)
        elif isinstance(event, JobEnded):
            number = event.row.number
            self._pace.ended(number, event.steps, self._progress(event.row))
            self._running = tuple(trial for trial in self._running if trial != number)
            self._jobs += event.steps > 0
        elif isinstance(event, StudyRead) and not self._jobs:
            self._jobs = sum(1 for row in event.rows for _ in row.values)  # of earlier calls

    def view(self) -> View:
        """Return how the search stands; called from another thread too."""
        view = self._view()
        progress = dict(view.progress)
        _add_best(progress, view.rows, self._mode, self._folder)
        checkpoint = self._best_checkpoint if self._best_checkpoint.exists() else None
        return replace(view, progress=progress, checkpoint=checkpoint, left=self._left(view))

    def left(self) -> float | None:
        """Return the seconds until the plan is done; None if that is not known within a factor of 2."""
        return None if self.plan.steps == 0 else self._left(self._view())

    def _view(self) -> View:
        rows, running = tuple(self._rows), self._running
        jobs = {number: self._progress(rows[number]) for number in running if number < len(rows)}
        return View(
            self.plan,
            self._monitor,
            self._mode,
            rows,
            {number: self._pace.running(number) or 0.0 for number in jobs},
            {number: job for number, job in jobs.items() if job is not None},
            self._pace.elapsed,
        )

    def _left(self, view: View) -> float | None:
        plan = self.plan.without(view.rows)
        steps = plan.left(view.done)
        if not steps:
            return None
        at_work = [view.progress[number] for number in view.running if number in view.progress]
        return self._pace.left(steps, plan.jobs - self._jobs - len(view.running), at_work)

    def _progress(self, row: Row) -> Progress | None:
        job = read_progress(self._folder(row.home))
        return job if job is not None and job.trial == row.number and job.step >= 0 else None


def view_from_outside(rows: Sequence[Row], plan: Plan, monitor: str, mode: Mode, *, path: Path, at_work: bool) -> View:
    """Return how a search stands, for a process that only reads its run folder.

    Args:
        rows: all trials.
        plan: of the search.
        monitor: name of the score.
        mode: whether lower or higher scores are better.
        path: of the run folder.
        at_work: whether a process works on the run.
    """

    def folder(number: int) -> Path:
        return path / "trials" / f"{number:04d}"

    progress: dict[int, Progress] = {}
    running: dict[int, float] = {}
    began = changed_at(path / OWNER)
    for row in rows if at_work else ():
        if row.state != "running":
            continue
        job = read_progress(folder(row.home))
        if job is None:
            if not row.values:  # a job of the last moment
                running[row.number] = 0.0
        elif job.trial == row.number and row.step < job.target:
            here = job.is_here  # a process elsewhere is known by what it has written since the search began
            if is_alive(job.pid) if here else changed_at(folder(row.home) / FILE) >= began:
                progress |= {row.number: job} if job.step >= 0 else {}
                running[row.number] = job.seconds + max(time.time() - job.at, 0.0)
    _add_best(progress, rows, mode, folder)
    checkpoint = path / "best.ckpt"
    view = View(
        plan, monitor, mode, rows, running, progress, checkpoint=checkpoint if checkpoint.exists() else None
    )  # fmt: skip
    jobs, plan = sum(len(row.values) for row in rows), plan.without(rows)
    steps = plan.left(view.done) if at_work else None
    if steps is None:
        return view
    left = Pace(plan.workers).left(
        steps, plan.jobs - jobs, [progress[number] for number in running if number in progress]
    )
    return replace(view, left=left)


def changed_at(file: Path) -> float:
    """Return when a file was changed last, by the clock of its file system; 0 if it is not there."""
    try:
        return file.stat().st_mtime
    except OSError:
        return 0.0


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is there."""
    try:
        os.kill(pid, 0)
    except PermissionError:  # of another user
        return True
    except (OSError, OverflowError):
        return False
    return pid > 0


def _add_best(
    progress: dict[int, Progress], rows: Sequence[Row], mode: Mode, folder: Callable[[int], Path]
) -> None:  # fmt: skip
    """Add the curves of the best trials."""
    for row in ranked(rows, mode)[:BEST]:
        if row.number not in progress and (job := read_progress(folder(row.home))) is not None:
            progress[row.number] = job
