"""An opened run, the same for every search: its folder, its lock, its study, the signals that pause it, its answer."""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage

from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import SearchFailedError, StudyPaused, explained, last_line
from lightning_hpo.executors.worker import validate_not_starting
from lightning_hpo.interrupts import Interrupts, pausing_signals
from lightning_hpo.quiet import CHATTY, known_warnings_hidden, warnings_only
from lightning_hpo.records import Row, Work, best_row, confirmations
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.copies import Copies
from lightning_hpo.reporting.events import Observer
from lightning_hpo.reporting.loggers import EndTrial
from lightning_hpo.reporting.report import write_report
from lightning_hpo.reporting.result import Result
from lightning_hpo.reporting.run_view import read_run, view_run
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.study.comparison import adopt
from lightning_hpo.study.leases import Leases, study_lock
from lightning_hpo.study.opening import open_study
from lightning_hpo.study.remote import Remote, is_url, local_root
from lightning_hpo.study.rows import read_rows
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.table import TrialTable
from lightning_hpo.study.trial_folders import identity_of, study_id
from lightning_hpo.text import say
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.ranks import Ranks
from lightning_hpo.training.trial_info import Trial, trial_info
from lightning_hpo.tuners.options import Goal, RunOptions

POLL = 0.5  # seconds between looks at what the other processes of a shared study have done


@dataclass(frozen=True)
class Target:
    """What is searched over: a module or a function.

    Args:
        work: carries out a job.
        parts: model and data module, or the function, as the user gave them.
        check: finds mistakes before the first training step; None if there is nothing to check.
        builder: of what a trial trains; None for a function.
        use_key: takes the run's key, which its checkpoints are signed with.
        deliver: makes what module or function receive of the parameters that a study stores.
        end_trial: tells the loggers of a trial that has ended, given folder, row and identity; None without a logger.
        callbacks_of: returns the callbacks of a trial, given that trial; None for a function.
        starts: parameters of the first trials, as the study stores them; what they lack is left to the sampler.
    """

    work: Work
    parts: Sequence[Any]
    check: Callable[[], object] | None = None
    builder: Builder | None = None
    use_key: Callable[[Key], None] | None = None
    deliver: Callable[[Mapping[str, Any]], dict[str, Any]] = dict
    end_trial: EndTrial | None = None
    callbacks_of: Callable[[Trial], list[Any]] | None = None
    starts: Sequence[Mapping[str, Any]] = ()

    @classmethod
    def of(cls, objective: Any, work: Work, parts: Sequence[Any], deliver: Any) -> "Target":
        """Make the target of a search over a module."""
        end = objective.end_trial if objective.options.attached.loggers else None
        own = objective.check, objective.builder, objective.use_key
        return cls(work, parts, *own, deliver, end, partial(_restored, objective))


@dataclass(frozen=True)
class Run:
    """An opened run: this process holds its lock, and has taken its signals.

    Args:
        folder: of the run.
        study: everything that was decided or measured.
        storage: of the study.
        table: of the study.
        target: what is searched over; under a distributed strategy, the other ranks train along.
        goal: metrics and their directions.
        console: prints lines.
        interrupts: whether a pause is wanted.
        lock: held while something is decided and recorded; the table is then up to date.
        shared: whether other processes work on the study too.
        study_in_folder: whether the study is in the run folder.
        copies: keeps the copy in a store up to date, if ``root`` is a URL.
    """

    folder: RunFolder
    study: optuna.Study
    storage: BaseStorage
    table: TrialTable
    target: Target
    goal: Goal
    console: Console
    interrupts: Interrupts
    lock: Callable[[], AbstractContextManager[None]]
    shared: bool
    study_in_folder: bool
    copies: Sequence[Observer] = ()

    def check(self, *, alone: bool) -> None:
        """Find mistakes before the first trial; a folder that this call has made for nothing is removed again.

        Args:
            alone: whether no other rank looks into the folder.
        """
        if self.target.check is None:
            return
        begun = bool(self.table.rows)
        with explained(self.folder.path if begun else None):
            try:
                self.target.check()
            except Exception:
                if alone and not begun and self.study_in_folder and not (self.shared or self.copies):
                    self.folder.discard()
                raise

    def raise_if_paused(self) -> None:
        """Raise StudyPaused if a signal asked for a pause; the last line says how to continue."""
        received = self.interrupts.received
        if received is not None:
            line = last_line(f"paused by {received.name}", self.folder.path, "run the same command to continue")
            say(line, sys.stderr)
            raise StudyPaused(128 + received)

    def report(self) -> None:
        """Write the report; without the room for it, a warning says so."""
        run = read_run(self.folder.path) if self.study_in_folder else view_run(self.study, self.folder.path)
        try:
            self.console.line(f"report: {write_report(run)}")
        except OSError as error:  # the search is complete, whatever its page
            logging.getLogger(__name__).warning(
                "the report could not be written (%s); `python -m lightning_hpo report %s` writes it later",
                error, self.folder.path,
            )  # fmt: skip

    def result(self) -> Result:
        """Return the answer.

        Raises:
            SearchFailedError: if no trial succeeded.
        """
        return answer(
            self.table.rows, self.study, self.folder, self.target, self.goal, study_in_folder=self.study_in_folder
        )


