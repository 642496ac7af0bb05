"""A population in a folder that many processes see: one writer per file, every file whole or absent, no server.

::

    population.json             what all members agree on
    seal.key                    of the user that began it; members of this user sign their states with it
    member_003/record.json      segments, status, and what happened; with its SHA-256
    member_003/state.ckpt       weights and optimizer state, only while others may copy them; sealed
    member_003/alive            touched while the member works

A state that is not signed with the key is read with ``weights_only=True``: it may be another user's.
A reader takes a damaged file for a missing one and writes down what it saw.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_hpo.atomic import atomic_write
from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.schedulers.explore import Interval
from lightning_hpo.schedulers.population import Rules
from lightning_hpo.study.lineage import Segment, intervals
from lightning_hpo.study.locks import Lock
from lightning_hpo.study.member_files import Record, SignsOfLife, member_folder, read_record, write_record
from lightning_hpo.study.population_folder import NextPhase, State, alone_in, remove_leftovers, with_storage_errors


class SharedFolder:
    """One member's view of the population.

    Args:
        path: of the folder; made if missing.
        rules: of the population.
        member: number of this member, from 0.
        population_size: members in all.
        agreed: what else all members must agree on, as JSON.
        synchronous: wait for the living members at every decision.
        timeout: seconds without a sign of life after which a member counts as dead.

    Raises:
        ValueError: if another member was started with other settings.
    """

    def __init__(
        self,
        path: str | Path,
        rules: Rules,
        *,
        member: int,
        population_size: int,
        agreed: Mapping[str, Any],
        synchronous: bool,
        timeout: float,
    ) -> None:
        self._path = Path(path)
        self._rules = rules
        self._member = member
        self._size = population_size
        self._agreed = {"population_size": population_size, "seed": rules.seed, "mode": rules.mode, **agreed}
        self._synchronous = synchronous
        self._timeout = timeout
        self._signs = SignsOfLife(self._path, member, timeout)
        self._lock: Lock | None = None
        self._carried_out = 0  # step of the last decision that the member went on from
        self.record = Record(member, [])

    @property
    def path(self) -> Path:
        """Of the folder."""
        return self._path

    @with_storage_errors
    def join(self, step: int, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take the member's place and return its hyperparameters.

        Args:
            step: where its training begins.
            earlier: its record in the checkpoint that it continues, or None.

        Raises:
            RuntimeError: if another process on this machine is the same member.
        """
        own = member_folder(self._path, self._member)
        own.mkdir(parents=True, exist_ok=True)
        with alone_in(self._path):
            remove_leftovers(self._path)
            _agree(self._path, self._agreed)
        lock = Lock(own / "lock")
        if not lock.take():
            raise RuntimeError(f"member {self._member} of {self._path} is at work in another process.")
        self._lock = lock
        remove_leftovers(own)
        before = read_record(self._path, self._member)
        if earlier is not None:
            self.record = Record.from_json(earlier)
        else:
            self.record = Record(
                self._member, [Segment(self._member, self._member, step, self._rules.initial(self._member))]
            )
        self._carried_out = self.record.segments[-1].start
        if before is not None:
            self.record.events = before.events
            self.record.branch_off(before, step, self._size)
        if earlier is not None:
            self._note(f"step {step}: continued from a checkpoint")
        elif before is not None:
            self._note(f"step {step}: started anew; an earlier run ended at step {before.step} ({before.status})")
        self.record.status = "training"
        if before is not None:  # the state on disk stays of use
            self.record.published = before.published
        self._write()
        self.heartbeat()
        return dict(self.record.segments[-1].params)

    @with_storage_errors
    def report(
        self, step: int, score: float, capture: Callable[[], State], *, stopped: bool = False
    ) -> NextPhase | None:
        """Write down a score, publish the state if others may copy it, and say how to go on."""
        self.record.segments[-1].values[step] = float(score)
        self.record.step = step
        if stopped:
            self.record.stopped = step
            self._note(f"step {step}: asked to stop")
        self._write()
        self.heartbeat()
        return self.decide(step, capture)

    @with_storage_errors
    def decide(self, step: int, capture: Callable[[], State]) -> NextPhase | None:
        """Say how to go on after a reported step; None after another, or if the decision was carried out already."""
        if step != self.record.step or step == self._carried_out:
            return None
        records = self._gather(step)
        member_scores = {
            member: known for member, record in records.items() if (known := record.member_score) is not None
        }
        _, top = self._rules.truncate(member_scores)
        self._publish(step, capture, is_donor=self._member in top)
        history = self._history(step)
        while (
            self._member in member_scores
            and (fork := self._rules.decide(self._member, step, member_scores, history)) is not None
        ):
            if fork.donor == self._member:
                return NextPhase(self._member, self.record.segments[-1].number, step, fork.params, None)
            taken = self._take(fork.donor, step)
            if taken is None:
                del member_scores[fork.donor]
                continue
            if dict(taken["params"]) != dict(member_scores[fork.donor].params):  # the donor went on in the meantime
                member_scores[fork.donor] = replace(member_scores[fork.donor], params=taken["params"])
                fork = self._rules.explore_from(self._member, step, fork.donor, member_scores[fork.donor], history)
            return NextPhase(fork.donor, taken["number"], taken["step"], fork.params, taken["state"])
        return None

    @with_storage_errors
    def applied(self, step: int, following: NextPhase) -> None:
        """Write down that the member goes on as decided."""
        self.record.begin(step, following.params, following.parent, following.forked_at, self._size)
        self._carried_out = step
        if following.state is not None:
            self._note(f"step {step}: copied member {following.donor} at its step {following.forked_at}")
        self._write()

    @with_storage_errors
    def heartbeat(self) -> None:
        """Give a sign of life; cheap enough for every step."""
        self._signs.give()

    @with_storage_errors
    def leave(self, status: str, reason: str) -> None:
        """End the member's part: "finished", or "failed" for good."""
        if self._lock is None:
            return
        self.record.status = status
        self._note(reason)
        try:
            self._write()
        except OSError as error:
            if status == "finished":
                raise
            logging.getLogger(__name__).warning("%s: how member %d ended is lost: %s", self._path, self._member, error)
        finally:
            self._lock.free()
            self._lock = None

    def state_dict(self) -> dict[str, Any]:
        """Return the record, for a checkpoint of the member."""
        return self.record.as_json()

    def _gather(self, step: int) -> dict[int, Record]:
        """Read the records of the living; when synchronous, wait until they have reached ``step``."""
        pause = 0.01
        while True:
            records = {self._member: self.record}
            behind = False
            for member in range(self._size):
                if member == self._member:
                    continue
                record, silent = read_record(self._path, member), self._silent(member)
                if record is not None and record.status == "training" and not silent:
                    records[member] = record
                behind |= not silent and (record is None or (record.status == "training" and record.step < step))
            if not self._synchronous or not behind:
                return records
            self.heartbeat()
            time.sleep(pause)
            pause = min(pause * 1.5, 0.5)

    def _history(self, step: int) -> list[Interval]:
        """All intervals that any member has written down, the dead ones' too, up to this member's step."""
        others = (read_record(self._path, member) for member in range(self._size) if member != self._member)
        return intervals([segment for record in (self.record, *others) if record for segment in record.segments], step)

    def _silent(self, member: int) -> bool:
        """Whether a member gave no sign of life while we watched it for the timeout."""
        silent = self._signs.are_missing(member)
        if silent:
            self._note_once(f"member {member} gave no sign of life for {self._timeout:g} s: left out")
        return silent

    def _publish(self, step: int, capture: Callable[[], State], *, is_donor: bool) -> None:
        path = member_folder(self._path, self._member) / "state.ckpt"
        if is_donor:
            last = self.record.segments[-1]
            content = {"step": step, "number": last.number, "params": dict(last.params), "state": capture()}
            checkpoints.save(content, path, Key.made_in(self._path))
        elif self.record.published is not None:
            checkpoints.remove(path)
        self.record.decided = step
        self.record.published = step if is_donor else None
        self._write()

    def _take(self, donor: int, step: int) -> State | None:
        """Read a donor's state; None if it has none or it is damaged."""
        if self._synchronous and not self._wait_for_state(donor, step):
            return None
        path = member_folder(self._path, donor) / "state.ckpt"
        try:
            return checkpoints.load(path, key=Key.of(self._path))
        except FileNotFoundError:
            return None
        except (RuntimeError, OSError) as error:
            self._note(f"step {step}: did not copy member {donor}: {str(error).splitlines()[0]}")
            self._write()
            return None

    def _wait_for_state(self, donor: int, step: int) -> bool:
        while not self._silent(donor):
            record = read_record(self._path, donor)
            if record is not None and (record.decided >= step or record.status != "training"):
                return record.published is not None  # it may have seen other members alive than we have
            self.heartbeat()
            time.sleep(0.02)
        return False

    def _note(self, event: str) -> None:
        self.record.events.append(event)

    def _note_once(self, event: str) -> None:
        if event not in self.record.events:
            self._note(event)

    def _write(self) -> None:
        write_record(self._path, self.record)


def _agree(path: Path, agreed: Mapping[str, Any]) -> None:
    """Write down what all members must agree on, or raise ValueError if it is something else already."""
    file = path / "population.json"
    text = json.dumps(agreed, indent=1)
    if not file.exists():
        atomic_write(file, text)
    stored = json.loads(file.read_text())
    different = [key for key in {**stored, **agreed} if stored.get(key) != json.loads(text).get(key)]
    if different:
        listed = "; ".join(f"{key} was {stored.get(key)!r}, now {agreed.get(key)!r}" for key in different)
        raise ValueError(f"the population in {path} was started with other settings: {listed}.")
