"""One job of a trial: train to a step, save on the way, validate at exactly that step."""

import logging
import signal
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, Timer
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_hpo.checkpoints.origin import STAMP
from lightning_hpo.records import BUDGET, Outcome
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO
from lightning_hpo.training.losses import LossWatch
from lightning_hpo.training.lr_schedule import bind_to_steps
from lightning_hpo.training.metrics_file import write_row_ahead
from lightning_hpo.training.plain_fit import NOTE, plain_fit
from lightning_hpo.training.resumable import Point, Resumable
from lightning_hpo.training.scores import Scores
from lightning_hpo.training.settings import BuiltSettings, add_groups, names_in_groups
from lightning_hpo.training.trainer import (
    STEP_HOOKS,
    JobCallback,
    ends_itself,
    epoch_ends,
    is_held_back,
    leave_fit,
    leave_out_means,
    stop,
    validate_now,
    validation_is_due,
    without_hooks,
)
from lightning_hpo.training.trial_info import first_row


@without_hooks(*STEP_HOOKS, "on_train_batch_start")
class RunToStep(JobCallback):
    """Stops the Trainer after ``target`` optimizer steps, with a validation there and a checkpoint.

    It is saved only where training can be continued exactly (see :mod:`lightning_hpo.training.resumable`). A
    validation that the module's own rhythm does not ask for leaves no trace in the checkpoint of a trial that goes on.

    Args:
        target: to stop at, in optimizer steps or in the unit of the budget.
        checkpoint: where to save.
        every: save each time so many optimizer steps are done, so that a kill costs no more than that.
        scores: of the trial; told of each validation.
        should_pause: asked after every step; True saves and stops without a validation. Asked after every validation
            batch too, as a sign that the job goes on.
        stop_on_nan: raise DivergedError at the first training loss that is not finite. The loss is what
            ``training_step`` returns. On a CPU it is looked at after every step; elsewhere the losses are kept on the
            device and looked at together before each checkpoint and validation, so no step waits for the device.
        identity: of the trial; put into every checkpoint.
        forked: whether training begins from another trial's checkpoint, whose hyperparameters are not its own.
        attached: callbacks that the tuner has added to the Trainer, as a config names them.
    """

    def __init__(
        self,
        target: int,
        checkpoint: Path,
        *,
        every: int,
        scores: Scores,
        should_pause: Callable[[], bool],
        stop_on_nan: bool = False,
        identity: Mapping[str, Any] | None = None,
        forked: bool = False,
        attached: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        self._target = target  # in optimizer steps, once training starts
        self._place: dict[str, int] = {}
        self._checkpoint = checkpoint
        self._every = every
        self.scores = scores
        self._should_pause = should_pause
        self._identity = dict(identity or {})
        self._forked, self._attached = forked, attached
        self._plain_fit: dict[str, Any] = {}
        self._losses = LossWatch() if stop_on_nan else None
        self._settings: BuiltSettings | None = None
        self._before: list[tuple[Any, Any]] | None = None
        self._resumable = Resumable()  # called from here: each callback of a Trainer costs time in every step
        self._handler: Any = None
        self._step = self._row = 0  # the row is the step at which loggers are given the last batch
        self._resume: dict[str, Any] = {}
        self._groups: list[list[list[str]]] = []  # names of the parameters in each group of each optimizer
        self._saved_at = self._epoch_began_at = -1
        self._save_wanted = self._pause_wanted = self._epoch_ends = False
        self._stops_at_start = False
        self._due = False  # whether the module's own rhythm asks for a validation after this batch
        self.paused, self.ended = False, BUDGET
        self.validated_at: int | None = None

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs beyond Lightning's own checkpoint."""
        validated = {"step": self.validated_at, "ended": self.ended, "place": self._place, **self.scores.state()}
        settings = [] if self._settings is None else self._settings.values
        kept = {"settings": settings, "groups": self._groups, "resume": self._resume, "validated": validated}
        return {**kept, NOTE: self._plain_fit}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what the optimizers of a parent were built with."""
        self._before = state_dict["settings"] if self._forked else None
        self._groups = state_dict["groups"]
        if not self._forked:
            self.scores.restore(state_dict["validated"].get("kept", ()))  # older checkpoints have none

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose checkpoint it is."""
        checkpoint[STAMP] = self._identity

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's progress to where the checkpoint was taken."""
        self._saved_at = -1 if self._forked else checkpoint["global_step"]
        self._row = max(first_row(checkpoint) - 1, 0)
        self._resumable.load(checkpoint["callbacks"][self.state_key]["resume"], checkpoint["loops"]["fit_loop"])

    # Hooks, after those of the user's callbacks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note what the optimizers are built with; restored ones overwrite it after this hook."""
        add_groups(trainer.optimizers, pl_module, self._groups)
        self._settings = BuiltSettings(trainer, self._before)
        self._handler = signal.getsignal(signal.SIGTERM)
        # A timer that has run out stops the Trainer here; a loop that never begins could not validate.
        self._stops_at_start, trainer.should_stop = trainer.should_stop, False

    def on_train_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Apply the trial's own settings over restored ones, read them back, and stop if nothing is left."""
        ours = callable(self._handler) or trainer.world_size > 1
        if ours and threading.current_thread() is threading.main_thread():
            # Lightning's own handler, which is now before ours, ends a fit after a step or in a validation without
            # asking us, and talks to the other ranks in the middle of anything.
            signal.signal(signal.SIGTERM, self._handler)
        self._resumable.on_train_start(trainer, pl_module)
        bind_to_steps(trainer, trainer.max_steps)  # the full budget, in every rung
        assert self._settings is not None
        self._settings.apply(trainer)
        self._step = trainer.global_step
        self._target = trainer.steps_of(self._target)
        if self._reached:  # a validation is owed, see before_end
            stop(trainer)
        trainer.should_stop |= self._stops_at_start

    def after_start(self) -> None:
        """Put back what hooks at the start of training may have reset."""
        self._resumable.begin()

    def after_batch(self, trainer: Any, outputs: Any) -> None:
        """Save or stop, when all hooks of a batch, the module's included, have run."""
        self._resumable.on_batch_end(trainer)
        if self._losses is not None:
            self._losses.note(trainer, outputs)
        self._epoch_ends = epoch_ends(trainer)
        self._row = trainer.fit_loop.epoch_loop._batches_that_stepped  # noqa: SLF001  # no public name
        if trainer.global_step == self._step:
            return  # gradients are being accumulated
        before, self._step = self._step, trainer.global_step
        # Of several ranks the one that may pause decides for all.
        self._pause_wanted |= trainer.strategy.reduce_boolean_decision(self._should_pause(), all=False)
        self._save_wanted |= self._step // self._every > before // self._every
        if self._reached or self._pause_wanted or self._save_wanted:
            self._come_to_a_point(trainer)

    def _come_to_a_point(self, trainer: Any) -> None:
        """Save here if training can be continued exactly from here; else it is done after a validation or epoch."""
        if self._losses is not None:
            self._losses.check(trainer)
        self._due = validation_is_due(trainer)
        # At the end of an epoch, a stop would bring a validation that is not due ahead of the end hooks.
        stops = self._reached and (self._due or not self._epoch_ends)
        write_row_ahead(trainer, stops=stops)
        if self._due:
            self._resumable.before_validation()
        if self._reached:
            if not (self._due or self._epoch_ends or _is_final(trainer)):
                self._save(trainer, "batch")
            if stops:
                stop(trainer)
        elif not self._epoch_ends:
            if not self._due and (self._pause_wanted or not ends_itself(trainer)):
                self._save(trainer, "batch")
            elif self._pause_wanted:  # a pause must not wait for a validation
                self._save(trainer, "validation due")
            self._pause_if_wanted(trainer)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Keep the validation from changing the random numbers of training."""
        if self._losses is not None:
            self._losses.check(trainer)
        self._resumable.on_validation_start(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        """Give a sign that the job goes on."""
        self._should_pause()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics and the step they belong to."""
        self._resumable.on_validation_end(trainer)
        if trainer.sanity_checking:
            return
        self.validated_at = trainer.global_step
        self.scores.note(trainer.global_step, trainer.callback_metrics)

    def after_validation(self, trainer: pl.Trainer) -> None:
        """Save when all hooks of a validation, the module's included, have run."""
        if trainer.sanity_checking or self.paused:
            return
        if self._reached and (_dev_run_is_over(trainer) or (self._due and not self._epoch_ends)):
            self.ended = _own_end(trainer) or BUDGET
        self.scores.keep_best(trainer, lambda: self._resume.update(self._resumable.state_of_module(trainer)))
        wanted = self._reached or (self._save_wanted and not ends_itself(trainer))
        is_point = self._due and not self._epoch_ends and wanted
        if is_point or _is_final(trainer):
            self._save(trainer, "validated")

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Stop a job that ends with an epoch."""
        self._resumable.on_train_epoch_end(trainer)
        trainer.validate_pace()
        if self._epoch_began_at == trainer.global_step:
            _validate_steps(trainer)
        if self._reached:
            stop(trainer)
            if self.ended == BUDGET and not (self._epoch_ends or _is_final(trainer)):
                leave_out_means(trainer)

    # Called before the hooks of the user's callbacks

    def before_epoch(self, trainer: pl.Trainer) -> None:
        """Save between two epochs."""
        self._epoch_began_at = trainer.global_step
        if self._save_wanted or self._pause_wanted:
            self._save(trainer, "epoch")
            self._pause_if_wanted(trainer)

    def before_end(self, trainer: pl.Trainer) -> None:
        """Save and validate where training has ended, unless both is done."""
        step = trainer.global_step
        if self.paused:
            return
        if step < self._target:
            self.ended = _own_end(trainer) or f"stopped by a callback or the module at step {step}"
        elif _dev_run_is_over(trainer) or (self._epoch_ends and not _is_final(trainer)):
            self.ended = _own_end(trainer) or BUDGET
        if self._reached and self._saved_at != step and not _is_final(trainer):
            self._save(trainer, "epoch")
        if self.validated_at != step:
            validate_now(trainer, self._row)
        if self._saved_at != step:
            self._save(trainer, "epoch")

    @property
    def _reached(self) -> bool:
        return self._step >= self._target

    def _pause_if_wanted(self, trainer: pl.Trainer) -> None:
        """Leave the fit where it is; a stop would bring a validation and the end hooks of an unfinished epoch."""
        if self._pause_wanted:
            self.paused = True
            leave_fit()

    def _save(self, trainer: Any, point: Point) -> None:
        """Save a checkpoint; a trial can do without one, so a full disk is a warning: the one before stays."""
        self._saved_at, self._save_wanted = trainer.global_step, False
        self._place = trainer.place(ended=self.ended != BUDGET)
        self._resume = self._resumable.state(trainer, point)
        self._groups = names_in_groups(trainer.optimizers, trainer.lightning_module)
        if self.ended != BUDGET or _is_final(trainer):
            self._plain_fit = plain_fit(trainer, self._attached)
        try:
            trainer.save_checkpoint(self._checkpoint)
        except OSError as error:
            logging.getLogger(__name__).warning(
                "step %d: no checkpoint was saved, the trial goes on without: %s", trainer.global_step, error
            )
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where other processes of the trial are waiting
        ends = self._pause_wanted or (self._reached and not _is_final(trainer))
        if ends and isinstance(trainer.strategy.checkpoint_io, SealedCheckpointIO):
            # What follows is no part of the trial's own course: a validation at the rung, the end of the Trainer.
            trainer.strategy.checkpoint_io.closed = True


def _is_final(trainer: pl.Trainer) -> bool:
    """Whether the full budget is spent; its checkpoint is not continued, so it may hold the last validation."""
    return trainer.global_step >= trainer.max_steps


def is_cut_at_its_end(saved: Mapping[str, Any]) -> bool:
    """Whether a checkpoint holds the last validation of a trial, behind which the last hooks and rows were due."""
    state = saved["callbacks"].get(RunToStep.__qualname__, {})
    return bool(state.get(NOTE)) and state["resume"]["point"] == "validated"


def finished_outcome(saved: Mapping[str, Any], target: int, scores: Scores) -> Outcome | None:
    """Return the outcome that a checkpoint of the trial's own holds, if its job has come to its end."""
    step = int(saved["global_step"])
    validated = saved["callbacks"].get(RunToStep.__qualname__, {}).get("validated", {})
    if validated.get("step") != step or scores.monitor not in validated["metrics"]:
        return None
    place = validated.get("place") or {"step": step}
    if place["step"] < target and validated["ended"] == BUDGET:
        return None
    scores.restore(validated.get("kept", ()))
    scores.note(step, validated["metrics"])
    return Outcome(**scores.outcome(place["step"]), values=scores.values, ended=validated["ended"], **place)


def _validate_steps(trainer: Any) -> None:
    """Raise MisconfigurationException if an epoch without an optimizer step is followed by epochs that are the same."""
    scheduled = any(isinstance(callback, GradientAccumulationScheduler) for callback in trainer.callbacks)
    if trainer.lightning_module.automatic_optimization and not scheduled and not trainer.should_stop:
        raise MisconfigurationException(
            f"an epoch ended without an optimizer step, so the trial would train for ever: the loader has fewer "
            f"batches than `limit_train_batches` or `overfit_batches` says, and fewer than "
            f"`accumulate_grad_batches` ({trainer.accumulate_grad_batches})."
        )


def _dev_run_is_over(trainer: Any) -> bool:
    """Whether ``fast_dev_run`` lets no job of the trial train further: it puts a ``max_steps`` of its own in force."""
    return bool(trainer.fast_dev_run) and trainer.global_step >= trainer.max_steps


def _own_end(trainer: Any) -> str | None:
    """Say what ends a fit here by itself, whatever the job asked for; None if nothing does."""
    step = trainer.global_step
    for callback in trainer.callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopping_reason != EarlyStoppingReason.NOT_STOPPED:
            return None if is_held_back(trainer) else f"{type(callback).__name__} at step {step}"
        if isinstance(callback, Timer) and (left := callback.time_remaining()) is not None and left <= 0:
            return f"max_time reached at step {step}"
    epochs = trainer.fit_loop.max_epochs
    if trainer.fast_dev_run:
        return f"fast_dev_run ended at step {step}"
    if epochs not in (None, -1) and trainer.fit_loop.epoch_progress.current.processed >= epochs:
        return f"max_epochs={epochs} reached at step {step}"
    return None
