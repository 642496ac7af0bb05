"""``best.yaml`` as a config with which a plain ``fit`` does what the trial did, and gives its score back."""

import copy
from collections.abc import Mapping
from typing import Any

_CHECKPOINT = "lightning.pytorch.callbacks.ModelCheckpoint"
_OURS = {"lightning_hpo.LRSchedule": "bound", "lightning_hpo.TrialValidation": "followed"}
"""Callbacks of ours -> what the note says where they are needed."""


def fit_config(
    config: Mapping[str, Any],
    seed: int | None,
    note: Mapping[str, Any] | None,
    score: str,
    keep: Mapping[str, Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Add to the config of a trial what makes a plain ``fit`` equal to the trial.

    Args:
        config: parameters and budget, as a builder writes them.
        seed: of the trial; None if an earlier version has begun it.
        note: what the trial's last checkpoint says of its fit; empty or None for a trial without its full budget.
        score: for people, such as ``val_loss = 0.1 at step 300 of trial 7``.
        keep: arguments of a ModelCheckpoint, where the score is a validation before the end; else None.

    Returns:
        The config, and lines for people that stand above it.
    """
    made: dict[str, Any] = copy.deepcopy(dict(config))
    if seed is not None:
        made["seed_everything"] = seed
    if seed is None or not note:
        return made, [f"{score}; this config is for a fit of the full budget, and gives another score"]
    trainer = made["trainer"] = dict(made["trainer"])
    kept = [] if keep is None else _keep(trainer, note, keep)
    made["trainer"], lines = _trainer(trainer, note)
    return made, [f"{score}; `fit -c` gives it back on the same machine (CPU, one process)", *kept, *lines]


def _keep(trainer: dict[str, Any], note: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Let a fit keep the checkpoint of its best validation, which is not its last one; say so for people."""
    what = "the score is the best validation, and training goes on after it: "
    callbacks, name = trainer.get("callbacks") or [], "ModelCheckpoint"
    given = [each for each in (*callbacks, *note["attached"]) if str(each.get("class_path")).endswith(name)]
    is_brought = not given and any(path.endswith(name) for path in note["callbacks"])  # by the module or a script
    if is_brought or trainer.get("enable_checkpointing") is False:
        return [f"{what}see the metrics of its step"]
    own = [each.get("init_args") or {} for each in given]
    if not any(wanted.items() <= {"mode": "min", **arguments}.items() for arguments in own):
        # at each validation, also at one within an epoch, and at the last step
        made = {"class_path": _CHECKPOINT, "init_args": {**wanted, "save_on_train_epoch_end": False}}
        trainer["callbacks"] = [*callbacks, made]
    return [f"{what}ModelCheckpoint keeps the checkpoint of its step"]


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


def replay_config(
    config: Mapping[str, Any], schedules: Mapping[str, list[tuple[int, Any]]], space: Mapping[str, str], score: str
) -> tuple[dict[str, Any], list[str]]:
    """Add the schedules that a population found to the config of its best member.

    Args:
        config: as a builder writes it.
        schedules: name -> (first step, value) of each phase.
        space: name -> distribution, as text.
        score: for people.

    Returns:
        The config, and lines for people that stand above it. The learning rate of an ``optimizer`` in the config
        becomes ``lr_scheduler: ReplayLR``; the callback PopulationReplay changes what else has changed.
    """
    made: dict[str, Any] = copy.deepcopy(dict(config))
    changing = {name: list(map(list, phases)) for name, phases in schedules.items() if len(phases) > 1}
    callbacks = [*(made["trainer"].get("callbacks") or [])]
    for name in ("optimizer.lr", "optimizer.init_args.lr"):
        if name in changing and made.get("lr_scheduler") is None:
            made["lr_scheduler"] = {
                "class_path": "lightning_hpo.ReplayLR",
                "init_args": {"schedule": changing.pop(name)},
            }
            callbacks.append({"class_path": "lightning_hpo.LRSchedule"})
    if changing:
        own = {"schedule": changing, "space": {name: space[name] for name in changing}}
        callbacks.append({"class_path": "lightning_hpo.PopulationReplay", "init_args": own})
    if callbacks:
        made["trainer"]["callbacks"] = callbacks
    lines = [
        f"{score}; this config replays the schedules of its hyperparameters from the start, with weights of its own"
    ]
    if any(str(callback.get("class_path")).startswith("lightning_hpo.") for callback in callbacks):
        lines.append("it needs the package lightning_hpo")
    return made, lines
