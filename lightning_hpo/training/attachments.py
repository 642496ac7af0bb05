"""Loggers and callbacks that a tuner attaches to the Trainer of each trial."""

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.training.builder import Builder, TrialComponents, as_list
from lightning_hpo.training.logged_rows import hiding_secrets
from lightning_hpo.training.metrics_file import METRICS, MetricsFile
from lightning_hpo.training.namespaces import is_a, of_lightning
from lightning_hpo.training.trial_info import Trial
from lightning_hpo.training.trial_loggers import MakeLogger, Status, TrialLogger, known_logger, trial_logger

_STATES = "callbacks.ckpt"  # in the folder of a trial
MakeCallbacks: TypeAlias = Callable[[Trial], Callback | Sequence[Callback]]


@dataclass(frozen=True)
class Attachments:
    """What each trial gets beside its own Trainer arguments.

    Args:
        loggers: open the runs of a trial.
        callbacks: instances, which are copied for each job, or a function of the trial that makes them.
    """

    loggers: Sequence[TrialLogger] = ()
    callbacks: Callback | Sequence[Callback] | MakeCallbacks | None = None

    def attach(self, components: TrialComponents, trial: Trial, *, logging: bool = True) -> list[Callback]:
        """Add them to the arguments of the Trainer of a job, and return the callbacks that were added.

        ``logging`` is False in the check before training, which logs nothing.
        """
        arguments = components.trainer
        own = self._callbacks(trial)
        if own:
            arguments["callbacks"] = [*as_list(arguments.get("callbacks")), *own]
        given = arguments.get("logger")
        others = [
            logger for logger in as_list(given) if is_a(logger, Logger) and not (self.loggers and known_logger(logger))
        ]
        if not logging and (self.loggers or others or given is True):
            arguments["logger"] = [DummyLogger() for _ in (*self.loggers, *others)] or DummyLogger()
        elif self.loggers or others:  # else the metrics file of the trial is its logger, or there is none
            shown, metrics = trial.without_secrets(), MetricsFile(trial.folder / METRICS, trial.start)
            opened = [logger for run in self.loggers for logger in run.open(shown)]
            arguments["logger"] = [*opened, *map(hiding_secrets, others), metrics]
        return own

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Tell the loggers of a trial how it has ended."""
        for logger in self.loggers:
            logger.end(trial.without_secrets(), score, step, status)

    def restored(self, trial: Trial, key: Key) -> list[Callback]:
        """Return the callbacks of a trial, made anew, with the state in which its last job has left them.

        Raises:
            RuntimeError: if there are none, or others than the trial had.
        """
        made, file = self._callbacks(trial), trial.folder / _STATES
        if not made:
            raise RuntimeError("there are no callbacks: give the tuner `callbacks=`.")
        states = checkpoints.load(file, key=key)["callbacks"] if file.exists() else []
        if states and [name for name, _ in states] != [callback.state_key for callback in made]:
            raise RuntimeError(
                f"`callbacks` gives others than trial {trial.number} had: {[name for name, _ in states]}."
            )
        for callback, (_, state) in zip(made, states, strict=False):
            callback.load_state_dict(state)
        return made

    def _callbacks(self, trial: Trial) -> list[Callback]:
        if self.callbacks is None:
            return []
        given: Any = self.callbacks
        given = given(trial) if callable(given) else copy.deepcopy(given)
        for callback in as_list(given):
            if not isinstance(of_lightning(callback), Callback):
                raise TypeError(f"`callbacks` must give Lightning callbacks, got {callback!r}.")
        return as_list(given)


def keep_states(callbacks: Sequence[Callback], folder: Path, key: Key) -> None:
    """Keep the state of a trial's own callbacks beside it, longer than its checkpoint; nothing if they have none."""
    states = [(callback.state_key, callback.state_dict()) for callback in callbacks]
    if any(state for _, state in states) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]  # set by Lightning
        checkpoints.save({"callbacks": states}, folder / _STATES, key)


def attachments(
    logger: str | MakeLogger | None, callbacks: Any, trainer: Mapping[str, Any], model: Any = None
) -> tuple[Attachments, dict[str, Any]]:
    """Check what a user wants to attach.

    Args:
        logger: name of a tool or a function of the trial; None for none.
        callbacks: as for :class:`Attachments`.
        trainer: arguments of every Trainer.
        model: a builder that has such arguments of its own, or anything else.

    Returns:
        What to attach, and ``trainer`` without the loggers in whose place each trial gets a run of its own.

    Raises:
        TypeError, ValueError, ImportError: if it cannot be attached.
    """
    given = model.logger if isinstance(model, Builder) else trainer.get("logger")
    if logger is not None and given is not None:
        raise ValueError("`logger` and the `logger` of `trainer` are both given: leave one of them out.")
    if not callable(callbacks):
        for callback in as_list(callbacks):
            if not is_a(callback, Callback):
                raise TypeError(
                    f"`callbacks` must be Lightning callbacks, or a function of the trial that returns some; "
                    f"got {callback!r}."
                )
    runs, others = [] if logger is None else [trial_logger(logger)], []
    for place, item in enumerate(as_list(given)):
        if (run := known_logger(item, place)) is not None:
            runs.append(run)
            continue
        others.append(item)
        if item is not False:
            warnings.warn(
                f"the {type(item).__name__} in `trainer` is copied for each job, so its runs do not follow the trials: "
                "give the tuner `logger=` a function of the trial that returns one",
                stacklevel=2,
            )
    rest = {name: value for name, value in trainer.items() if name != "logger"}
    if others:
        rest["logger"] = others if isinstance(given, list | tuple) else given
    return Attachments(runs, callbacks), rest
