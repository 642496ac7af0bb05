"""The check before training: one batch of a real fit, so that mistakes show before any budget is spent."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.schedulers.units import STEPS, Unit
from lightning_hpo.text import nearest
from lightning_hpo.training.builder import TrialComponents
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO
from lightning_hpo.training.lr_schedule import bind_to_steps
from lightning_hpo.training.make_trainer import make_trainer
from lightning_hpo.training.trainer import JobCallback, stop, validate_callbacks


class OneBatch(JobCallback):
    """Ends a fit after its first training batch, with a validation there; checkpoints go to ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.metrics: dict[str, Any] = {}
        self.trained = False
        self._before: dict[str, Any] = {}

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Check the callbacks, those of the module included, and let none write outside the folder."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Trainer
        validate_callbacks(callbacks)
        for callback in callbacks:
            if isinstance(callback, ModelCheckpoint):
                callback.dirpath = str(self._folder)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bind LR schedules as a job does."""
        bind_to_steps(trainer, trainer.max_steps)

    def after_batch(self, trainer: Any, outputs: Any) -> None:
        """Stop, validate, and check a checkpoint as a job will save it."""
        self.trained = True
        trainer.check_val_every_n_epoch = None  # a validation each n-th epoch is not waited for
        stop(trainer)
        loop = trainer.fit_loop.epoch_loop.val_loop
        trainer.validating = True
        loop.setup_data()  # with the user's limits, which may leave no batch
        trainer.training = True
        loop._max_batches = [min(limit, 1) for limit in loop.max_batches]  # noqa: SLF001  # no public name
        trainer.save_checkpoint(self._folder / "check.ckpt")

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Note the metrics that were logged in training."""
        self._before = dict(trainer.callback_metrics)

    def after_validation(self, trainer: pl.Trainer) -> None:
        """Note the metrics that validation logs: metrics that were logged before keep their tensors."""
        now = trainer.callback_metrics
        self.metrics = {name: value for name, value in now.items() if value is not self._before.get(name)}


class NoFiles(SealedCheckpointIO):
    """Checks that a checkpoint could be read back, and writes none."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Raise UnreadableStateError, naming the place, if it cannot."""
        checkpoints.require_readable(checkpoint, self._key)

    def remove_checkpoint(self, path: Any) -> None:
        """Do nothing."""


def fit_one_batch(
    components: TrialComponents,
    folder: Path,
    max_steps: int,
    key: Key,
    callbacks: Sequence[pl.Callback] = (),
    *,
    unit: Unit = STEPS,
) -> tuple[dict[str, float], int]:
    """Fit a batch and validate a batch, with everything that a job has; nothing is logged or left behind.

    The loggers of the components drop everything already, and the folder is there for the time of the check only.

    Returns:
        Metrics that validation has logged, and the full budget in optimizer steps.

    Raises:
        ValueError: if an argument of the Trainer contradicts the budget.
        MisconfigurationException: if a callback does, or Lightning refuses the combination.
    """
    if components.data is None and not is_overridden("train_dataloader", components.module):
        raise ValueError(
            "there is no data: give fit `datamodule=`, or `train_dataloaders=` and `val_dataloaders=`; or let the "
            "module have train_dataloader() and val_dataloader()."
        )
    job = OneBatch(folder)
    trainer = make_trainer(
        components, folder, job, NoFiles(key=key), callbacks=callbacks, max_steps=max_steps, unit=unit
    )
    trainer.fit(components.module, datamodule=components.data)
    if not job.trained:
        raise ValueError(
            "the Trainer ends before its first training batch, so a trial would have no score: check `max_time` and "
            "callbacks or hooks that set `should_stop` before a batch is done."
        )
    _validate_plateaus(trainer)
    return {name: float(value) for name, value in job.metrics.items()}, trainer.steps_of(max_steps)


def validate_logged(metrics: Mapping[str, Any], constraints: Iterable[str], monitors: Iterable[str]) -> None:
    """Raise ValueError if a metric that is needed is not among those logged."""
    for argument, names in (("constraints", constraints), ("monitor", monitors)):
        for name in names:
            if name not in metrics:
                raise ValueError(
                    f"`{argument}` {name!r} is not logged in validation; "
                    f"logged there: {', '.join(sorted(metrics)) or 'nothing'}.{nearest(name, metrics)} "
                    f"Add self.log({name!r}, ...) to validation_step."
                )


def _validate_plateaus(trainer: pl.Trainer) -> None:
    """Raise ValueError for an LR schedule that waits for a metric which nobody logs; a fit finds it after an epoch."""
    if not trainer.lightning_module.automatic_optimization:
        return
    logged = sorted(trainer.callback_metrics)
    for config in trainer.lr_scheduler_configs:
        name = config.monitor or "val_loss"
        near = nearest(name, logged)
        if config.reduce_on_plateau and config.strict and name not in logged and (near or config.frequency == 1):
            raise ValueError(
                f"{type(config.scheduler).__name__} in configure_optimizers has the monitor {name!r}, which is not "
                f"logged; logged are {', '.join(logged) or 'none'}.{near}"
            )
