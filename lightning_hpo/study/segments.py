"""The segments of a population in its study: who trained what from where, and what decisions are made from."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_hpo.schedulers.explore import Interval
from lightning_hpo.schedulers.population import Rules, Standing
from lightning_hpo.study.lineage import Segment, intervals
from lightning_hpo.study.shared_folder import Graft
from lightning_hpo.study.table import SEGMENT, TrialTable
from lightning_hpo.study.trial_folders import identity_of

STOPS = "stops"
"""Study note: member -> steps at which it was asked to stop."""


class StudyLineage:
    """The segments of all members, kept in the study.

    Args:
        table: of the study.
        rules: of the population.
        interval: optimizer steps of a round. Round n ends at the first step at or after n intervals.
        study: its id.
    """

    def __init__(self, table: TrialTable, rules: Rules, interval: int, study: str) -> None:
        self.study = study
        self._table = table
        self._rules = rules
        self._interval = interval

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

    def identity(self, number: int) -> dict[str, Any]:
        """What the checkpoints of a trial carry."""
        return identity_of(self.study, number, self._table.rows[number].params)

    def has_failed(self, member: int) -> bool:
        """Whether a member is out."""
        return any(
            row.state == "failed"
            for row, notes in zip(self._table.rows, self._notes(), strict=True)
            if notes["member"] == member
        )

    def has_ended(self, member: int) -> bool:
        """Whether a member has no more to train."""
        last = self.at(member, sys.maxsize)
        return last is not None and self._table.rows[last].state in ("complete", "failed")

    def standings(self, members: Iterable[int], ended: int) -> dict[int, Standing]:
        """Scores and hyperparameters of the living members at the end of a round."""
        living = [member for member in members if not self.has_failed(member)]
        standings = {}
        for row, notes in zip(self._table.rows, self._notes(), strict=True):
            for step in row.values:
                if step // self._interval == ended and notes["member"] in living:
                    stopped = step in self._stops().get(str(notes["member"]), ())
                    standings[notes["member"]] = Standing(row.values[step], row.params, stopped=stopped)
        return {member: standings[member] for member in living if member in standings}

    def note_stop(self, member: int, step: int) -> None:
        """Write down that a member was asked to stop at ``step``, unless a killed run has."""
        stops = self._stops()
        if step not in stops.get(str(member), ()):
            self._table.note({STOPS: {**stops, str(member): [*stops.get(str(member), ()), step]}})

    def history(self, ended: int) -> list[Interval]:
        """All intervals up to the end of a round."""
        segments = [
            Segment(number=row.number, params=row.params, values=dict(row.values), parent=row.parent, **notes)
            for row, notes in zip(self._table.rows, self._notes(), strict=True)
        ]
        return intervals(segments, (ended + 1) * self._interval - 1)

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

    def _stops(self) -> Mapping[str, Sequence[int]]:
        stops: Mapping[str, Sequence[int]] = self._table.study_notes.get(STOPS, {})
        return stops

    def _add(self, segment: Segment, max_steps: int) -> None:
        self._table.add(segment.params, self._rules.space, parent=segment.parent, notes=segment.notes())
