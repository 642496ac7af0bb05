"""``best.yaml`` as a config with which a plain ``fit`` does what the trial did, and gives its score back."""

import copy
from collections.abc import Mapping
from typing import Any

_OURS = {"lightning_hpo.LRSchedule": "bound", "lightning_hpo.TrialValidation": "followed"}
"""Callbacks of ours -> what the note says where they are needed."""


def fit_config(
    config: Mapping[str, Any], seed: int | None, note: Mapping[str, Any] | None, score: str
) -> tuple[dict[str, Any], list[str]]:
    """Add to the config of a trial what makes a plain ``fit`` equal to the trial.

    Args:
        config: parameters and budget, as a builder writes them.
        seed: of the trial; None if an earlier version has begun it.
        note: what the trial's last checkpoint says of its fit; empty or None for a trial without its full budget.
        score: for people, such as ``val_loss = 0.1 at step 300 of trial 7``.

    Returns:
        The config, and lines for people that stand above it.
    """
    made: dict[str, Any] = copy.deepcopy(dict(config))
    if seed is not None:
        made["seed_everything"] = seed
    if seed is None or not note:
        return made, [f"{score}; this config is for a fit of the full budget, and gives another score"]
    made["trainer"], lines = _trainer(made["trainer"], note)
    return made, [f"{score}; `fit -c` gives it back on the same machine (CPU, one process)", *lines]


def _trainer(trainer: dict[str, Any], note: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return arguments of the Trainer with what the trial had, and lines for people."""
    values = {"devices": 1, "num_sanity_val_steps": 0, "max_epochs": note["epochs"], "max_steps": note["steps"]}
    trainer |= {
        name: value for name, value in values.items() if value is not None and trainer.get(name) in (None, -1, "auto")
    }
    callbacks = [*(trainer.get("callbacks") or []), *note["attached"]]
    callbacks += [{"class_path": path} for path, wanted in _OURS.items() if note[wanted]]
    if note["followed"]:
        lines = ["TrialValidation keeps validations apart from the random numbers of training"]
    else:
        trainer |= {"val_check_interval": note["batches"], "check_val_every_n_epoch": None}
        lines = ["one validation, at the last step: others would draw from the random numbers of training"]
    if callbacks:
        trainer["callbacks"] = callbacks
    paths = [str(callback.get("class_path", "")) for callback in callbacks]
    there = {path.rpartition(".")[2] for path in paths}
    if missing := [path for path in note["callbacks"] if path.rpartition(".")[2] not in there]:
        lines.append(f"the trial had callbacks that your module or script must bring: {', '.join(missing)}")
    if any(path.startswith("lightning_hpo.") for path in paths):
        lines.append("it needs the package lightning_hpo")
    return trainer, lines
