"""What a tuner is made of: what it was asked for, and what its search is composed of."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler

from lightning_hpo.executors.base import Executor
from lightning_hpo.interrupts import Interrupts
from lightning_hpo.records import Work
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Observer
from lightning_hpo.schedulers.base import Bracket, Coverage, Scheduler
from lightning_hpo.schedulers.confirmed import confirmed
from lightning_hpo.schedulers.folds import folded
from lightning_hpo.schedulers.units import Unit, UnitName
from lightning_hpo.space import Define, SearchSpace, Space, parse_space
from lightning_hpo.study.fingerprint import label
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.tuners.beginning import Beginning
from lightning_hpo.tuners.limits import Limits
from lightning_hpo.tuners.options import Goal, RunOptions, TrialOptions, WorkerOptions, group
from lightning_hpo.tuners.proposers import MakeProposer, make_proposer
from lightning_hpo.tuners.starts import validate_beginning

MakeExecutor: TypeAlias = Callable[[Work, WorkerOptions, Interrupts], AbstractContextManager[Executor]]


class OpenedRun(Protocol):
    """What observers are made from."""

    @property
    def study(self) -> optuna.Study:
        """Everything that was decided or measured."""

    @property
    def folder(self) -> RunFolder:
        """Folder of the run."""

    @property
    def console(self) -> Console:
        """What prints lines."""


@dataclass(frozen=True)
class Parts:
    """What a tuner is composed of beside its scheduler; presets give it, and so may you.

    Args:
        propose: makes the proposer. Default: the sampler, asked for all parameters at once.
        work: carries out the jobs of an objective. Default: its own.
        executor: makes the executor. Default: the one that the options ask for.
        observers: made when the run is open, and told what happens in the search.
        converged: of the study: start no more trials.
        study: a study of the user's own, in place of the run's.
        pruner: Optuna's, which is asked at every validation of a trial.
        check_names: looks at the names of the space in the check. Default: warns of names that change nothing.
        no_function: why there is no :meth:`Tuner.optimize`; empty if there is.
        parts_of_unit: the scheduler counts so many parts of a unit, such as quarters of an epoch.
    """

    propose: MakeProposer = make_proposer
    work: Callable[[Any], Work] = lambda objective: objective.work  # of an Objective; its module loads Lightning
    executor: MakeExecutor | None = None
    observers: Callable[[OpenedRun], Sequence[Observer]] = lambda run: ()  # noqa: ARG005  # a name for the reader
    converged: Callable[[optuna.Study], bool] = lambda study: False  # noqa: ARG005  # as above
    study: optuna.Study | None = None
    pruner: BasePruner | None = None
    check_names: Callable[..., Any] | None = None  # as in ObjectiveOptions
    no_function: str = ""
    parts_of_unit: int = 1


@dataclass(frozen=True)
class Setup:
    """What a tuner was asked for.

    Args:
        space: name -> distribution; of a function of a trial, its name for the fingerprint.
        define: function of a trial that takes the place of the space; None for names with distributions.
        scheduler: which trial gets how many steps, with the folds and confirmations that the goal asks for.
        unit: what the scheduler counts.
        parts: what the search is composed of beside the scheduler.
        goal, run, trials, workers, limits, beginning: the options that all tuners share, in groups.
    """

    space: SearchSpace
    define: Define | None
    scheduler: Scheduler
    unit: Unit
    parts: Parts
    goal: Goal
    run: RunOptions
    trials: TrialOptions
    workers: WorkerOptions
    limits: Limits
    beginning: Beginning

    @classmethod
    def read(
        cls, space: Space | Define, scheduler: Scheduler, unit: UnitName, parts: Parts, options: Mapping[str, Any]
    ) -> "Setup":
        """Read the arguments of a tuner.

        Raises:
            TypeError, ValueError: for an argument that is wrong, with its value and what is accepted.
        """
        counted = Unit(unit, parts.parts_of_unit)
        sampler = RandomSampler() if options.get("sampler") is None else options["sampler"]
        goal = group(Goal, {**options, "sampler": sampler})
        run, trials, workers = group(RunOptions, options), group(TrialOptions, options), group(WorkerOptions, options)
        limits = group(Limits, {**options, "unit": counted})
        define = space if callable(space) else None
        parsed = parse_space({"defined_by": [label(space)]} if callable(space) else space)
        mode, asked = getattr(scheduler, "mode", goal.modes[0]), goal.modes[0]
        if mode != asked:
            raise ValueError(f"`mode` is {asked!r} for the tuner and {mode!r} for its scheduler.")
        beginning = group(Beginning, options)
        validate_beginning(beginning, define or parsed, scheduler)
        scheduler = confirmed(folded(scheduler, goal.folds, asked), goal.confirm, asked, limits.count)
        return cls(parsed, define, scheduler, counted, parts, goal, run, trials, workers, limits, beginning)

    @property
    def source(self) -> Define | SearchSpace:
        """What parameters are drawn from."""
        return self.define or self.space

    @property
    def folds(self) -> int:
        """Number of folds that each trial is trained on; 0 without folds."""
        return getattr(self.scheduler, "folds", 0)

    @property
    def plan(self) -> tuple[Bracket, ...]:
        """Brackets of the search; empty if the scheduler has no plan."""
        return tuple(getattr(self.scheduler, "plan", tuple)())

    @property
    def plan_covers(self) -> Coverage:
        """Which share of what will happen the plan counts."""
        covers: Coverage = getattr(self.scheduler, "plan_covers", "all")
        return covers
