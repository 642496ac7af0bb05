"""The one loop: ask the scheduler, propose a trial, run the job, record what came of it, tell the observers, repeat."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.origin import difference
from lightning_hpo.errors import SearchFailedError, failure_text
from lightning_hpo.executors.base import Executor
from lightning_hpo.records import CHECKPOINT, Job, Outcome, Row, Task, spent
from lightning_hpo.reporting.events import Event, JobEnded, JobStarted, Observer, StudyRead
from lightning_hpo.schedulers.base import Scheduler
from lightning_hpo.schedulers.folds import over_folds
from lightning_hpo.study.rows import FOREIGN
from lightning_hpo.study.table import TrialTable
from lightning_hpo.study.trial_folders import identity_of
from lightning_hpo.tuners.limits import Limits
from lightning_hpo.tuners.options import Goal
from lightning_hpo.tuners.proposers import ProposalError, Proposer


@dataclass
class Search:
    """One run of the loop over one study. All that outlives it is in the table and the trials' folders.

    Args:
        scheduler: says which trial gets how many steps.
        proposer: gives a job its trial and parameters.
        table: of the study.
        executor: runs jobs.
        goal: metrics and constraints.
        limits: when to start no more jobs.
        observers: told what happens, in this order.
        study_id: of the study.
        folder: of a trial by its number.
        settle: makes sure that a trial's folder belongs to the trial.
        converged: asked before a new trial is started; True starts none.
        lock: held while something is decided and recorded.
        poll: seconds between looks at what other processes have done; None if there are none.
    """

    scheduler: Scheduler
    proposer: Proposer
    table: TrialTable
    executor: Executor
    goal: Goal
    limits: Limits
    observers: Sequence[Observer]
    study_id: str
    folder: Callable[[int], Path]
    settle: Callable[[Path, Mapping[str, Any]], None]
    converged: Callable[[], bool]
    lock: Callable[[], AbstractContextManager[None]] = nullcontext
    poll: float | None = None
    _running: dict[Future[Outcome], Task] = field(default_factory=dict)
    _failed_in_a_row: int = 0

    def run(self, stop_wanted: Callable[[], bool]) -> None:
        """Start jobs while the scheduler has any and no limit is reached, and record what comes back.

        Raises:
            SearchFailedError: if ``max_failed`` trials in a row failed, or no member of a population came to its end.
            Exception: of a job, if it says ``ends_search``: a hyperparameter that does not take effect, a process that
                trains along and is gone, a full disk.
        """
        deadline = math.inf if self.limits.timeout is None else time.monotonic() + self.limits.timeout
        with self.lock():
            self._complete_recorded()
            _remove_kept(self.table.rows, self.folder)
        done: set[Future[Outcome]] = set()
        while True:
            with self.lock():
                self._end_all(done)
                if self.poll:
                    self._complete_recorded()  # of another process that has died
                self._tell(StudyRead(self.table.rows))  # before a checkpoint of the best trial is continued
                tasks = self._decide(deadline, stop_wanted)
                elsewhere = not (tasks or self._running) and self._others_train()
            for task in tasks:
                self._running[self.executor.submit(task)] = task
            done = set()
            if self._running:
                done = wait(self._running, self.poll, return_when=FIRST_COMPLETED).done
            elif elsewhere and self.poll and not stop_wanted() and not self._enough(deadline):
                time.sleep(self.poll)  # what comes next depends on another process
            else:
                break
        with self.lock():
            self._complete_recorded()
            if not stop_wanted() and not self._others_train() and self.scheduler.next(self.table.rows) is None:
                self._retire([row.number for row in self.table.rows if row.idle])
                self._check_members()
            self._tell(StudyRead(self.table.rows))

    def _complete_recorded(self) -> None:
        """End trials whose process died between their last value, or the start of their successor, and their end."""
        last = {row.home: row.number for row in self.table.rows}
        for row in [row for row in self.table.rows if row.idle]:
            if last[row.home] != row.number:
                self.table.prune(row.number)
            elif row.values and row.scored and (row.ended or row.step >= self.scheduler.max_steps):
                reason = self._complete(row.number, [row.values[row.step]])
                if reason is not None:
                    self.table.fail(row.number, reason)

    def _check_members(self) -> None:
        """Raise SearchFailedError for a population of which no member came to its end."""
        if self._is_population and not any(row.state == "complete" for row in self.table.rows):
            raise SearchFailedError(
                f"no member of the population came to step {self.scheduler.max_steps}; the reasons are with the failed "
                f"trials in {self.folder(0).parent.parent}."
            )

    @property
    def _is_population(self) -> bool:
        """Whether the scheduler replaces trials without a score, so that they do not fail."""
        return getattr(self.scheduler, "replaces_broken", False)

    def _decide(self, deadline: float, stop_wanted: Callable[[], bool]) -> list[Task]:
        """Take a job for each free worker, if there are so many."""
        tasks: list[Task] = []
        free = self.executor.workers - len(self._running)
        while len(tasks) < free and not stop_wanted() and (job := self._next(deadline)) is not None:
            task = self._begin(job)
            if task is not None:
                tasks.append(task)
                self._tell(JobStarted(task))
        return tasks

    def _next(self, deadline: float) -> Job | None:
        """Return the next job of the search within its limits; when it is over, of a confirmation of its best."""
        job = None if self._enough(deadline) else self.scheduler.next(self.table.rows)
        if job is None or (job.trial is None and job.confirms is None and self.converged()):
            confirm = getattr(self.scheduler, "confirm", None)
            return None if confirm is None else confirm(self.table.rows)
        return job

    def _begin(self, job: Job) -> Task | None:
        """Give a job its trial, and say what is to be done; None if no parameters could be proposed."""
        try:
            number, params = self.proposer.propose(self.table, job)
        except ProposalError as error:
            self._ended(error.trial, 0, failure_text(error.__cause__ or error))
            return None
        row = self.table.rows[number]
        home = self.table.rows[row.home]
        self.settle(self.folder(home.number), identity_of(self.study_id, home.number, home.params))
        self.table.assign(number, job.max_steps)  # a lease stands in the folder
        more: dict[str, Any] = {"confirms": row.confirms, "seed": self.table.seed(number), "fold": job.fold}
        return Task(
            Job(job.max_steps, number, row.parent, row.params, **more),
            params,
            self.folder(home.number),
            source=None if row.parent is None else self._source(row, row.parent),
            identity=identity_of(self.study_id, number, row.params),
            member=home.number,
            scored_from=row.scored_from if job.fold is None else (),
        )

    def _source(self, row: Row, parent: int) -> Path:
        """Checkpoint that a trial starts from: its parent's, kept while the parent trains on."""
        kept = _kept_for(row, self.folder)
        of_parent = self.folder(self.table.rows[parent].home) / CHECKPOINT
        if not row.values and of_parent.parent != kept.parent:
            judged = self.table.rows[parent]
            _keep(of_parent, kept, identity_of(self.study_id, parent, judged.params), judged.global_step)
        return kept if kept.exists() else of_parent

    def _end_all(self, done: set[Future[Outcome]]) -> None:
        """Record every outcome, also if one of them ends the search."""
        errors: list[Exception] = []
        for future in sorted(done, key=lambda future: self._running[future].folder):
            try:
                self._end(self._running.pop(future), future)
            except Exception as error:
                if not (isinstance(error, SearchFailedError) or getattr(error, "ends_search", False)):
                    raise
                errors.append(error)
        if errors:
            raise errors[0]

    def _end(self, task: Task, future: Future[Outcome]) -> None:
        """Record the outcome of a job before anything is decided from it."""
        number = task.job.trial
        assert number is not None
        before, error = self.table.rows[number].step, future.exception()
        self.table.reread(number)  # a job may have reported its validations
        if error is not None and getattr(error, "ends_search", False):
            self.table.assign(number, None)
            raise error
        reason, remark = None, ""
        if isinstance(error, optuna.TrialPruned):  # raised by the user's function or callback
            self.table.prune(number)
        elif error is not None:
            reason = failure_text(error, task.params)
        elif future.result().score is None:  # paused
            self.table.assign(number, None)
            return
        else:
            outcome = over_folds(future.result(), task.job, self.table.rows[number].folds)
            reason, remark = self._record(number, task, outcome), outcome.remark
            if outcome.stopped:
                step = outcome.step if outcome.global_step is None else outcome.global_step
                remark = f"trial {number} was asked to stop at step {step}, and its member goes on as a copy"
        if task.source is not None and task.source.name != CHECKPOINT:  # kept for this job
            checkpoints.remove(task.source)
        self._ended(number, before, reason, remark)

    def _ended(self, number: int, before: int, reason: str | None, remark: str = "") -> None:
        """Record a failure, tell that a job has ended, and give up if too many trials fail."""
        if reason is not None:
            self.table.fail(number, reason)
        self._retire(getattr(self.scheduler, "retired", lambda _: [])(self.table.rows))
        row = self.table.rows[number]
        if row.state != "running" or not row.folds:  # a fold of a trial says nothing of its later folds
            self._failed_in_a_row = 0 if reason is None else self._failed_in_a_row + 1
        self._tell(JobEnded(row, row.step - before, self.table.rows, reason or "", remark))
        self.limits.check_failures(self._failed_in_a_row, self.table.rows, (reason or "").partition("\n")[0])

    def _record(self, number: int, task: Task, outcome: Outcome) -> str | None:
        """Write the values at the step where the Trainer stood; say why if they are no values."""
        constraints = {name: outcome.metrics.get(name, math.nan) for name in self.goal.constraints}
        if task.job.fold:
            constraints = _worst(constraints, self.table.notes[number])
        for name, value in constraints.items():
            if not math.isfinite(value):
                return f"the constraint {name} is {value}"
        if constraints:
            self.table.constrain(number, outcome.step, constraints)
        reported = self.table.rows[number].step  # a pruned trial ends with the value that it has reported last
        self.table.note_place(number, replace(outcome, step=reported) if outcome.pruned else outcome)
        whole = outcome.is_whole(self.scheduler.max_steps)
        if outcome.pruned and not whole:
            self.table.prune(number)
            return None
        values, reason = _values(self.goal.monitors, outcome)
        if reason is not None and self._is_population and isinstance(outcome.score, float):
            values, reason = [outcome.score], None
        if outcome.stopped:  # before the score: decisions are made again from what the study holds
            self.table.note_stop(number, outcome.step)
        if reason is None:
            ended = None if whole else outcome.early_end(task.job.max_steps)
            self.table.record(number, outcome.step, values[0])
            if whole or ended is not None:
                reason = self._complete(number, values, ended)
        return reason

    def _complete(self, number: int, values: list[float], ended: str | None = None) -> str | None:
        """End a trial at its last values; say why it fails if they are no numbers."""
        if not all(map(math.isfinite, values)):
            return f"the last score is {values[0]}"
        self.table.complete(number, values, ended)
        return None

    def _retire(self, numbers: list[int]) -> None:
        for number in numbers:
            self.table.prune(number)

    def _others_train(self) -> bool:
        """Whether another process of this search works on a trial."""
        return any(row.state == "running" and not row.idle and row.target != FOREIGN for row in self.table.rows)

    def _enough(self, deadline: float) -> bool:
        total = self.limits.count
        if total is not None:  # what confirmations take is left for them
            total -= getattr(self.scheduler, "reserve", 0)
        own = [row for row in self.table.rows if row.confirms is None] if total is not None else ()
        return time.monotonic() >= deadline or (total is not None and spent(own) >= total)

    def _tell(self, event: Event) -> None:
        for observer in self.observers:
            observer.on(event)


