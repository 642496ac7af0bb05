"""A whole population in one process: a Trainer per member, suspended inside ``fit`` while the others train.

Rounds of one interval: every member trains to the next decision, reports, saves, and is suspended there. Then all
decisions of the round fall at once, from what the study holds. Who copies goes on first, so that the donor's weights are
still in memory as they were judged, and a copy is one pass over the tensors.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Unpack

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Checkpoint

from lightning_hpo import checkpoints
from lightning_hpo.callbacks.member import Member
from lightning_hpo.callbacks.resumable import Resumable
from lightning_hpo.callbacks.transplant import State, capture
from lightning_hpo.console import Console
from lightning_hpo.fiber import Cancelled, Fiber
from lightning_hpo.interrupts import StudyPaused, pausing_signals
from lightning_hpo.lineage import Segment
from lightning_hpo.live import ParameterMismatchError
from lightning_hpo.objective import CHECKPOINT, METRICS, Objective, _own_random_numbers
from lightning_hpo.population import Donor, Explore, Fork, Rules, Standing
from lightning_hpo.quiet import warnings_only
from lightning_hpo.results import Result, best_row, keep_best, write_best
from lightning_hpo.runs import RunFolder, open_study
from lightning_hpo.schedulers import FullBudget
from lightning_hpo.search import SearchFailedError
from lightning_hpo.shared_folder import Graft
from lightning_hpo.space import Space
from lightning_hpo.trainer_plugins import MetricsFile, SealedCheckpointIO
from lightning_hpo.trials import TrialTable
from lightning_hpo.tuners import Options, Tuner, _label, _say_paused

_RHYTHM = ("val_check_interval", "check_val_every_n_epoch")


class PopulationTuner(Tuner):
    """Population-Based Training of ``population_size`` members in one process.

    Everything is kept in ``root/name``; the same call continues where it stopped, and a continued run equals the
    uninterrupted one. Every stretch of training with constant hyperparameters is a trial of the study, with its parent.

    Args:
        space: as for :class:`Tuner`, but only of what can change while training (see
            :class:`~lightning_hpo.callbacks.population.PopulationBasedTraining`).
        population_size: members, at least 2.
        interval: optimizer steps between decisions, at least 1.
        max_steps: optimizer steps of every member; a multiple of ``interval``.
        quantile, donor, explore, resample, factor: see :class:`~lightning_hpo.population.Rules`.
        **options: as for :class:`Tuner`.

    Raises:
        ValueError: naming an argument outside its range.

    Source: Jaderberg et al. 2017, *Population Based Training of Neural Networks*.
    """

    def __init__(
        self,
        space: Space,
        *,
        population_size: int = 8,
        interval: int = 200,
        max_steps: int,
        quantile: float = 0.4,
        donor: Donor = "random-top",
        explore: Literal["losers", "all"] | Explore = "losers",
        resample: float = 0.5,
        factor: float = 1.2,
        **options: Unpack[Options],
    ) -> None:
        if population_size < 2:
            raise ValueError(f"`population_size` must be an int >= 2, got {population_size!r}.")
        if interval < 1:
            raise ValueError(f"`interval` must be an int >= 1, got {interval!r}.")
        if max_steps % interval:
            whole = max(round(max_steps / interval), 1) * interval
            raise ValueError(f"`max_steps` must be a multiple of `interval` {interval}, got {max_steps}; e.g. {whole}.")
        for argument in _RHYTHM:
            if argument in (options.get("trainer") or {}):
                raise ValueError(f"`trainer` has the argument {argument!r}, but members validate at every `interval`.")
        super().__init__(space, FullBudget(max_steps, population_size), **options)
        self.rules = Rules(self.space, self.mode, quantile, donor, explore, resample, factor, self.seed)
        self.interval = interval
        self.population_size = population_size

    def fit(
        self,
        model: Callable[..., pl.LightningModule],
        *,
        datamodule: Callable[..., pl.LightningDataModule] | None = None,
    ) -> Result:
        """Train the population.

        Args:
            model: the class of the module, or a function that returns a new one.
            datamodule: the class of the data module, or a function that returns a new one. None if the module brings
                its own loaders.

        Raises:
            TypeError, ValueError, MisconfigurationException: before any training, if model, data, space and metric do
                not fit together.
            ParameterMismatchError: if a hyperparameter does not take effect.
            SearchFailedError: if no member is left.
            StudyPaused: after Ctrl-C or SIGTERM; everything is saved.
        """
        if self.monitor is None:
            raise ValueError("`monitor` is missing: name a metric that the module logs in validation, e.g. 'val_loss'.")
        trainers = _Trainers(
            model,
            self.space,
            data=datamodule,
            monitor=self.monitor,
            max_steps=self.scheduler.max_steps,
            trainer=self._trainer,
            seed=self.seed,
        )
        subjects = [model, datamodule]
        folder = RunFolder(self._root, "-".join(map(_label, (type(self), model))) if self._name is None else self._name)
        console = Console(self.monitor, self.mode, verbose=self._verbose)
        with ExitStack() as stack:
            stack.enter_context(folder.locked())
            study, storage = open_study(folder, self._storage, self.mode, self._fingerprint(subjects, trains=True))
            table = TrialTable(study, storage)
            console.plan(f"{type(self).__name__} in {folder.path}", self.space, self.plan(), table.rows)
            if not table.rows:
                trainers.check()
            interrupts = stack.enter_context(pausing_signals())
            stack.enter_context(
                warnings_only("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
            )
            town = _Town(self, table, trainers, folder, console)
            stack.callback(town.close)
            town.run(interrupts.pause_wanted)
            if interrupts.received is not None:
                _say_paused(interrupts.received.name, folder)
                raise StudyPaused(128 + interrupts.received)
            console.table(table.rows)
        best = best_row(table.rows, self.mode)
        if best is None:
            raise SearchFailedError(f"no member succeeded; the reasons are with the failed trials in {folder.path}.")
        keep_best(town.checkpoint(town.lineage.member_of(best.number)), folder.best_checkpoint)
        write_best(best.params, self.scheduler.max_steps, folder.best_params)
        value = best.values[max(best.values)]
        return Result(
            dict(best.params),
            value,
            folder.best_checkpoint,
            best.number,
            study,
            tuple(table.rows),
            trainers.build_model,
        )

    def _fingerprint(self, subjects: Sequence[Any], *, trains: bool) -> dict[str, Any]:
        rules = {name: value for name, value in vars(self.rules).items() if name not in ("space", "mode", "seed")}
        if callable(self.rules.explore):
            rules["explore"] = _label(self.rules.explore)
        population = {"population_size": self.population_size, "interval": self.interval, **rules}
        return {**super()._fingerprint(subjects, trains=trains), "population": population}


class _Trainers(Objective):
    """Builds a member's Trainer."""

    def fit_member(self, number: int, params: Mapping[str, Any], member: Member, folder: Path, interval: int) -> None:
        """Train a member to the end, continuing its checkpoint if there is one."""
        source, damaged = checkpoints.newest_intact(folder / CHECKPOINT)
        for message in damaged:
            logging.getLogger(__name__).warning(message)
        with _own_random_numbers(self.seed, number):
            module, data, arguments = self._build(params)
            owner: Any = module if data is None else data
            loaders = owner.train_dataloader
            owner.train_dataloader = lambda: Resumable.follow(loaders())
            callbacks = [*arguments.pop("callbacks", ()), member]
            arguments.setdefault("enable_checkpointing", any(isinstance(one, Checkpoint) for one in callbacks))
            start = 0 if source is None else int(checkpoints.load(source)["global_step"])
            arguments.setdefault("logger", MetricsFile(folder / METRICS, start))
            plugins = [*arguments.pop("plugins", ()), SealedCheckpointIO()]
            trainer = pl.Trainer(
                **arguments,
                callbacks=callbacks,
                plugins=plugins,
                max_steps=self.max_steps,
                default_root_dir=folder,
                check_val_every_n_epoch=None,
                val_check_interval=interval * arguments.get("accumulate_grad_batches", 1),
            )
            trainer.fit(module, datamodule=data, ckpt_path=source, weights_only=True)


