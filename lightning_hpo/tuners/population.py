"""A whole population from one script."""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Literal, Unpack

from optuna.distributions import BaseDistribution

from lightning_hpo.errors import explained
from lightning_hpo.executors.base import Executor
from lightning_hpo.executors.interleaved import Interleaved
from lightning_hpo.interrupts import Interrupts
from lightning_hpo.records import Work
from lightning_hpo.schedulers import Job
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.schedulers.explore import Explore
from lightning_hpo.schedulers.population import PopulationBased, Rules
from lightning_hpo.schedulers.truncation import Donor
from lightning_hpo.schedulers.units import Budget, UnitName, read_budget
from lightning_hpo.space import Space, parse_space, split_name
from lightning_hpo.study.rows import SEGMENT
from lightning_hpo.study.table import TrialTable
from lightning_hpo.text import require_bool
from lightning_hpo.training.member_fit import MemberFits
from lightning_hpo.training.name_checks import ChangeableNames
from lightning_hpo.training.places import BATCH_SIZE
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.choose_executor import make_executor
from lightning_hpo.tuners.options import DEFAULTS, Options, WorkerOptions, group, validate_names
from lightning_hpo.tuners.parts import Parts
from lightning_hpo.tuners.proposers import OpenStudy

# Of the options that tuners share; the others are about trials that start and end one by one.
_TAKEN = (
    "monitor", "mode", "score", "constraints", "seed", "name", "storage", "root", "trainer", "verbose",
    "allow_changed", "workers", "isolate", "devices_per_trial", "logger", "callbacks", "start",
)  # fmt: skip
_INSTEAD = {
    "confirm": ": its answer is a schedule, and weights that were copied between members. `fit -c best.yaml "
    "--seed_everything 1` replays the schedule with another seed.",
    "folds": ": members copy weights, and so what other folds have learned. BayesianTuner, OptunaTuner and RandomTuner "
    "have folds.",
}
_TAKEN_BY_WORKERS = ("max_retries", "trial_timeout")
_INTERVAL = 200  # optimizer steps
_RHYTHM = ("val_check_interval", "check_val_every_n_epoch")
# Arguments of a Trainer that say when a fit ends, with the values that say nothing.
_ENDS: Mapping[str, tuple[Any, ...]] = {
    "max_steps": (None, -1), "min_steps": (None, 0), "max_epochs": (None, -1), "min_epochs": (None, 0),
    "max_time": (None,), "fast_dev_run": (False, 0),
}  # fmt: skip


