"""The Trainer of a trial: its length in epochs is that of the full budget, and a job says when it validates."""

import contextlib
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
    SpikeDetection,
    StochasticWeightAveraging,
)
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import _TunerExitException

from lightning_hpo.checkpoints import shards
from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.schedulers.units import STEPS, Pace, Unit
from lightning_hpo.training.attributes import Changes
from lightning_hpo.training.lr_schedule import accumulation_of
from lightning_hpo.training.places import batch_size_in_use

C = TypeVar("C", bound=Callback)
_LIGHTNING = ("lightning.", "pytorch_lightning.")
_OURS = ("lightning_hpo.",)

# Arguments of the Trainer that contradict a budget if they are on, or off; the remedy.
_REFUSED = {
    "barebones": (True, "without logging there is no score: leave it out"),
    "limit_train_batches": (False, "a trial without training has no score: give at least 1"),
    "limit_val_batches": (False, "a trial without validation has no score: give at least 1"),
}

# Callbacks that no trial can have, and the remedy.
_NOT_IN_TRIALS: dict[type[Callback], str] = {
    BatchSizeFinder: "changes the batch size, so the recorded value would be wrong: put 'data.batch_size' into the "
    "space",
    LearningRateFinder: "changes the learning rate, so the recorded value would be wrong: put 'lr' into the space",
    ModelPruning: "keeps its masks in no checkpoint, so no trial could be continued: prune the best model",
    SpikeDetection: "cannot be restored from a checkpoint by Lightning 2.6, so no trial could be continued: give the "
    "tuner `stop_on_nan=True`",
    StochasticWeightAveraging: "puts the averaged weights in place after the last validation, so no score is theirs: "
    "use EMAWeightAveraging or WeightAveraging, which validate with the averaged weights",
}


def validate_arguments(arguments: dict[str, Any]) -> None:
    """Raise ValueError for an argument of the Trainer that contradicts the budget of a trial."""
    for name, (refused, remedy) in _REFUSED.items():
        if (value := arguments.get(name)) is not None and bool(value) is refused:
            raise ValueError(f"`trainer` has {name}={value!r}, but {remedy}.")


def validate_callbacks(callbacks: list[Callback]) -> None:
    """Check that a trial with these callbacks can be recorded, judged and continued.

    Raises:
        ParameterMismatchError: if a callback changes a recorded hyperparameter.
        MisconfigurationException: if a callback is at odds with validation or checkpoints.
    """
    for callback in callbacks:
        for kind, why in _NOT_IN_TRIALS.items():
            if isinstance(callback, kind):
                finds = kind in (BatchSizeFinder, LearningRateFinder)
                error = ParameterMismatchError if finds else MisconfigurationException
                raise error(f"{type(callback).__name__} {why}.")