class _Lineage:
    """The segments of all members, kept in the study.

    Args:
        table: of the study.
        rules: of the population.
    """

    def __init__(self, table: TrialTable, rules: Rules) -> None:
        self._table = table
        self._rules = rules

    def found(self, member: int, max_steps: int) -> None:
        """Write a member's first segment unless it is there."""
        if self.at(member, 0) is None:
            self._add(Segment(-1, member, 0, self._rules.initial(member)), max_steps)

    def at(self, member: int, step: int) -> int | None:
        """Number of the trial that a member had just trained when it reached ``step``."""
        own = [
            (notes["start"], number)
            for number, notes in enumerate(self._table.notes)
            if notes["member"] == member and (notes["start"] < step or notes["start"] == 0)
        ]
        return max(own)[1] if own else None

    def member_of(self, number: int) -> int:
        """Member that trained a trial."""
        member: int = self._table.notes[number]["member"]
        return member

    def has_failed(self, member: int) -> bool:
        """Whether a member is out."""
        return any(
            row.state == "failed"
            for row, notes in zip(self._table.rows, self._table.notes, strict=True)
            if notes["member"] == member
        )

    def standings(self, members: Iterable[int], step: int) -> dict[int, Standing]:
        """Scores and hyperparameters of the living members at ``step``."""
        standings = {}
        for member in members:
            number = self.at(member, step)
            if number is not None and step in self._table.rows[number].values and not self.has_failed(member):
                row = self._table.rows[number]
                standings[member] = Standing(row.values[step], row.params)
        return standings

    def fork(self, member: int, step: int, graft: Graft, max_steps: int) -> None:
        """Begin a segment at ``step`` unless a killed run has begun it, and end the one before."""
        begun = any(notes["member"] == member and notes["start"] == step for notes in self._table.notes)
        if not begun:
            self._add(Segment(-1, member, step, graft.params, {}, graft.parent, graft.forked_at), max_steps)
        before = self.at(member, step)
        if before is not None and self._table.rows[before].state == "running":
            self._table.prune(before)

    def _add(self, segment: Segment, max_steps: int) -> None:
        self._table.add(
            segment.params, self._rules.space, target=max_steps, parent=segment.parent, notes=segment.notes()
        )


