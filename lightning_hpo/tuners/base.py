"""The tuner: a scheduler, a proposer and an executor in one loop, with everything kept in a run folder."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self, Unpack

from lightning_hpo.errors import explained
from lightning_hpo.records import Job, Mode
from lightning_hpo.reporting.result import Result
from lightning_hpo.schedulers.base import Bracket, Coverage, Scheduler
from lightning_hpo.schedulers.folds import fit_steps
from lightning_hpo.schedulers.units import Unit, UnitName
from lightning_hpo.space import Define, SearchSpace, Space
from lightning_hpo.training.builder import Builder
from lightning_hpo.tuners.functions import FunctionWork
from lightning_hpo.tuners.options import Options, validate_names
from lightning_hpo.tuners.parts import Parts, Setup
from lightning_hpo.tuners.prepare import prepared
from lightning_hpo.tuners.remedies import checked_call, validate_function
from lightning_hpo.tuners.retrain import retrain
from lightning_hpo.tuners.run import Target

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningCLI

    from lightning_hpo.training.attachments import Attachments
    from lightning_hpo.training.objective import Objective, ObjectiveOptions


_DEFAULT = Parts()


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
            self.setup = Setup.read(space, scheduler, unit, parts, options)
            """What the tuner was asked for."""
        self._builder: Builder | None = None

    @property
    def space(self) -> SearchSpace:
        """Name -> distribution; of a function of a trial, its name for the fingerprint."""
        return self.setup.space

    @property
    def scheduler(self) -> Scheduler:
        """Which trial gets how many steps, with folds and confirmations if they are asked for."""
        return self.setup.scheduler

    @property
    def unit(self) -> Unit:
        """What the scheduler counts."""
        return self.setup.unit

    @property
    def monitor(self) -> str | None:
        """Metric that ranks trials."""
        return self.setup.goal.monitors[0]

    @property
    def mode(self) -> Mode:
        """Whether lower or higher scores are better."""
        return self.setup.goal.modes[0]

    @property
    def seed(self) -> int:
        """Seed of everything random."""
        return self.setup.goal.seed

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
        return self.setup.plan

    @property
    def plan_covers(self) -> Coverage:
        """What :meth:`plan` counts: all that happens, the least that happens, or the least of one of endless rounds."""
        return self.setup.plan_covers

    def planned_steps(self) -> int:
        """Optimizer steps, as the scheduler counts them, that are expected at most; 0 if that is not known."""
        steps = 0 if self.plan_covers == "round" else sum(bracket.steps for bracket in self.plan())
        total = self.setup.limits.count
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
            from lightning_hpo.training.given_data import given_data  # noqa: PLC0415  # loads Lightning

            data = given_data(datamodule, train_dataloaders, val_dataloaders)
            objective = self.objective(model, datamodule=data)
            parts, work = [model or self._builder, data], self.setup.parts.work(objective)
            target = Target.of(objective, work, parts, self.space.deliver)
            with prepared(self.setup, target, type(self)) as search:
                search.run()
            return search.answer(partial(retrain, self, lambda tuner: tuner.fit(model, datamodule=data)))

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
        setup, trials = self.setup, self.setup.trials
        attached, trainer = attachments(trials.logger, trials.callbacks, trials.trainer or {}, model)
        return Objective(
            model,
            setup.source,
            data=datamodule,
            monitor=self.monitor,
            max_steps=fit_steps(setup.scheduler),
            trainer={"devices": setup.workers.devices_per_trial, **trainer},
            seed=self.seed,
            checkpoint_every=trials.checkpoint_every,
            stop_on_nan=trials.stop_on_nan,
            score=setup.goal.score,
            options=_objective_options(setup, attached),
        )

    @checked_call
    def optimize(self, function: Callable[[Job, Mapping[str, Any]], float]) -> Result:
        """Search over any function, without Lightning.

        Args:
            function: called with a job (``job.trial`` is the trial's number, ``job.max_steps`` the budget to reach, a
                number in the unit of the budget) and the trial's parameters; returns the score.
        """
        with explained(None):
            self.setup.trials.validate_no_trainer()
            if self.setup.parts.no_function:
                raise TypeError(self.setup.parts.no_function)
            validate_function(function)
            self.setup.goal.validate_function()
            work = FunctionWork(function, self.space.deliver, self.unit.number)
            with prepared(self.setup, Target(work, [function], deliver=self.space.deliver), type(self)) as search:
                search.run()
            return search.answer(partial(retrain, self, lambda tuner: tuner.optimize(function)))


def _objective_options(setup: Setup, attached: "Attachments") -> "ObjectiveOptions":
    """What a tuner asks of its objective, with the loggers and callbacks of each trial."""
    from lightning_hpo.training.name_checks import UnusedNames  # noqa: PLC0415  # loads Lightning
    from lightning_hpo.training.objective import ObjectiveOptions  # noqa: PLC0415  # as above

    return ObjectiveOptions(
        unit=setup.unit,
        mode=setup.goal.modes[0],
        also=tuple(map(str, setup.goal.monitors[1:])),
        constraints=setup.goal.constraints,
        folds=setup.folds,
        halves=setup.trials.on_oom == "halve",
        check_on_one=not setup.workers.in_process,
        check_names=setup.parts.check_names or UnusedNames,
        attached=attached,
    )
