"""What a plain ``Trainer.fit`` needs to do in one piece what a trial did: noted in its last checkpoint, for best.yaml.

Validations of a trial leave the random numbers of training alone; those of a plain Trainer draw from them. So best.yaml
asks for a single validation, at the last step. Where something follows validations (EarlyStopping, ReduceLROnPlateau, a
hook of the module), it names the callback :class:`~lightning_hpo.callbacks.trial_validation.TrialValidation`.
"""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import (
    DeviceStatsMonitor,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelSummary,
    ProgressBar,
    Timer,
)

from lightning_hpo.training.builder import as_list
from lightning_hpo.training.lr_schedule import LRSchedule, schedules_of

NOTE = "fit"
"""Name of the note in the state of the callback that saves."""
_HOOKS = ("on_validation_start", "on_validation_epoch_start", "on_validation_batch_start", "on_validation_batch_end",
          "on_validation_epoch_end", "on_validation_end")  # fmt: skip
_ONLY_SHOW = (DeviceStatsMonitor, LearningRateMonitor, ModelSummary, ProgressBar, Timer)
_BASES = ("core.hooks", "core.module", "callbacks.callback")  # modules of Lightning whose hooks do nothing


def plain_fit(trainer: Any, attached: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the note, as plain values, of a trial at its last step.

    The tuner has ``attached`` callbacks to those of the builder, here as a config names them.
    """
    callbacks = [found for found in trainer.callbacks if not type(found).__module__.startswith("lightning_hpo.")]
    binds = any(isinstance(callback, LRSchedule) for callback in trainer.callbacks)
    return {
        "batches": int(trainer.fit_loop.epoch_loop.batch_progress.total.ready),
        "followed": _is_followed(trainer, callbacks),
        "bound": not binds and bool(schedules_of(trainer)),
        "epochs": trainer.epochs_of_budget() if "max_epochs" in trainer.asked else None,
        "steps": trainer.max_steps if "max_steps" in trainer.asked else None,
        "attached": list(attached),
        "callbacks": sorted({_path(callback) for callback in callbacks if not _only_shows(callback)}),
    }


def _is_followed(trainer: Any, callbacks: Iterable[pl.Callback]) -> bool:
    """Whether something may act on training after a validation."""
    acting = [callback for callback in callbacks if not _only_shows(callback)]
    return (
        any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        or any(_has_hook(type(part)) for part in (trainer.lightning_module, *acting))
    )  # fmt: skip


def _has_hook(kind: type) -> bool:
    hooks = (inspect.unwrap(getattr(kind, name)) for name in _HOOKS if callable(getattr(kind, name, None)))
    return any(not hook.__module__.partition("pytorch.")[2].startswith(_BASES) for hook in hooks)


def _only_shows(callback: pl.Callback) -> bool:
    return isinstance(callback, _ONLY_SHOW) or (isinstance(callback, ModelCheckpoint) and callback.monitor is None)


def written(callback: pl.Callback) -> dict[str, Any] | None:
    """Return a callback, before it has trained, as a config names it; None if its attributes do not tell its arguments.

    Example:
        >>> from lightning.pytorch.callbacks import EarlyStopping
        >>> written(EarlyStopping("val_loss", patience=7))["init_args"]
        {'monitor': 'val_loss', 'patience': 7}
    """
    kind = type(callback)
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(kind).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = vars(callback).get(name, vars(callback).get(f"_{name}", parameter.empty))
        if value is parameter.empty or "<locals>" in kind.__qualname__:
            return None
        if name == "min_delta":  # EarlyStopping gives it a sign
            value = abs(value)
        if value != parameter.default:
            arguments[name] = value
    try:
        same = _plain(kind(**arguments)) == _plain(callback)
    except Exception:  # noqa: BLE001  # whatever a class of the user's says to these arguments
        return None
    return {"class_path": _path(callback), "init_args": arguments} if same and _is_plain(arguments) else None


def _path(callback: pl.Callback) -> str:
    """Return the path that a config names the class of a callback by."""
    kind = type(callback)
    public = kind.__module__.partition(".callbacks.")
    return f"{public[0]}.callbacks.{kind.__name__}" if public[1] else f"{kind.__module__}.{kind.__qualname__}"


def _plain(callback: pl.Callback) -> dict[str, Any]:
    return {name: value for name, value in vars(callback).items() if _is_plain(value)}


def _is_plain(value: Any) -> bool:
    """Whether YAML writes a value as it is."""
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def plain_arguments(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a Trainer that YAML can write, with its callbacks as a config names them."""
    plain = {name: value for name, value in arguments.items() if _is_plain(value) and name != "callbacks"}
    if texts := [text for text in map(written, as_list(arguments.get("callbacks"))) if text is not None]:
        plain["callbacks"] = texts
    return plain
