"""The table of trials: what schedulers read, and the one place that knows how Optuna stores it.

A study holds everything that is decided or measured. Each change goes to Optuna's storage first and into the rows
second, so what a scheduler sees has already survived a crash.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_hpo.records import Row, State
from lightning_hpo.study.leases import Claims

# User attributes, so that a dashboard shows them.
PARENT = "parent"
FAILURE = "failure"
ENDED = "ended"  # why a trial finished by itself
STEP = "step"  # where a trial stood whose study takes no intermediate values, if that is not the full budget
# System attribute of a trial whose values are scores of jobs, each with a checkpoint. A trial without it reports its
# validations while it trains, and has a score when it has ended.
BY_JOB = "lightning_hpo:by_job"
# System attribute of a population's trial: its member, its first step, and where its parent was when it was forked.
SEGMENT = "segment"

_STATES: dict[TrialState, State] = {
    TrialState.WAITING: "running",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class TrialTable:
    """The rows of one study, each change written to the storage before it shows in :attr:`rows`.

    Args:
        study: to read and extend. Without ``claims`` this process must be its only writer.
        storage: of ``study``.
        claims: where several processes share the study, what says who works on which trial.
    """

    def __init__(self, study: optuna.Study, storage: BaseStorage, claims: Claims | None = None) -> None:
        self._study = study
        self._storage = storage
        self._claims = claims
        self._study_id = storage.get_study_id_from_name(study.study_name)
        trials = study.get_trials(deepcopy=False)
        self._ids = [trial._trial_id for trial in trials]  # noqa: SLF001  # the storage's handle has no public name
        self._rows = [_row(trial) for trial in trials]
        self._notes = [dict(trial.system_attrs) for trial in trials]
        self._study_notes = dict(storage.get_study_system_attrs(self._study_id))

    @property
    def rows(self) -> Sequence[Row]:
        """All trials in order of their number; do not modify."""
        return self._rows

    @property
    def notes(self) -> Sequence[Mapping[str, Any]]:
        """What the sampler wrote beside each trial (Optuna's system attributes), in the order of :attr:`rows`."""
        return self._notes

    @property
    def study_notes(self) -> Mapping[str, Any]:
        """What the sampler wrote about the whole study (Optuna's system attributes)."""
        return self._study_notes

    def note(self, notes: Mapping[str, Any]) -> None:
        """Write what has changed in the sampler's notes about the study."""
        for key, value in notes.items():
            if self._study_notes.get(key) != value:
                self._storage.set_study_system_attr(self._study_id, key, value)
                self._study_notes[key] = value

    def add(
        self,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        *,
        target: int,
        parent: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> int:
        """Write a new running trial, all parameters in one transaction, and return its number."""
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: distributions[name] for name in params},
            user_attrs={} if parent is None else {PARENT: parent},
            system_attrs={**(notes or {}), BY_JOB: True},
        )
        self._ids.append(self._storage.create_new_trial(self._study_id, template_trial=trial))
        start = _start(notes or {})
        self._rows.append(Row(len(self._rows), params=dict(params), target=target, parent=parent, start=start))
        self._notes.append(dict(notes or {}))
        if self._claims is not None:
            self._claims.take(len(self._rows) - 1, target)
        return len(self._rows) - 1

    def refresh(self) -> None:
        """Read what other processes have written, and which trials are at work; for a study that is shared."""
        assert self._claims is not None
        trials = self._study.get_trials(deepcopy=False)
        for index, trial in enumerate(trials):
            known = index < len(self._rows)
            if known and self._rows[index].state != "running":
                continue  # it has ended
            row = _row(trial)
            if row.state == "running":
                row = replace(row, target=self._claims.target(row.number))
            if not known:
                self._ids.append(trial._trial_id)  # noqa: SLF001  # the storage's handle has no public name
                self._rows.append(row)
                self._notes.append(dict(trial.system_attrs))
            elif row != self._rows[index]:  # who reads the rows may compare by identity
                self._rows[index] = row
        self._study_notes = dict(self._storage.get_study_system_attrs(self._study_id))

    def promise(self, number: int, target: int | None) -> None:
        """Mark a trial as worked on up to ``target``, or as free again (None). The mark dies with this process."""
        if self._claims is not None:
            self._claims.free(number)
            if target is not None:
                self._claims.take(number, target)
        self._rows[number] = replace(self._rows[number], target=target)

    def record(self, number: int, step: int, value: float) -> None:
        """Write the value of the monitored metric at ``step`` (any float, NaN included); a promise of it is kept."""
        self._storage.set_trial_intermediate_value(self._ids[number], step, value)
        row = self._rows[number]
        if self._claims is not None and row.target is not None and step >= row.target:
            self._claims.free(number)
        self._rows[number] = replace(row, values={**row.values, step: value})

    def complete(self, number: int, value: float, ended: str | None = None) -> None:
        """End a trial that reached the full budget with ``value``, or finished by itself before.

        Args:
            number: of the trial.
            value: its last one.
            ended: why it finished by itself.
        """
        if ended is not None:
            self._storage.set_trial_user_attr(self._ids[number], ENDED, ended)
            self._rows[number] = replace(self._rows[number], ended=ended)
        self._finish(number, TrialState.COMPLETE, value)

    def prune(self, number: int) -> None:
        """End a trial that will get no further budget; its last value stays its value."""
        values = self._rows[number].values
        last = values[max(values)] if values else math.nan
        self._finish(number, TrialState.PRUNED, None if math.isnan(last) else last)

    def fail(self, number: int, reason: str) -> None:
        """End a trial that gave no usable value, and keep the reason with it."""
        self._storage.set_trial_user_attr(self._ids[number], FAILURE, reason)
        self._finish(number, TrialState.FAIL, None)

    def _finish(self, number: int, state: TrialState, value: float | None) -> None:
        self._storage.set_trial_state_values(self._ids[number], state, None if value is None else [value])
        self._rows[number] = replace(self._rows[number], target=None, state=_STATES[state])
        if self._claims is not None:
            self._claims.free(number)


def read_rows(study: optuna.Study, at: int | None = None) -> list[Row]:
    """Rows of a study that somebody else may be writing.

    Args:
        study: to read.
        at: step of the values of a trial that has no intermediate ones, as in a study with several objectives; of
            those the first counts. None leaves such a trial without values.
    """
    trials = study.get_trials(deepcopy=False)
    rows = [_row(trial) for trial in trials]
    if at is None:
        return rows
    return [
        replace(row, values={trial.user_attrs.get(STEP, at): trial.values[0]})
        if trial.values and not row.values
        else row
        for row, trial in zip(rows, trials, strict=True)
    ]


def attach(study: optuna.Study, trial: FrozenTrial) -> optuna.Trial:
    """Take up a running trial whose process has died."""
    return optuna.Trial(study, trial._trial_id)  # noqa: SLF001  # the storage's handle has no public name


def _row(trial: FrozenTrial) -> Row:
    return Row(
        number=trial.number,
        params=dict(trial.params),
        values=dict(trial.intermediate_values),
        parent=trial.user_attrs.get(PARENT),
        state=_STATES[trial.state],
        start=_start(trial.system_attrs),
        ended=trial.user_attrs.get(ENDED),
        scored=trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or BY_JOB in trial.system_attrs,
        feasible=all(value <= 0 for value in trial.constraints.values()),
    )


def _start(notes: Mapping[str, Any]) -> int:
    start: int = notes.get(SEGMENT, {}).get("start", 0)
    return start
