"""Bayesian optimisation of a LightningModule: a Gaussian process says where to look next, and what it believes."""

import contextlib
import math
from typing import Any, Unpack

import optuna
from optuna.trial import TrialState

from lightning_hpo.errors import explained
from lightning_hpo.samplers import (
    GaussianProcessSampler,
    expected_improvement_share,
    importance,
    plot_slices,
    predicted_best,
)
from lightning_hpo.schedulers import FullBudget, MedianStopping, Scheduler
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.space import Space
from lightning_hpo.text import listed
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.options import Options, refuse_unknown
from lightning_hpo.tuners.run import Session


class BayesianTuner(Tuner):
    """Gaussian-process search: each trial gets the full budget, and is chosen by expected improvement.

    At the end it prints what the model believes (its best configuration with a standard deviation, and how much each
    parameter matters) and, where matplotlib is installed, draws a slice through the model along each parameter into
    ``slices.png`` of the run folder. :func:`lightning_hpo.samplers.predicted_best` and its kin take ``result.study``.

    Args:
        space: as for :class:`Tuner`.
        max_steps: budget of every trial, in optimizer steps.
        n_trials: trials in all, those of an earlier call included.
        n_startup_trials: as many are spread over the space before the model takes over.
        median_stopping: give up a trial at a tenth, two tenths, ... of its budget if it is worse than the median of
            earlier trials there. The model learns from what it had reached.
        stop_below: start no more trials once the expected improvement of the next one is below this share of the range
            of the scores so far, e.g. 0.001; None goes on to ``n_trials``.
        surrogate: any scikit-learn regressor whose ``predict`` takes ``return_std=True``, in place of the built-in
            Gaussian process.
        **options: as for :class:`Tuner`; ``sampler`` is chosen here.

    Raises:
        TypeError, ValueError: as for :class:`Tuner`, or if ``stop_below`` is not between 0 and 1.
    """

    def __init__(
        self,
        space: Space,
        *,
        max_steps: int,
        n_trials: int,
        n_startup_trials: int = 10,
        median_stopping: bool = False,
        stop_below: float | None = None,
        surrogate: Any = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            refuse_unknown(type(self), options)
            mode = options["mode"] = direction(options.get("monitor"), options.get("mode"))
            if options.get("sampler") is not None:
                raise TypeError("BayesianTuner chooses its own sampler; give another one to RandomTuner(sampler=...).")
            if stop_below is not None and not 0 < stop_below < 1:
                raise ValueError(f"`stop_below` must be between 0 and 1, got {stop_below!r}.")
            scheduler: Scheduler = FullBudget(max_steps, n_trials)
            if median_stopping:
                scheduler = MedianStopping(max_steps, n_trials, mode=mode)
            options["sampler"] = GaussianProcessSampler(
                options.get("seed", 0), n_startup_trials=n_startup_trials, surrogate=surrogate
            )
            super().__init__(space, scheduler, **options)
        self._n_startup_trials = n_startup_trials
        self._stop_below = stop_below

    def _converged(self, study: optuna.Study) -> bool:
        complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
        if self._stop_below is None or complete < self._n_startup_trials or not _has_choice(study):
            return False
        return expected_improvement_share(study, self.seed) < self._stop_below

    def _conclude(self, session: Session) -> None:
        study, folder, console = session.study, session.folder, session.console
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if not complete or not _has_choice(study):
            return
        best = predicted_best(study)
        spread = f" ± {best.sd:.2g}" if math.isfinite(best.sd) else ""
        console.line(f"the model expects most of {listed(best.params)}: {best.mean:.5g}{spread}")
        with contextlib.suppress(ValueError):  # another surrogate has no length scales
            shares = ", ".join(f"{name} {share:.0%}" for name, share in importance(study).items())
            console.line(f"how much each parameter matters to it: {shares}")
        with contextlib.suppress(ImportError):  # matplotlib is an extra
            plot_slices(study, folder.path / "slices.png")
            console.line(f"slices through the model: {folder.path / 'slices.png'}")


def _has_choice(study: optuna.Study) -> bool:
    """Whether a parameter has more than one value: else there is nothing to model."""
    trials = study.get_trials(deepcopy=False)
    return any(not one.single() for trial in trials for one in trial.distributions.values())
