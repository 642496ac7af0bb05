"""Presets: tuners that are composed of a scheduler, a sampler and observers, and override nothing."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import TrialState

from lightning_hpo import samplers  # its names, which load scipy, are imported at their first use
from lightning_hpo.errors import explained
from lightning_hpo.records import Mode
from lightning_hpo.reporting.beliefs import Beliefs, has_choice
from lightning_hpo.reporting.events import Observer
from lightning_hpo.schedulers import ASHA, AsyncHyperband, FullBudget, MedianStopping, Scheduler
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.schedulers.units import Budget, read_budget
from lightning_hpo.space import Space
from lightning_hpo.text import require_bool
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.limits import Limits
from lightning_hpo.tuners.options import Options, group, validate_names
from lightning_hpo.tuners.parts import OpenedRun, Parts
from lightning_hpo.tuners.proposers import make_proposer

_MOST_MODELLED = 60  # parameters of a Gaussian process over configuration and step
_RANDOM = 1 / 3  # share of trials that no sampler proposes, as in BOHB (Falkner et al. 2018, Algorithm 2)


class RandomTuner(Tuner):
    """Random search at the full budget, or any other sampler through ``sampler=``.

    Args:
        space: as for :class:`Tuner`.
        max_steps, max_epochs, max_samples: budget of every trial, as exactly one of these.
        n_trials: trials in all, those of an earlier call included.
        **options: as for :class:`Tuner`.
    """

    def __init__(
        self,
        space: Space,
        *,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        n_trials: int,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            budget = read_budget({"steps": max_steps, "epochs": max_epochs, "samples": max_samples})
            super().__init__(
                space,
                FullBudget(budget.full, n_trials),
                unit=budget.unit.name,
                parts=Parts(parts_of_unit=budget.unit.parts),
                **options,
            )


class HyperbandTuner(Tuner):
    """Asynchronous Hyperband with a model: many configurations for a few steps, the best of them for more.

    No worker ever waits. New trials start in brackets, from one that judges after ``min_steps`` to one that trains to
    ``max_steps`` at once, as a hedge: where short runs mislead, the later brackets find what the earlier ones missed.

    Args:
        space: as for :class:`Tuner`.
        max_steps, max_epochs, max_samples: full budget of a trial, as exactly one of these.
        min_steps, min_epochs, min_samples: the smallest budget a trial is judged at, in the same unit. Default: the
            full one / ``eta**3``, which gives four brackets; at least one epoch.
        eta: of ``eta`` trials one is promoted.
        iterations: how many times to run all brackets (:class:`~lightning_hpo.AsyncHyperband`). Default: once; with
            ``total_steps`` as often as it takes to spend them; with ``timeout`` alone without end.
        **options: as for :class:`Tuner`. ``sampler`` proposes two thirds of the trials; the others are drawn at random
            (BOHB's rule). Default: :class:`~lightning_hpo.MultiFidelitySampler`, or in a space of more than 60
            parameters :class:`~lightning_hpo.KernelDensitySampler`, for trials that enter above the lowest rung only.
            Those at the lowest are all random: evaluations are cheap there, and what they find keeps the model honest.

    Source: Li et al. 2018 (JMLR 18-185) and 2020 (arXiv 1810.05934); Falkner et al. 2018 (arXiv 1807.01774).
    """

    def __init__(
        self,
        space: Space,
        *,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        min_steps: int | None = None,
        min_epochs: float | None = None,
        min_samples: int | None = None,
        eta: int = 3,
        iterations: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            budget = read_budget(
                {"steps": max_steps, "epochs": max_epochs, "samples": max_samples},
                {"steps": min_steps, "epochs": min_epochs, "samples": min_samples},
            )
            mode, total = _goal_and_total(options, budget)
            full, least = budget.full, _least(budget, eta)
            if iterations is None and total is not None:
                once = sum(bracket.steps for bracket in AsyncHyperband(full, least, eta, mode).plan())
                iterations = total // once + 2  # one more than it takes: trials that fail leave their steps to others
            elif iterations is None and options.get("timeout") is None:
                iterations = 1
            scheduler = AsyncHyperband(full, least, eta, mode, iterations)
            lowest = None
            if options.get("sampler") is None:
                options["sampler"] = _model(space, full, options.get("seed", 0))
                lowest = scheduler.plan()[0].rungs[0].max_steps
            share = partial(_random_share, lowest=lowest)
            parts = Parts(partial(make_proposer, random_share=share), parts_of_unit=budget.unit.parts)
            super().__init__(space, scheduler, unit=budget.unit.name, parts=parts, **options)


class ASHATuner(Tuner):
    """ASHA: a trial is promoted as soon as it is among the best 1/eta of its rung; no worker ever waits.

    The simplest of the tuners that stop early, and the fastest where short runs tell the truth. Where they may mislead,
    :class:`HyperbandTuner` is the safer choice.

    Args:
        space: as for :class:`Tuner`.
        max_steps, max_epochs, max_samples: full budget of a trial, as exactly one of these.
        min_steps, min_epochs, min_samples: the smallest budget a trial is judged at, in the same unit. Default: the
            full one / ``eta**3``, which gives four rungs; at least one epoch.
        eta: of ``eta`` trials one is promoted.
        n_trials: configurations to start. Default: as many as spend about the steps of :class:`HyperbandTuner`; with
            ``total_steps`` as many as it takes to spend them; with ``timeout`` alone without end.
        **options: as for :class:`Tuner`. ``sampler`` proposes two thirds of the trials, as for :class:`HyperbandTuner`.
            Default: all at random, since all evaluations cost the same.

    Source: Li et al. 2020 (arXiv 1810.05934), Algorithm 2.
    """

    def __init__(
        self,
        space: Space,
        *,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        min_steps: int | None = None,
        min_epochs: float | None = None,
        min_samples: int | None = None,
        eta: int = 3,
        n_trials: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            budget = read_budget(
                {"steps": max_steps, "epochs": max_epochs, "samples": max_samples},
                {"steps": min_steps, "epochs": min_epochs, "samples": min_samples},
            )
            mode, total = _goal_and_total(options, budget)
            full, least = budget.full, _least(budget, eta)
            bracket = ASHA(full, least, eta, mode).plan()[0]
            if n_trials is None and total is not None:
                n_trials = (total // bracket.steps + 2) * bracket.trials
            elif n_trials is None and options.get("timeout") is None:
                n_trials = len(bracket.rungs) * bracket.trials
            parts = Parts(partial(make_proposer, random_share=_random_share), parts_of_unit=budget.unit.parts)
            scheduler = ASHA(full, least, eta, mode, n_trials)
            super().__init__(space, scheduler, unit=budget.unit.name, parts=parts, **options)


class BayesianTuner(Tuner):
    """Gaussian-process search: each trial gets the full budget, and is chosen by expected improvement.

    At the end it prints what the model believes (its best configuration with a standard deviation, and how much each
    parameter matters) and, where matplotlib is installed, draws a slice through the model along each parameter into
    ``slices.png`` of the run folder. :func:`lightning_hpo.samplers.predicted_best` and its kin take ``result.study``.

    ``result.best_params`` and ``best.ckpt`` are of the best value. Under noise that value is partly luck, and the model
    prefers another trial: a line at the end says so, and ``lightning_hpo.samplers.recommended(result.study)`` returns
    the trial with its parameters and the rule that chose it.

    Args:
        space: as for :class:`Tuner`.
        max_steps, max_epochs, max_samples: budget of every trial, as exactly one of these.
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
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        n_trials: int,
        n_startup_trials: int = 10,
        median_stopping: bool = False,
        stop_below: float | None = None,
        surrogate: Any = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            mode = options["mode"] = direction(options.get("monitor"), options.get("mode"))
            if options.get("sampler") is not None:
                raise TypeError("BayesianTuner chooses its own sampler; give another one to RandomTuner(sampler=...).")
            if stop_below is not None and not 0 < stop_below < 1:
                raise ValueError(f"`stop_below` must be between 0 and 1, got {stop_below!r}.")
            budget = read_budget({"steps": max_steps, "epochs": max_epochs, "samples": max_samples})
            require_bool("median_stopping", median_stopping)
            scheduler: Scheduler = FullBudget(budget.full, n_trials)
            if median_stopping:
                scheduler = MedianStopping(budget.full, n_trials, mode=mode)
            options["sampler"] = samplers.GaussianProcessSampler(
                options.get("seed", 0), n_startup_trials=n_startup_trials, surrogate=surrogate
            )
            converged = partial(_converged, least=n_startup_trials, below=stop_below, seed=options.get("seed", 0))
            parts = Parts(observers=_beliefs, converged=converged, parts_of_unit=budget.unit.parts)
            super().__init__(space, scheduler, unit=budget.unit.name, parts=parts, **options)


def _goal_and_total(options: Options, budget: Budget) -> tuple[Mode, int | None]:
    """Return the direction of the search, which is noted in the options, and its limit in counts of the budget."""
    total = group(Limits, {**options, "unit": budget.unit}).count
    mode = options["mode"] = direction(options.get("monitor"), options.get("mode"))
    return mode, total


def _model(space: Space, full: int, seed: int) -> BaseSampler:
    """The sampler of :class:`HyperbandTuner`."""
    if not callable(space) and len(space) > _MOST_MODELLED:
        return samplers.KernelDensitySampler(seed)
    return samplers.MultiFidelitySampler(max_steps=full, seed=seed)


def _random_share(steps: int, lowest: int | None = None) -> float:
    """Share of random trials among those judged first at ``steps``; all of them at the lowest rung, if it is given."""
    return 1.0 if steps == lowest else _RANDOM


def _least(budget: Budget, eta: int) -> int:
    """Smallest budget, or its default where it is not given; the scheduler says what is wrong with an argument."""
    if budget.least is not None or not (isinstance(budget.full, int) and isinstance(eta, int)):
        return 1 if budget.least is None else budget.least
    return max(budget.full // max(eta, 1) ** 3, 1)


def _beliefs(run: OpenedRun) -> Sequence[Observer]:
    return [Beliefs(run.study, run.folder.path, run.console)]


def _converged(study: optuna.Study, *, least: int, below: float | None, seed: int) -> bool:
    """Whether the next trial's expected improvement is below a share of the range of the scores so far."""
    complete = len(study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)))
    if below is None or complete < least or not has_choice(study):
        return False
    return samplers.expected_improvement_share(study, seed) < below
