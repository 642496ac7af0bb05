"""The callback that validates in a plain Trainer as in a trial."""

from functools import partial
from typing import Any

import lightning.pytorch as pl

from lightning_hpo.training.make_trainer import call_after
from lightning_hpo.training.resumable import Resumable
from lightning_hpo.training.trainer import epoch_ends, validate_now


class TrialValidation(pl.Callback):
    """Validates as a trial of a search does: apart from the random numbers of training, and at the last step too.

    With it, a plain ``fit`` with the ``best.yaml`` of a search gives the score of the trial. A search writes it into
    ``best.yaml`` where something follows validations, such as EarlyStopping. It comes after other callbacks, and
    ``max_steps`` of the Trainer must be set.

    Example:
        ``Trainer(max_steps=300, callbacks=[EarlyStopping("val_loss"), TrialValidation()])``
    """

    def __init__(self) -> None:
        self._random = Resumable()
        self._validated_at = -1

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Come after the module's own hook of a batch."""
        if stage == "fit":
            call_after(pl_module, "on_train_batch_end", partial(self._after_batch, trainer), 0)

    def _after_batch(self, trainer: Any) -> None:
        self._random.on_batch_end(trainer)
        if 0 <= trainer.max_steps <= trainer.global_step and not epoch_ends(trainer):
            trainer.fit_loop.min_epochs = trainer.fit_loop.epoch_loop.min_steps = None  # they would hold it back
            trainer.should_stop = True

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember the random numbers of training."""
        if not trainer.sanity_checking:
            self._random.on_validation_start(trainer)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Go on with the random numbers of training."""
        if not trainer.sanity_checking:
            self._random.on_validation_end(trainer)
            self._validated_at = trainer.global_step

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Validate at the last step, unless that is done."""
        if self._validated_at != trainer.global_step:
            validate_now(trainer, max(trainer.fit_loop.epoch_loop._batches_that_stepped - 1, 0))  # noqa: SLF001  # no public name