class TrialTrainer(pl.Trainer):
    """A Trainer with ``max_steps`` whose ``max_epochs`` is that budget in epochs.

    LR schedules and annealing that are written in epochs thus end where training ends, in every rung. Training itself
    ends by ``max_steps``, or by a smaller ``max_epochs`` that the user has given.

    A budget in epochs or samples becomes ``max_steps`` when it is asked for first, or before ``configure_optimizers``.

    Args:
        max_steps: the full budget, in the counts of ``unit``.
        unit: of the budget.
        **arguments: of the Trainer.
    """

    def __init__(self, *, max_steps: int, unit: Unit = STEPS, **arguments: Any) -> None:
        self.unit = unit
        self.budget = max_steps
        self.pace: Pace | None = None
        """How long epochs and samples are; None for a budget in optimizer steps, or while the loaders are not known."""
        self.asked: set[str] = set()
        """Properties of the budget that the user's code has read."""
        self.scores: Any = None
        """Of the trial, for callbacks that come before the job's."""
        self.optimizer_count = 1  # of a module with manual optimization, once it has made its optimizers
        super().__init__(max_steps=max_steps if unit.is_steps else sys.maxsize, **arguments)
        self._limit = self.fit_loop.epoch_loop.max_steps  # smaller in a fast_dev_run
        for callback in self.callbacks:  # type: ignore[attr-defined]  # set by Trainer
            if isinstance(callback, OnExceptionCheckpoint):  # Lightning begins with its file, whatever trial has failed
                callback.dirpath = self.default_root_dir
                Path(callback.ckpt_path).unlink(missing_ok=True)

    @property
    def max_steps(self) -> int:
        """Optimizer steps of the full budget."""
        if not _is_asked_by(*_LIGHTNING, *_OURS):
            self.asked.add("max_steps")
        is_owed = self.pace is None and not self.unit.is_steps and self.state.fn == TrainerFn.FITTING
        if is_owed and self.data_is_there and not _is_asked_by(*_LIGHTNING):
            self.convert_budget()
        return super().max_steps

    def convert_budget(self) -> None:
        """Make optimizer steps of a budget in epochs or samples.

        Raises:
            MisconfigurationException: if the length of an epoch, or the number of samples in a batch, is not known.
        """
        if self.unit.is_steps:
            return
        if self.train_dataloader is None:
            self.fit_loop.setup_data()
        self.pace = pace_of(self, self.unit)
        self.fit_loop.epoch_loop.max_steps = min(self._limit, self.pace.steps(self.budget))

    def validate_pace(self) -> None:
        """Check at the end of an epoch that it has the batches and optimizer steps that the budget counts on.

        Raises:
            MisconfigurationException: if the length of an epoch has changed, or manual optimization takes other steps.
        """
        if self.pace is None:
            return
        batches = -(-self.num_training_batches // self.parts)
        if batches != self.pace.batches:
            raise MisconfigurationException(
                f"an epoch had {self.pace.batches} batches and has {batches} now, so a budget in "
                f"{self.unit.label} has no fixed number of optimizer steps: give `max_steps`."
            )
        if self.lightning_module.automatic_optimization or not self.is_last_batch:
            return
        expected = self.pace.end_of(self.current_epoch)
        if self.global_step != expected:
            raise MisconfigurationException(
                f"after epoch {self.current_epoch + 1} {self.global_step} optimizer steps are done, not {expected}: a "
                f"budget in {self.unit.label} needs a module with manual optimization whose optimizers each step at "
                "every batch. Give `max_steps`, in optimizer steps."
            )

    def steps_of(self, count: int) -> int:
        """Return the optimizer step at which a part of the budget is reached."""
        return count if self.pace is None else self.pace.steps(count)

    def place(self, *, ended: bool = False) -> dict[str, int]:
        """Return how much of the budget the trial has had, as arguments of an outcome.

        Args:
            ended: whether the trial goes no further. What it has begun to spend then counts as spent, so that its last
                score does not take the place of an earlier one.
        """
        if self.pace is None:
            return {"step": self.global_step}
        position = self.pace.position(self.global_step)
        count = math.ceil(position) if ended else math.floor(position)
        return {"step": count, "global_step": self.global_step, "full_steps": self.pace.steps(self.budget)}

    @property
    def max_epochs(self) -> int | None:
        """Epochs of the budget, the last included if it is not whole; the user's limit if it is smaller.

        Raises:
            MisconfigurationException: if the training data have no length, so that it is not known.
        """
        given = super().max_epochs
        if self.state.fn != TrainerFn.FITTING or not self.data_is_there:
            return given
        if not _is_asked_by(*_LIGHTNING, *_OURS):
            self.asked.add("max_epochs")
        known = self.epochs_of_budget()
        if known is None:
            if given in (None, -1) and not _is_asked_by(*_LIGHTNING):
                raise MisconfigurationException(
                    "`trainer.max_epochs` is not known: the training data have no length, and the budget is in "
                    "optimizer steps. Use `trainer.max_steps` or `trainer.estimated_stepping_batches`, or give an int "
                    "`limit_train_batches` in `trainer`."
                )
            return given
        known = max(known, self.current_epoch)  # hooks may have left epochs early, so that there are more of them
        return known if given in (None, -1) else min(known, int(given or 0))

    @property
    def estimated_stepping_batches(self) -> int | float:
        """Optimizer steps of the whole training: the budget, or fewer if ``max_epochs`` or ``max_time`` ends it."""
        return self.max_steps if super().max_epochs in (None, -1) else super().estimated_stepping_batches

    fold: int | None = None
    """Part of the data that validates; None without folds."""
    begins_at = -1
    """Optimizer step of the checkpoint that it goes on from."""
    owner_changes: Changes = {}  # noqa: RUF012  # replaced, never changed
    """What had changed in the owner of the training loaders when they were made; empty if they are made once."""
    failed_in_validation = False
    parts = val_parts = 1
    """Micro-batches of each training and validation batch (see :mod:`lightning_hpo.training.micro_batches`)."""
    stopped_by_job = False
    """Whether :func:`stop` has stopped it, not a callback."""
    least = (0, 0)
    """``min_epochs`` and ``min_steps``, once :func:`stop` has put them out of force."""
    data_is_there = False
    """Whether the data are set up, so that the length of an epoch can be known."""

    def save_checkpoint(
        self, filepath: str | Path, weights_only: bool | None = None, storage_options: Any | None = None
    ) -> None:
        """Save as Lightning does; where the strategy writes a folder of shards, that becomes one file."""
        if not shards.writes_folder(self.strategy):
            super().save_checkpoint(filepath, weights_only, storage_options)
        elif not getattr(self.strategy.checkpoint_io, "closed", False):
            content = self._checkpoint_connector.dump_checkpoint(weights_only)
            shards.save(self.strategy, content, Path(filepath), storage_options)

    def epochs_of_budget(self) -> int | None:
        """Return the epochs of the budget, the last included if it is not whole; None if they are not known."""
        if self.train_dataloader is None:
            self.fit_loop.setup_data()
        batches = self.num_training_batches
        if math.isinf(batches) or batches == 0:
            return None
        optimizers = 1 if self.lightning_module.automatic_optimization else max(len(self.optimizers), 1)
        pace = Pace(Unit("epochs"), int(batches), accumulation_of(self), optimizers=optimizers)
        return math.ceil(pace.position(self.max_steps))


def pace_of(trainer: Any, unit: Unit) -> Pace:
    """Return how many optimizer steps the epochs and samples of a fit are; its loaders must be there.

    Raises:
        MisconfigurationException: if that is not known.
    """
    parts = getattr(trainer, "parts", 1)
    batches = trainer.num_training_batches
    if math.isinf(batches) or batches == 0:
        raise MisconfigurationException(
            f"the budget is in {unit.label}, but the training data have no known length: give `max_steps` in place of "
            f"`max_{unit.name}`, or an int `limit_train_batches` in `trainer`."
        )
    accumulation = tuple(factor // parts for factor in accumulation_of(trainer))
    batches = -(-int(batches) // parts)
    pace = Pace(unit, batches, accumulation, optimizers=trainer.optimizer_count)
    if unit.name == "epochs":
        return pace
    loader = trainer.train_dataloader
    size = batch_size_in_use(trainer)
    if not isinstance(size, int):
        raise MisconfigurationException(
            f"the budget is in samples, but the training loader ({type(loader).__name__}) does not say how many are in "
            "a batch: give `max_epochs` or `max_steps`, or a DataLoader with `batch_size`."
        )
    size *= parts
    samples = batches * size
    counted: Any
    for counted in (getattr(loader, "sampler", None), getattr(loader, "dataset", None)):
        with contextlib.suppress(TypeError):
            samples = min(samples, len(counted))
            break
    return replace(pace, batch=size * trainer.world_size, samples=samples * trainer.world_size)


STEP_HOOKS = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step",
              "on_train_batch_end", "on_validation_batch_start")  # fmt: skip


def without_hooks(*names: str) -> Callable[[type[C]], type[C]]:
    """Let Lightning skip hooks that a callback of ours does not use: each of them costs time in every step.

    Lightning calls no hook of a callback that is not callable.
    """

    def decorate(kind: type[C]) -> type[C]:
        for name in names:
            setattr(kind, name, None)
        return kind

    return decorate


class JobCallback(pl.Callback):
    """The callback that decides over a fit: it comes last, with parts that come first or after the module's hooks."""

    def before_epoch(self, trainer: pl.Trainer) -> None:
        """Act between two epochs, before the hooks of the user's callbacks."""

    def before_end(self, trainer: pl.Trainer) -> None:
        """Act when training has ended, before the hooks of the user's callbacks."""

    def after_start(self) -> None:
        """Act after all hooks at the start of training."""

    def after_batch(self, trainer: pl.Trainer, outputs: Any) -> None:
        """Act after all hooks of a training batch."""

    def after_validation(self, trainer: pl.Trainer) -> None:
        """Act after all hooks of a validation."""


def validation_is_due(trainer: Any) -> bool:
    """Whether the Trainer validates after this batch by its own settings, without being stopped."""
    before, trainer.should_stop = trainer.should_stop, False
    try:
        loop = trainer.fit_loop
        return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))  # noqa: SLF001  # no public name
    finally:
        trainer.should_stop = before


