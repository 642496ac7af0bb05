"""One Trainer for a trial's folder: quiet, seeded, and exact to continue from its checkpoint."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, ModelSummary, ProgressBar
from lightning.pytorch.plugins import DoublePrecision
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_hpo.checkpoints.files import remove_later
from lightning_hpo.checkpoints.shards import let_strategy_load
from lightning_hpo.quiet import CHATTY, known_warnings_hidden, warnings_only
from lightning_hpo.training.attributes import Attributes, Changes, changed_for_a_while, with_helpers
from lightning_hpo.training.builder import TrialComponents, as_list
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO
from lightning_hpo.training.loaders import follow
from lightning_hpo.training.metrics_file import METRICS, MetricsFile
from lightning_hpo.training.random_state import seeded, seeded_everything
from lightning_hpo.training.trainer import (
    STEP_HOOKS,
    JobCallback,
    TrialTrainer,
    validate_arguments,
    validate_callbacks,
    without_hooks,
)
from lightning_hpo.training.trial_info import first_row, resume_in

# Defaults for many short fits, unlike those for a single fit; `trainer={...}` overrides each.
TRAINER_DEFAULTS = {
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


@without_hooks(*STEP_HOOKS, "on_train_batch_start", "on_validation_batch_end")
class BeforeOthers(pl.Callback):
    """Prepares a Trainer before the callbacks of the user, and calls a job where it must come before them."""

    def __init__(self, job: JobCallback) -> None:
        self._job = job

    def setup(self, trainer: Any, pl_module: pl.LightningModule, stage: str) -> None:
        """Do what Lightning does too late, or not as a trial needs it."""
        trainer.data_is_there = True  # the data module's setup has run; a module with loaders sets up a moment later
        if isinstance(trainer.precision_plugin, DoublePrecision):
            pl_module.double()  # Lightning does so after the restore, which then rounds weights to single precision
        for callback in trainer.callbacks:
            # Lightning would choose a folder of the logger's, which a logger with versions makes anew for each job; a
            # ModelCheckpoint that is continued in another folder forgets which files it has kept.
            if isinstance(callback, ModelCheckpoint) and callback.dirpath is None:
                fold = "" if trainer.fold is None else f"fold{trainer.fold}"
                callback.dirpath = str(Path(trainer.default_root_dir) / "checkpoints" / fold)
                if trainer.is_global_zero:
                    remove_later(Path(callback.dirpath), trainer.begins_at)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save before anything of the epoch has begun."""
        self._job.before_epoch(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save before others change the weights, as weight averaging does."""
        self._job.before_end(trainer)

    def on_exception(self, trainer: Any, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Note where training was when Lightning lost it."""
        trainer.failed_in_validation = bool(trainer.validating or trainer.sanity_checking)


def make_trainer(
    components: TrialComponents,
    folder: Path,
    job: JobCallback,
    io: SealedCheckpointIO,
    *,
    callbacks: Sequence[pl.Callback] = (),
    saved: dict[str, Any] | None = None,
    **arguments: Any,
) -> TrialTrainer:
    """Make a Trainer that keeps everything in one folder, and let the training loaders tell their position.

    Args:
        components: of the trial; its ``train_dataloader`` and the last hooks of the start, a batch and a validation are
            wrapped.
        folder: for checkpoints and metrics.
        job: comes after all other callbacks.
        io: saves and loads its checkpoints.
        callbacks: more, after those of ``components``.
        saved: content of the checkpoint to continue, or None; later rows of the metrics file are dropped.
        **arguments: of the Trainer, that ``components`` must not have.

    Raises:
        ValueError: for an argument of the Trainer that contradicts the budget.
    """
    own = as_list(components.trainer.get("callbacks"))
    defaults = dict(TRAINER_DEFAULTS)
    if any(isinstance(callback, ProgressBar) for callback in own):
        del defaults["enable_progress_bar"]
    if any(isinstance(callback, ModelSummary) for callback in own):
        del defaults["enable_model_summary"]
    given = {**defaults, **components.trainer}
    validate_arguments(given)
    positions = [] if saved is None else saved["loops"]["fit_loop"]["state_dict"].get("combined_loader", [])
    owner = components.loader_owner
    loaders = owner.train_dataloader
    reloads = given.get("reload_dataloaders_every_n_epochs")
    owner_before: list[Attributes] = []

    def followed() -> Any:
        changes: Changes = {}
        if reloads and not owner_before:
            owner_before.append(Attributes(partial(_parts_of_owner, owner)))
            changes = resume_in(saved or {}).get("owner", {})
        with changed_for_a_while(_parts_of_owner(owner), changes):
            if reloads:  # the loaders may depend on attributes that training has changed before they were made
                trainer.owner_changes = owner_before[0].changed()
            made = follow(loaders(), trainer.limit_train_batches, list(positions))
        positions.clear()  # loaders that are made anew for a later epoch start at its beginning
        if "log_every_n_steps" not in given:
            _log_each_epoch(trainer, made, usual)
        return made

    owner.train_dataloader = followed
    all_callbacks = [BeforeOthers(job), *own, *callbacks, job]
    validate_callbacks(all_callbacks)
    given.pop("callbacks", None)
    given.setdefault("enable_checkpointing", any(isinstance(callback, Checkpoint) for callback in all_callbacks))
    given.setdefault("logger", MetricsFile(folder / METRICS, first_row(saved)))
    plugins = [*as_list(given.pop("plugins", None)), io]
    trainer = TrialTrainer(**given, callbacks=all_callbacks, plugins=plugins, default_root_dir=folder, **arguments)
    usual: int = vars(trainer)["log_every_n_steps"]
    trainer.begins_at = -1 if saved is None else int(saved["global_step"])
    let_strategy_load(trainer.strategy, saved)
    restored = None if saved is None else saved["callbacks"].get(type(job).__qualname__)
    if restored is not None and trainer.strategy.restore_checkpoint_after_setup:  # after on_fit_start, which needs it
        job.load_state_dict(restored)
    if not trainer.unit.is_steps and is_overridden("configure_optimizers", components.module):
        configuring = _Configuring(components.module.configure_optimizers, trainer)
        object.__setattr__(components.module, "configure_optimizers", configuring)
    call_after(components.module, "on_train_start", job.after_start, 0)
    call_after(components.module, "on_train_batch_end", partial(job.after_batch, trainer), 1)
    call_after(components.module, "on_validation_end", partial(job.after_validation, trainer), 0)
    # Lightning appends callbacks of its own, such as the timer of `max_time`.
    made: list[Any] = trainer.callbacks  # type: ignore[attr-defined]  # set by Trainer
    made.sort(key=lambda callback: 2 if isinstance(callback, Checkpoint) else 1 if callback is job else 0)
    return trainer


def _parts_of_owner(owner: Any) -> Iterator[tuple[str, Any]]:
    """What loaders are made from: their owner with its helper objects, and its hyperparameters."""
    yield from with_helpers("owner", owner, set())
    yield "hparams", owner.hparams


def call_after(module: Any, hook: str, then: Callable[..., None], count: int) -> None:
    """Let a hook of the module be followed by a call with its first ``count`` arguments.

    Callbacks come before the module's own hooks.
    """
    object.__setattr__(module, hook, _FollowedHook(getattr(module, hook), then, count))


def _count_optimizers(made: Any) -> int:
    """Return how many optimizers ``configure_optimizers`` has returned, in any of the forms that Lightning takes."""
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], list | tuple):
        made = made[0]
    return max(len(made), 1) if isinstance(made, list | tuple) else 1


