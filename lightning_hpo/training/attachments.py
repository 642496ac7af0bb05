"""Loggers and callbacks that a tuner attaches to the Trainer of each trial."""

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from lightning.pytorch import Callback
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

from lightning_hpo.training.builder import TrialComponents
from lightning_hpo.training.make_trainer import listed
from lightning_hpo.training.plugins import METRICS, MetricsFile
from lightning_hpo.training.trial_info import Trial
from lightning_hpo.training.trial_loggers import MakeLogger, TrialLogger, trial_logger

MakeCallbacks: TypeAlias = Callable[[Trial], Callback | Sequence[Callback]]


@dataclass(frozen=True)
class Attachments:
    """What each trial gets beside its own Trainer arguments.

    Args:
        logger: opens the run of a trial; None leaves loggers to ``trainer``.
        callbacks: instances, which are copied for each job, or a function of the trial that makes them.
    """

    logger: TrialLogger | None = None
    callbacks: Callback | Sequence[Callback] | MakeCallbacks | None = None

    def attach(self, components: TrialComponents, trial: Trial, *, logging: bool = True) -> list[Callback]:
        """Add them to the arguments of the Trainer, and return the callbacks.

        Args:
            components: of the job.
            trial: that it is.
            logging: False in the check before training, which logs nothing.
        """
        own = [] if self.callbacks is None else self._callbacks(trial)
        if own:
            components.trainer["callbacks"] = [*listed(components.trainer.get("callbacks")), *own]
        if self.logger is not None and logging:
            metrics = MetricsFile(trial.folder / METRICS, trial.start)
            components.trainer["logger"] = [*self.logger.open(trial.without_secrets()), metrics]
        return own

    def _callbacks(self, trial: Trial) -> list[Callback]:
        given: Any = self.callbacks
        given = given(trial) if callable(given) else copy.deepcopy(given)
        for callback in listed(given):
            if not isinstance(callback, Callback):
                raise TypeError(f"`callbacks` must give Lightning callbacks, got {callback!r}.")
        return listed(given)


def attachments(logger: str | MakeLogger | None, callbacks: Any, trainer: Any) -> Attachments:
    """Check what a user wants to attach.

    Args:
        logger: name of a tool or a function of the trial; None for none.
        callbacks: as for :class:`Attachments`.
        trainer: arguments of every Trainer.

    Raises:
        TypeError, ValueError, ImportError: if it cannot be attached.
    """
    if logger is not None and (trainer or {}).get("logger") is not None:
        raise ValueError("`logger` and the `logger` of `trainer` are both given: leave one of them out.")
    for given in listed((trainer or {}).get("logger")):
        if isinstance(given, WandbLogger | MLFlowLogger):
            warnings.warn(
                f"the {type(given).__name__} in `trainer` is copied for each job, so trials may log into one run: "
                "give the tuner `logger='wandb'` or 'mlflow', or a function of the trial",
                stacklevel=2,
            )
    if not callable(callbacks):
        for callback in listed(callbacks):
            if not isinstance(callback, Callback):
                raise TypeError(
                    f"`callbacks` must be Lightning callbacks, or a function of the trial that returns some; "
                    f"got {callback!r}."
                )
    return Attachments(None if logger is None else trial_logger(logger), callbacks)
