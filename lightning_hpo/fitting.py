"""One Trainer for a trial's folder: quiet, seeded, and exact to continue from its checkpoint."""

import contextlib
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader

from lightning_hpo import checkpoints
from lightning_hpo.building import Built
from lightning_hpo.callbacks.resumable import Resumable, rng_state, set_rng_state
from lightning_hpo.quiet import CHATTY, warnings_only
from lightning_hpo.run_key import Key
from lightning_hpo.trainer_plugins import MetricsFile, SealedCheckpointIO

METRICS = "metrics.csv"

# What a search over many short fits wants, where a single fit would not; `trainer={...}` overrides each.
TRAINER_DEFAULTS = {
    "devices": 1,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}


def make_trainer(
    built: Built, folder: Path, *, callbacks: Sequence[pl.Callback], source: Path | None, key: Key, **arguments: Any
) -> pl.Trainer:
    """Make a Trainer that keeps everything in one folder, and let the training loaders tell their position.

    Args:
        built: what will be trained; its ``train_dataloader`` is wrapped.
        folder: for checkpoints and metrics.
        callbacks: added to those of ``built``.
        source: checkpoint that the fit will continue, or None; later rows of the metrics file are dropped.
        key: of the run, for its checkpoints.
        **arguments: of the Trainer, that ``built`` must not have.
    """
    given = {**TRAINER_DEFAULTS, **built.trainer}
    owner: Any = built.module if built.data is None else built.data
    loaders = owner.train_dataloader

    def followed() -> Any:
        made = Resumable.follow(loaders())
        if "log_every_n_steps" not in given:
            _log_each_epoch(trainer, made)
        return made

    owner.train_dataloader = followed
    all_callbacks = [*_listed(given.pop("callbacks", None)), *callbacks]
    given.setdefault("enable_checkpointing", any(isinstance(one, Checkpoint) for one in all_callbacks))
    saved = None if source is None else checkpoints.load(source, key=key)
    given.setdefault("logger", MetricsFile(folder / METRICS, 0 if saved is None else int(saved["global_step"])))
    plugins = [*_listed(given.pop("plugins", None)), SealedCheckpointIO(source, saved, key)]
    trainer = pl.Trainer(**given, callbacks=all_callbacks, plugins=plugins, default_root_dir=folder, **arguments)
    return trainer


def _log_each_epoch(trainer: Any, loader: Any) -> None:
    """Log at least once in an epoch that is shorter than Lightning's default interval; else it warns of that."""
    if isinstance(loader, DataLoader):
        with contextlib.suppress(TypeError):  # a loader without length
            trainer.log_every_n_steps = max(min(trainer.log_every_n_steps, len(loader)), 1)


@contextmanager
def quiet_and_seeded(seed: int, trial: int) -> Iterator[None]:
    """Let Lightning say warnings only, and seed every global generator from (seed, trial).

    The caller gets its random numbers back afterwards.
    """
    before = rng_state()
    words = [int(word) for word in np.random.SeedSequence([seed, trial]).generate_state(3)]
    torch.manual_seed(words[0])
    np.random.seed(words[1])  # noqa: NPY002  # user code may draw from the global generator
    random.seed(words[2])
    try:
        with warnings_only(*CHATTY):
            yield
    finally:
        set_rng_state(before)


def _listed(given: Any) -> list[Any]:
    """What Trainer accepts for callbacks and plugins, as a list."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]
