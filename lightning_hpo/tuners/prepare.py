"""How a search is prepared: its run is opened, and its parts are made from what the tuner was asked for."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from optuna.pruners import BasePruner
from optuna.storages import InMemoryStorage

from lightning_hpo.executors.base import Executor
from lightning_hpo.records import Row, Work
from lightning_hpo.reporting.best import BestFiles
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Observer, SearchEnded
from lightning_hpo.reporting.result import Result
from lightning_hpo.reporting.watching import make_plan, observers_of, shown
from lightning_hpo.schedulers.folds import fit_steps
from lightning_hpo.study.fingerprint import fingerprint, label, settings
from lightning_hpo.study.trial_folders import settle, study_id
from lightning_hpo.training.builder import Coded, fold_arguments
from lightning_hpo.training.ranks import Ranks, ranks_of
from lightning_hpo.tuners.choose_executor import make_executor, validate_workers
from lightning_hpo.tuners.earlier import prior_rows
from lightning_hpo.tuners.options import more_settings
from lightning_hpo.tuners.parts import Setup
from lightning_hpo.tuners.proposers import OpenStudy
from lightning_hpo.tuners.run import POLL, Run, Target, follow_run, open_folder, open_run
from lightning_hpo.tuners.search import Search
from lightning_hpo.tuners.starts import starting_points


@dataclass
class Prepared:
    """A search in an opened run: ``run``, then, when the run is closed, the result."""

    run: Callable[[], None]
    result: Result | None = None

    def answer(self, again: Callable[..., Result]) -> Result:
        """Return the result; its ``retrain`` calls ``again``."""
        assert self.result is not None
        return replace(self.result, again=again)


@contextmanager
def prepared(setup: Setup, target: Target, tuner: type) -> Iterator[Prepared]:
    """Open the run of a search, and give the search to the block; the result is there after the block.

    Args:
        setup: what the tuner was asked for.
        target: what is searched over.
        tuner: class of the tuner, whose name the run folder has by default.
    """
    target = replace(target, starts=starting_points(setup.beginning, setup.source, target.builder))
    ranks = Ranks() if target.builder is None else ranks_of(target.builder.distributed_arguments)
    validate_workers(setup.workers, ranks.size, setup.trials.single_process, shared=setup.run.shared)
    group, ranks = (1, ranks) if setup.workers.in_process else (ranks.size, Ranks())
    asked = _fingerprint(setup, target)  # now: what trains may change what its code holds
    name = "-".join(label(part) for part in (tuner, target.parts[0]))
    folder = open_folder(setup.run, name, target, ranks.rank)
    pruner = setup.parts.pruner if target.builder is not None and len(setup.goal.modes) == 1 else None
    budget: Any = {"max_steps": setup.scheduler.max_steps, "unit": setup.unit}
    opened = budget | {"ranks": ranks, "given": setup.parts.study}
    if ranks.rank > 0:
        if pruner is not None:
            from lightning_hpo.tuners.reports import along  # noqa: PLC0415  # loads Lightning

            target = replace(target, work=along(target.work, str(setup.goal.monitors[0])))
        yield Prepared(lambda: None, follow_run(setup.run, folder, target, setup.goal, asked, **opened))
        return
    with open_run(setup.run, folder, target, setup.goal, asked, **opened) as run:
        run.study.pruner = setup.parts.pruner or run.study.pruner
        title = f"{tuner.__name__} in {folder.path}"
        with run.lock():
            observers = _observers(setup, run, title)
            prior = prior_rows(run.study, setup.beginning.from_run, setup.space, setup.goal, **budget)
        say_plan(setup, run.console, title, run.table.rows)
        if setup.scheduler.next(run.table.rows) is not None:
            run.check(alone=ranks.size == 1)
        work = _work(run, pruner, group, in_process=setup.workers.in_process)
        on_cpu = target.builder is not None and target.builder.distributed_arguments.get("accelerator") == "cpu"
        workers = replace(setup.workers, devices_per_trial=1) if on_cpu else setup.workers  # its ranks need no GPUs
        with (
            shown(observers, run.console, setup.run.verbose),
            (setup.parts.executor or make_executor)(work, workers, run.interrupts) as executor,
        ):
            search = _loop(setup, run, executor, observers, prior)
            yield (ready := Prepared(partial(search.run, run.interrupts.pause_wanted)))
        run.raise_if_paused()
        with run.lock():
            for observer in observers:
                observer.on(SearchEnded(run.table.rows))
            run.report()
        ready.result = run.result()


def say_plan(setup: Setup, console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print what is about to happen."""
    space = {} if setup.define else setup.space
    console.plan(title, space, setup.plan, rows, covers=setup.plan_covers, stops=setup.limits.texts())