@contextmanager
def open_run(
    options: RunOptions,
    folder: RunFolder,
    target: Target,
    goal: Goal,
    fingerprint: Mapping[str, Any],
    *,
    max_steps: int,
    unit: Unit,
    ranks: Ranks,
    given: optuna.Study | None = None,
) -> Iterator[Run]:
    """Hold a run while the block searches.

    Args:
        options: of the run.
        folder: of the run.
        target: what is searched over.
        goal: metrics and their directions.
        fingerprint: what must not change when a study is continued.
        max_steps: full budget of a trial.
        unit: of the budget.
        ranks: in how many processes a trial trains; this is the first of them.
        given: a study of the user's own, in place of the run's.

    Raises:
        StudyInUseError: if another process holds the run.
        StudyMismatchError: if the study was made with other settings.
        StorageError: if the folder or the study cannot be used.
    """
    with ExitStack() as stack:
        stack.enter_context(known_warnings_hidden())
        stack.enter_context(warnings_only(*CHATTY))  # once, not at each job
        stack.enter_context(explained(folder.path))
        stack.enter_context(folder.readable_errors())
        stack.enter_context(folder.locked(shared=options.shared))
        console = Console(goal.label, goal.modes[0], verbose=options.verbose, unit=unit)
        copies = [stack.enter_context(_copied(str(options.root), folder, console))] if is_url(options.root) else []
        with study_lock(folder.path):
            folder.remove_leftovers(alone=not options.shared)
            study, storage = _study(options, folder, goal, fingerprint, given)
        if ranks.size > 1:
            target = stack.enter_context(_led(folder, target, ranks, storage))
        interrupts = stack.enter_context(pausing_signals())
        leases = stack.enter_context(Leases(folder.path / "trials")) if options.shared else None
        run = None if given is None else str(folder.path)  # a study that was given may have trials at work elsewhere
        with study_lock(folder.path):
            table = TrialTable(
                study, storage, leases, at=max_steps, run=run, seed=goal.seed, trial_seed=goal.trial_seed
            )

        @contextmanager
        def lock() -> Iterator[None]:
            with console.later():
                if not options.shared:
                    yield
                    return
                with study_lock(folder.path):
                    table.refresh()
                    yield

        in_folder = given is None and options.storage is None
        yield Run(
            folder, study, storage, table, target, goal, console, interrupts, lock, options.shared, in_folder, copies
        )  # fmt: skip


def follow_run(
    options: RunOptions,
    folder: RunFolder,
    target: Target,
    goal: Goal,
    fingerprint: Mapping[str, Any],
    *,
    max_steps: int,
    unit: Unit,  # noqa: ARG001  # arguments are those of open_run
    ranks: Ranks,
    given: optuna.Study | None = None,
) -> Result:
    """Train along with rank 0 until its search is over, and return its answer; arguments are those of open_run."""
    from lightning_hpo.executors.distributed import follow  # noqa: PLC0415  # loads torch, and few searches need it

    follow(folder.path, ranks, target.work, target.check)
    study, _ = _study(options, folder, goal, fingerprint, given)
    in_folder = given is None and options.storage is None
    return answer(read_rows(study, at=max_steps), study, folder, target, goal, study_in_folder=in_folder)


