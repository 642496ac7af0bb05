"""Rounds of a population in one process: every member trains to the next decision, then all decisions fall at once.

Each member has a Trainer that is suspended inside ``fit`` while the others train. When a round ends, every member has
reported and saved. Decisions are made from what the study holds, so a killed run makes the same ones again. Who copies
goes on first: the donor's weights are then still in memory as they were judged, and a copy is one pass over them.
"""

import contextlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from optuna.distributions import BaseDistribution

from lightning_hpo import checkpoints
from lightning_hpo.callbacks.lr_schedule import bind_to_steps
from lightning_hpo.callbacks.member import Member
from lightning_hpo.callbacks.resumable import BeforeOthers, Resumable
from lightning_hpo.failures import ParameterMismatchError, failure_text
from lightning_hpo.fiber import Cancelled, Fiber
from lightning_hpo.fitting import JobCallback
from lightning_hpo.jobs import CHECKPOINT
from lightning_hpo.lineage import Segment, intervals
from lightning_hpo.population import Fork, Interval, Rules, Standing
from lightning_hpo.run_key import Key
from lightning_hpo.shared_folder import Graft
from lightning_hpo.training.rebuild import Build, Effect, Rebuild
from lightning_hpo.training.state_transfer import State, capture
from lightning_hpo.trials import SEGMENT, TrialTable

Fit: TypeAlias = Callable[[int, Mapping[str, Any], JobCallback, Path | None], None]