@dataclass
class _Citizen:
    """A member as its callback sees it; see :class:`lightning_hpo.callbacks.member.Population`."""

    number: int
    town: "_Town"
    step: int = 0
    graft: Graft | None = None
    live: tuple[Any, pl.LightningModule] | None = None
    fiber: Fiber = field(init=False)

    def join(self, step: int, earlier: Mapping[str, Any] | None) -> dict[str, Any]:  # the study knows
        self.step = step
        trial = self.town.lineage.at(self.number, step)
        assert trial is not None
        return dict(self.town.table.rows[trial].params)

    def report(self, step: int, score: float, capture: Callable[[], State]) -> Graft | None:
        trial = self.town.lineage.at(self.number, step)
        assert trial is not None
        self.town.table.record(trial, step, score)
        if self.live is not None:
            self.live[0].save_checkpoint(self.town.checkpoint(self.number), weights_only=False)
        if step >= self.town.max_steps:
            self.step = step
            self.town.table.complete(trial, score)
            return None
        return self.decide(step, capture)

    def decide(self, step: int, capture: Callable[[], State]) -> Graft | None:  # states stay in memory
        self.step = step
        self.fiber.suspend()
        return self.graft

    def applied(self, step: int, graft: Graft) -> None:
        self.town.lineage.fork(self.number, step, graft, self.town.max_steps)

    def beat(self) -> None:
        if self.town.pause_wanted():
            raise Cancelled

    def leave(self, status: str, reason: str) -> None:
        """The town sees how the fiber ends."""

    def state_dict(self) -> dict[str, Any]:
        return {}