def _worst(constraints: Mapping[str, float], notes: Mapping[str, Any]) -> dict[str, float]:
    """Return the largest value of each constraint over the folds of a trial; earlier ones are in its notes."""
    return {name: max(value, notes.get(f"constraints:{name}", value)) for name, value in constraints.items()}


def _kept_for(row: Row, folder: Callable[[int], Path]) -> Path:
    """Where the checkpoint of a trial's parent is kept until the trial's first value is recorded."""
    return folder(row.home) / f"parent.{row.number}.ckpt"


def _remove_kept(rows: Sequence[Row], folder: Callable[[int], Path]) -> None:
    """Remove kept checkpoints whose process was killed between that record and their removal."""
    for row in rows:
        if row.parent is not None and row.values:
            checkpoints.remove(_kept_for(row, folder))


def _keep(path: Path, kept: Path, identity: Mapping[str, Any], step: int) -> None:
    """Keep a checkpoint under a second name: the one before, if the trial has been saved again beyond ``step``."""
    if not kept.exists():
        checkpoints.keep(path, kept)
    before = checkpoints.previous_of(kept)
    if difference(kept, identity, step) is not None and difference(before, identity, step) is None:
        before.replace(kept)


def _values(monitors: Sequence[str | None], outcome: Outcome) -> tuple[list[float], str | None]:
    """Return the value of each objective, and why they cannot be used, or None if they can.

    Several values come from the logged metrics, or are what a user's function has returned.
    """
    given: Any = outcome.score
    if len(monitors) > 1:
        given = [outcome.metrics[str(name)] for name in monitors] if outcome.metrics else outcome.score
    values: list[float] = []
    try:
        for name, value in zip(monitors, given if len(monitors) > 1 else [given], strict=True):
            try:
                values.append(float(value))
            except (TypeError, ValueError, OverflowError):
                return [], f"the {name or 'score'} is not a number: {value!r}"
            if not math.isfinite(values[-1]):
                return [], f"the {name or 'score'} is {values[-1]}"
    except (TypeError, ValueError):
        return [], f"{len(monitors)} numbers were expected, one for each `monitor`, got {given!r}"
    return values, None
