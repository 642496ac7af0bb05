"""The arguments that all tuners share, and what is said of one that no tuner has."""

import inspect
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from lightning_hpo.records import Mode
from lightning_hpo.text import nearest, require_int


class Options(TypedDict, total=False):
    """Arguments that all tuners share; see :class:`~lightning_hpo.Tuner`."""

    monitor: str | None
    mode: Mode | None
    sampler: BaseSampler | None
    seed: int
    name: str | None
    storage: str | BaseStorage | None
    root: str | Path
    trainer: Mapping[str, Any] | None
    checkpoint_every: int
    keep_checkpoints: bool
    workers: int
    devices_per_trial: int
    timeout: float | None
    total_steps: int | None
    max_failed: int | float
    trial_timeout: float | None
    max_retries: int
    stop_on_nan: bool
    isolate: bool
    allow_changed: bool
    shared: bool
    verbose: bool


def arguments_of(kind: type) -> list[str]:
    """Names of the arguments that a tuner takes."""
    own = [name for name, one in inspect.signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD]
    return [*own, *(name for name in Options.__annotations__ if name not in own)]


def refuse_unknown(kind: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError if there is an option that no tuner has."""
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"{kind.__name__} has no argument {name!r}.{nearest(name, arguments_of(kind))}")


def refuse_wrong(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an option outside its range, with its value and what is accepted."""
    if options["sampler"] is not None and not isinstance(options["sampler"], BaseSampler):
        raise TypeError(f"`sampler` must be an Optuna sampler, got {options['sampler']!r}.")
    refuse_wrong_limits(options)
    for name, least in (("seed", 0), ("workers", 1), ("devices_per_trial", 1), ("max_retries", 0)):
        require_int(name, options[name], least)


def refuse_wrong_limits(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a limit that is no number above 0."""
    for name in ("timeout", "total_steps", "max_failed", "trial_timeout"):
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"`{name}` must be a number above 0, got {value!r}.")
        if value is not None and not float(value) > 0:
            raise ValueError(f"`{name}` must be above 0, got {value!r}.")
