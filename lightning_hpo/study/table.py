"""The table of trials: what schedulers read, and the one place that knows how Optuna stores it.

A study holds everything that is decided or measured. Each change goes to Optuna's storage first and into the rows
second, so what a scheduler sees has already survived a crash.
"""

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from lightning_hpo.records import Outcome, Row, State
from lightning_hpo.study.leases import Leases

# User attribute of a study: the settings that it was begun with.
FINGERPRINT = "lightning_hpo"
# User attributes of trials, so that a dashboard shows them.
PARENT = "parent"
SEED = "seed"  # of everything random in it
CONFIRMS = "confirms"  # number of the trial whose parameters it trains once more
FAILURE = "failure"
ENDED = "ended"  # why a trial finished by itself
# In a study whose budgets are in epochs or samples: {"full": optimizer steps of the full budget, step of the study ->
# optimizer step at which the Trainer stood}.
OPTIMIZER_STEPS = "optimizer_steps"
# System attribute of a trial whose values are scores of jobs, each with a checkpoint. A trial without it reports its
# validations while it trains, and has a score when it has ended.
BY_JOB = "lightning_hpo:by_job"
# System attribute of a population's trial: its member, its first step, and where its parent was when it was forked.
SEGMENT = "segment"
# System attribute: steps at which a callback asked to stop a trial that was to train on.
STOPPED = "lightning_hpo:stopped"

