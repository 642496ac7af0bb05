"""The outer run, the same for every kind of search: its folder, its lock, its study, signals, and the answer.

A tuner brings the inner part, a loop that takes an opened :class:`Session` to its end and returns the rows.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import optuna
from optuna.storages import BaseStorage, InMemoryStorage

from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import SearchFailedError, StudyPaused, explained, last_line
from lightning_hpo.executors.worker import refuse_in_starting_worker
from lightning_hpo.interrupts import Interrupts, pausing_signals
from lightning_hpo.records import Mode, Row, Work, best_row
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.report import read_run, write_report
from lightning_hpo.reporting.result import Result
from lightning_hpo.study.leases import turn
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.text import say
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.ranks import Ranks


@dataclass(frozen=True)
class Subject:
    """What a search is over: a LightningModule with its data, or a function.

    Args:
        work: carries out a job.
        parts: model and data module, or the function, as the user gave them.
        check: finds mistakes before the first training step; None if there is nothing to check.
        builder: of what a trial trains; None for a function.
        use_key: takes the run's key, which its checkpoints are signed with.
        deliver: makes what model or function receive of the parameters that a study stores.
    """

    work: Work
    parts: Sequence[Any]
    check: Callable[[], None] | None = None
    builder: Builder | None = None
    use_key: Callable[[Key], None] | None = None
    deliver: Callable[[Mapping[str, Any]], dict[str, Any]] = dict


@dataclass(frozen=True)
class Session:
    """An opened run: this process holds its lock, and has taken its signals.

    Args:
        folder: of the run.
        study: everything that was decided or measured.
        storage: of the study.
        console: what is printed goes through it.
        interrupts: whether a pause is wanted.
    """

    folder: RunFolder
    study: optuna.Study
    storage: BaseStorage
    console: Console
    interrupts: Interrupts


def conduct(
    folder: RunFolder,
    console: Console,
    subject: Subject,
    *,
    mode: Mode,
    opened: Callable[[RunFolder], tuple[optuna.Study, BaseStorage]],
    loop: Callable[[Session, Subject], Sequence[Row]],
    conclude: Callable[[Session], None],
    read: Callable[[optuna.Study], Sequence[Row]],
    study_in_folder: bool,
    ranks: Ranks,
    along: Work,
    shared: bool = False,
) -> Result:
    """Open a run, let a loop search, and say what was found.

    Of several ranks, the first does so; the others train along and then read what was found.

    Args:
        folder: of the run.
        console: prints the table at the end.
        subject: what is searched over.
        mode: whether lower or higher scores are better.
        opened: opens the study.
        loop: the search itself, over the subject it is given; returns all trials.
        conclude: adds to what is printed and kept at the end.
        read: all trials of a finished study.
        study_in_folder: whether the study is in the run folder's own database; then a report is written.
        ranks: which of how many processes this is.
        along: carries out a job on another rank than the first.
        shared: let other processes that say so work on the run at the same time.

    Raises:
        StudyPaused: if a signal asked for a pause; all is saved.
        SearchFailedError: if no trial succeeded.
        StorageError: if the study cannot be used.
        RankLostError: if another rank is gone.
        WorkerStartError: in a worker process that imports a script without ``if __name__ == "__main__":``.
    """
    refuse_in_starting_worker()
    if subject.use_key is not None:
        with explained(folder.path), folder.readable_errors():
            subject.use_key(folder.key())
    if ranks.rank > 0:
        from lightning_hpo.executors.distributed import follow  # noqa: PLC0415  # loads torch, and few searches need it

        follow(folder.path, ranks, along, subject.check)
        study, _ = opened(folder)
        return _answer(read(study), study, folder, subject, mode=mode, study_in_folder=study_in_folder)
    with ExitStack() as stack:
        stack.enter_context(explained(folder.path))
        stack.enter_context(folder.readable_errors())
        stack.enter_context(folder.locked(shared=shared))
        with turn(folder.path):
            folder.remove_leftovers(alone=not shared)
            study, storage = opened(folder)
        stack.callback(folder.note_checksum)
        if ranks.size > 1:
            if isinstance(storage, InMemoryStorage):
                raise ValueError(f"`storage` is in the memory of one process, but {ranks.size} train: give a file's or"
                                 " a database's.")  # fmt: skip
            from lightning_hpo.executors.distributed import Leader  # noqa: PLC0415  # as above

            leader = stack.enter_context(Leader(folder.path, ranks))
            check = subject.check and leader.lead_check(subject.check)
            subject = replace(subject, work=leader.lead_work(subject.work), check=check)
        interrupts = stack.enter_context(pausing_signals())
        session = Session(folder, study, storage, console, interrupts)
        rows = loop(session, subject)
        if interrupts.received is not None:
            _say_paused(interrupts.received.name, folder)
            raise StudyPaused(128 + interrupts.received)
        console.table(rows)
        with console.later(), turn(folder.path):
            if study_in_folder:
                console.line(f"report: {write_report(read_run(folder.path))}")
            conclude(session)
        return _answer(rows, study, folder, subject, mode=mode, study_in_folder=study_in_folder)


def _answer(
    rows: Sequence[Row], study: optuna.Study, folder: RunFolder, subject: Subject, *, mode: Mode, study_in_folder: bool
) -> Result:
    best = best_row(rows, mode)
    if best is None or best.score is None:
        raise SearchFailedError(f"no trial succeeded; the reasons are with the failed trials in {folder.path}.")
    return Result(
        best_params=subject.deliver(best.params),
        best_score=best.score,
        best_checkpoint=folder.best_checkpoint if folder.best_checkpoint.exists() else None,
        best_trial=best.number,
        study=study,
        rows=tuple(rows),
        build=None if subject.builder is None else subject.builder.of_values.build_model,
        folder=folder.path if study_in_folder else None,
    )


def _say_paused(signal_name: str, folder: RunFolder) -> None:
    """Print where everything is kept and how to continue."""
    line = last_line(f"paused by {signal_name}", folder.path, "run the same command to continue")
    say(line, sys.stderr)
