"""Rounds of a population in one process: every member trains to the next decision, then all decisions fall at once.

Each member has a Trainer that is suspended inside ``fit`` while the others train. When a round ends, every member has
reported and saved. Decisions are made from what the study holds, so a killed run makes the same ones again. Who copies
goes on first: the donor's weights are then still in memory as they were judged, and a copy is one pass over them.
"""

import errno
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import SQLAlchemyError

from lightning_hpo import checkpoints
from lightning_hpo.callbacks.round_member import RoundMember
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import JobError, ParameterMismatchError, StorageError, failure_text
from lightning_hpo.executors.fiber import Cancelled, Fiber
from lightning_hpo.records import CHECKPOINT
from lightning_hpo.schedulers.population import Fork, Rules, Standing
from lightning_hpo.study.segments import StudyLineage
from lightning_hpo.study.shared_folder import Graft
from lightning_hpo.study.table import TrialTable
from lightning_hpo.study.trial_folders import identity_of, settle
from lightning_hpo.training.rebuild import Build, Effect, Rebuild
from lightning_hpo.training.state_transfer import State
from lightning_hpo.training.trial_fit import JobCallback

Fit: TypeAlias = Callable[[int, Mapping[str, Any], JobCallback, Path | None], None]
_STORAGE = (StorageError, StorageInternalError, SQLAlchemyError, UpdateFinishedTrialError)
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}  # nothing that a member did


