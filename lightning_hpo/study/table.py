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
from optuna.trial import TrialState, create_trial

from lightning_hpo.records import FOLDS, Outcome, Row
from lightning_hpo.study.rows import (
    BY_JOB,
    CONFIRMS,
    DECIDED,
    ENDED,
    FAILURE,
    OPTIMIZER_STEPS,
    OWNER,
    PARENT,
    SEED,
    SEGMENT,
    STATES,
    STOPPED,
    VALIDATIONS,
    VIOLATIONS,
    TrialRows,
    origin_of,
    trial_seed,
)


class TrialTable(TrialRows):
    """The rows of one study, each change written to the storage before it shows in :attr:`rows`.

    Arguments are those of :class:`~lightning_hpo.study.rows.TrialRows`. Without ``leases`` this process must be the
    only writer of the study, apart from its own jobs.
    """

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
        origin = origin_of(notes)
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

    def repeat(self, number: int) -> int:
        """Add a trial with the parameters of another one, to confirm it, and return its number."""
        trial = self._storage.get_trial(self._ids[number])
        return self.add(trial.params, trial.distributions, confirms=number)

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
        return trial_seed(self._seed, number) if self._trial_seed is None else self._trial_seed

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

    def own(self, trial: optuna.Trial, *, by_job: bool = False) -> None:
        """Write down that a trial of a study that was given belongs to this search, and whether jobs score it."""
        if by_job:
            self._storage.set_trial_system_attr(trial._trial_id, BY_JOB, True)  # noqa: SLF001  # as below
        if self._run is not None:
            self._storage.set_trial_system_attr(trial._trial_id, OWNER, self._run)  # noqa: SLF001  # no public name

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
        """Write down where a Trainer stood, what the score is made of and other notes, before the value there."""
        notes, row = dict(outcome.notes), self._rows[number]
        row = replace(row, folds=tuple(notes.get(FOLDS, row.folds)))
        if outcome.global_step is not None:
            at = {**row.global_steps, outcome.step: outcome.global_step}
            row = replace(row, global_steps=at, full_steps=outcome.full_steps)
            notes[OPTIMIZER_STEPS] = {"full": outcome.full_steps, **{str(step): at for step, at in at.items()}}
        if outcome.scored_from:
            seen = {**row.validations, **outcome.validations}
            row = replace(row, scored_from=outcome.scored_from, validations=seen)
            made_of = [list(validation) for validation in outcome.scored_from]
            notes[VALIDATIONS] = {"score": made_of, **{str(step): value for step, value in seen.items()}}
        for key, note in notes.items():
            self._storage.set_trial_user_attr(self._ids[number], key, note)
        self._rows[number] = row

    def note_decision(self, number: int, step: int) -> None:
        """Write down that a member of a population goes on to ``step`` as it is."""
        self._storage.set_trial_system_attr(self._ids[number], DECIDED, step)
        self._rows[number] = replace(self._rows[number], decided=step)

    def note_stop(self, number: int, step: int) -> None:
        """Write down that a callback asked to stop a trial at ``step``, although it is to train on."""
        stopped = tuple(dict.fromkeys((*self._rows[number].stopped, step)))
        self._storage.set_trial_system_attr(self._ids[number], STOPPED, list(stopped))
        self._rows[number] = replace(self._rows[number], stopped=stopped)

    def constrain(self, number: int, step: int, constraints: Mapping[str, float]) -> None:
        """Write the values of the constraints at ``step``, as Optuna keeps them, in place of those at earlier steps."""
        row, violation = self._rows[number], sum(max(value, 0.0) for value in constraints.values())
        violations = {**row.violations, **({step: violation} if violation else {})}
        notes: dict[str, Any] = {f"constraints:{name}": value for name, value in constraints.items()}
        if violation:
            notes[VIOLATIONS] = {str(at): amount for at, amount in violations.items()}
        for key, value in notes.items():
            self._storage.set_trial_system_attr(self._ids[number], key, value)
        self._rows[number] = replace(row, feasible=not violation, violations=violations)
        self._notes[number] |= notes

    def complete(self, number: int, values: Sequence[float], ended: str | None = None) -> None:
        """End a trial that reached the full budget, or finished by itself before."""
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
        self._rows[number] = replace(self._rows[number], target=None, state=STATES[state], scored=scored)
        if self._leases is not None:
            self._leases.free(number)
