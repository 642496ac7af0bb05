"""Parameters for a new trial, from any Optuna sampler, as a pure function of (rows, seed, trial number).

The sampler never sees the stored study. It reads a view of the rows, so that a paused trial counts with the value it
has reached, and a new trial can be written with all its parameters in one transaction. Its random numbers are set from
the seed and the trial's number before each question; Optuna's own seeded samplers start their stream again in every
process, and repeat configurations after a restart.
"""

import copy
from collections.abc import Container, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.quiet import warnings_only
from lightning_hpo.schedulers import Mode
from lightning_hpo.trials import Row

_NAME = "view"
_LONG_AGO = datetime.fromtimestamp(0)  # noqa: DTZ006  # Optuna's times are naive; samplers must not see a clock


class Asker:
    """Asks a sampler for new trials.

    Args:
        sampler: any Optuna sampler. It is copied; the given object is not changed.
        space: name -> distribution.
        mode: whether lower or higher values are better.
        seed: of the search.
        study_notes: what the sampler wrote about the study in an earlier process.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        space: Mapping[str, BaseDistribution],
        *,
        mode: Mode,
        seed: int,
        study_notes: Mapping[str, Any] | None = None,
    ) -> None:
        self._sampler = copy.deepcopy(sampler)
        self._space = dict(space)
        self._seed = seed
        self._storage = _View()
        self._rows: list[Row] = []  # as they are shown in the view
        direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
        with warnings_only("optuna"):
            self._study_id = self._storage.create_new_study([direction], _NAME)
        for key, value in (study_notes or {}).items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def ask(self, rows: Sequence[Row], notes: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Suggest parameters for the trial that comes after ``rows``.

        Args:
            rows: all trials so far.
            notes: what earlier suggestions left beside each of them.

        Returns:
            The parameters, as plain Python values inside their distributions, and the sampler's notes on this trial.
        """
        number = len(rows)
        reseed(self._sampler, self._seed, number)
        trial = _frozen(Row(number), {}, {})
        self._show(rows, notes)
        self._storage.trials.append(trial)
        study = optuna.load_study(study_name=_NAME, storage=self._storage, sampler=self._sampler)
        self._sampler.before_trial(study, trial)
        relative_space = self._sampler.infer_relative_search_space(study, trial)
        relative = self._sampler.sample_relative(study, trial, relative_space) if relative_space else {}
        params: dict[str, Any] = {}
        for name, distribution in self._space.items():
            if distribution.single():
                value = distribution.to_external_repr(_only_value(distribution))
            elif name in relative:
                value = relative[name]
            else:
                value = self._sampler.sample_independent(study, trial, name, distribution)
            params[name] = _plain(distribution, value)
            # Some samplers look at what the trial has so far.
            trial.params = dict(params)
            trial.distributions = {known: self._space[known] for known in params}
        return params, dict(trial.system_attrs)

    @property
    def study_notes(self) -> dict[str, Any]:
        """What the sampler wrote about the whole study, to be given to the next process."""
        return self._storage.get_study_system_attrs(self._study_id)

    def _show(self, rows: Sequence[Row], notes: Sequence[Mapping[str, Any]]) -> None:
        """Bring the view up to date; of many trials few have changed since the last question."""
        shown = min(len(self._rows), len(rows))
        changed = [index for index, old, new in zip(range(shown), self._rows, rows, strict=False) if old is not new]
        del self._rows[shown:]
        del self._storage.trials[shown:]
        for index in changed:
            self._rows[index] = rows[index]
            self._storage.trials[index] = _frozen(rows[index], self._space, notes[index])
        for row, note in zip(rows[shown:], notes[shown:], strict=True):
            self._rows.append(row)
            self._storage.trials.append(_frozen(row, self._space, note))


def reseed(sampler: BaseSampler, *key: int) -> None:
    """Set every random number generator of a sampler from a key.

    Args:
        sampler: to change, with the samplers and strategies inside it.
        key: non-negative integers, e.g. (seed, trial number).
    """
    for index, generator in enumerate(_generators(sampler, set())):
        generator.seed(int(np.random.SeedSequence([*key, index]).generate_state(1)[0]))


def _generators(owner: object, seen: set[int]) -> Iterator[np.random.RandomState]:
    """Find numpy generators in an object's attributes and in Optuna's objects among them, in a fixed order."""
    if id(owner) in seen:
        return
    seen.add(id(owner))
    for value in vars(owner).values():
        generator = getattr(value, "rng", value)  # Optuna wraps its generators in an object with this attribute
        if isinstance(generator, np.random.RandomState):
            if id(generator) not in seen:
                seen.add(id(generator))
                yield generator
        elif type(value).__module__.startswith("optuna.") and hasattr(value, "__dict__"):
            yield from _generators(value, seen)


class _View(InMemoryStorage):
    """A storage whose trials are whatever was put into :attr:`trials`; a trial's id is its number."""

    def __init__(self) -> None:
        super().__init__()
        self.trials: list[FrozenTrial] = []

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        chosen = [trial for trial in self.trials if states is None or trial.state in states]
        return copy.deepcopy(chosen) if deepcopy else chosen

    def get_trial(self, trial_id: int) -> FrozenTrial:
        return self.trials[trial_id]

    def get_n_trials(self, study_id: int, state: Any = None) -> int:
        states = None if state is None else (state,) if isinstance(state, TrialState) else state
        return len(self.get_all_trials(study_id, deepcopy=False, states=states))

    def get_trial_number_from_id(self, trial_id: int) -> int:
        return trial_id

    def get_trial_id_from_study_id_trial_number(self, study_id: int, trial_number: int) -> int:
        return trial_number

    def get_best_trial(self, study_id: int) -> FrozenTrial:
        return super(InMemoryStorage, self).get_best_trial(study_id)  # the in-memory shortcut keeps its own books

    def set_trial_system_attr(self, trial_id: int, key: str, value: Any) -> None:
        trial = self.trials[trial_id]
        trial.system_attrs = {**trial.system_attrs, key: value}


def _frozen(row: Row, space: Mapping[str, BaseDistribution], notes: Mapping[str, Any]) -> FrozenTrial:
    """Show a row to a sampler: a paused trial looks pruned, which samplers know how to learn from."""
    last = row.values[max(row.values)] if row.values else None
    state = {
        "complete": TrialState.COMPLETE,
        "pruned": TrialState.PRUNED,
        "failed": TrialState.FAIL,
        "running": TrialState.PRUNED if row.idle and row.values else TrialState.RUNNING,
    }[row.state]
    params = {name: value for name, value in row.params.items() if name in space}
    return FrozenTrial(
        number=row.number,
        trial_id=row.number,
        state=state,
        value=last if state in (TrialState.COMPLETE, TrialState.PRUNED) else None,
        datetime_start=_LONG_AGO,
        datetime_complete=_LONG_AGO if state.is_finished() else None,
        params=params,
        distributions={name: space[name] for name in params},
        user_attrs={},
        system_attrs=dict(notes),
        intermediate_values=dict(row.values),
    )


def _only_value(distribution: Any) -> float:
    return 0.0 if hasattr(distribution, "choices") else float(distribution.low)


def _plain(distribution: BaseDistribution, value: Any) -> Any:
    """Turn what a sampler returned into the Python value that the distribution stores."""
    return distribution.to_external_repr(distribution.to_internal_repr(value))