FOREIGN = sys.maxsize
"""Target of a running trial that belongs to somebody else."""
# System attribute of a trial of a study that was given: the run folder of the search that it belongs to.
_RUN = "lightning_hpo:run"

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
        study: to read and extend. Without ``leases`` this process must be its only writer, apart from its own jobs.
        storage: of ``study``.
        leases: where several processes share the study, which process works on which trial.
        at: step of the value of a finished trial that has no values at steps, as other programs write them. None
            leaves such a trial without values.
        run: of a study that was given, the run folder of this search: running trials of others are left alone.
        seed: of the search; it and a trial's number give the seed of the trial.
    """

    def __init__(
        self,
        study: optuna.Study,
        storage: BaseStorage,
        leases: Leases | None = None,
        *,
        at: int | None = None,
        run: str | None = None,
        seed: int = 0,
    ) -> None:
        self._seed = seed
        self._study = study
        self._storage = storage
        self._leases = leases
        self._at = at
        self._run = run
        self._study_id = storage.get_study_id_from_name(study.study_name)
        self._ids: list[int] = []
        self._rows: list[Row] = []
        self._notes: list[dict[str, Any]] = []
        self.reread(0)
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
        parent: int | None = None,
        confirms: int | None = None,
        notes: Mapping[str, Any] | None = None,
    ) -> int:
        """Write a new running trial, all parameters in one transaction, and return its number.

        Args:
            params: of the trial.
            distributions: name -> distribution of each parameter.
            parent: number of the trial whose weights it starts from, at the last step that it has a value at.
            confirms: number of the trial whose parameters these are.
            notes: of the sampler.
        """
        notes = {**(notes or {}), BY_JOB: True}
        if parent is not None and self._rows[parent].values and SEGMENT not in notes:
            step = self._rows[parent].step
            notes[SEGMENT] = {"start": step, "forked_at": step}
        origin = _origin(notes)
        seed = self._rows[origin["member"]].seed if origin["member"] is not None else self._seed_of(len(self._rows))
        known = {SEED: seed, PARENT: parent, CONFIRMS: confirms}
        trial = create_trial(
            state=TrialState.RUNNING,
            params=dict(params),
            distributions={name: distributions[name] for name in params},
            user_attrs={name: value for name, value in known.items() if value is not None},
            system_attrs=notes,
        )
        trial_id = self._storage.create_new_trial(self._study_id, template_trial=trial)
        number = self._storage.get_trial_number_from_id(trial_id)
        if number > len(self._rows):  # other programs have added trials meanwhile
            self.reread(number)
            return number
        self._ids.append(trial_id)
        self._rows.append(Row(number, params=dict(params), parent=parent, seed=seed, confirms=confirms, **origin))
        self._notes.append(dict(notes))
        return number

    def seed(self, number: int) -> int | None:
        """Return the seed of a trial; a new one that was made elsewhere, as an enqueued one, gets its own here.

        A trial that an earlier version has begun has none.
        """
        row = self._rows[number]
        if row.seed is None and not row.values:
            row = replace(row, seed=self._seed_of(number))
            self._storage.set_trial_user_attr(self._ids[number], SEED, row.seed)
            self._rows[number] = row
        return row.seed

    def _seed_of(self, number: int) -> int:
        return trial_seed(self._seed, number)

    def enqueued(self, number: int) -> dict[str, Any] | None:
        """Return the parameters that a person has chosen for a trial which waits to be started; None for another."""
        trial = self._storage.get_trial(self._ids[number]) if not self._rows[number].values else None
        if trial is None or trial.state is not TrialState.WAITING:
            return None
        return dict(trial.system_attrs.get("fixed_params", {}))

    def fill(
        self,
        number: int,
        params: Mapping[str, Any],
        distributions: Mapping[str, BaseDistribution],
        notes: Mapping[str, Any],
    ) -> None:
        """Start an enqueued trial with all its parameters."""
        trial_id = self._ids[number]
        for key, value in {**notes, BY_JOB: True}.items():
            self._storage.set_trial_system_attr(trial_id, key, value)
        for name, value in params.items():
            distribution = distributions[name]
            self._storage.set_trial_param(trial_id, name, distribution.to_internal_repr(value), distribution)
        self._storage.set_trial_state_values(trial_id, TrialState.RUNNING)
        self._replace(number, self._storage.get_trial(trial_id))

    def attach(self, number: int) -> optuna.Trial:
        """Take up a trial that is enqueued, or was left behind by a process that has died, as Optuna's own."""
        trial = self._storage.get_trial(self._ids[number])
        if trial.state is TrialState.WAITING:
            self._storage.set_trial_state_values(self._ids[number], TrialState.RUNNING)
        return optuna.Trial(self._study, self._ids[number])

    def own(self, trial: optuna.Trial) -> None:
        """Write down that a trial of a study that was given belongs to this search."""
        if self._run is not None:
            self._storage.set_trial_system_attr(trial._trial_id, _RUN, self._run)  # noqa: SLF001  # no public name

    def reread(self, number: int) -> None:
        """Read a trial that others write to: a new one, or one whose job reports its validations.

        A trial that only this table writes to is not read again.
        """
        if number < len(self._rows):
            if self._rows[number].state == "running" and not self._rows[number].scored:
                self._replace(number, self._storage.get_trial(self._ids[number]))
            return
        for trial in self._study.get_trials(deepcopy=False)[len(self._rows) :]:
            self._append(trial)

    def refresh(self) -> None:
        """Read what other processes have written, and which trials are at work; for a study that is shared."""
        assert self._leases is not None
        for index, trial in enumerate(self._study.get_trials(deepcopy=False)):
            if index >= len(self._rows):
                self._append(trial)
            elif self._rows[index].state == "running":
                self._replace(index, trial)
        self._study_notes = dict(self._storage.get_study_system_attrs(self._study_id))

    def assign(self, number: int, target: int | None) -> None:
        """Mark a trial as worked on up to ``target``, or as free again (None). The mark dies with this process."""
        if self._leases is not None:
            self._leases.free(number)
            if target is not None:
                self._leases.take(number, target)
        self._rows[number] = replace(self._rows[number], target=target)

    def record(self, number: int, step: int, value: float) -> None:
        """Write the value of the monitored metric at ``step`` (any float, NaN included), unless it is there."""
        row = self._rows[number]
        if step not in row.values or row.scored:
            self._storage.set_trial_intermediate_value(self._ids[number], step, value)
        if self._leases is not None and row.target is not None and step >= row.target:
            self._leases.free(number)
        self._rows[number] = replace(row, values={**row.values, step: value})

    def note_place(self, number: int, outcome: Outcome) -> None:
        """Write down at which optimizer step a Trainer stood; before the value there, and not if steps are counted."""
        if outcome.global_step is None:
            return
        row = self._rows[number]
        row = replace(
            row,
            global_steps={**row.global_steps, outcome.step: outcome.global_step},
            full_steps=outcome.full_steps,
        )
        noted = {"full": row.full_steps, **{str(step): at for step, at in row.global_steps.items()}}
        self._storage.set_trial_user_attr(self._ids[number], OPTIMIZER_STEPS, noted)
        self._rows[number] = row

    def note_stop(self, number: int, step: int) -> None:
        """Write down that a callback asked to stop a trial at ``step``, although it is to train on."""
        stopped = tuple(dict.fromkeys((*self._rows[number].stopped, step)))
        self._storage.set_trial_system_attr(self._ids[number], STOPPED, list(stopped))
        self._rows[number] = replace(self._rows[number], stopped=stopped)

    def constrain(self, number: int, name: str, value: float) -> None:
        """Write the value of a constraint, unless it is there: a kill can fall between it and the trial's end."""
        if name not in self._storage.get_trial(self._ids[number]).constraints:
            optuna.Trial(self._study, self._ids[number]).set_constraint(name, value)
        if value > 0:
            self._rows[number] = replace(self._rows[number], feasible=False)

    def complete(self, number: int, values: Sequence[float], ended: str | None = None) -> None:
        """End a trial that reached the full budget, or finished by itself before.

        Args:
            number: of the trial.
            values: its last ones, one for each objective.
            ended: why it finished by itself.
        """
        if ended is not None:
            self._storage.set_trial_user_attr(self._ids[number], ENDED, ended)
            self._rows[number] = replace(self._rows[number], ended=ended)
        self._finish(number, TrialState.COMPLETE, list(values))

    def prune(self, number: int) -> None:
        """End a trial that will get no further budget; its last value stays its value."""
        values = self._rows[number].values
        last = values[max(values)] if values else math.nan
        self._finish(number, TrialState.PRUNED, None if math.isnan(last) else [last])

    def fail(self, number: int, reason: str) -> None:
        """End a trial that gave no usable value, and keep the reason with it."""
        self._storage.set_trial_user_attr(self._ids[number], FAILURE, reason)
        self._finish(number, TrialState.FAIL, None)

    def _finish(self, number: int, state: TrialState, values: list[float] | None) -> None:
        if not self._rows[number].scored:  # Optuna has asked its sampler, and tells it
            trial = self._storage.get_trial(self._ids[number])
            self._study.sampler.after_trial(self._study, trial, state, values)
        self._storage.set_trial_state_values(self._ids[number], state, values)
        scored = self._rows[number].scored or state is not TrialState.FAIL
        self._rows[number] = replace(self._rows[number], target=None, state=_STATES[state], scored=scored)
        if self._leases is not None:
            self._leases.free(number)

    def _append(self, trial: FrozenTrial) -> None:
        self._ids.append(trial._trial_id)  # noqa: SLF001  # the storage's handle has no public name  # the storage's handle has no public name
        self._rows.append(self._row(trial))
        self._notes.append(dict(trial.system_attrs))

    def _replace(self, number: int, trial: FrozenTrial) -> None:
        row = self._row(trial)
        if row != self._rows[number]:  # readers of the rows may compare by identity
            self._rows[number] = row
            self._notes[number] = dict(trial.system_attrs)

    def _row(self, trial: FrozenTrial) -> Row:
        row = row_of(trial, self._at)
        if row.state != "running":
            return row
        is_ours = self._run in (None, trial.system_attrs.get(_RUN)) or trial.state is TrialState.WAITING
        if not is_ours:
            return replace(row, target=FOREIGN)
        if self._leases is not None:
            return replace(row, target=self._leases.target(row.number))
        known = self._rows[row.number].target if row.number < len(self._rows) else None
        return replace(row, target=known)


