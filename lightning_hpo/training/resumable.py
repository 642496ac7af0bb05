"""Training that can be cut after any batch: what Lightning's checkpoint leaves out, and what its restart skips.

Where a checkpoint is taken decides what a restart has to make up for. There are four points:

``batch``
    after a batch behind which no validation is due, inside an epoch. Lightning continues with the next batch.
``validation due``
    after a batch behind which a validation is due, before it. Lightning would skip the validation.
``validated``
    after that validation, inside an epoch. Lightning would skip ``on_validation_model_train`` of the module.
``epoch``
    between two epochs, when all hooks of the one before have run. Lightning would skip the start of the next one.

In each case the restart sets Lightning's progress so that it goes on exactly there, and everything that
:class:`~lightning_hpo.training.live_state.LiveState` holds is put back.
"""

from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden

from lightning_hpo.training.live_state import LiveState
from lightning_hpo.training.loaders import rewind
from lightning_hpo.training.random_state import rng_state, set_rng_state
from lightning_hpo.training.trainer import validation_is_due

Point = Literal["batch", "validation due", "validated", "epoch"]


class Resumable:
    """Makes training independent of where it is cut, and of validations in between.

    A callback owns it, passes its hooks on, and puts :meth:`state` into its own state. Its ``on_train_start`` should
    come after those of other callbacks, and :meth:`begin` after that of the module.
    """

    def __init__(self) -> None:
        self._after_step: torch.Tensor | None = None
        self._before_validation: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None
        self._live: LiveState
        self._module: pl.LightningModule
        self._modes: dict[str, bool] | None = None
        self._restarted = False

    # What a checkpoint keeps

    def state(self, trainer: pl.Trainer, point: Point) -> dict[str, Any]:
        """Return what a checkpoint taken now, at a point of the run, has to hold."""
        loop = trainer.fit_loop
        due = bool(loop._should_reload_train_dl)  # noqa: SLF001  # no public name
        if point == "epoch":
            rewind(trainer.train_dataloader, reloads=due)
        modes = None
        if point == "validated":
            loop.epoch_loop.val_loop._results.reset()  # noqa: SLF001  # Lightning does so a moment later
            modes = None if _returns_to_training(trainer.lightning_module) else self._modes
        live = self._live.state(modes)
        parts = [getattr(trainer, "parts", 1), getattr(trainer, "val_parts", 1)]
        # Of loaders that are made anew now and then; where that is due, the restart does it.
        now_and_then = getattr(trainer, "reload_dataloaders_every_n_epochs", 0) and not due
        reloaded = loop._last_train_dl_reload_epoch if now_and_then else trainer.current_epoch  # noqa: SLF001  # as above
        random = rng_state()
        kept = {"point": point, "random": random, "live": live, "parts": parts}
        return {**kept, "reloaded": reloaded, "owner": getattr(trainer, "owner_changes", {})}

    def state_of_module(self, trainer: Any) -> dict[str, Any]:
        """Return what a checkpoint that is not continued has to hold, right after a validation."""
        assert self._live is not None
        trainer.fit_loop.epoch_loop.val_loop._results.reset()  # noqa: SLF001  # Lightning does so a moment later
        return {"live": self._live.state()}

    def load(self, state: dict[str, Any], loops: dict[str, Any]) -> None:
        """Take over what a checkpoint holds, and change the progress that Lightning restores its loops from."""
        self._restored = state
        batches = loops["epoch_loop.batch_progress"]
        for part in ("started", "completed"):  # behind by each batch at which a hook has left an epoch
            batches["total"][part] = batches["total"]["ready"] - batches["current"]["ready"] + batches["current"][part]
        if state["point"] == "epoch":
            for progress in loops["epoch_progress"].values():  # as if the next one had not been asked for
                progress["ready"] = progress["started"] = progress["processed"] = progress["completed"]
        if state["point"] == "validation due":
            for progress in (loops["epoch_loop.batch_progress"][part] for part in ("total", "current")):
                progress["completed"] = progress["processed"]
            for progress in (loops["epoch_loop.val_loop.batch_progress"][part] for part in ("total", "current")):
                # Lightning finishes a validation of which a batch was begun; in on_validation_start it begins anew.
                progress["started"] = progress["ready"] = progress["completed"] + 1
                progress["processed"] = progress["completed"]

    # Hooks

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Put everything back and set Lightning to where the checkpoint was taken."""
        self._live, self._module = LiveState(trainer, module), module
        self._restarted = self._restored is not None
        if self._restored is None:
            return
        set_rng_state(self._restored["random"])
        self._live.restore(self._restored["live"])
        loop = trainer.fit_loop
        if "reloaded" in self._restored:  # older checkpoints have none
            loop._last_train_dl_reload_epoch = self._restored["reloaded"]  # noqa: SLF001  # as in `state`
        if self._restored["point"] == "epoch":
            loop.epoch_loop.restarting = False
        elif self._restored["point"] == "batch":
            loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
        elif self._restored["point"] == "validated" and not validation_is_due(trainer):
            # The job alone has asked for the validation, so Lightning goes on with a batch, not with what follows one.
            loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
            loop.epoch_loop._batches_that_stepped += not loop.epoch_loop._should_accumulate()  # noqa: SLF001  # as above

    def begin(self, *, hparams: bool = True) -> None:
        """Put back what hooks after :meth:`on_train_start` may have reset; what comes next is a batch or an epoch.

        Hyperparameters only with ``hparams``: those of a population have been changed since.
        """
        if self._restored is not None:
            live = self._restored["live"]
            changes = {k: v for k, v in live["attributes"].items() if hparams or not k.endswith(" hparams")}
            self._live.restore({**live, "attributes": changes}, with_stop=False)  # a stop asked for since counts
            set_rng_state(self._restored["random"])
            if self._restored["point"] == "validated" and _returns_to_training(self._module):
                self._module.on_validation_model_train()
            if self._restored["point"] != "validation due":  # that comes first
                self._restored = None

    def on_batch_end(self, trainer: pl.Trainer, *, may_validate: bool = True) -> None:
        """Remember torch's generator: a validation loader draws from it before any validation hook is called."""
        if may_validate:
            self._after_step = torch.get_rng_state()

    def before_validation(self) -> None:
        """Remember which submodules train, for a checkpoint after the validation."""
        self._modes = self._live.modes()

    def on_validation_start(self, trainer: pl.Trainer) -> None:
        """Remember the other generators."""
        restored = self._restored
        if restored is not None and restored["point"] == "validation due":  # the restart makes up for it
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
            self._modes = dict(restored["live"]["training"])
            self._before_validation, self._restored = restored["random"], None
        elif self._after_step is not None:
            self._before_validation = {**rng_state(), "torch": self._after_step}

    def on_validation_end(self, trainer: pl.Trainer) -> None:
        """Continue training as if no validation had happened."""
        if self._before_validation is not None:
            set_rng_state(self._before_validation)
            self._before_validation = None

    def on_train_epoch_end(self, trainer: pl.Trainer) -> None:
        """Let Lightning do at the end of a restarted epoch what it does at the end of any."""
        if self._restarted:
            trainer.fit_loop.on_iteration_done()
            self._restarted = False


def _returns_to_training(module: pl.LightningModule) -> bool:
    """Whether the module has a hook of its own that follows a validation when all others have run."""
    return is_overridden("on_validation_model_train", module)
