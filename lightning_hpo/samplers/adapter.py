"""Parameters for a new trial, from any Optuna sampler, as a pure function of (rows, seed, trial number).

The sampler never sees the stored study. It reads a view of the rows, so that a paused trial counts with the value it
has reached, and a new trial can be written with all its parameters in one transaction. Its random numbers are set from
the seed and the trial's number before each question; Optuna's own seeded samplers start their stream again in every
process, and repeat configurations after a restart.

Which value of a partly trained trial the sampler learns from follows BOHB (Falkner et al. 2018, arXiv 1807.01774,
section 3.2): the one at the highest rung where enough trials have one (:func:`model_rung`). Trials without a value
there are left out, so the sampler compares like with like, and any sampler can learn from runs that were paused or
stopped. A sampler that models the steps itself says so by an attribute ``learns_from_partial_runs = True``; it is shown
every trial with all its values, paused and stopped ones as PRUNED.
"""

import copy
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import InMemoryStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import Mode, Row, changed
from lightning_hpo.samplers.prior import LONG_AGO
from lightning_hpo.space import Space, parse_space

_NAME = "view"
_LEAST_POINTS = 10  # with fewer, Optuna's model-based samplers draw at random
_RANDOM_KEY = 1  # keeps the draws of the random fraction apart from other streams


