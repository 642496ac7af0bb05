"""What the parameters do to the score, and what Optuna shows of a study: its own figures.

They are drawn of a copy of the study in memory, in which text is escaped and each secret value stands as ``*** 1``,
``*** 2``, ... A figure of scores takes all of them at one step, the highest that enough trials have reached.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import optuna
from optuna import visualization as charts  # loads plotly at its first use
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import Row
from lightning_hpo.reporting.drawing import Figure, is_log, safe, thin
from lightning_hpo.reporting.run import Run
from lightning_hpo.text import HIDDEN, is_secret

_LEAST, _ENOUGH = 4, 10  # trials with a score: without the least nothing is drawn; a step with enough is taken
_PARAMETERS, _RELATED = 8, 30  # in a figure; and those of which it chooses, if a space has more
_SLICE, _PARALLEL, _RANK, _CONTOUR, _TIMELINE = 600, 100, 300, 80, 300  # trials in these figures
_LABEL = 40  # letters of a choice
_BEYOND = 1.5  # a value up to so many times the steps counts: a Trainer may stand beyond its rung, not at the next one


@dataclass(frozen=True, eq=False)
class _Parameter:
    """How a parameter is shown.

    Args:
        name: escaped.
        distribution: of what is shown; it holds every value.
        choices: repr of a choice -> what is shown for it.
    """

    name: str
    distribution: BaseDistribution
    choices: Mapping[str, Any]

    def show(self, value: Any) -> Any:
        """Return what stands for a value."""
        return self.choices[repr(value)] if isinstance(self.distribution, CategoricalDistribution) else value


class ParameterFigures:
    """Draws the figures about parameters of one run."""

    def __init__(self, run: Run) -> None:
        self._run = run

    @cached_property
    def step(self) -> int | None:
        """Step whose scores are drawn; None if too few trials have any at one step."""
        counts = {
            step: sum(row.at(step, _BEYOND * step) is not None for row in self._run.rows)
            for step in sorted({step for row in self._run.rows for step in row.values}, reverse=True)[:200]
        }
        most = max(counts.values(), default=0)
        if most < _LEAST or not self._parameters:
            return None
        return next(step for step, count in counts.items() if count >= min(_ENOUGH, most))

    def importance(self) -> Figure | None:
        """How much each parameter matters to be among the best, by Optuna's PED-ANOVA."""
        if self.step is None or len(self._parameters) < 2:
            return None
        return _plain(charts.plot_param_importances(self._all, target_name=self._goal))

    def slice(self) -> Figure | None:
        """Score over each parameter."""
        if self.step is None:
            return None
        drawn = _plain(charts.plot_slice(self._all, self._shown, target_name=self._goal))
        if is_log(self._scores.values()):
            for name in [name for name in drawn["layout"] if name.startswith("yaxis")]:
                drawn["layout"][name]["type"] = "log"
        return drawn

    def parallel(self) -> Figure | None:
        """The best trials as lines through all their parameters."""
        if self.step is None:
            return None
        study = self._scored(self._best_first[:_PARALLEL])
        return _plain(charts.plot_parallel_coordinate(study, self._shown, target_name=self._goal))

    def contour(self) -> Figure | None:
        """Score over the two parameters that matter most."""
        if self.step is None or len(self._shown) < 2:
            return None
        study = self._scored(self._spread(_CONTOUR))
        return _plain(charts.plot_contour(study, self._shown[:2], target_name=self._goal))

    def rank(self) -> Figure | None:
        """Rank of the score over the two parameters that matter most."""
        if self.step is None or len(self._shown) < 2:
            return None
        study = self._scored(self._spread(_RANK))
        return _plain(charts.plot_rank(study, self._shown[:2], target_name=self._goal))

    def timeline(self) -> Figure | None:
        """When each of the last trials ran."""
        if len(self._run.trials) < _LEAST or any(trial.datetime_start is None for trial in self._run.trials):
            return None
        return _plain(charts.plot_timeline(self._as_it_is(self._run.rows[-_TIMELINE:])))

    def pareto_front(self) -> Figure | None:
        """The best compromises of two or three objectives."""
        if not 2 <= len(self._run.directions) <= 3:
            return None
        names = self._run.settings.get("monitor")
        names = list(map(safe, names)) if isinstance(names, list | tuple) else None
        study = self._as_it_is(thin(self._run.rows, self._run.mode))
        return _plain(charts.plot_pareto_front(study, target_names=names))

    @cached_property
    def _goal(self) -> str:
        return f"{safe(self._run.monitor)} after {self._run.unit.amount(self.step or 0)}"

    @cached_property
    def _parameters(self) -> dict[str, _Parameter]:
        """Name -> how it is shown; without those that have one value only, and secrets that are numbers."""
        values: dict[str, list[Any]] = {}
        for row in self._run.rows:
            for name, value in row.params.items():
                values.setdefault(name, []).append(value)
        shown = {}
        for name, distribution in self._run.distributions.items():
            if not isinstance(distribution, CategoricalDistribution) and is_secret(name, 0.0):
                continue
            parameter = _shown(name, distribution, values.get(name, []))
            if parameter is not None:
                shown[name] = parameter
        if len(shown) <= _RELATED:
            return shown
        related = {name: self._correlation(name) for name in shown}
        kept = sorted(shown, key=lambda name: -related[name])[:_RELATED]
        return {name: shown[name] for name in shown if name in kept}

    def _correlation(self, name: str) -> float:
        """How closely the last scores follow a parameter, from 0 to 1."""
        distribution = self._run.distributions[name]
        scores = [(row, row.score) for row in self._run.rows if row.score is not None and name in row.params]
        places = np.argsort(np.argsort([distribution.to_internal_repr(row.params[name]) for row, _ in scores]))
        ranks = np.argsort(np.argsort([score for _, score in scores]))
        return abs(float(np.corrcoef(places, ranks)[0, 1])) if len(scores) > 2 else 0.0

    @cached_property
    def _shown(self) -> list[str]:
        """Escaped names of the parameters that a figure has room for, those that matter most first."""
        names = [parameter.name for parameter in self._parameters.values()]
        if len(names) <= 2:
            return names
        shares = optuna.importance.get_param_importances(self._all)
        return sorted(names, key=lambda name: -shares.get(name, 0.0))[:_PARAMETERS]

    @cached_property
    def _scores(self) -> dict[int, float]:
        """Trial -> its score at the step that is drawn, if that is a finite number."""
        assert self.step is not None
        found = {row.number: row.at(self.step, _BEYOND * self.step) for row in self._run.rows if row.params}
        return {number: value for number, value in found.items() if value is not None and abs(value) < 1e100}

    @cached_property
    def _best_first(self) -> list[int]:
        sign = 1 if self._run.mode == "min" else -1
        return sorted(self._scores, key=lambda number: (sign * self._scores[number], number))

    def _spread(self, count: int) -> list[int]:
        """Numbers of the best trials, and of some from all others."""
        best, others = self._best_first[: count // 2], self._best_first[count // 2 :]
        apart = max(-(-len(others) // (count - len(best) or 1)), 1)
        return sorted([*best, *others[::apart]])

    @cached_property
    def _all(self) -> optuna.Study:
        """Trials with a score at the step; the others keep their number's place."""
        kept = {row.number for row in thin(self._run.rows, self._run.mode, _SLICE)}
        return self._scored([row.number for row in self._run.rows if row.number in kept], with_gaps=True)

    def _scored(self, numbers: Iterable[int], *, with_gaps: bool = False) -> optuna.Study:
        trials = []
        for number in numbers:
            if number in self._scores:
                trials.append(self._copy(number, state=TrialState.COMPLETE, value=self._scores[number]))
            elif with_gaps:
                trials.append(optuna.trial.create_trial(state=TrialState.FAIL))
        direction = StudyDirection.MINIMIZE if self._run.mode == "min" else StudyDirection.MAXIMIZE
        return _study([direction], trials)

    def _as_it_is(self, rows: Sequence[Row]) -> optuna.Study:
        trials = []
        for row in rows:
            trial = self._run.trials[row.number]
            copy = self._copy(row.number, state=trial.state, values=trial.values)
            copy.datetime_start, copy.datetime_complete = trial.datetime_start, trial.datetime_complete
            copy.intermediate_values = dict(trial.intermediate_values)
            trials.append(copy)
        return _study(self._run.directions, trials)

    def _copy(self, number: int, *, state: TrialState, **values: Any) -> FrozenTrial:
        params = {} if state is TrialState.WAITING else self._run.rows[number].params
        shown = {self._parameters[name]: value for name, value in params.items() if name in self._parameters}
        waiting = state in (TrialState.WAITING, TrialState.RUNNING)
        return optuna.trial.create_trial(
            state=state,
            params={parameter.name: parameter.show(value) for parameter, value in shown.items()},
            distributions={parameter.name: parameter.distribution for parameter in shown},
            **({} if waiting else values),
        )


def _shown(name: str, distribution: BaseDistribution, values: Sequence[Any]) -> _Parameter | None:
    """How a parameter is shown; None if its trials have less than two values."""
    distinct = {repr(value): value for value in values}
    if len(distinct) < 2:
        return None
    choices: dict[str, Any] = {}
    if isinstance(distribution, CategoricalDistribution):
        for choice in {**{repr(value): value for value in distribution.choices}, **distinct}.values():
            choices[repr(choice)] = _label(name, choice, list(choices.values()))
        shown: BaseDistribution = CategoricalDistribution(list(choices.values()))
    else:
        assert isinstance(distribution, FloatDistribution | IntDistribution)
        low, high = min(distribution.low, *values), max(distribution.high, *values)
        kind: Callable[..., BaseDistribution] = type(distribution)
        shown = kind(low, high, log=distribution.log and low > 0)
    return _Parameter(safe(name), shown, choices)


def _label(name: str, choice: Any, taken: Sequence[Any]) -> Any:
    """What stands for a choice: itself if it is a number, else a text that no other choice has."""
    if is_secret(name, choice):
        return f"{HIDDEN} {len(taken) + 1}"
    if choice is None or isinstance(choice, bool | int | float):
        return choice
    text = safe(str(choice)[:_LABEL])
    return text if text not in taken else f"{text} ({len(taken) + 1})"


def _study(directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial]) -> optuna.Study:
    with warnings_only("optuna"):
        study = optuna.create_study(directions=directions, sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trials(trials)
    return study


def _plain(drawn: Any) -> Figure:
    """Return a plotly figure as plain values, without its title and its colours of background and text."""
    plain: Figure = drawn.to_dict()
    for name in ("template", "title", "plot_bgcolor", "paper_bgcolor"):
        plain["layout"].pop(name, None)
    for note in plain["layout"].get("annotations", ()):
        note.get("font", {}).pop("color", None)
    return plain
