"""A Gaussian process over configuration and step: where to look next, when trials are stopped early.

Each value of a trial is a row, at its configuration and at the logarithm of its step. The model learns from all rows
how much an early value says about the end, and a configuration is judged by what is expected of it at the end.

=======  ==============================================================================================
symbol   meaning
=======  ==============================================================================================
R        step of the full budget
y        values of all rungs, to be minimised; those above their 60 % quantile q count as q
target   log((y - min y) / (q - min y) + 0.1), standardised: differences among bad values do not matter
δ        how far a suggestion stays from every tried configuration, in the largest of its columns
σ²       noise variance of the model, in units of the targets' variance
=======  ==============================================================================================

The suggestion is the candidate with the largest log expected improvement at R, over the lowest mean at R of a
configuration that is tried or at work. A near copy of the best teaches little where values are rough, and is what is
needed where they are smooth. So every second suggestion stays δ = 0.2 away from all that was tried; for the others δ
falls with the noise that the model finds, to 0.2 sqrt(σ² / 0.05).

Sources: Klein et al. 2017 (arXiv 1605.07079), a Gaussian process over configuration and budget; Ament et al. 2023
(arXiv 2310.20708), log expected improvement; Ginsbourger, Le Riche & Carraro 2010, section 4.1, pending trials.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.search_space import intersection_search_space
from optuna.study import Study
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.samplers.acquisition import log_expected_improvement
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.gp import GaussianProcess, Hyperparameters, fit, prior_mode
from lightning_hpo.samplers.joint import JointSampler, violation
from lightning_hpo.samplers.surrogate import subset
from lightning_hpo.space import SearchSpace

_CAP, _FLOOR = 0.6, 0.1  # q as a quantile, and what is added before the logarithm
_APART, _NOISY = 0.2, 0.05  # δ, and the noise variance from which it is not made smaller
_MOST_ROWS, _MOST_FITTED_ROWS = 300, 160
_REFIT_EVERY = 8  # trials
_RANDOM, _LEADERS, _NEAR_EACH = 512, 6, 48  # candidates: random ones, and near the best configurations
_REACH = (0.05, 0.5)  # standard deviations of a candidate near one of the best: log-uniform
_NOTE = "multi_fidelity:hyperparameters"


@dataclass(frozen=True)
class _Known:
    """Rows of a study.

    Args:
        units, levels, values: of each value: search columns (n, d), log step / log R in [0, 1] (n,), and the value, to
            be minimised, infinite where a trial failed or is infeasible (n,).
        tried: search columns of the trials that have a value, shape (m, d).
        pending: search columns of the trials at work, shape (p, d).
    """

    units: Floats
    levels: Floats
    values: Floats
    tried: Floats
    pending: Floats


class MultiFidelitySampler(JointSampler):
    """Suggests where the expected improvement at the full budget is largest, from values at all budgets.

    For tuners that stop trials early, as ``HyperbandTuner(..., sampler=MultiFidelitySampler(max_steps=...))``, and for
    any Optuna study whose trials report values. It is far ahead of kernel densities where the objective is smooth in
    the parameters, and can be behind them where a search nearly sweeps a small or rough space
    (``benchmarks/multifidelity.md``).

    It waits for d + 3 trials with a value, d the number of parameters, and draws at random before. A suggestion takes 5
    to 20 ms of CPU, however long the study is. It depends on the seed, the trial's number and the table of trials
    alone: the hyperparameters of the model, which are fitted again for every eighth trial, are noted with that trial.

    Args:
        max_steps: step of the full budget, >= 1, in the unit in which the trials report.
        seed: keys all random numbers, with the trial's number; an integer >= 0.
        space: a parsed space with conditions. A tuner gives its own. None draws a parameter that not every trial has at
            random.

    Raises:
        ValueError: if ``seed`` is negative or no integer, or ``max_steps`` is below 1; at the first suggestion, if the
            study has several objectives.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=MultiFidelitySampler(max_steps=9))
        >>> def curve(trial):
        ...     x = trial.suggest_float("x", -5.0, 5.0)
        ...     for step in (1, 3, 9):
        ...         trial.report(x**2 + 1 / step, step)
        ...     return x**2 + 1 / 9
        >>> study.optimize(curve, n_trials=40)
        >>> study.best_value < 0.2
        True
    """

    learns_from_partial_runs = True
    """A tuner shows it every value of every trial: the step is part of the model."""

    def __init__(self, *, max_steps: float, seed: int = 0, space: SearchSpace | None = None) -> None:
        super().__init__(seed, space)
        if not max_steps >= 1:
            raise ValueError(f"`max_steps` must be at least 1, got {max_steps!r}.")
        self.max_steps = max_steps

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that all ended trials have."""
        del trial
        self.sign(study)
        modelled = self.modelled(intersection_search_space(study.get_trials(deepcopy=False), include_pruned=True))
        return {name: distribution for name, distribution in modelled.items() if not distribution.single()}

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest all shared parameters jointly; at random while there are too few values."""
        if not search_space:
            return {}
        encoding = self.encoding(search_space)
        trials = [other for other in study.get_trials(deepcopy=False) if other.number != trial.number]
        known = self._read(trials, encoding, self.sign(study))
        rng = np.random.default_rng([self.seed, trial.number])
        if len(known.tried) < len(encoding) + 3 or not np.isfinite(known.values).any():
            return self.at_random(encoding, rng)
        targets = _targets(known.values)
        features = np.column_stack([encoding.features(known.units), known.levels])
        groups = np.append(encoding.groups, len(encoding))
        noted = _noted(trials, len(encoding) + 3)
        if noted is None or trial.number - noted[0] >= _REFIT_EVERY:
            mode = prior_mode(len(encoding) + 1)
            starts = [Hyperparameters(mode.lengthscales, mode.scale, noise) for noise in (1e-4, 1e-1)]
            rows = subset(targets, _MOST_FITTED_ROWS)
            first = starts if noted is None else [noted[1]]
            hyperparameters, _ = fit(features[rows], targets[rows], groups, first, iterations=30)
            study._storage.set_trial_system_attr(trial._trial_id, _NOTE, hyperparameters.to_log().tolist())  # noqa: SLF001  # as Optuna's own samplers do
        else:
            hyperparameters = noted[1]
        rows = subset(targets, _MOST_ROWS)
        process = GaussianProcess(features[rows], targets[rows], groups, hyperparameters)
        is_near = trial.number % 2 == 0 and hyperparameters.noise < _NOISY
        apart = _APART * (math.sqrt(hyperparameters.noise / _NOISY) if is_near else 1.0)
        return encoding.decode(_best(encoding, process, known, apart, rng))

    def _read(self, trials: Sequence[FrozenTrial], encoding: Encoding, sign: int) -> _Known:
        places, tried, pending = [], [], []
        levels: list[float] = []
        values: list[float] = []
        placed = [trial for trial in trials if trial.state != TrialState.WAITING and encoding.holds(trial.params)]
        for place, trial in enumerate(placed):
            curve = self._curve(trial, sign)
            places += [place] * len(curve)
            levels += [min(math.log(max(step, 1)) / math.log(max(self.max_steps, 2)), 1.0) for step in curve]
            values += curve.values()
            if curve:
                tried.append(place)
            if trial.state == TrialState.RUNNING:
                pending.append(place)
        units = encoding.encode([trial.params for trial in placed])
        return _Known(units[places], np.array(levels), np.array(values), units[tried], units[pending])

    def _curve(self, trial: FrozenTrial, sign: int) -> dict[float, float]:
        """Values of a trial by step; a failed or infeasible trial is as bad as can be at the end."""
        values = {float(step): value for step, value in trial.intermediate_values.items()}
        if trial.state == TrialState.COMPLETE and trial.value is not None and not values:
            values = {self.max_steps: trial.value}
        curve = {step: sign * value if math.isfinite(value) else math.inf for step, value in values.items()}
        if trial.state == TrialState.FAIL or violation(trial) > 0:
            curve[self.max_steps] = math.inf
        return curve


def _targets(values: Floats) -> Floats:
    finite = values[np.isfinite(values)]
    low, cap = float(finite.min()), float(np.quantile(finite, _CAP))
    if cap <= low:  # most values are the best value
        return np.where(values > low, 1.0, 0.0)
    targets: Floats = np.log((np.minimum(values, cap) - low) / (cap - low) + _FLOOR)
    standardised: Floats = (targets - targets.mean()) / targets.std()
    return standardised


def _noted(trials: Sequence[FrozenTrial], size: int) -> tuple[int, Hyperparameters] | None:
    """The latest trial with hyperparameters of this model, and those."""
    for trial in reversed(trials):
        if len(noted := trial.system_attrs.get(_NOTE, ())) == size:
            return trial.number, Hyperparameters.from_log(np.array(noted))
    return None


def _best(
    encoding: Encoding, process: GaussianProcess, known: _Known, apart: float, rng: np.random.Generator
) -> Floats:
    """Return the candidate that is worth most, shape (d,); candidates closer than ``apart`` to a trial are left out."""

    def at_end(units: Floats) -> Floats:
        return np.column_stack([encoding.features(units), np.ones(len(units))])

    means, _ = process.posterior(at_end(known.tried))
    best = float(means.min())
    if len(known.pending):
        pending = at_end(known.pending)
        expected, _ = process.posterior(pending)
        best = min(best, float(expected.min()))
        process = process.grow(pending, expected)
    leaders = known.tried[np.argsort(means, kind="stable")[:_LEADERS]]
    candidates = np.concatenate([encoding.place(rng.random((_RANDOM, len(encoding)))), _near(encoding, leaders, rng)])
    distance = _distance(encoding, candidates, np.concatenate([known.tried, known.pending]))
    # Where the cube is full, half of the random candidates stay.
    candidates = candidates[distance >= min(apart, float(np.median(distance[:_RANDOM])))]
    mean, sd = process.posterior(at_end(candidates))
    chosen: Floats = candidates[int(log_expected_improvement(mean, sd, best)[0].argmax())]
    return chosen


def _near(encoding: Encoding, leaders: Floats, rng: np.random.Generator) -> Floats:
    """Draw candidates around the best configurations, shape (m, d)."""
    units = np.repeat(leaders, _NEAR_EACH, axis=0)
    shortest, longest = _REACH
    reach = shortest * (longest / shortest) ** rng.random((len(units), 1))
    moved = np.abs(units + reach * rng.standard_normal(units.shape))  # reflected at both ends
    moved = np.clip(np.where(moved > 1.0, 2.0 - moved, moved), 0.0, 1.0)
    for i, column in enumerate(encoding.columns):
        if column.kind == "categorical":
            change = rng.random(len(units)) < np.maximum(reach[:, 0], 1.0 / len(encoding))
            moved[:, i] = np.where(change, rng.integers(len(column.positions), size=len(units)), units[:, i])
    return encoding.snap(moved)


def _distance(encoding: Encoding, units: Floats, others: Floats) -> Floats:
    """Distance to the nearest of ``others`` in the largest column, shape (m,); different choices are 1 apart."""
    apart = np.zeros((len(units), len(others)))
    for i, column in enumerate(encoding.columns):
        difference = np.abs(units[:, None, i] - others[None, :, i])
        np.maximum(apart, difference > 0 if column.kind == "categorical" else difference, out=apart)
    nearest: Floats = apart.min(axis=1)
    return nearest