class _InTown(Member):
    """A member that lets the others see its Trainer."""

    def __init__(self, citizen: _Citizen, names: list[str], *, monitor: str, interval: int) -> None:
        super().__init__(citizen, names, monitor=monitor, interval=interval)
        self._citizen = citizen

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the Trainer."""
        self._citizen.live = (trainer, pl_module)
        super().on_fit_start(trainer, pl_module)


class _Town:
    """All members of a population, and the order in which they train."""

    def __init__(
        self, tuner: PopulationTuner, table: TrialTable, trainers: _Trainers, folder: RunFolder, console: Console
    ) -> None:
        self.table = table
        self.lineage = _Lineage(table, tuner.rules)
        self.max_steps = tuner.scheduler.max_steps
        self.pause_wanted: Callable[[], bool] = lambda: False
        self._rules = tuner.rules
        self._interval = tuner.interval
        self._trainers = trainers
        self._folder = folder
        self._console = console
        self._members: dict[int, _Citizen] = {}
        for number in range(tuner.population_size):
            self.lineage.found(number, self.max_steps)
            self._members[number] = citizen = _Citizen(number, self)
            citizen.fiber = Fiber(self._life(citizen))

    def checkpoint(self, member: int) -> Path:
        """Where a member saves."""
        return self._folder.path / "members" / f"{member:03d}" / CHECKPOINT

    def run(self, pause_wanted: Callable[[], bool]) -> None:
        """Train all members to the end, or until a pause is wanted."""
        self.pause_wanted = pause_wanted
        for citizen in self._members.values():
            if not self.lineage.has_failed(citizen.number):
                self._restore(citizen)
        while (members := self._training()) and not pause_wanted():
            step = min(citizen.step for citizen in members)
            standings = self.lineage.standings(self._members, step) if step else {}
            forks = {
                citizen.number: self._rules.decide(citizen.number, step, standings)
                for citizen in members
                if citizen.step == step and citizen.number in standings
            }
            movers = [citizen for citizen in members if citizen.step == step]
            for citizen in sorted(movers, key=lambda one: not _copies(one.number, forks.get(one.number))):
                citizen.graft = self._graft(citizen.number, step, forks.get(citizen.number))
                self._resume(citizen)
                if pause_wanted():
                    return
            self._console.line(self._summary(step + self._interval))

    def close(self) -> None:
        """End the Trainers that are suspended."""
        for citizen in self._members.values():
            citizen.fiber.cancel()

    def _restore(self, citizen: _Citizen) -> None:
        """Bring a member of an earlier run to where it was saved, so that others can copy from it."""
        source, _ = checkpoints.newest_intact(self.checkpoint(citizen.number))
        step = 0 if source is None else int(checkpoints.load(source)["global_step"])
        if step >= self.max_steps:
            citizen.step = step
            citizen.fiber.done = True
        elif step:
            self._resume(citizen)

    def _resume(self, citizen: _Citizen) -> None:
        citizen.fiber.resume()
        error = citizen.fiber.error
        if error is None or isinstance(error, Cancelled):
            return
        citizen.live = None
        if isinstance(error, MisconfigurationException | ParameterMismatchError | KeyboardInterrupt | SystemExit):
            raise error
        trial = self.lineage.at(citizen.number, citizen.step + 1)
        assert trial is not None
        self.table.fail(trial, f"{type(error).__name__}: {error}")
        self._console.line(f"member {citizen.number} failed after step {citizen.step}: {type(error).__name__}: {error}")

    def _life(self, citizen: _Citizen) -> Callable[[], None]:
        def life() -> None:
            folder = self.checkpoint(citizen.number).parent
            folder.mkdir(parents=True, exist_ok=True)
            source, _ = checkpoints.newest_intact(folder / CHECKPOINT)
            step = 0 if source is None else int(checkpoints.load(source)["global_step"])
            callback = _InTown(
                citizen, list(self._rules.space), monitor=self._trainers.monitor, interval=self._interval
            )
            params = citizen.join(step, None)
            self._trainers.fit_member(citizen.number, params, callback, folder, self._interval)

        return life

    def _training(self) -> list[_Citizen]:
        return [one for one in self._members.values() if not one.fiber.done and not self.lineage.has_failed(one.number)]

    def _graft(self, member: int, step: int, fork: Fork | None) -> Graft | None:
        if fork is None:
            return None
        donor = self._members[fork.donor]
        parent = self.lineage.at(fork.donor, donor.step)
        assert parent is not None
        if fork.donor == member:
            return Graft(member, parent, step, fork.params, None)
        if donor.live is None:  # it failed, or ended in an earlier run
            return None
        return Graft(fork.donor, parent, donor.step, fork.params, capture(*donor.live))

    def _summary(self, step: int) -> str:
        standings = self.lineage.standings(self._members, step)
        scores = sorted((one.score for one in standings.values()), reverse=self._rules.mode == "max")
        listed = " ".join(f"{score:.4g}" for score in scores[:8])
        return f"step {step}: {self._trainers.monitor} of {len(scores)} members, best first: {listed}"


def _copies(member: int, fork: Fork | None) -> bool:
    return fork is not None and fork.donor != member
