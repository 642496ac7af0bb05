"""The files of a member in the folder of a population: its record, and its signs of life."""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning_hpo.atomic import atomic_write, open_own
from lightning_hpo.schedulers.population import MemberScore
from lightning_hpo.study.lineage import Segment

_PER_TIMEOUT = 20  # signs of life per timeout


@dataclass
class Record:
    """What one member tells the others.

    Args:
        member: who writes it.
        segments: its trials.
        status: "training", "finished" or "failed".
        step: of its last score.
        decided: step at which it last knew whether others may copy it.
        published: step of its state on disk, or None.
        events: what happened, for people to read.
        stopped: last step at which it was asked to stop, or None.
    """

    member: int
    segments: list[Segment]
    status: str = "training"
    step: int = 0
    decided: int = 0
    published: int | None = None
    events: list[str] = field(default_factory=list)
    stopped: int | None = None

    @property
    def member_score(self) -> MemberScore | None:
        """Last value of the monitored metric, and what goes with it; None before the first score."""
        values = {step: value for segment in self.segments for step, value in segment.values.items()}
        params, stopped = self.segments[-1].params, self.stopped == self.step
        return MemberScore(values[self.step], params, stopped) if self.step in values else None

    def begin(
        self, start: int, params: Mapping[str, Any], parent: int | None, forked_at: int | None, members: int
    ) -> None:
        """Begin a segment."""
        last = max(segment.number for segment in self.segments)
        number = (last // members + 1) * members + self.member
        self.segments.append(Segment(number, self.member, start, dict(params), parent=parent, forked_at=forked_at))

    def branch_off(self, before: "Record", step: int, members: int) -> None:
        """Keep what the member trained beyond its checkpoint: others may descend from it. It goes on as its own child.

        Args:
            before: its record when it died.
            step: of the last decision before the checkpoint.
            members: of the population.
        """
        own = {segment.number: segment for segment in self.segments}
        written = {segment.number: segment for segment in before.segments}
        if all(
            number in own and segment.values.keys() <= own[number].values.keys() for number, segment in written.items()
        ):
            return  # nothing was written after the checkpoint
        last = self.segments[-1]
        is_first = last.parent is None and last.start == step
        self.segments = [*written.values(), *(segment for number, segment in own.items() if number not in written)]
        self.begin(step, last.params, None if is_first else last.number, None if is_first else step, members)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**self.__dict__, "segments": [segment.as_json() for segment in self.segments]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Record":
        """Undo :meth:`as_json`."""
        return cls(**{**stored, "segments": [Segment.from_json(segment) for segment in stored["segments"]]})


class SignsOfLife:
    """Which members are alive: each touches a file while it works. Clocks of other machines are not compared.

    Args:
        path: of the population's folder.
        member: that gives signs here.
        timeout: seconds without a sign after which a member counts as dead.
    """

    def __init__(self, path: Path, member: int, timeout: float) -> None:
        self._path = path
        self._member = member
        self._timeout = timeout
        self._last_sign = -timeout
        self._seen: dict[int, tuple[int, float]] = {}  # member -> stamp of its file, and when it was seen to change

    def give(self) -> None:
        """Give a sign of life; cheap enough for every step."""
        now = time.monotonic()
        if now - self._last_sign >= self._timeout / _PER_TIMEOUT:
            self._last_sign = now
            sign = member_folder(self._path, self._member) / "alive"
            os.close(open_own(sign, os.O_WRONLY | os.O_CREAT))
            os.utime(sign)

    def are_missing(self, member: int) -> bool:
        """Whether a member gave no sign of life for the timeout, since it was looked at first."""
        try:
            stamp = (member_folder(self._path, member) / "alive").stat().st_mtime_ns
        except FileNotFoundError:
            stamp = 0
        now = time.monotonic()
        if member not in self._seen or self._seen[member][0] != stamp:
            self._seen[member] = (stamp, now)
        return now - self._seen[member][1] > self._timeout


def read_record(path: str | Path, member: int) -> Record | None:
    """Read a member's record; None if there is none or it is damaged."""
    try:
        stored = json.loads((member_folder(Path(path), member) / "record.json").read_text())
        if stored["sha256"] != _digest(stored["content"]):
            return None
        return Record.from_json(stored["content"])
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # torn or changed: it is written again at each step
        return None


def member_folder(path: Path, member: int) -> Path:
    """Folder of a member."""
    return path / f"member_{member:03d}"


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_record(path: Path, record: Record) -> None:
    """Write a member's record with its hash; it is whole or the one before at any moment."""
    content = record.as_json()
    atomic_write(
        member_folder(path, record.member) / "record.json",
        json.dumps({"sha256": _digest(content), "content": content}),
    )