@dataclass
class Seat:
    """A member as its callback sees it; see :class:`lightning_hpo.callbacks.member.Population`."""

    number: int
    rounds: "Rounds"
    step: int = 0
    source: Path | None = None
    graft: Graft | None = None
    state: Callable[[], State] | None = None  # refers to what it holds while it is suspended
    fiber: Fiber = field(init=False)

    def join(self, step: int, earlier: Mapping[str, Any] | None) -> dict[str, Any]:  # the study knows
        """Return the hyperparameters of the segment that the checkpoint belongs to."""
        return self.rounds.params_at(self.number, self.step)

    def report(self, step: int, score: float, capture: Callable[[], State], *, stopped: bool = False) -> Graft | None:
        """Record a score, and wait until the others have done so; the last one ends the trial."""
        trial = self.rounds.lineage.at(self.number, step)
        assert trial is not None
        if stopped:  # before the score: decisions are made again from what the study holds
            self.rounds.lineage.note_stop(self.number, step)
            self.rounds.say(f"member {self.number} was asked to stop at step {step}, and goes on from the best ones")
        row = self.rounds.table.rows[trial]
        if row.state == "running" and step not in row.values:  # a damaged checkpoint repeats steps
            self.rounds.table.record(trial, step, score)
        if step >= self.rounds.max_steps:
            self.step = step
            self.finish()
            return None
        return self.decide(step, capture)

    def decide(self, step: int, capture: Callable[[], State]) -> Graft | None:  # states stay in memory
        """Wait for the round to end."""
        self.step, self.state = step, capture
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
            self.rounds.table.complete(trial, [score])
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

    def identity(self, step: int) -> dict[str, Any]:
        """What a checkpoint of this step carries."""
        trial = self.rounds.lineage.at(self.number, step)
        assert trial is not None
        return self.rounds.lineage.identity(trial)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: the study has it."""
        return {}


class Rounds:
    """All members of a population, and the order in which they train.

    Args:
        table: of the study.
        rules: of the population.
        study: id of the study.
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
        study: str,
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
        self.lineage = StudyLineage(table, rules, interval, study)
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
        self.say = say
        self._members: dict[int, Seat] = {}
        for number in range(population_size):
            self.lineage.found(number, max_steps)
            self._members[number] = seat = Seat(number, self)
            seat.fiber = Fiber(self._life(seat))

    def checkpoint(self, member: int) -> Path:
        """Where a member saves."""
        return self._folder / f"{member:03d}" / CHECKPOINT

    def checkpoint_at(self, member: int, step: int) -> Path:
        """Find a member's checkpoint of a step; its newest one if there is none."""
        last = self.checkpoint(member)
        return next((file for file, saved_at in self._intact(member) if saved_at == step), last)

    def run(self, pause_wanted: Callable[[], bool]) -> None:
        """Train all members to the end, or until a pause is wanted."""
        self.pause_wanted = pause_wanted
        if all(self.lineage.has_ended(number) for number in self._members):
            return
        for seat in self._members.values():
            settle(self.checkpoint(seat.number).parent, identity_of(self.lineage.study, seat.number, None))
            if not self.lineage.has_failed(seat.number):
                self._restore(seat)
        while (members := self._training()) and not pause_wanted():
            ended = min(self._rounds_of(seat) for seat in members)
            movers = [seat for seat in members if self._rounds_of(seat) == ended]
            forks = self._decide(movers, ended) if ended else {}
            for seat in sorted(movers, key=lambda one: not _copies(one.number, forks.get(one.number))):
                seat.graft = self._graft(seat, forks.get(seat.number))
                self._resume(seat)
                if pause_wanted():
                    return
            if scores := self.lineage.standings(self._members, ended + 1):
                self.say(self._summary(max(seat.step for seat in movers), scores.values()))

    def _decide(self, movers: Sequence[Seat], ended: int) -> dict[int, Fork | None]:
        """Decide for all at the end of a round, from what the study holds."""
        standings = self.lineage.standings(self._members, ended)
        history = self.lineage.history(ended)
        step = ended * self._interval
        return {
            seat.number: self._rules.decide(seat.number, step, standings, history)
            for seat in movers
            if seat.number in standings
        }

    def _rounds_of(self, seat: Seat) -> int:
        return seat.step // self._interval

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
        if self.lineage.has_ended(seat.number):
            seat.fiber.done = True
        elif seat.step >= self.max_steps:
            seat.fiber.done = True
            seat.finish()  # a kill may fall between the last value and the end of the trial
        elif seat.step:
            self._resume(seat)

    def _saved(self, member: int) -> tuple[Path | None, int]:
        """Find the newest checkpoint that is intact and was judged.

        A kill may fall between the two. What was not judged goes: the next save would keep it in place of the judged
        one, and a kill at the same moment would leave none.
        """
        for file, step in self._intact(member):
            trial = self.lineage.at(member, step)
            if trial is not None and step in self.table.rows[trial].values:
                return file, step
            file.unlink()
        return None, 0

    def _intact(self, member: int) -> Iterator[tuple[Path, int]]:
        """A member's checkpoints with their steps, the newest first; damaged ones are set aside."""
        last = self.checkpoint(member)
        checkpoints.remove_leftovers(last)
        for file in (last, checkpoints.previous_of(last)):
            try:
                yield file, int(checkpoints.load(file, key=self._key)["global_step"])
            except FileNotFoundError:
                continue
            except checkpoints.DamagedCheckpointError as error:
                self.say(f"{error} It was moved to {checkpoints.set_aside(file).name}.")

    def _resume(self, seat: Seat) -> None:
        seat.fiber.resume()
        error = seat.fiber.error
        if error is None and seat.fiber.done and seat.step < self.max_steps:
            error = JobError(f"its fit ended before the decision after step {seat.step}, though `max_steps` is more")
        if error is None or isinstance(error, Cancelled):
            return
        seat.state = None
        if isinstance(
            error.__context__, KeyboardInterrupt
        ):  # Lightning sets a signal handler then, which a thread may not
            raise KeyboardInterrupt
        if isinstance(error, MisconfigurationException | ParameterMismatchError | KeyboardInterrupt | SystemExit):
            raise error
        if _is_of_storage(error):  # all stays as it is, and the same command continues
            raise error
        trial = self.lineage.at(seat.number, seat.step + 1)
        assert trial is not None
        reason = failure_text(error, self.table.rows[trial].params)
        if self.table.rows[trial].state != "running":
            self.say(f"member {seat.number} had come to its end when its Trainer failed: {reason.splitlines()[0]}")
            return
        self.table.fail(trial, reason)
        self.say(f"member {seat.number} failed after step {seat.step}: {reason.splitlines()[0]}")

    def _life(self, seat: Seat) -> Callable[[], None]:
        def life() -> None:
            member = RoundMember(
                seat,
                self._rules.space,
                monitor=self._monitor,
                interval=self._interval,
                checkpoint=self.checkpoint(seat.number),
                identity=seat.identity,
            )
            params = self.params_at(seat.number, seat.step)
            member.rebuild = Rebuild(self._build, params, effects=self._effects)
            self._fit(seat.number, params, member, seat.source)

        return life

    def _training(self) -> list[Seat]:
        return [one for one in self._members.values() if not one.fiber.done and not self.lineage.has_failed(one.number)]

    def _graft(self, seat: Seat, fork: Fork | None) -> Graft | None:
        if fork is None:
            return None
        donor = self._members[fork.donor]
        parent = self.lineage.at(fork.donor, donor.step)
        assert parent is not None
        if donor is seat:
            return Graft(seat.number, parent, seat.step, fork.params, None)
        if donor.state is None:  # it failed, or ended in an earlier run
            return None
        return Graft(fork.donor, parent, donor.step, fork.params, donor.state())

    def _summary(self, step: int, standings: Collection[Standing]) -> str:
        scores = sorted((one.score for one in standings), reverse=self._rules.mode == "max")
        listed = " ".join(f"{score:.4g}" for score in scores[:8])
        return f"step {step}: {self._monitor} of {len(scores)} members, best first: {listed}"


def _is_of_storage(error: BaseException) -> bool:
    """Whether an error is the disk's or the database's, not the member's."""
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, _STORAGE) or (isinstance(one, OSError) and one.errno in _FULL):
            return True
        one = one.__cause__ or one.__context__
    return False


def _copies(member: int, fork: Fork | None) -> bool:
    return fork is not None and fork.donor != member