class SamplerAdapter:
    """Asks a sampler for new trials.

    Args:
        sampler: any Optuna sampler. It is copied; the given object is not changed.
        space: as a person types it, or parsed. The sampler is asked for the names that a trial has only, each after
            those that its condition names.
        mode: whether lower or higher values are better.
        seed: of the search.
        study_notes: what the sampler wrote about the study in an earlier process.
        random_share: of the steps at which a trial will be judged first, the probability that it is drawn at random
            all the same. Under early stopping a model of short runs can mislead; these trials keep the search going
            everywhere (BOHB takes 1/3 at every budget). Default: 0.
        rungs: steps at which trials are judged, rising; what a trial has between two of them counts at the lower one.
            Default: each step counts by itself.
        prior: trials of an earlier search, which the sampler learns from as from those before a new one.
    """

    def __init__(
        self,
        sampler: BaseSampler,
        space: Space,
        *,
        mode: Mode,
        seed: int,
        study_notes: Mapping[str, Any] | None = None,
        random_share: Callable[[int], float] = lambda steps: 0.0,  # noqa: ARG005  # a name for the reader
        rungs: Sequence[int] = (),
        prior: Sequence[Row] = (),
    ) -> None:
        self._sampler = copy.deepcopy(sampler)
        self._space = parse_space(space)
        if self._space.conditions and getattr(self._sampler, "space", self) is None:
            self._sampler.space = self._space  # type: ignore[attr-defined]  # a sampler that models conditions
        self._seed = seed
        self._storage = _View()
        self._random_share = random_share
        self._random = RandomSampler()
        self._following = dict(zip(rungs, [*rungs[1:], math.inf], strict=False))  # rung -> the next one
        self._counts: Counter[int] = Counter()  # rung -> trials with a value there
        self._prior = list(prior)
        self._rows: list[Row] = []  # as they are shown in the view
        self._at_work: set[int] = set()  # which of them are being trained
        self._rung: int | None = None  # whose values are shown in the view; None for all
        direction = StudyDirection.MINIMIZE if mode == "min" else StudyDirection.MAXIMIZE
        with warnings_only("optuna"):
            self._study_id = self._storage.create_new_study([direction], _NAME)
        self.recall(study_notes or {})

    def recall(self, study_notes: Mapping[str, Any]) -> None:
        """Take over what the sampler wrote about the study in another process."""
        for key, value in study_notes.items():
            self._storage.set_study_system_attr(self._study_id, key, value)

    def ask(
        self,
        rows: Sequence[Row],
        notes: Sequence[Mapping[str, Any]],
        steps: int,
        given: Mapping[str, Any] = MappingProxyType({}),
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Suggest parameters for the trial that comes after ``rows``.

        Args:
            rows: all trials so far.
            notes: what earlier suggestions left beside each of them.
            steps: at which the trial will be judged first.
            given: parameters of the new trial that are decided already, as a study stores them.

        Returns:
            The parameters, as plain Python values inside their distributions, and the sampler's notes on this trial.
        """
        if self._prior:
            rows, notes = [*self._prior, *rows], [*({} for _ in self._prior), *notes]
        number = len(rows)
        sampler = self._random if is_random(self._seed, number, self._random_share(steps)) else self._sampler
        fixed = {"fixed_params": dict(given)} if given else {}  # where Optuna's own study keeps them
        trial = self._frozen(number, Row(number), fixed)
        self._show(rows, notes)
        self._storage.trials.append(trial)
        study = optuna.load_study(study_name=_NAME, storage=self._storage, sampler=sampler)
        params = self._suggest(study, sampler, trial, given)
        if any(rows[index].params == params for index in self._at_work):
            params = self._suggest(
                study, self._random, trial, given
            )  # samplers that cannot see who is at work repeat it
        return params, {key: value for key, value in trial.system_attrs.items() if key not in fixed}

    def _suggest(
        self, study: optuna.Study, sampler: BaseSampler, trial: FrozenTrial, given: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Go through a sampler's interface the way Optuna does."""
        trial.params, trial.distributions = {}, {}
        reseed(sampler, self._seed, trial.number)
        sampler.before_trial(study, trial)
        relative_space = sampler.infer_relative_search_space(study, trial)
        relative = sampler.sample_relative(study, trial, relative_space) if relative_space else {}

        def pick(name: str) -> Any:
            distribution = self._space[name]
            if name in given:
                value = given[name]
            elif distribution.single():
                value = distribution.to_external_repr(_only_value(distribution))
            elif name in relative:
                value = relative[name]
            else:
                value = sampler.sample_independent(study, trial, name, distribution)
            # Some samplers look at what the trial has so far.
            trial.params[name] = _plain(distribution, value)
            trial.distributions[name] = distribution
            return trial.params[name]

        return self._space.draw(pick)

    @property
    def study_notes(self) -> dict[str, Any]:
        """What the sampler wrote about the whole study, to be given to the next process."""
        return self._storage.get_study_system_attrs(self._study_id)

    def _show(self, rows: Sequence[Row], notes: Sequence[Mapping[str, Any]]) -> None:
        """Bring the view up to date; of many trials few have changed since the last question."""
        shown = min(len(self._rows), len(rows))
        fresh = changed(self._rows, rows)
        others = [index for index in fresh if index < shown]
        before = [*(self._rows[index] for index in others), *self._rows[shown:]]
        self._counts.subtract(rung for row in before for rung in self._judged_at(row))
        self._counts.update(rung for index in fresh for rung in self._judged_at(rows[index]))
        self._at_work.difference_update(fresh, range(shown, len(self._rows)))
        self._at_work.update(index for index in fresh if rows[index].state == "running" and not rows[index].idle)
        for index in others:
            self._rows[index] = rows[index]
        self._rows[shown:] = rows[shown:]
        if not getattr(self._sampler, "learns_from_partial_runs", False):
            rung = _rung(self._counts, max(len(self._space) + 3, _LEAST_POINTS))
            if rung != self._rung:
                self._rung, shown = rung, 0
        del self._storage.trials[shown:]
        for index in others if shown else ():
            self._storage.trials[index] = self._frozen(index, rows[index], notes[index])
        self._storage.trials += [self._frozen(index, rows[index], notes[index]) for index in range(shown, len(rows))]

    def _judged_at(self, row: Row) -> Iterable[int]:
        """Rungs at which a trial has a value."""
        if not self._following:
            return row.values
        return [rung for rung, following in self._following.items() if row.at(rung, following) is not None]

    def _frozen(self, number: int, row: Row, notes: Mapping[str, Any]) -> FrozenTrial:
        """Show a row to the sampler."""
        rung = self._rung
        state, value = _seen(row) if rung is None else _seen_at(row, rung, self._following.get(rung, rung))
        params = {name: value for name, value in row.params.items() if name in self._space}
        if row.params and not self._space.fits(params):  # the space has changed since
            state, value, params = TrialState.FAIL, None, {}
        return FrozenTrial(
            number=number,
            trial_id=number,
            state=state,
            value=value,
            datetime_start=LONG_AGO,
            datetime_complete=LONG_AGO if state.is_finished() else None,
            params=params,
            distributions={name: self._space[name] for name in params},
            user_attrs={},
            system_attrs=dict(notes),
            intermediate_values=dict(row.values),
        )


def model_rung(rows: Sequence[Row], least: int) -> int | None:
    """Choose the rung that a model learns from.

    Args:
        rows: all trials.
        least: how many values a rung needs.

    Returns:
        The largest number of steps at which at least ``least`` trials have a value; the one with most values, the
        larger of equals, if there is none; None without any value.

    Example:
        >>> model_rung([Row(0, values={1: 0.5, 3: 0.4}), Row(1, values={1: 0.6})], least=2)
        1
    """
    return _rung(Counter(step for row in rows for step in row.values), least)


def _rung(counts: Mapping[int, int], least: int) -> int | None:
    enough = [step for step, count in counts.items() if count >= least]
    if enough:
        return max(enough)
    return max((step for step in counts if counts[step]), key=lambda step: (counts[step], step), default=None)


def is_random(seed: int, number: int, share: float) -> bool:
    """Whether a trial is one of the share of trials that no sampler proposes."""
    return share > 0 and bool(np.random.default_rng([seed, number, _RANDOM_KEY]).random() < share)


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


def _seen(row: Row) -> tuple[TrialState, float | None]:
    """State and last value; a paused trial looks pruned."""
    last = row.values[max(row.values)] if row.values else None
    paused = row.idle and last is not None
    states = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED, "failed": TrialState.FAIL}
    state = states.get(row.state, TrialState.PRUNED if paused else TrialState.RUNNING)
    return state, last if state in (TrialState.COMPLETE, TrialState.PRUNED) else None


def _seen_at(row: Row, rung: int, following: float) -> tuple[TrialState, float | None]:
    """State and value for a model of one rung; trials without a value to compare look failed, which no model reads."""
    value = None if row.state == "failed" else row.at(rung, following)
    if value is not None:
        return TrialState.COMPLETE, value
    at_work = row.state == "running" and not row.idle
    return (TrialState.RUNNING if at_work else TrialState.FAIL), None


def _only_value(distribution: Any) -> float:
    return 0.0 if hasattr(distribution, "choices") else float(distribution.low)


def _plain(distribution: BaseDistribution, value: Any) -> Any:
    """Turn what a sampler returned into the Python value that the distribution stores."""
    return distribution.to_external_repr(distribution.to_internal_repr(value))
