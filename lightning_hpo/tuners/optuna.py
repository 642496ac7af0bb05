"""Optuna's samplers, pruners, storages and studies over a LightningModule or a function."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import optuna
from optuna.pruners import BasePruner, MedianPruner, NopPruner
from optuna.samplers import BaseSampler, TPESampler
from optuna.study import StudyDirection

from lightning_hpo.errors import StudyMismatchError, explained
from lightning_hpo.records import Mode
from lightning_hpo.schedulers import FullBudget
from lightning_hpo.schedulers.units import read_budget
from lightning_hpo.space import Define, Space, parse_space, suggest
from lightning_hpo.study.remote import is_url
from lightning_hpo.text import say
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.parts import Parts
from lightning_hpo.tuners.proposers import OptunaProposer


class OptunaTuner(Tuner):
    """Any Optuna sampler, pruner, storage or study; trials are pruned within their training.

    Every validation is reported at its optimizer step; with a budget in epochs, the first validation in each epoch that
    has ended, at the number of that epoch. A pruned trial ends as a finished one: end hooks run, its
    checkpoint is kept. A trial that a kill has interrupted continues from its checkpoint. Sampling is keyed by the seed
    and the trial's number, so a continued study equals the uninterrupted one; up to rounding, with a sampler that warms
    its search up from memory, as Optuna's ``GPSampler`` does.

    Args:
        space: as for :class:`Tuner`, or a function of a trial that returns name -> value (define-by-run).
        max_steps, max_epochs, max_samples: budget of a trial that is not pruned, as exactly one of these. In epochs or
            samples, Optuna's steps count these: ``MedianPruner(n_warmup_steps=3)`` waits for 3 epochs.
        n_trials: trials in all, those that the study already has included. Enqueued trials come first, and all of them.
        monitor: metric that the module logs in validation; a tuple of several for a multi-objective search, in which
            Optuna prunes nothing. Best of a :class:`Result` is then by the first one; ``result.study.best_trials`` is
            the Pareto front.
        mode: as for :class:`Tuner`, or one for each metric.
        sampler: default ``TPESampler()``, or that of ``study``.
        pruner: default ``MedianPruner()``, or that of ``study``; with ``folds`` there is none.
        study: to continue, with its storage and its enqueued trials; its directions must be those of ``mode``.
        **options: as for :class:`Tuner`; ``keep_checkpoints`` is True by default. ``workers`` report to the study
            themselves, so it must not be in memory. What the sampler knows when it is asked depends on who ended first.
    """

    def __init__(
        self,
        space: Space | Define,
        *,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        n_trials: int,
        monitor: str | Sequence[str] | None = None,
        mode: Mode | Sequence[Mode] | None = None,
        sampler: BaseSampler | None = None,
        pruner: BasePruner | None = None,
        study: optuna.Study | None = None,
        keep_checkpoints: bool = True,
        **options: Any,
    ) -> None:
        with explained(None):
            if study is not None:
                _validate_study(study, options)
            pruner = _pruner(pruner, study, options.get("folds"))
            if study is not None:
                sampler = sampler or study.sampler
                if options.get("name") is None:
                    options["name"] = study.study_name
            budget = read_budget({"steps": max_steps, "epochs": max_epochs, "samples": max_samples})
            more: dict[str, Any] = {"monitor": monitor, "mode": mode, "keep_checkpoints": keep_checkpoints}
            super().__init__(
                space,
                FullBudget(budget.full, n_trials),
                unit=budget.unit.name,
                parts=Parts(
                    parts_of_unit=budget.unit.parts,
                    propose=_scored_by_jobs if pruner is None else partial(OptunaProposer, pruner=pruner),
                    study=study,
                    pruner=pruner,
                ),
                sampler=TPESampler() if sampler is None else sampler,
                **options,
                **more,
            )
            if study is not None:
                minimize = StudyDirection.MINIMIZE
                directions = ["min" if direction is minimize else "max" for direction in study.directions]
                if directions != list(self.setup.goal.modes):
                    raise StudyMismatchError(
                        f"`study` has the directions {directions}, but `mode` is {list(self.setup.goal.modes)}."
                    )


def _validate_study(study: object, options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError unless it is a study, and no option does what the study does itself."""
    if not isinstance(study, optuna.Study):
        raise TypeError(
            f"`study` must be a study, got {study!r}: write optuna.load_study(study_name=..., storage=...)."
        )
    if options.get("storage") is not None:
        raise ValueError("`study` has a storage of its own: give either `study` or `storage`.")
    if is_url(options.get("root", "")):
        raise ValueError("`root` is a URL, which takes a run with its study, and `study` is your own.")
    if options.get("start") is not None:
        raise ValueError("`study` is your own, and keeps its starting points: study.enqueue_trial({...}).")
    if options.get("from_run") is not None:
        raise ValueError("`study` is your own: give it earlier trials with study.add_trials(...).")


_scored_by_jobs = partial(OptunaProposer, pruner=NopPruner(), random_share=lambda steps: 0.0)  # noqa: ARG005  # a name


def _pruner(pruner: BasePruner | None, study: optuna.Study | None, folds: int | None) -> BasePruner | None:
    """Return what prunes trials while they train; None with folds, which stop them in between."""
    if pruner is not None and not isinstance(pruner, BasePruner):
        raise TypeError(f"`pruner` must be an Optuna pruner, got {pruner!r}.")
    if folds is None:
        return pruner or (MedianPruner() if study is None else study.pruner)
    if pruner is not None:
        raise ValueError("`folds` and `pruner` do not go together: hopeless trials are stopped between folds.")
    return None


def create_optuna_study(
    objective_fn: Callable[[dict[str, Any]], float],
    space: Space,
    n_trials: int = 100,
    *,
    seed: int | None = None,
    storage: str | optuna.storages.BaseStorage | None = None,
    study_name: str | None = None,
) -> optuna.Study:
    """Maximise a function of a config with TPE, and print the best parameters and score.

    Args:
        objective_fn: takes name -> value, returns the score. It may raise ``optuna.TrialPruned``.
        space: as for :class:`Tuner`.
        n_trials: how many configurations to try.
        seed: of the sampler; None draws one.
        storage: an Optuna storage or its URL; None keeps the study in memory.
        study_name: an existing study of this name in ``storage`` is continued.

    Returns:
        The study, with a median pruner.

    Example:
        >>> study = create_optuna_study(lambda config: -(config["x"] - 1) ** 2, {"x": "uniform(0, 2)"}, 3, seed=0)
        ... # doctest: +ELLIPSIS
        Best parameters: {'x': ...}
        Best score: ...
    """
    parsed = parse_space(space)
    study = optuna.create_study(
        direction="maximize",
        sampler=TPESampler(seed=seed),
        pruner=MedianPruner(),
        storage=storage,
        study_name=study_name,
        load_if_exists=study_name is not None,
    )
    study.optimize(lambda trial: objective_fn(parsed.deliver(suggest(trial, parsed))), n_trials=n_trials)
    say(f"Best parameters: {study.best_params}\nBest score: {study.best_value}")
    return study