def epoch_ends(trainer: Any) -> bool:
    """Whether this batch is the last one of its epoch."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return bool(progress.is_last_batch or progress.current.ready == trainer.num_training_batches)


def validate_now(trainer: Any, row: int) -> None:
    """Validate inside ``fit``, with its loaders, apart from its own settings.

    Loggers are given the results at the step ``row``, that of the last batch, as for a validation of Lightning's own.
    """
    loop = trainer.fit_loop.epoch_loop
    before, loop._batches_that_stepped = loop._batches_that_stepped, row  # noqa: SLF001  # no public name
    loop.val_loop.restarting = False
    trainer.validating = True
    loop.val_loop.run()
    trainer.training = True
    loop._batches_that_stepped = before  # noqa: SLF001  # as above


def stop(trainer: Any) -> None:
    """Stop the Trainer after this batch, as ``max_steps`` does: ``min_epochs`` and ``min_steps`` hold back others."""
    loop = trainer.fit_loop
    trainer.least = (max(trainer.least[0], loop.min_epochs or 0), max(trainer.least[1], loop.min_steps or 0))
    loop.min_epochs = loop.epoch_loop.min_steps = None
    trainer.stopped_by_job = trainer.stopped_by_job or not trainer.should_stop
    trainer.should_stop = True


def leave_out_means(trainer: Any) -> None:
    """Log no epoch means: the job stops inside the epoch, so they would cover only some of its batches."""
    connector = trainer._logger_connector  # noqa: SLF001  # no public name
    connector.update_train_epoch_metrics = connector.reset_results


def is_held_back(trainer: TrialTrainer) -> bool:
    """Whether ``min_epochs`` or ``min_steps`` lets no callback stop the Trainer yet."""
    epochs, steps = trainer.least
    progress: Any = trainer.fit_loop.epoch_progress.current
    return bool(progress.processed < epochs or trainer.global_step < steps)


def ends_itself(trainer: Any) -> bool:
    """Whether a callback or the module ends the trial here: it is saved when its last hooks and rows are done."""
    return bool(trainer.should_stop and not trainer.stopped_by_job and not is_held_back(trainer))


def leave_fit() -> NoReturn:
    """Leave ``fit`` from within a hook: no more hooks but ``teardown`` are called, and ``fit`` returns."""
    raise _TunerExitException  # Lightning's own finders leave with it; it has no public name


def _is_asked_by(*packages: str) -> bool:
    """Whether the property is read by code of these packages; Lightning itself can do without an answer."""
    caller: str = sys._getframe(2).f_globals.get("__name__", "")  # noqa: SLF001  # the documented way to a frame
    return caller.startswith(packages)