def _work(run: Run, pruner: BasePruner | None, group: int, *, in_process: bool) -> Work:
    """Return the work of a job: with a pruner, its trial reports validations; a worker may start a group of ranks."""
    work = others = run.target.work
    if pruner is not None:
        if not in_process and isinstance(run.storage, InMemoryStorage):
            raise ValueError(
                "trials are to train in worker processes, but the study is in the memory of this process: give it a "
                "storage that others can report to, a file's or a database's."
            )
        from lightning_hpo.tuners.reports import along, reporting  # noqa: PLC0415  # loads Lightning

        monitor = str(run.goal.monitors[0])
        work, others = reporting(work, run.study, run.storage, monitor), along(work, monitor)
    if group == 1:
        return work
    from lightning_hpo.executors.rank_group import RankGroup  # noqa: PLC0415  # loads torch

    return RankGroup(work, others, group)


def _observers(setup: Setup, run: Run, title: str) -> list[Observer]:
    """Those that keep the best files, say how the search stands, and end the runs of loggers; then the tuner's own."""
    builder, own, mode = run.target.builder, study_id(run.study), setup.goal.modes[0]
    files = BestFiles(
        run.folder,
        own,
        setup.space.config if builder is None else builder.config,
        mode=mode,
        max_steps=fit_steps(setup.scheduler),
        keep_checkpoints=setup.trials.keep_checkpoints,
        complete_only=getattr(setup.scheduler, "replaces_broken", False),
        unit=setup.unit,
        monitor=None if builder is None else setup.goal.monitors[0],
        texts=setup.space.texts(),
        fold_arguments=partial(fold_arguments, builder, folds=setup.folds),
    )
    plan = make_plan(
        title,
        setup.plan,
        setup.plan_covers,
        setup.limits,
        workers=setup.workers.workers,
        unit=setup.unit.count_label,
    )
    watching = observers_of(run.folder, own, plan, run.console, mode, end_trial=run.target.end_trial)
    return [files, *watching, *run.copies, *setup.parts.observers(run)]


def _loop(setup: Setup, run: Run, executor: Executor, observers: Sequence[Observer], prior: Sequence[Row]) -> Search:
    """Return the loop over an opened run."""
    rungs = sorted({rung.max_steps for bracket in setup.plan for rung in bracket.rungs})
    opened = OpenStudy(run.study, run.table, setup.source, setup.goal, rungs, run.target.starts, prior)
    return Search(
        scheduler=setup.scheduler,
        proposer=setup.parts.propose(opened),
        table=run.table,
        executor=executor,
        goal=setup.goal,
        limits=setup.limits,
        observers=observers,
        study_id=study_id(run.study),
        folder=run.folder.trial,
        settle=settle if run.target.builder else lambda *_: None,  # a function keeps nothing in a folder
        converged=lambda: setup.parts.converged(run.study),
        lock=run.lock,
        poll=POLL if run.shared else None,
    )


def _fingerprint(setup: Setup, target: Target) -> dict[str, Any]:
    """What must not change when the study is continued."""
    sampler = settings(setup.goal.sampler)
    if setup.parts.pruner is not None:
        sampler["pruner"] = settings(setup.parts.pruner)
    code = [code for part in target.parts for code in (part.code if isinstance(part, Coded) else (part,))]
    return fingerprint(
        setup.space,
        setup.scheduler,
        target.parts,
        [*code, *filter(None, [setup.define])],
        trains=target.builder is not None,
        sampler=sampler,
        **setup.beginning.settings(target.starts),
        **setup.goal.settings(),
        **more_settings(setup.trials, setup.unit),
    )
