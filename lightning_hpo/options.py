"""The arguments that all tuners share, and what is said of one that no tuner has."""

import inspect
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from lightning_hpo.schedulers import Mode
from lightning_hpo.schedulers.base import require_int
from lightning_hpo.space import nearest

_HIGHER_IS_BETTER = {
    "acc", "accuracy", "f1", "f1score", "auc", "auroc", "roc", "precision", "recall", "iou", "miou", "jaccard", "dice",
    "r2", "r2score", "bleu", "rouge", "map", "mrr", "ndcg", "mcc", "kappa", "psnr", "ssim",
}  # fmt: skip
_LOWER_IS_BETTER = {"loss", "error", "err"}


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


def direction(monitor: str | None, mode: Mode | None) -> Mode:
    """Whether lower or higher values are better.

    Args:
        monitor: name of the metric, or None.
        mode: as the user has given it; None is ``"min"``, unless the name says otherwise.

    Raises:
        ValueError: for another mode; or if none is given for a metric of which, by its name, more is better.

    Example:
        >>> direction("val_loss", None), direction("val_acc", "max")
        ('min', 'max')
    """
    if mode not in ("min", "max", None):
        raise ValueError(f"`mode` must be 'min' or 'max', got {mode!r}.")
    words = set(re.split(r"[^a-z0-9]+", str(monitor).lower()))
    words |= {word.rstrip("0123456789") for word in words}  # acc5
    if mode is None and words & _HIGHER_IS_BETTER and not words & _LOWER_IS_BETTER:
        raise ValueError(
            f"`mode` must be given for `monitor` {monitor!r}: 'max', as more of it is better by its name, or 'min'."
        )
    return mode or "min"
