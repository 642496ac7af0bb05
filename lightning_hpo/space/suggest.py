"""A trial of Optuna suggests a value for each name of a space that it has."""

from collections.abc import Callable, Mapping
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.space.search_space import SearchSpace


def suggest(trial: optuna.Trial, space: SearchSpace | Callable[[optuna.Trial], Mapping[str, Any]]) -> dict[str, Any]:
    """Let a trial suggest a value for each name of a space that it has, or let a function of the trial do it."""
    if callable(space):
        return dict(space(trial))
    return space.draw(lambda name: _suggest(trial, name, space[name]))


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
    raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")
