"""The one loop: ask the scheduler, run the job, record what came of it, repeat."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from optuna.distributions import BaseDistribution

from lightning_hpo import checkpoints
from lightning_hpo.checkpoints import previous_of
from lightning_hpo.errors import ParameterMismatchError, RankLostError, SearchFailedError, failure_text
from lightning_hpo.executors.pool import Executor
from lightning_hpo.records import CHECKPOINT, Mode, Outcome, Row, Task, best_row, reach
from lightning_hpo.reporting.best import keep_best, write_answer
from lightning_hpo.reporting.console import Console, spent
from lightning_hpo.samplers.adapter import Asker
from lightning_hpo.schedulers import Job, Scheduler
from lightning_hpo.space import nested_config
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.table import SEGMENT, TrialTable
from lightning_hpo.study.trial_folders import identity_of

SOURCE = "parent.ckpt"
"""In the folder of a member: what it copies, until it has saved its own."""
_ENOUGH_TO_JUDGE = 10  # ended trials, for a share of failures


@dataclass(frozen=True)
class Limits:
    """When to start no more jobs.

    Args:
        timeout: seconds from now, or None.
        total_steps: recorded optimizer steps, those of earlier calls included, or None.
        max_failed: failed trials in a row (an int), or as a share of all that have ended (a float below 1), which is
            judged from the tenth on.
    """

    timeout: float | None = None
    total_steps: int | None = None
    max_failed: int | float = 5

    def refuse_failures(self, in_a_row: int, rows: Sequence[Row], last: str) -> None:
        """Raise SearchFailedError if too many trials failed.

        Args:
            in_a_row: failed trials since the last one that did not.
            rows: all trials.
            last: reason of the last failure.
        """
        if self.max_failed >= 1:
            if in_a_row >= self.max_failed:
                raise SearchFailedError(f"{in_a_row} trials in a row failed, the last one with: {last}")
            return
        ended = [row for row in rows if row.state != "running"]
        failed = sum(row.state == "failed" for row in ended)
        if in_a_row and len(ended) >= _ENOUGH_TO_JUDGE and failed >= self.max_failed * len(ended):
            raise SearchFailedError(f"{failed} of {len(ended)} trials failed, the last one with: {last}")

    def texts(self) -> list[str]:
        """Each limit that ends a search before its scheduler does, as words."""
        steps = None if self.total_steps is None else f"once {self.total_steps:,} optimizer steps are recorded"
        time = None if self.timeout is None else f"after {self.timeout:g} s"
        return [text for text in (steps, time) if text is not None]


@dataclass
class Search:
    """One run of the loop over one study. All that outlives it is in the table and the folder."""

    scheduler: Scheduler
    table: TrialTable
    asker: Asker
    space: Mapping[str, BaseDistribution]
    study_id: str
    folder: RunFolder
    executor: Executor
    limits: Limits
    console: Console
    mode: Mode
    planned: int
    keep_checkpoints: bool
    converged: Callable[[], bool]  # asked before a new trial is started
    settle: Callable[[Path, Mapping[str, Any]], None]  # makes sure that a trial's folder is its own
    config: Callable[[Mapping[str, Any], int], dict[str, Any]] = nested_config
    turn: Callable[[], AbstractContextManager[None]] = nullcontext  # around all that is decided and recorded
    poll: float | None = None  # seconds between looks at what other processes have done; None if there are none
    _running: dict[Future[Outcome], Task] = field(default_factory=dict)
    _failed_in_a_row: int = 0
    _shown: tuple[int, float, int] | None = None  # best trial, how far it got and its step, as the files have it

    def run(self, stop_wanted: Callable[[], bool]) -> None:
        """Start jobs while the scheduler has any and no limit is reached, and record what comes back.

        Raises:
            SearchFailedError: if ``max_failed`` trials in a row failed.
            ParameterMismatchError: if a hyperparameter does not take effect in training.
            RankLostError: if a process that trains along is gone.
        """
        deadline = math.inf if self.limits.timeout is None else time.monotonic() + self.limits.timeout
        with self.console.later(), self.turn():
            self._end_what_is_over()
        done: set[Future[Outcome]] = set()
        while True:
            with self.console.later(), self.turn():
                self._end_all(done)
                self._show_best()  # of a process that died before it could, too, and before its checkpoint is continued
                tasks = self._decide(deadline, stop_wanted)
                elsewhere = any(row.state == "running" and not row.idle for row in self.table.rows)
            for task in tasks:
                self._running[self.executor.submit(task)] = task
            done = set()
            if self._running:
                done = wait(self._running, self.poll, return_when=FIRST_COMPLETED).done
            elif elsewhere and not stop_wanted() and not self._enough(deadline):
                time.sleep(self.poll or 0)  # what comes next depends on another process
            else:
                break
        with self.console.later(), self.turn():
            at_work = any(row.state == "running" and not row.idle for row in self.table.rows)
            if not stop_wanted() and not at_work and self.scheduler.next(self.table.rows) is None:
                self._retire([row.number for row in self.table.rows if row.state == "running"])
                if self._replaces and not any(row.state == "complete" for row in self.table.rows):
                    raise SearchFailedError(
                        f"no member of the population came to step {self.scheduler.max_steps}; the reasons are with "
                        f"the failed trials in {self.folder.path}."
                    )
            self._show_best()

    def _end_what_is_over(self) -> None:
        """End trials whose process died between their last value, or the start of their successor, and their end."""
        last = {row.home: row.number for row in self.table.rows}
        for row in [row for row in self.table.rows if row.state == "running"]:
            if last[row.home] != row.number:
                self.table.prune(row.number)
            elif row.values and (row.ended or row.step >= self.scheduler.max_steps):
                self._complete(row.number, row.values[row.step])

    @property
    def _replaces(self) -> bool:
        """Whether trials belong to members of a population, and the scheduler replaces those without a score."""
        return getattr(self.scheduler, "replaces_broken", False)

    def _end_all(self, done: set[Future[Outcome]]) -> None:
        """Record every outcome, also if one of them ends the search."""
        errors: list[Exception] = []
        for future in sorted(done, key=lambda one: self._running[one].folder):
            try:
                self._end(self._running.pop(future), future)
            except (SearchFailedError, ParameterMismatchError, RankLostError) as error:
                errors.append(error)
        if errors:
            raise errors[0]

    def _decide(self, deadline: float, stop_wanted: Callable[[], bool]) -> list[Task]:
        """Take a job for each free worker, if there are so many."""
        tasks: list[Task] = []
        free = self.executor.workers - len(self._running)
        while len(tasks) < free and not self._enough(deadline) and not stop_wanted():
            job = self.scheduler.next(self.table.rows)
            if job is None or (job.trial is None and self.converged()):
                break
            tasks.append(self._begin(job))
        return tasks

    def _enough(self, deadline: float) -> bool:
        total = self.limits.total_steps
        return time.monotonic() >= deadline or (total is not None and spent(self.table.rows) >= total)

    def _begin(self, job: Job) -> Task:
        """Write down a new trial, or take up an old one, and say what is to be done."""
        if job.trial is None:
            number = len(self.table.rows)
            params, notes = dict(job.params or {}), self._origin(job)
            if job.params is None or params.keys() != self.space.keys():
                self.asker.recall(self.table.study_notes)
                asked, asker_notes = self.asker.ask(self.table.rows, self.table.notes, job.max_steps)
                params, notes = {**asked, **params}, {**asker_notes, **notes}
                self.table.note(self.asker.study_notes)
            if job.replaces is None:
                self.settle(self.folder.trial(number), identity_of(self.study_id, number, params))
            else:
                self._keep_source(job.parent, job.replaces)
            self.table.add(params, self.space, target=job.max_steps, parent=job.parent, notes=notes)
            if job.replaces is not None:
                self.table.prune(job.replaces)
        else:
            number = job.trial
            self._settle_home(number)
            self.table.promise(number, job.max_steps)
        row = self.table.rows[number]
        return Task(
            Job(job.max_steps, number, row.parent, row.params),
            row.params,
            self.folder.trial(row.home),
            source=self._source(row),
            identity=self._identity(row),
            member=row.home,
        )

    def _source(self, row: Row) -> Path | None:
        """Checkpoint that a trial starts from: of its parent, or what :meth:`_keep_source` has kept of that."""
        if row.parent is None:
            return None
        kept = self.folder.trial(row.home) / SOURCE
        return kept if kept.exists() else self.folder.trial(self.table.rows[row.parent].home) / CHECKPOINT

    def _keep_source(self, parent: int | None, replaces: int) -> None:
        """Keep the checkpoint that a trial copies, while its parent trains on, until the copy has saved its own."""
        self._settle_home(replaces)
        home, donor = (self.table.rows[number].home for number in (replaces, replaces if parent is None else parent))
        newest, kept = self.folder.trial(donor) / CHECKPOINT, self.folder.trial(home) / SOURCE
        for file, name in ((newest, kept), (previous_of(newest), previous_of(kept))):
            if home != donor and file.exists():
                keep_best(file, name)

    def _settle_home(self, number: int) -> None:
        home = self.table.rows[self.table.rows[number].home]
        self.settle(self.folder.trial(home.number), self._identity(home))

    def _identity(self, row: Row) -> Mapping[str, Any]:
        return identity_of(self.study_id, row.number, row.params)

    def _origin(self, job: Job) -> dict[str, Any]:
        """Notes on where the training of a new trial begins: at its parent's last step, or where its member stands."""
        if job.parent is None or not self.table.rows[job.parent].values:
            return {}
        step = self.table.rows[job.parent].step
        if job.replaces is None:
            return {SEGMENT: {"start": step, "forked_at": step}}
        before = self.table.rows[job.replaces]
        return {SEGMENT: {"member": before.home, "start": before.step, "forked_at": step}}

    def _end(self, task: Task, future: Future[Outcome]) -> None:
        """Record the outcome of a job before anything is decided from it."""
        number = task.job.trial
        assert number is not None
        before = self.table.rows[number].step
        error = future.exception()
        if error is not None and getattr(error, "ends_search", False):
            self.table.promise(number, None)
            raise error
        if error is None and future.result().score is None:
            self.table.promise(number, None)  # paused
            return
        reason = failure_text(error, task.params) if error is not None else self._record(number, task, future.result())
        if reason is None:
            self._failed_in_a_row = 0
        else:
            self._failed_in_a_row += 1
            if self.table.rows[number].state == "running":
                self.table.fail(number, reason)
        retired = getattr(self.scheduler, "retired", None)
        self._retire([] if retired is None else retired(self.table.rows))
        self._show_best()
        if self.table.rows[number].state != "running":
            self._drop_checkpoints([number])
        if task.source is not None and task.source.name == SOURCE:
            checkpoints.remove(task.source)
        row = self.table.rows[number]
        self.console.job(row, row.step - before, self.table.rows, self.planned, reason or "")
        self.limits.refuse_failures(self._failed_in_a_row, self.table.rows, reason or "")

    def _record(self, number: int, task: Task, outcome: Outcome) -> str | None:
        """Write a score at the step where the Trainer stood; say why if it is no score."""
        reason = _reason(self.console.monitor, outcome.score)
        if reason is not None and not (self._replaces and isinstance(outcome.score, float)):
            return reason
        score, ended = float(outcome.score or 0.0), outcome.early_end(task.job.max_steps)
        if outcome.stopped:  # before the score: decisions are made again from what the study holds
            self.table.note_stop(number, outcome.step)
            self.console.line(f"trial {number} was asked to stop at step {outcome.step}; its member goes on as a copy")
        if outcome.remark:
            self.console.line(outcome.remark)
        self.table.record(number, outcome.step, score)
        if ended is not None or outcome.step >= self.scheduler.max_steps:
            return self._complete(number, score, ended)
        return None

    def _complete(self, number: int, score: float, ended: str | None = None) -> str | None:
        """End a trial at its last score; say why if that is no number."""
        if not math.isfinite(score):
            reason = f"the last score is {score}"
            self.table.fail(number, reason)
            return reason
        self.table.complete(number, score, ended)
        return None

    def _retire(self, numbers: list[int]) -> None:
        for number in numbers:
            self.table.prune(number)
        self._drop_checkpoints(numbers)

    def _show_best(self) -> None:
        """Keep ``best.ckpt`` and ``best.yaml`` true."""
        best = best_row(self.table.rows, self.mode)
        if best is None or (self._replaces and best.state != "complete"):
            return  # of a population, the answer is a member that came to the end
        shown = (best.number, reach(best), best.step)
        if shown == self._shown:
            return
        write_answer(
            best,
            self._identity(best),
            self.folder.trial(best.home) / CHECKPOINT,
            self.config(best.params, self.scheduler.max_steps),
            best_checkpoint=self.folder.best_checkpoint,
            best_params=self.folder.best_params,
        )
        before, self._shown = self._shown, shown
        # The first time in a process, the best trial of an earlier one may have been kept for nothing.
        ended = range(len(self.table.rows)) if before is None else (before[0],)
        self._drop_checkpoints([number for number in ended if self.table.rows[number].state != "running"])

    def _drop_checkpoints(self, numbers: list[int]) -> None:
        """Remove the checkpoints of trials that will not be continued, except the best one's."""
        if self.keep_checkpoints or not numbers:
            return
        best = best_row(self.table.rows, self.mode)
        used = {row.home for row in self.table.rows if row.state == "running"} if self._replaces else set()
        for home in {self.table.rows[number].home for number in numbers} - used:
            checkpoint = self.folder.trial(home) / CHECKPOINT
            if (best is None or best.home != home) and self.folder.holds(checkpoint.parent):
                checkpoints.remove(checkpoint)


def _reason(name: str, score: object) -> str | None:
    """Why a score cannot be used, or None if it can."""
    try:
        value = float(score)  # type: ignore[arg-type]  # a user's function may return anything
    except (TypeError, ValueError, OverflowError):
        return f"the {name} is not a number: {score!r}"
    return None if math.isfinite(value) else f"the {name} is {value}"
