"""The tuner: a scheduler, a proposer and an executor in one loop, with everything kept in a run folder."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeAlias, Unpack

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage

from lightning_hpo.errors import explained
from lightning_hpo.executors.base import Executor
from lightning_hpo.executors.in_process import InProcess
from lightning_hpo.executors.processes import WorkerProcesses
from lightning_hpo.executors.worker import validate_not_daemonic
from lightning_hpo.interrupts import Interrupts
from lightning_hpo.records import FunctionWork, Job, Mode, Row, Work
from lightning_hpo.reporting.best import BestFiles
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Observer, SearchEnded
from lightning_hpo.reporting.result import Result
from lightning_hpo.schedulers.base import Bracket, Coverage, Scheduler
from lightning_hpo.space import Space, nested_config, parse_space
from lightning_hpo.study.fingerprint import fingerprint, label, settings
from lightning_hpo.study.trial_folders import settle, study_id
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.ranks import Ranks, ranks_of
from lightning_hpo.tuners.options import (
    Goal,
    Limits,
    Options,
    RunOptions,
    TrialOptions,
    WorkerOptions,
    group,
    validate_names,
)
from lightning_hpo.tuners.proposers import Define, MakeProposer, SamplerProposer
from lightning_hpo.tuners.run import POLL, Run, Target, follow_run, open_folder, open_run
from lightning_hpo.tuners.search import Search

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningCLI

    from lightning_hpo.training.objective import Objective


MakeExecutor: TypeAlias = Callable[[Work, WorkerOptions, Interrupts], AbstractContextManager[Executor]]


def make_executor(work: Work, options: WorkerOptions, interrupts: Interrupts) -> InProcess | WorkerProcesses:
    """Make the executor that the options ask for: in this process, or worker processes."""
    if options.in_process:
        return InProcess(work, interrupts.pause_wanted, trial_timeout=options.trial_timeout)
    processes = WorkerProcesses(
        work,
        options.workers,
        options.devices_per_trial,
        trial_timeout=options.trial_timeout,
        max_retries=options.max_retries,
    )
    interrupts.listeners.append(processes.pause)
    return processes


@dataclass(frozen=True)
class Parts:
    """What a tuner is composed of beside its scheduler; presets give it, and so may you.

    Args:
        propose: makes the proposer. Default: the sampler, asked for all parameters at once.
        work: carries out the jobs of an objective. Default: its own.
        executor: makes the executor. Default: this process, or worker processes, as the options say.
        observers: made when the run is open, and told what happens in the search.
        converged: of the study: start no more trials.
        study: a study of the user's own, in place of the run's.
        pruner: Optuna's, which is asked at every validation of a trial.
        constraints: logged metrics that must be <= 0 in a feasible trial.
    """

    propose: MakeProposer = SamplerProposer
    work: "Callable[[Objective], Work]" = lambda objective: objective.run
    executor: MakeExecutor = make_executor
    observers: Callable[[Run], Sequence[Observer]] = lambda run: ()  # noqa: ARG005  # a name for the reader
    converged: Callable[[optuna.Study], bool] = lambda study: False  # noqa: ARG005  # as above
    study: optuna.Study | None = None
    pruner: BasePruner | None = None
    constraints: Sequence[str] = ()


class Tuner:
    """Searches a space with any scheduler and any Optuna sampler.

    Everything is kept in ``root/name``. The same call again continues where it stopped; a finished study only returns
    its result. With one worker, an interrupted and continued search equals the uninterrupted one.

    Args:
        space: dotted name -> distribution, as text or Optuna's (see :mod:`lightning_hpo.space`).
        scheduler: which trial gets how many steps.
        monitor: metric that the module logs in validation. Needed by :meth:`fit`.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better. Default: ``"min"``; it must be given
            for a metric of which, by its name, more is better, such as ``val_acc``.
        sampler: where to look next; any Optuna sampler. Default: random.
        seed: of everything random.
        name: of the run folder and the study. Default: made from the tuner's and the model's name.
        storage: an Optuna storage or its URL. Default: the journal ``study.journal`` in the run folder. What keeps a
            second process away is a lock in ``root/name``, so processes that use one storage need the same ``root``.
        root: folder of all runs.
        trainer: more arguments for every ``Trainer``. Callbacks and loggers in it are copied for each job. A trial that
            they end below its budget (EarlyStopping, ``max_epochs``, ``max_time``) is finished with its score there.
        checkpoint_every: save within a job each time so many optimizer steps are done.
        keep_checkpoints: keep those of trials that are neither best nor to be continued.
        workers: jobs at a time. 1 runs them in this process, more in worker processes of their own.
        devices_per_trial: devices of each Trainer. With worker processes more than 1 is refused by :meth:`fit`; under
            :meth:`optimize` each worker sees so many GPUs of its own.
        timeout: start no new job after so many seconds, or a text such as ``"8h"``, ``"30m"`` or ``"1h30m"``.
        total_steps: start no new job once so many optimizer steps are recorded. Jobs at work then come to their end, so
            more is spent: at most one job of each worker, fewer than ``workers * max_steps`` steps.
        max_failed: give up after so many failed trials in a row; or, as a float below 1 such as 0.5, when that share of
            at least ten ended trials has failed. With ``shared``, each process counts its own row of failures.
        trial_timeout: fail a trial that makes no progress (no optimizer step, no validation batch) for so many seconds
            of this machine's monotonic clock: ``no progress for T s``. A call of a function given to :meth:`optimize`
            shows no progress, so there it is the time of the whole call. Only a worker process can be stopped (SIGTERM,
            10 s later SIGKILL). In this process (one worker and not ``isolate``) the stacks of all threads are printed
            and the process exits with code 1; the same command continues. Default: wait for ever.
        max_retries: how often a job whose worker process died (out of memory, a crash in native code) or hung is
            started again, from its last checkpoint, before its trial counts as failed. Default 0: what kills a process
            once mostly does so again. Exceptions are never retried.
        stop_on_nan: fail a trial at its first non-finite training loss, ``diverged at step s``
            (see :class:`~lightning_hpo.training.objective.Objective`).
        isolate: run jobs in a worker process also when ``workers`` is 1, so that a crash or a hang of a trial ends that
            trial only. Model, data or function must then be importable by name.
        allow_changed: continue a study although the code of the model or data, the space, or the sampler is not what it
            was begun with (see :mod:`lightning_hpo.study.code_identity`); a warning says what, and the study keeps a
            note. Trials outside a new range no longer count for the sampler. By default that is an error; another
            function given to :meth:`optimize` always is a warning.
        overwrite: begin anew where the run folder holds a study already. The old folder is renamed, not deleted. A
            call that is to continue after an interrupt must leave it out.
        shared: let several processes work on the study: start the same call in each, on one machine or on several that
            see ``root`` on a file system with working locks. They make exactly the planned trials together; a process
            that dies leaves its trial to the others. By default a second process is refused.
        verbose: print the plan, a line per job and a table.

    Raises:
        TypeError, ValueError: for an argument that is wrong, with its value and what is accepted.
    """

    def __init__(
        self, space: Space | Define, scheduler: Scheduler, *, parts: Parts = Parts(), **options: Unpack[Options]
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            chosen = options.get("sampler")
            sampler = RandomSampler() if chosen is None else chosen
            self._goal = group(Goal, {**options, "sampler": sampler, "constraints": parts.constraints})
            self._run = group(RunOptions, options)
            self._trials = group(TrialOptions, options)
            self._workers = group(WorkerOptions, options)
            self._limits = group(Limits, options)
            self._define = space if callable(space) else None
            self.space: dict[str, BaseDistribution] = (
                {"defined_by": CategoricalDistribution((label(space),))} if callable(space) else parse_space(space)
            )
            """Name -> distribution; of a function of a trial, its name for the fingerprint."""
            mode = getattr(scheduler, "mode", self.mode)
            if mode != self.mode:
                raise ValueError(f"`mode` is {self.mode!r} for the tuner and {mode!r} for its scheduler.")
        self.scheduler = scheduler
        self._parts = parts
        self._builder: Builder | None = None

    @property
    def monitor(self) -> str | None:
        """Metric that ranks trials."""
        return self._goal.monitors[0]

    @property
    def mode(self) -> Mode:
        """Whether lower or higher scores are better."""
        return self._goal.modes[0]

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self._goal.seed

    @classmethod
    def from_cli(cls, cli: "LightningCLI", space: Space, **options: Any) -> Self:
        """Make a tuner for the model, data and Trainer of a ``LightningCLI``, and call ``fit()`` on it.

        Args:
            cli: made with ``run=False``; your own subclass keeps its links and defaults.
            space: path in the CLI's config -> distribution, e.g. ``optimizer.lr``.
            **options: other arguments of this tuner. Trainer arguments come from the CLI.

        Example:
            ``HyperbandTuner.from_cli(MyCLI(Net, Data, run=False), {"model.lr": "loguniform(1e-5, 1e-1)"},
            monitor="val_loss", max_steps=900).fit()``
        """
        from lightning_hpo.training.config_builder import ConfigBuilder  # noqa: PLC0415  # needs the extra [cli]

        if "trainer" in options:
            raise TypeError("`trainer` is given by the CLI's config; set it there.")
        tuner = cls(space, **options)
        tuner._builder = ConfigBuilder(cli)
        return tuner

    def plan(self) -> Sequence[Bracket]:
        """Brackets, rungs, trials and steps of the search, as data; empty if the scheduler has no plan."""
        make = getattr(self.scheduler, "plan", None)
        return () if make is None else make()

    @property
    def plan_covers(self) -> Coverage:
        """What :meth:`plan` counts: all that happens, the least that happens, or the least of one of endless rounds."""
        covers: Coverage = getattr(self.scheduler, "plan_covers", "all")
        return covers

    def planned_steps(self) -> int:
        """Optimizer steps that are expected at most; 0 if that is not known."""
        steps = 0 if self.plan_covers == "round" else sum(bracket.steps for bracket in self.plan())
        total = self._limits.total_steps
        return steps if total is None else min(steps or total, total)

    def fit(
        self,
        model: "Callable[..., pl.LightningModule] | Builder | None" = None,
        *,
        datamodule: "Callable[..., pl.LightningDataModule] | None" = None,
    ) -> Result:
        """Search over a LightningModule.

        Args:
            model: the class of the module, or a function that returns a new one. Not needed after :meth:`from_cli`.
            datamodule: the class of the data module, or a function that returns a new one. None if the module brings
                its own loaders.

        Raises:
            TypeError, ValueError: before the first training step, if model, data, space or metric do not fit together.
            StudyMismatchError: if the run folder holds a study with other settings.
            StorageError: if the run folder or its study cannot be used.
            SearchFailedError: if no trial succeeded, or ``max_failed`` in a row did not.
            StudyPaused: after Ctrl-C, SIGTERM or SIGHUP; everything is saved.
        """
        with explained(None):
            objective = self.objective(model, datamodule=datamodule)
            parts = [model or self._builder, datamodule]
            work = self._parts.work(objective)
            return self._search(Target(work, parts, objective.check, objective.builder, objective.use_key))

    def objective(
        self,
        model: "Callable[..., pl.LightningModule] | Builder | None" = None,
        *,
        datamodule: "Callable[..., pl.LightningDataModule] | None" = None,
    ) -> "Objective":
        """Return what :meth:`fit` runs for each job.

        Args:
            model: as for :meth:`fit`.
            datamodule: as for :meth:`fit`.
        """
        from lightning_hpo.training.objective import Objective  # noqa: PLC0415  # loads Lightning, which a function needs not

        model = self._builder if model is None else model
        if model is None:
            raise TypeError("`model` is missing: give the class of a LightningModule, or a function that returns one.")
        if self.monitor is None:
            raise ValueError("`monitor` is missing: name a metric that the module logs in validation, e.g. 'val_loss'.")
        objective = Objective(
            model,
            self._define or self.space,
            data=datamodule,
            monitor=self.monitor,
            max_steps=self.scheduler.max_steps,
            trainer={"devices": self._workers.devices_per_trial, **(self._trials.trainer or {})},
            seed=self.seed,
            checkpoint_every=self._trials.checkpoint_every,
            stop_on_nan=self._trials.stop_on_nan,
        )
        objective.also = (*map(str, self._goal.monitors[1:]), *self._goal.constraints)
        return objective

    def optimize(self, function: Callable[[Job, Mapping[str, Any]], float]) -> Result:
        """Search over any function, without Lightning.

        Args:
            function: called with a job (``job.trial`` is the trial's number, ``job.max_steps`` the budget to reach)
                and the trial's parameters; returns the score.
        """
        with explained(None):
            return self._search(Target(FunctionWork(function), [function]))

    def _search(self, target: Target) -> Result:
        ranks = Ranks() if target.builder is None else ranks_of(target.builder.distributed_arguments)
        self._validate_workers(ranks.size)
        asked = self._fingerprint(target)  # now: what trains may change what its code holds
        name = "-".join(label(part) for part in (type(self), target.parts[0]))
        folder = open_folder(self._run, name, target, ranks.rank)
        pruner = self._parts.pruner if target.builder is not None and len(self._goal.modes) == 1 else None
        opened: dict[str, Any] = {
            "max_steps": self.scheduler.max_steps, "ranks": ranks, "given": self._parts.study,
        }  # fmt: skip
        if ranks.rank > 0:
            if pruner is not None:
                from lightning_hpo.tuners.reports import along  # noqa: PLC0415  # loads Lightning

                target = replace(target, work=along(target.work, str(self.monitor)))
            return follow_run(self._run, folder, target, self._goal, asked, **opened)
        with open_run(self._run, folder, target, self._goal, asked, **opened) as run:
            if self._parts.pruner is not None:
                run.study.pruner = self._parts.pruner
            observers = self._observers(run)
            self.say_plan(run.console, f"{type(self).__name__} in {folder.path}", run.table.rows)
            if run.target.check is not None and self.scheduler.next(run.table.rows) is not None:
                run.target.check()
            with self._parts.executor(self._work(run, pruner), self._workers, run.interrupts) as executor:
                Search(
                    scheduler=self.scheduler,
                    proposer=self._parts.propose(
                        run.study, run.table, self._define or self.space, self._goal, self._rungs()
                    ),
                    table=run.table,
                    executor=executor,
                    goal=self._goal,
                    limits=self._limits,
                    observers=observers,
                    study_id=study_id(run.study),
                    folder=folder.trial,
                    settle=settle if target.builder else lambda *_: None,  # a function keeps nothing in a folder
                    converged=lambda: self._parts.converged(run.study),
                    lock=run.lock,
                    poll=POLL if self._run.shared else None,
                ).run(run.interrupts.pause_wanted)
            run.raise_if_paused()
            with run.lock():
                for observer in observers:
                    observer.on(SearchEnded(run.table.rows))
                run.report()
            return run.result()

    def _observers(self, run: Run) -> list[Observer]:
        files = BestFiles(
            run.folder,
            study_id(run.study),
            nested_config if run.target.builder is None else run.target.builder.config,
            mode=self.mode,
            max_steps=self.scheduler.max_steps,
            keep_checkpoints=self._trials.keep_checkpoints,
            complete_only=getattr(self.scheduler, "replaces_broken", False),
        )
        run.console.planned_steps = self.planned_steps()
        return [files, run.console, *self._parts.observers(run)]

    def _work(self, run: Run, pruner: BasePruner | None) -> Work:
        """Return the work of a job; with a pruner, its trial reports validations."""
        if pruner is None:
            return run.target.work
        if not self._workers.in_process and isinstance(run.storage, InMemoryStorage):
            raise ValueError("trials are to train in worker processes, but the study is in the memory of this process: "
                             "give it a storage that others can report to, a file's or a database's.")  # fmt: skip
        from lightning_hpo.tuners.reports import reporting  # noqa: PLC0415  # loads Lightning

        return reporting(run.target.work, run.study, run.storage, str(self.monitor))

    def _validate_workers(self, ranks: int) -> None:
        """Raise ValueError for workers that cannot be had."""
        if self._workers.in_process:
            return
        if ranks > 1:
            raise ValueError(
                f"`workers` is {self._workers.workers} and `isolate` {self._workers.isolate}, but each trial trains in "
                f"{ranks} processes (`devices_per_trial`, or `devices` and `num_nodes` of `trainer`), which a worker "
                "process cannot start: leave both out, or train each trial on one device."
            )
        validate_not_daemonic(self._workers.workers)

    def say_plan(self, console: Console, title: str, rows: Sequence[Row]) -> None:
        """Print what is about to happen."""
        space = {} if self._define else self.space
        console.plan(title, space, self.plan(), rows, covers=self.plan_covers, stops=self._limits.texts())

    def _rungs(self) -> list[int]:
        return sorted({rung.max_steps for bracket in self.plan() for rung in bracket.rungs})

    def _fingerprint(self, target: Target) -> dict[str, Any]:
        goal, several = self._goal, len(self._goal.modes) > 1
        sampler = settings(goal.sampler)
        if self._parts.pruner is not None:
            sampler["pruner"] = settings(self._parts.pruner)
        code = [code for part in target.parts for code in (part.code if isinstance(part, Builder) else (part,))]
        return fingerprint(
            self.space,
            self.scheduler,
            target.parts,
            code if self._define is None else [*code, self._define],
            trains=target.builder is not None,
            monitor=list(goal.monitors) if several else self.monitor,
            mode=list(goal.modes) if several else self.mode,
            seed=self.seed,
            sampler=sampler,
        )
