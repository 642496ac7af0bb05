"""One leg of a trial: train to a step, save on the way, validate at exactly that step."""

import logging
import math
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_hpo import live
from lightning_hpo.callbacks.resumable import Resumable
from lightning_hpo.failures import DivergedError, ParameterMismatchError
from lightning_hpo.lr_schedules import ClosedFormLR


class Leg(pl.Callback):
    """Stops the Trainer after ``target`` optimizer steps, with a validation there and a checkpoint.

    Args:
        target: optimizer step to stop at.
        checkpoint: where to save.
        every: save each time so many optimizer steps are done, so that a kill costs no more than that.
        hparams: argument -> value the module was built with; read back from its ``hparams``.
        optimizer: setting -> value an optimizer was built with; read back from its ``defaults``.
        should_pause: asked after every step; True saves and stops without a validation. Asked after every validation
            batch too, as a sign that the job goes on.
        stop_on_nan: raise DivergedError at the first training loss that is not finite. The loss is what
            ``training_step`` returns. On a CPU it is looked at after every step; elsewhere the losses are kept on the
            device and looked at together before each checkpoint and validation, so no step waits for the device.
    """

    def __init__(
        self,
        target: int,
        checkpoint: Path,
        *,
        every: int,
        hparams: Mapping[str, Any],
        optimizer: Mapping[str, Any],
        should_pause: Callable[[], bool],
        stop_on_nan: bool = False,
    ) -> None:
        self._target = target
        self._checkpoint = checkpoint
        self._every = every
        self._hparams = hparams
        self._optimizer = optimizer
        self._should_pause = should_pause
        self._stop_on_nan = stop_on_nan
        self._losses: list[tuple[int, torch.Tensor]] = []  # not looked at yet, with their steps
        self._asked: list[list[dict[str, Any]]] = []
        self._before: list[list[dict[str, Any]]] = []
        self._step = 0
        self._resumable = Resumable()  # called from here: each callback of a Trainer costs time in every step
        self._handler: Any = None
        self.paused = False
        self.validated_at: int | None = None
        self.metrics: dict[str, float] = {}

    def state_dict(self) -> dict[str, Any]:
        """What the optimizers were built with; a checkpoint's continuation compares its own with it."""
        return {"settings": self._asked}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the restored optimizers were built with."""
        self._before = state_dict["settings"]

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the optimizers are built with; restored ones overwrite it after this hook."""
        self._asked = [live.settings(optimizer) for optimizer in trainer.optimizers]
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the trial's own hyperparameters over restored ones, read them back, and stop if nothing is left."""
        ours = callable(self._handler) or trainer.world_size > 1
        if ours and threading.current_thread() is threading.main_thread():
            # Lightning's own handler, which is now before ours, ends a fit after a step or in a validation without
            # asking us, and talks to the other ranks in the middle of anything.
            signal.signal(signal.SIGTERM, self._handler)
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        for optimizer, before, asked in zip(trainer.optimizers, self._before or self._asked, self._asked, strict=True):
            changes = live.changed(before, asked)
            live.apply(changes, optimizer, [schedule for schedule in schedules if schedule.optimizer is optimizer])
            live.read_back(changes, optimizer)
        _read_back_hparams(self._hparams, pl_module)
        _read_back_defaults(self._optimizer, [optimizer.defaults for optimizer in trainer.optimizers])
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, ClosedFormLR):
                config.interval = "step"
                if config.scheduler.needs_max_steps:
                    config.scheduler.bind(trainer.max_steps)  # the full budget, in every rung
        self._step = trainer.global_step
        if trainer.global_step >= self._target:
            trainer.should_stop = True

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save where the leg ends and at every multiple of ``every``; stopping here makes Lightning validate now."""
        self._resumable.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._stop_on_nan:
            self._note_loss(trainer, trainer.global_step, outputs)
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        before, self._step = self._step, trainer.global_step
        reached = self._step >= self._target
        # Of several ranks the one that may pause decides for all.
        self.paused = not reached and trainer.strategy.reduce_boolean_decision(self._should_pause(), all=False)
        if reached or self.paused or self._step // self._every > before // self._every:
            self._look_at_losses(trainer)
            self._save(trainer)
        if reached or self.paused:
            trainer.should_stop = True
        if self.paused:
            trainer.limit_val_batches = 0  # a pause must not wait for a validation

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Give a sign that the job goes on."""
        self._should_pause()

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the validation from changing the random numbers of training."""
        self._look_at_losses(trainer)
        self._resumable.on_validation_start(trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics and the step they belong to."""
        self._resumable.on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self.validated_at = trainer.global_step
            self.metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}

    def _note_loss(self, trainer: pl.Trainer, step: int, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):  # manual optimization may return none
            return
        here = loss.device.type == "cpu"
        if here and trainer.world_size == 1 and loss.numel() == 1 and math.isfinite(loss.item()):
            return  # the common case, in every step: no tensor is made, nobody to agree with
        self._losses.append((step, loss.detach()))
        if here:
            self._look_at_losses(trainer)

    def _look_at_losses(self, trainer: pl.Trainer) -> None:
        """Raise DivergedError for the first one that is not finite, on all ranks at the same step."""
        losses, self._losses = self._losses, []
        if not losses:
            return
        finite = [math.isfinite(one) for one in torch.stack([loss.float().sum() for _, loss in losses]).tolist()]
        if trainer.strategy.reduce_boolean_decision(not all(finite), all=False):
            step, loss = losses[finite.index(False) if False in finite else -1]
            raise DivergedError(f"diverged at step {step}: the training loss is {float(loss.float().sum())}")

    def _save(self, trainer: pl.Trainer) -> None:
        """Save a checkpoint; a trial can do without one, so a full disk is a warning: the one before stays."""
        try:
            trainer.save_checkpoint(self._checkpoint)
        except OSError as error:
            logging.getLogger(__name__).warning(
                "step %d: no checkpoint was saved, the trial goes on without: %s", trainer.global_step, error
            )
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where other processes of the trial are waiting


def _read_back_hparams(asked: Mapping[str, Any], module: pl.LightningModule) -> None:
    effective = module.hparams
    for name, value in asked.items():
        if name in effective and effective[name] != value:
            raise ParameterMismatchError(
                f"model.{name}={value!r} was asked for, but the module's hparams hold {effective[name]!r}."
            )


def _read_back_defaults(asked: Mapping[str, Any], optimizers: Sequence[Mapping[str, Any]]) -> None:
    for name, value in asked.items():
        effective = [defaults.get(name) for defaults in optimizers]
        if value not in effective:
            raise ParameterMismatchError(
                f"optimizer.{name}={value!r} was asked for, but the optimizers were built with {effective!r}."
            )