class PopulationTuner(Tuner):
    """Population-Based Training of ``population_size`` members, in one process or in several.

    Everything is kept in ``root/name``; the same call continues where it stopped, and a continued run equals the
    uninterrupted one if it is synchronous. With one worker, members take turns inside ``Trainer.fit``, and copies stay
    in memory; with more, or with several devices for each member (DDP), each job is a fit of its own, and copies go
    through checkpoints. Whenever the hyperparameters of a member change, a new trial of the study begins, with its
    parent.

    Members are validated at exactly the last optimizer step of each interval, whatever the epochs, batches and gradient
    accumulation; with several manual optimizers, each of which counts, at the first step at or after it. Where a
    ReduceLROnPlateau (or EarlyStopping, ModelCheckpoint) follows a metric of validation at the end of an epoch, they
    are validated there too, as in a plain Trainer. All members train to ``max_steps``: one that EarlyStopping or
    another callback asks to stop copies a better one at the next decision, as one whose score is NaN does, and goes on.
    An error in a member ends that member; a disk that is full ends the run, and the same call continues it.

    Args:
        space: as for :class:`Tuner`, but only of what can change while training (see
            :class:`~lightning_hpo.callbacks.population.PopulationBasedTraining`).
        population_size: members, at least 2.
        interval: between decisions, in the unit of the budget. Default: 200 optimizer steps or one epoch.
        max_steps, max_epochs, max_samples: how much every member trains, as exactly one of these; a multiple of
            ``interval``. In epochs or samples, the batch size cannot be in the space, as it changes while a member
            trains.
        quantile, donor, explore, resample, factor: see :class:`~lightning_hpo.schedulers.population.Rules`.
        synchronous: whether all members wait for each other at the end of an interval, so that any number of workers
            gives the lineage of one. Default: only with one worker; with more, a member is compared with the last
            scores of the others and goes on, so that no worker is idle.
        **options: ``monitor``, ``mode``, ``score``, ``constraints``, ``seed``, ``name``, ``storage``, ``root``,
            ``trainer``, ``verbose``, ``allow_changed``, ``devices_per_trial``, ``workers``, ``executor`` or ``isolate``
            (with these ``max_retries`` and ``trial_timeout``), ``logger``, ``callbacks`` and ``start`` of
            :class:`Tuner`. A logger has one run for each member, through all its trials, and functions of a trial are
            called with the first of them.

    Raises:
        ValueError: naming an argument outside its range, or one of ``trainer`` that would end members at other steps.

    Source: Jaderberg et al. 2017, *Population Based Training of Neural Networks*.
    """

    def __init__(
        self,
        space: Space,
        *,
        population_size: int = 8,
        interval: float | None = None,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        quantile: float = 0.4,
        donor: Donor = "random-top",
        explore: Literal["losers", "all", "pb2"] | Explore = "losers",
        resample: float = 0.5,
        factor: float = 1.2,
        synchronous: bool | None = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            most: dict[UnitName, Any] = {"steps": max_steps, "epochs": max_epochs, "samples": max_samples}
            if interval is None and max_samples is None:
                interval = _INTERVAL if max_epochs is None else 1
            elif interval is None:
                raise TypeError("`interval` is missing: say after how many samples the members are compared.")
            budget = read_budget(most, interval=interval)
            assert budget.interval is not None
            unit = budget.unit.name
            _validate_budget(budget, parse_space(space))
            if synchronous is not None:
                require_bool("synchronous", synchronous)
            workers = group(WorkerOptions, options)
            here = workers.in_process
            taken = (*_TAKEN, "executor", *(() if here else _TAKEN_BY_WORKERS))
            for argument, value in options.items():  # a command line gives options at their default too
                if argument not in taken and value != DEFAULTS.get(argument, value):
                    instead = _INSTEAD.get(argument, f"; it takes {', '.join(taken)}.")
                    raise ValueError(f"`{argument}` means nothing for a population{instead}")
            for argument, value in (options.get("trainer") or {}).items():
                if argument in _RHYTHM:
                    raise ValueError(
                        f"`trainer` has the argument {argument!r}, but members validate at every `interval`."
                    )
                if value not in _ENDS.get(argument, (value,)):
                    raise ValueError(
                        f"`trainer` has the argument {argument!r} ({value!r}), but all members of a population train "
                        f"to `max_{unit}`={budget.unit.number(budget.full)}: leave it out."
                    )
            mode, seed = direction(options.get("monitor"), options.get("mode")), options.get("seed", 0)
            rules = Rules(parse_space(space), mode, quantile, donor, explore, resample, factor, seed)
            waits = workers.workers == 1 if synchronous is None else synchronous
            scheduler = PopulationBased(rules, population_size, budget.interval, budget.full, waits)
            parts = Parts(
                propose=partial(MemberProposer, notes_decisions=not waits),
                work=MemberFits,
                executor=member_executor,
                parts_of_unit=budget.unit.parts,
                check_names=ChangeableNames,
                no_function="PopulationTuner copies weights between members, so it takes a LightningModule: use fit().",
            )
            options["max_failed"] = math.inf
            super().__init__(space, scheduler, unit=unit, parts=parts, **options)
        self.rules = rules


def _validate_budget(budget: Budget, space: Mapping[str, BaseDistribution]) -> None:
    """Raise ValueError for a budget in epochs or samples that members cannot have."""
    if budget.unit.is_steps:
        return  # the scheduler compares the numbers
    assert budget.interval is not None
    number = budget.unit.number
    if budget.full % budget.interval:
        raise ValueError(
            f"`max_{budget.unit.name}` must be a multiple of `interval` {number(budget.interval)}, got "
            f"{number(budget.full)}."
        )
    for name in space:
        if split_name(name)[1].rpartition(".")[2] == BATCH_SIZE:
            raise ValueError(
                f"`space` has {name!r}, which changes while a member trains, so its {budget.unit.label} have no fixed "
                "number of optimizer steps: give `max_steps` and `interval` in steps."
            )


class MemberProposer:
    """Adds the trials that a population's scheduler has decided, and ends those that they replace.

    Args:
        opened: the study; the space must be names with distributions.
        notes_decisions: whether the study keeps that a member goes on as it is, because it cannot be decided again.
    """

    def __init__(self, opened: OpenStudy, *, notes_decisions: bool = False) -> None:
        assert not callable(opened.space)
        self._opened, self._space, self._notes_decisions = opened, opened.space, notes_decisions

    def propose(self, table: TrialTable, job: Job) -> tuple[int, Mapping[str, Any]]:
        """Return the trial's own parameters, or add the trial with those of the job."""
        if job.trial is not None:
            if self._notes_decisions:
                table.note_decision(job.trial, job.max_steps)
            return job.trial, table.rows[job.trial].params
        assert job.params is not None
        params = dict(job.params) if job.replaces is not None else {**job.params, **self._opened.start(len(table.rows))}
        notes = {}
        if job.replaces is not None and job.parent is not None:
            before = table.rows[job.replaces]
            notes = {"member": before.home, "start": before.step, "forked_at": table.rows[job.parent].step}
        number = table.add(params, self._space, parent=job.parent, notes={SEGMENT: notes} if notes else {})
        if job.replaces is not None:
            table.prune(job.replaces)
        return number, params


def member_executor(work: Work, options: WorkerOptions, interrupts: Interrupts) -> AbstractContextManager[Executor]:
    """Make the executor of a population: suspended fits in this process, or one fit for each job.

    Several ranks share one process group, which fits that are suspended at different places cannot use.
    """
    if options.in_process and isinstance(work, MemberFits):  # else it is that of several ranks together
        return Interleaved(work.train, interrupts.pause_wanted)
    return make_executor(work, options, interrupts)
