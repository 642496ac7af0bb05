"""Trials of a study as rows: what schedulers read, and the one place that knows where Optuna keeps it."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import optuna
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.records import FOLDS, Row, State
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
# Where a score is not simply the last validation: {"score": [[optimizer step, value], ...] that the last score is made
# of, step of the study -> monitored metric there}.
VALIDATIONS = "validations"
# System attribute of a trial whose values are scores of jobs, each with a checkpoint. A trial without it reports its
# validations while it trains, and has a score when it has ended.
BY_JOB = "lightning_hpo:by_job"
# System attribute of a population's trial: its member, its first step, and where its parent was when it was forked.
SEGMENT = "segment"
# System attribute of a population's trial: the step that it was last decided to go on to.
DECIDED = "lightning_hpo:decided"
# System attribute: step -> sum of all constraints above 0 there.
VIOLATIONS = "lightning_hpo:violations"
# System attribute: steps at which a callback asked to stop a trial that was to train on.
STOPPED = "lightning_hpo:stopped"

FOREIGN = sys.maxsize
"""Target of a running trial that belongs to somebody else."""
# System attribute of a trial of a study that was given: the run folder of the search that it belongs to.
OWNER = "lightning_hpo:run"

STATES: dict[TrialState, State] = {
    TrialState.WAITING: "running",
    TrialState.RUNNING: "running",
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
}


class TrialRows:
    """The rows of one study, as they are read.

    Args:
        study: to read.
        storage: of ``study``.
        leases: where several processes share the study, which process works on which trial.
        at: step of the value of a finished trial that has no values at steps, as other programs write them. None
            leaves such a trial without values.
        run: of a study that was given, the run folder of this search: running trials of others are left alone.
        seed: of the search; it and a trial's number give the seed of the trial.
        trial_seed: of every trial, in place of that.
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
        trial_seed: int | None = None,
    ) -> None:
        self._seed, self._trial_seed = seed, trial_seed
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

    def _append(self, trial: FrozenTrial) -> None:
        self._ids.append(trial._trial_id)  # noqa: SLF001  # the storage's handle has no public name
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
        is_ours = self._run in (None, trial.system_attrs.get(OWNER)) or trial.state is TrialState.WAITING
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
        state=STATES[trial.state],
        ended=trial.user_attrs.get(ENDED),
        scored=trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or BY_JOB in trial.system_attrs,
        feasible=all(value <= 0 for value in trial.constraints.values()),
        seed=trial.user_attrs.get(SEED),
        decided=trial.system_attrs.get(DECIDED),
        confirms=trial.user_attrs.get(CONFIRMS),
        folds=tuple(trial.user_attrs.get(FOLDS, ())),
        violations={int(step): amount for step, amount in trial.system_attrs.get(VIOLATIONS, {}).items()},
        stopped=tuple(trial.system_attrs.get(STOPPED, ())),
        **global_steps_of(trial),
        **_validations_of(trial),
        **origin_of(trial.system_attrs),
    )


def global_steps_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return where a trial's Trainer stood, as fields of its row."""
    noted = dict(trial.user_attrs.get(OPTIMIZER_STEPS, {}))
    full = noted.pop("full", None)
    return {"full_steps": full, "global_steps": {int(step): at for step, at in noted.items()}}


def _validations_of(trial: FrozenTrial) -> dict[str, Any]:
    """Return what a trial's score is made of, as fields of its row."""
    noted = dict(trial.user_attrs.get(VALIDATIONS, {}))
    made_of = tuple((int(step), float(value)) for step, value in noted.pop("score", ()))
    return {"scored_from": made_of, "validations": {int(step): value for step, value in noted.items()}}


def origin_of(notes: Mapping[str, Any]) -> dict[str, Any]:
    """Return where a trial begins, as fields of its row: step, member, and step of the parent."""
    segment = notes.get(SEGMENT, {})
    return {"start": segment.get("start", 0), "member": segment.get("member"), "forked_at": segment.get("forked_at")}