def trial_seed(seed: int, number: int) -> int:
    """Return the one seed of everything random in a trial, from the seed of its search.

    Example:
        >>> trial_seed(0, 1)
        3964924996
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def read_rows(study: optuna.Study, at: int | None = None) -> list[Row]:
    """Rows of a study that somebody else may be writing; ``at`` as for :class:`TrialTable`."""
    return [row_of(trial, at) for trial in study.get_trials(deepcopy=False)]


def row_of(trial: FrozenTrial, at: int | None = None) -> Row:
    """Return a trial as a row; ``at`` as for :class:`TrialTable`."""
    values = dict(trial.intermediate_values)
    if at is not None and trial.values and not values:
        values = {at: trial.values[0]}
    return Row(
        number=trial.number,
        params=dict(trial.params),
        values=values,
        parent=trial.user_attrs.get(PARENT),
        state=_STATES[trial.state],
        ended=trial.user_attrs.get(ENDED),
        scored=trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or BY_JOB in trial.system_attrs,
        feasible=all(value <= 0 for value in trial.constraints.values()),
        seed=trial.user_attrs.get(SEED),
        confirms=trial.user_attrs.get(CONFIRMS),
        stopped=tuple(trial.system_attrs.get(STOPPED, ())),
        **global_steps_of(trial),
        **_origin(trial.system_attrs),
    )


def global_steps_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return where a trial's Trainer stood, as fields of its row."""
    noted = dict(trial.user_attrs.get(OPTIMIZER_STEPS, {}))
    full = noted.pop("full", None)
    return {"full_steps": full, "global_steps": {int(step): at for step, at in noted.items()}}


def _origin(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Where a trial begins, as fields of its row: step, member, and step of the parent."""
    segment = notes.get(SEGMENT, {})
    return {"start": segment.get("start", 0), "member": segment.get("member"), "forked_at": segment.get("forked_at")}
