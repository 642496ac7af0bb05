"""A member of a population that trains in rounds: validated at exactly the last optimizer step of each interval.

Batches, epochs and accumulation do not matter for that: at the step that ends an interval, Lightning is told to
validate after this batch, and after no other. Where something at an epoch's end follows a metric of validation, as
ReduceLROnPlateau mostly does, there is a validation at each such end too, as in a plain Trainer.

A member trains to the end of the run. Whoever asks it to stop before is answered at the next decision, where it copies.
"""

import errno
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from optuna.distributions import BaseDistribution

from lightning_hpo.callbacks.member import Member, Population
from lightning_hpo.checkpoints.origin import STAMP
from lightning_hpo.study.population_folder import storage_error
from lightning_hpo.training.lr_schedule import bind_to_steps
from lightning_hpo.training.resumable import Resumable
from lightning_hpo.training.state_transfer import restart_early_stopping
from lightning_hpo.training.trainer import FirstCallback

NEVER = sys.maxsize
"""Batches between validations, as an argument of the Trainer: it validates when the member says so."""


class _Patient:
    """Mixed into a Trainer's class: notes that somebody asked it to stop, and trains on."""

    stop_wanted = False

    @property
    def should_stop(self) -> bool:
        return False

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self.stop_wanted = self.stop_wanted or bool(value)


def train_to_the_end(trainer: pl.Trainer) -> None:
    """Keep a Trainer from stopping before ``max_steps``; it stays an instance of its class."""
    kind = type(trainer)
    trainer.__class__ = type(kind.__name__, (_Patient, kind), {"__module__": kind.__module__})


class RoundMember(Member):
    """A member that saves and validates at the last optimizer step of each interval.

    An interval ends at the first step at or after a multiple of ``interval``: with several manual optimizers, each of
    which counts, a batch may pass over the multiple.

    Args:
        population: of the member.
        space: name -> distribution of the hyperparameters.
        monitor: metric that the module logs in validation.
        interval: optimizer steps between decisions.
        checkpoint: where to save.
        identity: of the trial that the member trains up to a step; put into every checkpoint.
    """

    def __init__(
        self,
        population: Population,
        space: Mapping[str, BaseDistribution],
        *,
        monitor: str,
        interval: int,
        checkpoint: Path,
        identity: Callable[[int], Mapping[str, Any]],
    ) -> None:
        super().__init__(population, space, monitor=monitor, interval=interval)
        self._checkpoint = checkpoint
        self._identity = identity
        self._resumable = Resumable()  # called from here: each callback of a Trainer costs time in every step
        self._resume: dict[str, Any] = {}
        self._stop_restored = False
        self._step = 0
        self._ended_at: int | None = None
        self.first = FirstCallback()

    def state_dict(self) -> dict[str, Any]:
        """Add what a continuation needs beyond Lightning's own checkpoint."""
        return {**super().state_dict(), "validated": sorted(self._validated), "resume": self._resume}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what validation logs, and whether somebody asks to stop."""
        super().load_state_dict(state_dict)
        self._validated = set(state_dict["validated"])
        self._stop_restored = state_dict["resume"]["stop_wanted"]

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose checkpoint it is."""
        checkpoint[STAMP] = dict(self._identity(trainer.global_step))

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's progress to where the checkpoint was taken: before the validation that ends an interval."""
        self._resumable.load(checkpoint["callbacks"][self.state_key]["resume"], checkpoint["loops"]["fit_loop"])

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put everything back; a continued fit begins with the validation that ends an interval, and its decision."""
        self._resumable.on_train_start(trainer, pl_module)
        bind_to_steps(trainer, trainer.max_steps)
        self._step = trainer.global_step
        super().on_train_start(trainer, pl_module)

    def after_start(self) -> None:
        """Put back what hooks at the start of training may have reset."""
        self._resumable.begin()

    def after_batch(self, trainer: pl.Trainer, outputs: Any) -> None:
        """Save at the end of an interval, before its validation: a continued run can pick up exactly there."""
        self._resumable.on_batch_end(trainer)
        before, self._step = self._step, trainer.global_step
        ended = self._step // self._interval > before // self._interval
        validate = ended or self._is_followed(trainer, stepped=self._step > before)
        trainer.val_check_batch = 1 if validate else NEVER
        if ended:
            self._ended_at = self._step
            self._resumable.before_validation()
            stop_wanted = self._was_asked_to_stop(trainer)
            self._resume = {**self._resumable.state(trainer, "validation due"), "stop_wanted": stop_wanted}
            self._save(trainer)

    def after_validation(self, trainer: pl.Trainer) -> None:
        """Do nothing: the checkpoint is the one before the validation."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let Lightning end a restarted epoch as any."""
        self._resumable.on_train_epoch_end(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the random numbers of training."""
        super().on_validation_start(trainer, pl_module)
        self._resumable.on_validation_start(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Continue as if no validation had happened, and report."""
        self._resumable.on_validation_end(trainer)
        super().on_validation_end(trainer, pl_module)

    def _continue(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._ended_at = self._step
        trainer.val_check_batch = 1
        trainer.stop_wanted = self._stop_restored  # type: ignore[attr-defined]  # see train_to_the_end

    def _is_due(self, trainer: pl.Trainer) -> bool:
        return trainer.global_step == self._ended_at != self._decided_at

    def _was_asked_to_stop(self, trainer: pl.Trainer) -> bool:
        return bool(getattr(trainer, "stop_wanted", False))

    def _answer_stop(self, trainer: pl.Trainer) -> None:
        """Train on, as a copy or as what it was."""
        if self._was_asked_to_stop(trainer):
            restart_early_stopping(trainer)
            trainer.stop_wanted = False  # type: ignore[attr-defined]  # see train_to_the_end

    def _save(self, trainer: pl.Trainer) -> None:
        try:
            if not self._checkpoint.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the folder of the member is gone: it was deleted or moved")
            trainer.save_checkpoint(self._checkpoint)
        except OSError as error:
            raise storage_error("no checkpoint could be saved", self._checkpoint, error) from error

    def _is_followed(self, trainer: pl.Trainer, *, stepped: bool) -> bool:
        """Whether something that comes after this batch reads a metric that only a validation gives."""
        last = trainer.is_last_batch or trainer.fit_loop.batch_idx + 1 == trainer.num_training_batches
        followed = (*_followed_by_schedules(trainer, stepped=stepped, last=last), *_followed(trainer, last))
        return any(name in self._validated or name not in trainer.callback_metrics for name in followed)


def _followed_by_schedules(trainer: pl.Trainer, *, stepped: bool, last: bool) -> Iterator[str]:
    """Metrics of the plateau schedules that Lightning steps after this batch."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor and trainer.lightning_module.automatic_optimization:
            by_epoch = config.interval == "epoch"
            count, due = (trainer.current_epoch, last) if by_epoch else (trainer.fit_loop.batch_idx, stepped)
            if due and (count + 1) % config.frequency == 0:
                yield config.monitor


def _followed(trainer: pl.Trainer, last: bool) -> Iterator[str]:
    """Metrics of the callbacks that were told to look at the end of an epoch of training."""
    for one in trainer.callbacks if last else ():  # type: ignore[attr-defined]  # set by Trainer
        looks = (isinstance(one, EarlyStopping) and one._check_on_train_epoch_end) or (  # noqa: SLF001  # no public name
            isinstance(one, ModelCheckpoint) and one._save_on_train_epoch_end  # noqa: SLF001  # as above
        )
        if looks and one.monitor:
            yield one.monitor
