"""Observations of a study: a row per trial, with how far it was trained and whether it failed.

The rules:

* COMPLETE: its value, at full fidelity. A NaN or infinite value counts as failed, in both directions.
* PRUNED, or RUNNING with reported values (also paused): its last reported value, at the fidelity of its step,
  log(1 + step) / log(2 + S) with S the largest step in the study. The step is a column of the model with a length scale
  of its own, so the model learns how much an early value says about a late one, and a suggestion is judged at fidelity
  1 (Klein et al. 2020, arXiv 2003.10865, section 3: a Gaussian process over configuration and resource). Before that
  the mean learning curve is taken out: a value at step r is moved by the median change from r to the next recorded
  step, and so on to the end, over the trials that have both.
* FAILED, pruned before its first report, or with NaN as its last report: infeasible. It is given the worst target seen
  (Song et al. 2024, arXiv 2408.11527), which keeps the search away without inventing a scale. An accident, which trials
  near it do not share, counts as pending: :mod:`lightning_hpo.samplers.accidents`.
* Infeasible, one of its constraints (Optuna's ``trial.constraints``) being above 0: its value counts as any other, but
  it is not the best. :mod:`lightning_hpo.samplers.feasibility` models the constraints.
* RUNNING without a report: pending. It has no value, but its place is known to be taken.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding


@dataclass(frozen=True)
class Observations:
    """Rows of a study, in the order of the trials' numbers.

    Args:
        units: search columns, shape (n, d).
        fidelity: in [0, 1], 1 for fully trained or failed trials, shape (n,).
        values: of the objective, to be minimised; NaN for infeasible trials, shape (n,).
        pending: search columns of trials without a value yet, shape (p, d).
        constraints: values of the constraints, which are met where they are <= 0; NaN where a trial has none, shape
            (n, k). None without constraints.
    """

    units: Floats
    fidelity: Floats
    values: Floats
    pending: Floats
    constraints: Floats | None = None

    def __len__(self) -> int:
        return len(self.values)

    def candidates(self) -> NDArray[np.bool_]:
        """Return which rows may be the best one, shape (n,): feasible ones; else those with a value; else all."""
        valued = ~np.isnan(self.values)
        feasible = valued if self.constraints is None else valued & ~(self.constraints > 0).any(axis=1)
        return next((rows for rows in (feasible, valued) if rows.any()), np.ones(len(self), dtype=bool))


def observe(trials: Sequence[FrozenTrial], encoding: Encoding, sign: float, number: int) -> Observations:
    """Read the trials that have a place in the encoded space.

    Args:
        trials: of one study.
        encoding: of the space; a trial that lacks a name of it or lies outside is left out.
        sign: 1 if the objective is minimised, -1 if it is maximised.
        number: of the trial that is being suggested; it is left out.

    Returns:
        The rows, as targets to be minimised in both directions.
    """
    known, values, steps, pending, constraints = [], [], [], [], []
    names = sorted({name for trial in trials for name in trial.constraints})
    for trial in trials:
        if trial.number == number or trial.state == TrialState.WAITING or not encoding.holds(trial.params):
            continue
        if trial.state == TrialState.RUNNING and not trial.intermediate_values:
            pending.append(trial.params)
            continue
        value, step = outcome(trial)
        known.append(trial.params)
        values.append(sign * value)
        steps.append(step)
        constraints.append([trial.constraints.get(name, math.nan) for name in names])
    finite = np.array(values, dtype=float)
    partial = any(step is not None for step in steps)
    if partial:
        curves = [
            {step: sign * value for step, value in trial.intermediate_values.items() if math.isfinite(value)}
            | ({math.inf: sign * trial.value} if _is_scored(trial) and trial.value is not None else {})
            for trial in trials
        ]
        finite += _lift([math.inf if step is None else step for step in steps], curves)
    last = max((step for trial in trials for step in trial.intermediate_values), default=0) if partial else 0
    limits = np.array(constraints, dtype=float).reshape(-1, len(names)) if names else None
    return Observations(encoding.encode(known), _fidelity(steps, last), finite, encoding.encode(pending), limits)


def is_informative(trial: FrozenTrial) -> bool:
    """Whether a trial says something: it ended, or it has reported a value."""
    return trial.state.is_finished() or (trial.state == TrialState.RUNNING and bool(trial.intermediate_values))


def outcome(trial: FrozenTrial) -> tuple[float, int | None]:
    """Return the last value of an informative trial and its step: NaN if it failed, None if fully trained or failed."""
    if trial.state == TrialState.COMPLETE:
        return (trial.value, None) if _is_scored(trial) and trial.value is not None else (math.nan, None)
    if trial.state == TrialState.FAIL or not trial.intermediate_values:
        return math.nan, None
    step = max(trial.intermediate_values)
    value = trial.intermediate_values[step]
    return (value, step) if math.isfinite(value) else (math.nan, None)


def _is_scored(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.COMPLETE and trial.value is not None and math.isfinite(trial.value)


def _fidelity(steps: Sequence[int | None], last: int) -> Floats:
    top = math.log1p(last + 1)  # a stopped trial is not a finished trial, however far it came
    return np.array([1.0 if step is None else math.log1p(max(step, 0)) / top for step in steps])


def _lift(steps: Sequence[float], curves: Sequence[Mapping[float, float]]) -> Floats:
    """The median change of the objective from each row's step to the end of training, shape (n,)."""
    levels = sorted({*steps, math.inf})
    lift = {math.inf: 0.0}
    for level, following in zip(reversed(levels[:-1]), reversed(levels[1:]), strict=True):
        changes = [curve[following] - curve[level] for curve in curves if level in curve and following in curve]
        lift[level] = lift[following] + (float(np.median(changes)) if changes else 0.0)
    return np.array([lift[step] for step in steps])
