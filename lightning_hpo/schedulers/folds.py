"""Cross-validation: a job trains a configuration on one fold, and its value is the mean over its folds so far.

=======  =====================================================================
R        budget of a fold
N        folds
s_j      score of a configuration on fold j
m_j      (s_1 + ... + s_j) / j, the value of a row at j R
=======  =====================================================================
"""

import contextlib
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import sub

from lightning_hpo.records import BUDGET, FOLDS, Job, Mode, Outcome, Row, ranked
from lightning_hpo.schedulers.base import Bracket, Coverage, Rung, Scheduler, require_halving
from lightning_hpo.schedulers.full_budget import FullBudget
from lightning_hpo.text import require_int

_LEAST = 3  # complete trials from which the noise of a fold is known
_HOPELESS = 2.0  # standard errors


@dataclass(frozen=True)
class FoldByFold:
    """Every trial is trained and scored once for each fold, unless it is hopeless after two.

    A trial is compared with the best complete one that began before it, on the folds that it has had. It is stopped if
    it is behind by more than two standard errors of what the other folds can still change. The noise of a fold is taken
    from the better half of the complete trials, of at least three: what is left of their scores without the mean of
    each trial and of each fold. A trial that is infeasible is hopeless too if the best one is not.

    Args:
        fold_steps: R, the budget of a fold, >= 1.
        folds: N, >= 2.
        n_trials: trials in all, failed ones included, >= 1.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> FoldByFold(100, 5, n_trials=20).max_steps
        500
    """

    fold_steps: int
    folds: int
    n_trials: int
    mode: Mode = "min"

    def __post_init__(self) -> None:
        require_int("folds", self.folds, 2)
        require_int("n_trials", self.n_trials, 1)
        require_halving(self.fold_steps, 1, 2, self.mode)

    @property
    def max_steps(self) -> int:
        """Budget of a trial with all its folds."""
        return self.fold_steps * self.folds

    @property
    def plan_covers(self) -> Coverage:
        """All folds of all trials are the most that happens."""
        return "all"

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Train the first trial that waits on its next fold, else start a new one."""
        hopeless = set(self.retired(rows))
        for row in rows:
            if row.idle and row.number not in hopeless and row.step < self.max_steps:
                return next_fold(self.fold_steps, row.values, trial=row.number)
        return next_fold(self.fold_steps, {}) if len(rows) < self.n_trials else None

    def retired(self, rows: Sequence[Row]) -> list[int]:
        """Trials that are hopeless after two folds or more; with one worker a verdict never changes."""
        begun = [row for row in rows if row.idle and 2 * self.fold_steps <= row.step < self.max_steps]
        complete = [row for row in ranked(rows, self.mode) if len(self._scores(row)) == self.folds] if begun else []
        return [
            row.number
            for row in begun
            if self._is_hopeless(row, [other for other in complete if other.number < row.number])
        ]

    def plan(self) -> tuple[Bracket, ...]:
        """Return a bracket with a rung for each fold."""
        return (Bracket(tuple(Rung(self.n_trials, self.fold_steps * fold) for fold in range(1, self.folds + 1))),)

    def _is_hopeless(self, row: Row, earlier: Sequence[Row]) -> bool:
        """Compare a trial with those that began before it and are complete, best first."""
        if len(earlier) < _LEAST:
            return False
        best, scores, sign = earlier[0], self._scores(row), 1 if self.mode == "min" else -1
        noise = _noise([self._scores(other) for other in earlier[: max(len(earlier) // 2, _LEAST)]])
        behind = sign * statistics.fmean(map(sub, scores, self._scores(best)))
        error = noise * math.sqrt(2 / len(scores) - 2 / self.folds)
        return not behind <= _HOPELESS * error or (best.feasible and not row.feasible)

    def _scores(self, row: Row) -> list[float]:
        return fold_scores(row.values, self.fold_steps)


def folded(scheduler: Scheduler, folds: int | None, mode: Mode) -> Scheduler:
    """Return a scheduler whose trials are trained on each fold, if that is wanted.

    Args:
        scheduler: of the search.
        folds: as for a tuner.
        mode: whether lower or higher values are better.

    Raises:
        ValueError: for a scheduler that compares trials within a fit.
    """
    if folds is None:
        return scheduler
    require_int("folds", folds, 2)
    if not isinstance(scheduler, FullBudget):
        raise ValueError(
            f"`folds` is {folds}, but {type(scheduler).__name__} compares trials before their full budget, and a trial "
            "is judged by whole fits here, one for each fold: use BayesianTuner, OptunaTuner or RandomTuner, without "
            "`median_stopping`; or Tuner(space, FullBudget(...))."
        )
    return FoldByFold(scheduler.max_steps, folds, scheduler.n_trials, mode)


def fit_steps(scheduler: Scheduler) -> int:
    """Return the full budget of a single fit, in the counts of a scheduler."""
    steps: int = getattr(scheduler, "fold_steps", scheduler.max_steps)
    return steps


def next_fold(
    fold_steps: int, values: Mapping[int, float], trial: int | None = None, confirms: int | None = None
) -> Job:
    """Return the job of the next fold of a trial.

    Example:
        >>> job = next_fold(100, {100: 0.3, 200: 0.4}, trial=7)
        >>> job.fold, job.max_steps
        (2, 300)
    """
    fold = max(values, default=0) // fold_steps
    return Job(fold_steps * (fold + 1), trial=trial, confirms=confirms, fold=fold)


def fold_scores(values: Mapping[int, float], fold_steps: int) -> list[float]:
    """Return the score of each fold, from the means over the folds so far.

    Example:
        >>> [round(score, 6) for score in fold_scores({100: 0.3, 200: 0.4}, 100)]
        [0.3, 0.5]
    """
    means = [values[step] for step in sorted(values) if step % fold_steps == 0]
    sums = [0.0, *(count * mean for count, mean in enumerate(means, start=1))]
    return [after - before for before, after in pairwise(sums)]


def over_folds(outcome: Outcome, job: Job, earlier: Sequence[float]) -> Outcome:
    """Return what the outcome of a fit means for its trial: the mean over its folds so far, at the end of the job.

    Args:
        outcome: of the fit; as it is for a job without a fold, or with a score that is no number.
        job: of the trial.
        earlier: scores of earlier folds.
    """
    score = math.nan
    with contextlib.suppress(TypeError, ValueError, OverflowError):  # which are said of any score
        score = math.nan if job.fold is None else float(outcome.score)  # type: ignore[arg-type]  # None when paused
    if not math.isfinite(score):
        return outcome
    scores = [*earlier[: job.fold], score]
    return replace(
        outcome,
        score=statistics.fmean(scores),
        step=job.max_steps,
        values={},
        ended=BUDGET,
        global_step=outcome.step if outcome.global_step is None else outcome.global_step,
        notes={**outcome.notes, FOLDS: scores},
        validations={job.max_steps: max(outcome.validations.items())[1]} if outcome.validations else {},
    )


def _noise(complete: Sequence[Sequence[float]]) -> float:
    """Standard deviation of a score around the means of its trial and of its fold."""
    trials, folds = len(complete), len(complete[0])
    of_trial = [statistics.fmean(scores) for scores in complete]
    of_fold = [statistics.fmean(scores[fold] for scores in complete) for fold in range(folds)]
    mean = statistics.fmean(of_trial)
    squares = (
        (score - of_trial[trial] - of_fold[fold] + mean) ** 2
        for trial, scores in enumerate(complete)
        for fold, score in enumerate(scores)
    )
    return math.sqrt(sum(squares) / ((trials - 1) * (folds - 1)))