class StudyLineage:
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
            for number, notes in enumerate(self._notes())
            if notes["member"] == member and (notes["start"] < step or notes["start"] == 0)
        ]
        return max(own)[1] if own else None

    def member_of(self, number: int) -> int:
        """Member that trained a trial."""
        member: int = self._notes()[number]["member"]
        return member

    def has_failed(self, member: int) -> bool:
        """Whether a member is out."""
        return any(
            row.state == "failed"
            for row, notes in zip(self._table.rows, self._notes(), strict=True)
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

    def history(self, step: int) -> list[Interval]:
        """All intervals that ended at ``step`` or before."""
        segments = [
            Segment(number=row.number, params=row.params, values=dict(row.values), parent=row.parent, **notes)
            for row, notes in zip(self._table.rows, self._notes(), strict=True)
        ]
        return intervals(segments, step)

    def fork(self, member: int, step: int, graft: Graft, max_steps: int) -> None:
        """Begin a segment at ``step`` unless a killed run has begun it, and end the one before."""
        begun = any(notes["member"] == member and notes["start"] == step for notes in self._notes())
        if not begun:
            self._add(Segment(-1, member, step, graft.params, {}, graft.parent, graft.forked_at), max_steps)
        before = self.at(member, step)
        if before is not None and self._table.rows[before].state == "running":
            self._table.prune(before)

    def _notes(self) -> list[Mapping[str, Any]]:
        return [notes[SEGMENT] for notes in self._table.notes]

    def _add(self, segment: Segment, max_steps: int) -> None:
        self._table.add(
            segment.params, self._rules.space, target=max_steps, parent=segment.parent, notes=segment.notes()
        )


@dataclass
class Seat:
    """A member as its callback sees it; see :class:`lightning_hpo.callbacks.member.Population`."""

    number: int
    rounds: "Rounds"
    step: int = 0
    source: Path | None = None
    graft: Graft | None = None
    live: tuple[Any, pl.LightningModule] | None = None
    fiber: Fiber = field(init=False)

    def join(self, step: int, earlier: Mapping[str, Any] | None) -> dict[str, Any]:  # the study knows
        """Return the hyperparameters of the segment that the checkpoint belongs to."""
        return self.rounds.params_at(self.number, self.step)

    def report(self, step: int, score: float, capture: Callable[[], State]) -> Graft | None:
        """Record a score, and wait until the others have done so; the last one ends the trial."""
        trial = self.rounds.lineage.at(self.number, step)
        assert trial is not None
        if self.rounds.table.rows[trial].state == "running":  # a damaged checkpoint repeats steps of ended trials
            self.rounds.table.record(trial, step, score)
        if step >= self.rounds.max_steps:
            self.step = step
            self.finish()
            return None
        return self.decide(step, capture)

    def decide(self, step: int, capture: Callable[[], State]) -> Graft | None:  # states stay in memory
        """Wait for the round to end."""
        self.step = step
        self.fiber.suspend()
        return self.graft

    def finish(self) -> None:
        """End the member's last trial unless it has ended."""
        trial = self.rounds.lineage.at(self.number, self.step)
        assert trial is not None
        row = self.rounds.table.rows[trial]
        if row.state != "running":
            return
        score = row.values[self.step]
        if math.isfinite(score):
            self.rounds.table.complete(trial, score)
        else:
            self.rounds.table.fail(trial, f"the last score is {score}")

    def applied(self, step: int, graft: Graft) -> None:
        """Begin a new segment."""
        self.rounds.lineage.fork(self.number, step, graft, self.rounds.max_steps)

    def beat(self) -> None:
        """Stop here if a pause is wanted; the round is repeated later."""
        if self.rounds.pause_wanted():
            raise Cancelled

    def leave(self, status: str, reason: str) -> None:
        """Do nothing: the rounds see how the fiber ends."""

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the study has it."""
        return {}


class _SeatedMember(Member):
    """A member that lets the others see its Trainer, and saves where a continued run can pick up exactly."""

    def __init__(
        self, seat: Seat, space: Mapping[str, BaseDistribution], *, monitor: str, interval: int, checkpoint: Path
    ) -> None:
        super().__init__(seat, space, monitor=monitor, interval=interval)
        self._seat = seat
        self._checkpoint = checkpoint
        self._saved_at = seat.step
        self._resumable = Resumable()  # called from here: each callback of a Trainer costs time in every step
        self._resume: dict[str, Any] = {}
        self.first: pl.Callback = BeforeOthers(self)

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs beyond Lightning's own checkpoint."""
        return {**super().state_dict(), "resume": self._resume}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's progress to where the checkpoint was taken: before the validation that ends a round."""
        self._resumable.load(checkpoint["callbacks"][self.state_key]["resume"], checkpoint["loops"]["fit_loop"])

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the Trainer."""
        self._seat.live = (trainer, pl_module)
        super().on_fit_start(trainer, pl_module)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put everything back; the validation that follows a restart brings the decision."""
        self._resumable.on_train_start(trainer, pl_module)
        bind_to_steps(trainer, trainer.max_steps)
        self._earlier = None
        super().on_train_start(trainer, pl_module)

    def after_batch(self, trainer: pl.Trainer, outputs: Any) -> None:
        """Save before the validation that ends a round."""
        self._resumable.on_batch_end(trainer)
        step = trainer.global_step
        if step > self._saved_at and step % self._interval == 0:
            self._saved_at = step
            self._resumable.before_validation()
            self._resume = self._resumable.state(trainer, "validation due")
            trainer.save_checkpoint(self._checkpoint)

    def after_validation(self, trainer: pl.Trainer) -> None:
        """Do nothing: the checkpoint is the one before the validation."""

    def before_epoch(self, trainer: pl.Trainer) -> None:
        """Put back what hooks at the start of training may have reset."""
        self._resumable.begin()

    def before_batch(self) -> None:
        """Put back what hooks at the start of training may have reset."""
        self._resumable.begin()

    def before_end(self, trainer: pl.Trainer) -> None:
        """Do nothing: the last round has saved."""

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the random numbers of training."""
        self._resumable.on_validation_start(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue as if no validation had happened, and report."""
        self._resumable.on_validation_end(trainer)
        super().on_validation_end(trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let Lightning end a restarted epoch as any."""
        self._resumable.on_train_epoch_end(trainer)


class Rounds:
    """All members of a population, and the order in which they train.

    Args:
        table: of the study.
        rules: of the population.
        population_size: members in all.
        monitor: metric that is judged.
        interval: optimizer steps of a round.
        max_steps: optimizer steps of every member.
        folder: for the members' checkpoints.
        key: of the run, which it knows them by.
        fit: trains a member: number, hyperparameters, callback, and the checkpoint to continue or None.
        build: builds module and data module of hyperparameters.
        say: prints a line.
    """

    def __init__(
        self,
        table: TrialTable,
        rules: Rules,
        *,
        population_size: int,
        monitor: str,
        interval: int,
        max_steps: int,
        folder: Path,
        key: Key,
        fit: Fit,
        build: Build,
        say: Callable[[str], None],
    ) -> None:
        self.table = table
        self.lineage = StudyLineage(table, rules)
        self.max_steps = max_steps
        self.pause_wanted: Callable[[], bool] = lambda: False
        self._rules = rules
        self._monitor = monitor
        self._interval = interval
        self._folder = folder
        self._key = key
        self._fit = fit
        self._build = build
        self._effects: dict[str, Effect] = {}  # found once for all members
        self._say = say
        self._members: dict[int, Seat] = {}
        for number in range(population_size):
            self.lineage.found(number, max_steps)
            self._members[number] = seat = Seat(number, self)
            seat.fiber = Fiber(self._life(seat))

    def checkpoint(self, member: int) -> Path:
        """Where a member saves."""
        return self._folder / f"{member:03d}" / CHECKPOINT

    def run(self, pause_wanted: Callable[[], bool]) -> None:
        """Train all members to the end, or until a pause is wanted."""
        self.pause_wanted = pause_wanted
        for seat in self._members.values():
            if not self.lineage.has_failed(seat.number):
                self._restore(seat)
        while (members := self._training()) and not pause_wanted():
            step = min(seat.step for seat in members)
            standings = self.lineage.standings(self._members, step) if step else {}
            history = self.lineage.history(step)
            forks = {
                seat.number: self._rules.decide(seat.number, step, standings, history)
                for seat in members
                if seat.step == step and seat.number in standings
            }
            movers = [seat for seat in members if seat.step == step]
            for seat in sorted(movers, key=lambda one: not _copies(one.number, forks.get(one.number))):
                seat.graft = self._graft(seat.number, step, forks.get(seat.number))
                self._resume(seat)
                if pause_wanted():
                    return
            self._say(self._summary(step + self._interval))

    def close(self) -> None:
        """End the Trainers that are suspended."""
        for seat in self._members.values():
            seat.fiber.cancel()

    def params_at(self, member: int, step: int) -> dict[str, Any]:
        """Return the hyperparameters that a member reached ``step`` with."""
        trial = self.lineage.at(member, step)
        assert trial is not None
        return dict(self.table.rows[trial].params)

    def _restore(self, seat: Seat) -> None:
        """Bring a member of an earlier run to where it was saved, so that others can copy from it."""
        seat.source, seat.step = self._saved(seat.number)
        if seat.step >= self.max_steps:
            seat.fiber.done = True
            seat.finish()  # a kill may fall between the last value and the end of the trial
        elif seat.step:
            self._resume(seat)

    def _saved(self, member: int) -> tuple[Path | None, int]:
        """Find the newest checkpoint that is intact and was judged; a kill may fall between the two."""
        last = self.checkpoint(member)
        checkpoints.remove_leftovers(last)
        for file in (last, checkpoints.previous_of(last)):
            with contextlib.suppress(FileNotFoundError):
                try:
                    step = int(checkpoints.load(file, key=self._key)["global_step"])
                except checkpoints.DamagedCheckpointError as error:
                    self._say(str(error))
                    continue
                trial = self.lineage.at(member, step)
                if trial is not None and step in self.table.rows[trial].values:
                    return file, step
        return None, 0

    def _resume(self, seat: Seat) -> None:
        seat.fiber.resume()
        error = seat.fiber.error
        if error is None or isinstance(error, Cancelled):
            return
        seat.live = None
        if isinstance(
            error.__context__, KeyboardInterrupt
        ):  # Lightning sets a signal handler then, which a thread may not
            raise KeyboardInterrupt
        if isinstance(error, MisconfigurationException | ParameterMismatchError | KeyboardInterrupt | SystemExit):
            raise error
        trial = self.lineage.at(seat.number, seat.step + 1)
        assert trial is not None
        reason = failure_text(error)
        self.table.fail(trial, reason)
        self._say(f"member {seat.number} failed after step {seat.step}: {reason.splitlines()[0]}")

    def _life(self, seat: Seat) -> Callable[[], None]:
        def life() -> None:
            checkpoint = self.checkpoint(seat.number)
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            space = self._rules.space
            member = _SeatedMember(seat, space, monitor=self._monitor, interval=self._interval, checkpoint=checkpoint)
            params = self.params_at(seat.number, seat.step)
            member.rebuild = Rebuild(self._build, params, effects=self._effects)
            self._fit(seat.number, params, member, seat.source)

        return life

    def _training(self) -> list[Seat]:
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
        return f"step {step}: {self._monitor} of {len(scores)} members, best first: {listed}"


def _copies(member: int, fork: Fork | None) -> bool:
    return fork is not None and fork.donor != member