class _Configuring:
    """``configure_optimizers`` of a module; a budget in epochs or samples becomes optimizer steps before it.

    Under manual optimization each optimizer counts. If there are several, which shows only afterwards, the module is
    asked again with the right ``max_steps``.
    """

    def __init__(self, own: Callable[[], Any], trainer: TrialTrainer) -> None:
        self._own = own
        self._trainer = trainer
        self.__code__ = type(self).__call__.__code__  # Lightning looks there for whether it is overridden

    def __call__(self) -> Any:
        trainer = self._trainer
        trainer.convert_budget()
        made = self._own()
        count = 1 if trainer.lightning_module.automatic_optimization else _count_optimizers(made)
        if count != trainer.optimizer_count:
            trainer.optimizer_count = count
            trainer.convert_budget()
            made = self._own()
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Configuring":
        """Return itself for a copy of the module: it holds the Trainer."""
        return self


class _FollowedHook:
    """A hook that is followed by a call; no closure, which a traceback would keep alive together with the module."""

    def __init__(self, own: Callable[..., Any], then: Callable[..., None], count: int) -> None:
        self._own = own
        self._then = then
        self._count = count

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._own(*args, **kwargs)
        self._then(*args[: self._count])
        return result

    def __deepcopy__(self, memo: dict[int, Any]) -> "_FollowedHook":
        """Return itself for a copy of the module, such as an average of its weights: it holds the Trainer."""
        return self


def _log_each_epoch(trainer: Any, loader: Any, usual: int) -> None:
    """Log at least once in an epoch that is shorter than Lightning's default interval; else it warns of that."""
    if isinstance(loader, DataLoader):
        with contextlib.suppress(TypeError):  # a loader without length
            batches = -(-len(loader) // trainer.world_size)
            trainer.log_every_n_steps = max(min(usual, batches), 1)


@contextmanager
def quiet_and_seeded(seed: int, trial: int, own: int | None = None, *, alone: bool = True) -> Iterator[None]:
    """Let Lightning say warnings only, and seed every global generator.

    The caller gets its random numbers back afterwards.

    Args:
        seed: of the search.
        trial: its number.
        own: seed of the trial. None for a trial that an earlier version has begun: three seeds come from the others.
        alone: whether no other fit begins or ends meanwhile: variables of the environment are set too.
    """
    words = (
        [int(word) for word in np.random.SeedSequence([seed, trial]).generate_state(3)] if own is None else [own] * 3
    )
    with (
        seeded(words) if own is None or not alone else seeded_everything(own),
        known_warnings_hidden(),
        warnings_only(*CHATTY),
    ):
        yield