def open_folder(options: RunOptions, default_name: str, target: Target, rank: int = 0) -> RunFolder:
    """Make the run folder, and give its key to the target.

    Raises:
        WorkerStartError: in a worker process that imports a script without ``if __name__ == "__main__":``.
        StorageError: if the folder cannot be written.
    """
    validate_not_starting()
    name = default_name if options.name is None else options.name
    folder = RunFolder(local_root(options.root), name)
    if options.overwrite and rank == 0:
        with explained(folder.path), folder.readable_errors():
            if folder.has_study:
                folder.set_aside()
            folder = RunFolder(local_root(options.root), name)
            if is_url(options.root):
                Remote(str(options.root), folder.path).set_aside()
    if target.use_key is not None:
        with explained(folder.path), folder.readable_errors():
            target.use_key(folder.key())
    return folder


def answer(
    rows: Sequence[Row],
    study: optuna.Study,
    folder: RunFolder,
    target: Target,
    goal: Goal,
    *,
    study_in_folder: bool,
) -> Result:
    """Return the best of all trials as a result.

    Raises:
        SearchFailedError: if no trial succeeded.
    """
    best = best_row(rows, goal.modes[0])
    if best is None or best.score is None or all(row.state == "failed" for row in rows):
        raise SearchFailedError(f"no trial succeeded; the reasons are with the failed trials in {folder.path}.")
    confirmed = confirmations(rows, goal.modes[0])
    return Result(
        best_params=target.deliver(best.params),
        best_score=confirmed[0].mean if best.confirms is not None else best.score,
        best_checkpoint=folder.best_checkpoint if folder.best_checkpoint.exists() else None,
        best_trial=best.number,
        study=study,
        rows=tuple(rows),
        build=None if target.builder is None else target.builder.of_values.build_model,
        complete=_complete,
        folder=folder.path if study_in_folder else None,
        confirmed=confirmed,
        callbacks_of=None
        if target.callbacks_of is None
        else partial(_callbacks_of, rows, study_id(study), folder, target),
    )


def _complete(module: Any, saved: Mapping[str, Any]) -> None:
    from lightning_hpo.training.live_state import complete  # noqa: PLC0415  # it loads Lightning

    complete(module, saved)


def _callbacks_of(rows: Sequence[Row], study: str, folder: RunFolder, target: Target, number: int) -> list[Any]:
    """Callbacks of a trial; in a population, of its member."""
    assert target.callbacks_of is not None
    if not 0 <= number < len(rows):
        raise ValueError(f"there is no trial {number!r}; the study has the trials 0 to {len(rows) - 1}.")
    first = rows[rows[number].home]
    identity = identity_of(study, first.number, first.params)
    return target.callbacks_of(trial_info(folder.trial(first.number), first.params, identity, rows[number].global_step))


def _restored(objective: Any, trial: Trial) -> list[Any]:
    key = objective.key  # that of the run, once it is open
    restored: list[Any] = objective.options.attached.restored(trial, key)
    return restored


def _copied(root: str, folder: RunFolder, console: Console) -> Copies:
    """Bring back what the store has more of a run than this machine, and return what keeps the copy up to date."""
    remote = Remote(root, folder.path)
    if number := remote.restore():
        console.line(f"{number} files came back from {remote.url} to {folder.path}")
    return Copies(remote, folder, console)


def _study(
    options: RunOptions, folder: RunFolder, goal: Goal, fingerprint: Mapping[str, Any], given: optuna.Study | None
) -> tuple[optuna.Study, BaseStorage]:
    if given is not None:
        adopt(given, fingerprint, allow_changed=options.allow_changed)
        study_id(given)  # made while nobody else opens the study
        return given, given._storage  # noqa: SLF001  # a study does not show its storage
    return open_study(
        folder,
        options.storage,
        goal.modes,
        fingerprint,
        goal.sampler,
        allow_changed=options.allow_changed,
        shared=options.shared,
    )


@contextmanager
def _led(folder: RunFolder, target: Target, ranks: Ranks, storage: BaseStorage) -> Iterator[Target]:
    """Lead the other ranks, which train along, while the block runs."""
    if isinstance(storage, InMemoryStorage):
        raise ValueError(
            f"`storage` is in the memory of one process, but {ranks.size} train: give a file's or a database's."
        )
    from lightning_hpo.executors.distributed import Leader  # noqa: PLC0415  # loads torch, and few searches need it

    with Leader(folder.path, ranks) as leader:
        yield replace(
            target,
            work=leader.lead_work(target.work),
            check=None if target.check is None else leader.lead_check(target.check),
        )
