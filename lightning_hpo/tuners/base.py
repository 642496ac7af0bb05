"""The tuner: a scheduler, a proposer and an executor in one loop, with everything kept in a run folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from optuna.samplers import RandomSampler

from lightning_hpo.errors import explained
from lightning_hpo.executors.base import Executor
from lightning_hpo.records import Job, Mode, Row
from lightning_hpo.reporting.best import BestFiles
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Observer, SearchEnded
from lightning_hpo.reporting.result import Result
from lightning_hpo.reporting.watching import make_plan, observers_of, shown
from lightning_hpo.schedulers.base import Bracket, Coverage, Scheduler
from lightning_hpo.schedulers.confirmed import confirmed
from lightning_hpo.schedulers.folds import fit_steps, folded
from lightning_hpo.schedulers.units import Unit, UnitName
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.fingerprint import fingerprint, label, settings
from lightning_hpo.study.trial_folders import settle, study_id
from lightning_hpo.training.builder import Builder, Coded, fold_arguments
from lightning_hpo.training.ranks import Ranks, ranks_of
from lightning_hpo.tuners.beginning import Beginning
from lightning_hpo.tuners.choose_executor import validate_workers
from lightning_hpo.tuners.earlier import prior_rows
from lightning_hpo.tuners.functions import FunctionWork
from lightning_hpo.tuners.limits import Limits
from lightning_hpo.tuners.options import (
    Goal,
    Options,
    RunOptions,
    TrialOptions,
    WorkerOptions,
    group,
    more_settings,
    validate_names,
)
from lightning_hpo.tuners.parts import Parts, data_of, work_of
from lightning_hpo.tuners.proposers import Define, OpenStudy
from lightning_hpo.tuners.remedies import checked_call, validate_function
from lightning_hpo.tuners.retrain import retrain
from lightning_hpo.tuners.run import POLL, Run, Target, follow_run, open_folder, open_run
from lightning_hpo.tuners.search import Search
from lightning_hpo.tuners.starts import starting_points, validate_beginning

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningCLI

    from lightning_hpo.training.attachments import Attachments
    from lightning_hpo.training.objective import Objective, ObjectiveOptions


_DEFAULT = Parts()


@dataclass
class _Prepared:
    """A search in an opened run: ``run``, then, when the run is closed, the result."""

    run: Callable[[], None]
    result: Result | None = None

    def answer(self, again: Callable[..., Result]) -> Result:
        assert self.result is not None
        return replace(self.result, again=again)


class Tuner:
    """Searches a space with any scheduler and any Optuna sampler.

    Everything is kept in ``root/name``. The same call again continues where it stopped; a finished study only returns
    its result. With one worker, an interrupted and continued search equals the uninterrupted one.

    Args:
        space: dotted name -> distribution, as text or Optuna's (see :mod:`lightning_hpo.space`).
        scheduler: which trial gets how many steps.
        unit: what the scheduler counts: optimizer ``"steps"``, ``"epochs"`` or ``"samples"`` (see ``docs/budgets.md``).
        parts: what the tuner is composed of beside the scheduler.
        **options: keywords that all tuners share; see :class:`~lightning_hpo.tuners.options.Options`.

    Raises:
        TypeError, ValueError: for an argument that is wrong, with its value and what is accepted.
    """

    shared_arguments = tuple(Options.__annotations__)
    """Names of the arguments that all tuners share."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Answer a wrong call of a subclass with what to write."""
        super().__init_subclass__(**options)
        if "__init__" in vars(cls):
            cls.__init__ = checked_call(cls.__init__)  # type: ignore[method-assign]  # it keeps its signature

    @checked_call
    def __init__(
        self,
        space: Space | Define,
        scheduler: Scheduler,
        *,
        unit: UnitName = "steps",
        parts: Parts = _DEFAULT,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            self.unit = Unit(unit, parts.parts_of_unit)
            """What the scheduler counts."""
            sampler = RandomSampler() if options.get("sampler") is None else options["sampler"]
            self._goal = group(Goal, {**options, "sampler": sampler})
            self._run = group(RunOptions, options)
            self._trials = group(TrialOptions, options)
            self._workers = group(WorkerOptions, options)
            self._limits = group(Limits, {**options, "unit": self.unit})
            self._define = space if callable(space) else None
            self.space = parse_space({"defined_by": [label(space)]} if callable(space) else space)
            """Name -> distribution; of a function of a trial, its name for the fingerprint."""
            mode, total = getattr(scheduler, "mode", self.mode), self._limits.count
            if mode != self.mode:
                raise ValueError(f"`mode` is {self.mode!r} for the tuner and {mode!r} for its scheduler.")
            self._beginning = group(Beginning, options)
            validate_beginning(self._beginning, self._define or self.space, scheduler)
            scheduler = folded(scheduler, self._goal.folds, self.mode)
            self.scheduler, self._parts = confirmed(scheduler, self._goal.confirm, self.mode, total), parts
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
        return tuple(getattr(self.scheduler, "plan", tuple)())

    @property
    def plan_covers(self) -> Coverage:
        """What :meth:`plan` counts: all that happens, the least that happens, or the least of one of endless rounds."""
        covers: Coverage = getattr(self.scheduler, "plan_covers", "all")
        return covers

    def planned_steps(self) -> int:
        """Optimizer steps, as the scheduler counts them, that are expected at most; 0 if that is not known."""
        steps = 0 if self.plan_covers == "round" else sum(bracket.steps for bracket in self.plan())
        total = self._limits.count
        return steps if total is None else min(steps or total, total)

    @checked_call
    def fit(
        self,
        model: "Callable[..., pl.LightningModule] | Builder | None" = None,
        *,
        datamodule: "Callable[..., pl.LightningDataModule] | pl.LightningDataModule | None" = None,
        train_dataloaders: Any = None,
        val_dataloaders: Any = None,
    ) -> Result:
        """Search over a LightningModule.

        Args:
            model: the class of the module, or a function that returns a new one. Not needed after :meth:`from_cli`.
            datamodule: the class of the data module, a function that returns a new one, or a data module, of which
                each trial gets a copy. None if the module brings its own loaders.
            train_dataloaders: in place of a data module, loaders, of which each trial gets a copy, or a function.
            val_dataloaders: the same, for validation.

        Raises:
            TypeError, ValueError: before the first training step, if model, data, space or metric do not fit together.
            StudyMismatchError, StorageError: if the run folder holds a study with other settings, or cannot be used.
            SearchFailedError: if no trial succeeded, or ``max_failed`` in a row did not.
            StudyPaused: after Ctrl-C, SIGTERM or SIGHUP; everything is saved.
        """
        with explained(None):
            data = data_of(datamodule, train_dataloaders, val_dataloaders)
            objective = self.objective(model, datamodule=data)
            parts, work = [model or self._builder, data], self._parts.work(objective)
            target = Target.of(objective, work, parts, self.space.deliver)
            with self._search(target) as prepared:
                prepared.run()
            return prepared.answer(partial(retrain, self, lambda tuner: tuner.fit(model, datamodule=data)))

    def objective(
        self,
        model: "Callable[..., pl.LightningModule] | Builder | None" = None,
        *,
        datamodule: "Callable[..., pl.LightningDataModule] | None" = None,
    ) -> "Objective":
        """Return what :meth:`fit` runs for each job.

        Args:
            model: as for :meth:`fit`.
            datamodule: as for :meth:`fit`, but no object.
        """
        from lightning_hpo.training.attachments import attachments  # noqa: PLC0415  # loads Lightning, which a function needs not
        from lightning_hpo.training.objective import Objective  # noqa: PLC0415  # as above

        if (model := model or self._builder) is None:
            raise TypeError("`model` is missing: give the class of a LightningModule, or a function that returns one.")
        if self.monitor is None:
            raise ValueError("`monitor` is missing: name a metric that the module logs in validation, e.g. 'val_loss'.")
        attached, trainer = attachments(self._trials.logger, self._trials.callbacks, self._trials.trainer or {}, model)
        return Objective(
            model,
            self._define or self.space,
            data=datamodule,
            monitor=self.monitor,
            max_steps=fit_steps(self.scheduler),
            trainer={"devices": self._workers.devices_per_trial, **trainer},
            seed=self.seed,
            checkpoint_every=self._trials.checkpoint_every,
            stop_on_nan=self._trials.stop_on_nan,
            score=self._goal.score,
            options=_objective_options(self, attached),
        )

    @checked_call
    def optimize(self, function: Callable[[Job, Mapping[str, Any]], float]) -> Result:
        """Search over any function, without Lightning.

        Args:
            function: called with a job (``job.trial`` is the trial's number, ``job.max_steps`` the budget to reach, a
                number in the unit of the budget) and the trial's parameters; returns the score.
        """
        with explained(None):
            self._trials.validate_no_trainer()
            if self._parts.no_function:
                raise TypeError(self._parts.no_function)
            validate_function(function)
            self._goal.validate_function()
            work = FunctionWork(function, self.space.deliver, self.unit.number)
            with self._search(Target(work, [function], deliver=self.space.deliver)) as prepared:
                prepared.run()
            return prepared.answer(partial(retrain, self, lambda tuner: tuner.optimize(function)))

    @contextmanager
    def _search(self, target: Target) -> Iterator["_Prepared"]:
        """Open the run, and give the search to the block; the result is there after the block."""
        target = replace(target, starts=starting_points(self._beginning, self._define or self.space, target.builder))
        ranks = Ranks() if target.builder is None else ranks_of(target.builder.distributed_arguments)
        validate_workers(self._workers, ranks.size, self._trials.single_process)
        group, ranks = (1, ranks) if self._workers.in_process else (ranks.size, Ranks())
        asked = _fingerprint(self, target)  # now: what trains may change what its code holds
        name = "-".join(label(part) for part in (type(self), target.parts[0]))
        folder = open_folder(self._run, name, target, ranks.rank)
        pruner = self._parts.pruner if target.builder is not None and len(self._goal.modes) == 1 else None
        budget: Any = {"max_steps": self.scheduler.max_steps, "unit": self.unit}
        opened = budget | {"ranks": ranks, "given": self._parts.study}
        if ranks.rank > 0:
            if pruner is not None:
                from lightning_hpo.tuners.reports import along  # noqa: PLC0415  # loads Lightning

                target = replace(target, work=along(target.work, str(self.monitor)))
            yield _Prepared(lambda: None, follow_run(self._run, folder, target, self._goal, asked, **opened))
            return
        with open_run(self._run, folder, target, self._goal, asked, **opened) as run:
            run.study.pruner = self._parts.pruner or run.study.pruner
            title = f"{type(self).__name__} in {folder.path}"
            with run.lock():
                observers = _observers(self, run, title)
                prior = prior_rows(run.study, self._beginning.from_run, self.space, self._goal, **budget)
            self.say_plan(run.console, title, run.table.rows)
            if self.scheduler.next(run.table.rows) is not None:
                run.check(alone=ranks.size == 1)
            work = work_of(run, pruner, group, in_process=self._workers.in_process)
            with (
                shown(observers, run.console, self._run.verbose),
                self._parts.executor(work, self._workers, run.interrupts) as executor,
            ):
                search = _loop(self, run, executor, observers, prior)
                yield (prepared := _Prepared(partial(search.run, run.interrupts.pause_wanted)))
            run.raise_if_paused()
            with run.lock():
                for observer in observers:
                    observer.on(SearchEnded(run.table.rows))
                run.report()
            prepared.result = run.result()

    def say_plan(self, console: Console, title: str, rows: Sequence[Row]) -> None:
        """Print what is about to happen."""
        space = {} if self._define else self.space
        console.plan(title, space, self.plan(), rows, covers=self.plan_covers, stops=self._limits.texts())


def _objective_options(tuner: Tuner, attached: "Attachments") -> "ObjectiveOptions":
    """What a tuner asks of its objective, with the loggers and callbacks of each trial."""
    from lightning_hpo.training.name_checks import UnusedNames  # noqa: PLC0415  # loads Lightning
    from lightning_hpo.training.objective import ObjectiveOptions  # noqa: PLC0415  # as above

    goal = tuner._goal  # noqa: SLF001  # of this module
    return ObjectiveOptions(
        unit=tuner.unit,
        mode=tuner.mode,
        also=tuple(map(str, goal.monitors[1:])),
        constraints=goal.constraints,
        folds=getattr(tuner.scheduler, "folds", 0),
        halves=tuner._trials.on_oom == "halve",  # noqa: SLF001  # as above
        check_on_one=not tuner._workers.in_process,  # noqa: SLF001  # as above
        check_names=tuner._parts.check_names or UnusedNames,  # noqa: SLF001  # as above
        attached=attached,
    )


def _observers(tuner: Tuner, run: Run, title: str) -> list[Observer]:
    """Those that keep the best files, say how the search stands, and end the runs of loggers; then the tuner's own."""
    builder, own, limits, workers = run.target.builder, study_id(run.study), tuner._limits, tuner._workers.workers  # noqa: SLF001  # of this module
    files = BestFiles(
        run.folder,
        own,
        tuner.space.config if builder is None else builder.config,
        mode=tuner.mode,
        max_steps=fit_steps(tuner.scheduler),
        keep_checkpoints=tuner._trials.keep_checkpoints,  # noqa: SLF001  # as above
        complete_only=getattr(tuner.scheduler, "replaces_broken", False),
        unit=tuner.unit,
        monitor=None if builder is None else tuner.monitor,
        texts=tuner.space.texts(),
        fold_arguments=partial(fold_arguments, builder, folds=getattr(tuner.scheduler, "folds", 0)),
    )
    plan = make_plan(title, tuner.plan(), tuner.plan_covers, limits, workers=workers, unit=tuner.unit.count_label)
    watching = observers_of(run.folder, own, plan, run.console, tuner.mode, end_trial=run.target.end_trial)
    return [files, *watching, *run.copies, *tuner._parts.observers(run)]  # noqa: SLF001  # as above


def _loop(tuner: Tuner, run: Run, executor: Executor, observers: Sequence[Observer], prior: Sequence[Row]) -> Search:
    """Return the loop over an opened run."""
    parts, goal = tuner._parts, tuner._goal  # noqa: SLF001  # of this module
    space = tuner._define or tuner.space  # noqa: SLF001  # as above
    rungs = sorted({rung.max_steps for bracket in tuner.plan() for rung in bracket.rungs})
    return Search(
        scheduler=tuner.scheduler,
        proposer=parts.propose(OpenStudy(run.study, run.table, space, goal, rungs, run.target.starts, prior)),
        table=run.table,
        executor=executor,
        goal=goal,
        limits=tuner._limits,  # noqa: SLF001  # as above
        observers=observers,
        study_id=study_id(run.study),
        folder=run.folder.trial,
        settle=settle if run.target.builder else lambda *_: None,  # a function keeps nothing in a folder
        converged=lambda: parts.converged(run.study),
        lock=run.lock,
        poll=POLL if run.shared else None,
    )


def _fingerprint(tuner: Tuner, target: Target) -> dict[str, Any]:
    """What must not change when the study is continued."""
    goal, parts = tuner._goal, tuner._parts  # noqa: SLF001  # of this module
    sampler = settings(goal.sampler)
    if parts.pruner is not None:
        sampler["pruner"] = settings(parts.pruner)
    code = [code for part in target.parts for code in (part.code if isinstance(part, Coded) else (part,))]
    return fingerprint(
        tuner.space,
        tuner.scheduler,
        target.parts,
        [*code, *filter(None, [tuner._define])],  # noqa: SLF001  # as above
        trains=target.builder is not None,
        sampler=sampler,
        **tuner._beginning.settings(target.starts),  # noqa: SLF001  # as above
        **goal.settings(),
        **more_settings(tuner._trials, tuner.unit),  # noqa: SLF001  # as above
    )
