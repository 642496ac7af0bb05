"""What a search found, and the files that hold it."""

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import optuna
import yaml

from lightning_hpo import checkpoints
from lightning_hpo.schedulers import Mode
from lightning_hpo.space import split_name
from lightning_hpo.trials import Row


@dataclass(frozen=True)
class Result:
    """The answer of a search.

    Args:
        best_params: name as in the space -> value, of the best trial.
        best_score: its value of the monitored metric.
        best_checkpoint: its checkpoint, or None for a search over a plain function.
        best_trial: its number.
        study: everything that was recorded; opens in Optuna's own tools.
        rows: all trials.
        build: makes a module from parameters, or None for a search over a plain function.
        folder: of the run, if its study is there.
    """

    best_params: Mapping[str, Any]
    best_score: float
    best_checkpoint: Path | None
    best_trial: int
    study: optuna.Study
    rows: Sequence[Row] = field(repr=False)
    build: Callable[[Mapping[str, Any]], pl.LightningModule] | None = field(default=None, repr=False)
    folder: Path | None = None

    def trials(self) -> list[Row]:
        """All trials in order of their number."""
        return list(self.rows)

    def report(self, path: str | Path) -> Path:
        """Write a page about the search that needs nothing else to be read: curves, parameters, failures.

        Args:
            path: of the HTML file.

        Raises:
            RuntimeError: if the study is not in the run folder's own database.
        """
        from lightning_hpo.report import read_run, write_report  # noqa: PLC0415  # it reads results

        if self.folder is None:
            raise RuntimeError("there is no run folder with a study of its own to report on.")
        return write_report(read_run(self.folder), path)

    def best_model(self) -> pl.LightningModule:
        """Build the module with the best parameters and load the best checkpoint's weights into it.

        Raises:
            RuntimeError: if the search had no model, or kept no checkpoint.
        """
        if self.build is None or self.best_checkpoint is None:
            raise RuntimeError("there is no best model: the search was over a plain function.")
        module = self.build(self.best_params)
        module.load_state_dict(checkpoints.load(self.best_checkpoint)["state_dict"])
        return module.eval()


def best_row(rows: Sequence[Row], mode: Mode) -> Row | None:
    """Best trial: among those that got furthest, the best finite value; ties go to the lower number.

    A value after few steps does not compete with a value after many. Failed trials never count.
    """
    sign = 1 if mode == "min" else -1
    candidates = [
        (-step, sign * row.values[step], row.number)
        for row in rows
        if row.state != "failed" and row.values and math.isfinite(row.values[step := max(row.values)])
    ]
    return rows[min(candidates)[2]] if candidates else None


def nested_config(params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
    """Write parameters as a config: one block for each receiver, and the budget."""
    config: dict[str, dict[str, Any]] = {}
    for name, value in params.items():
        head, rest = split_name(name)
        config.setdefault(head, {})[rest] = value
    config.setdefault("trainer", {})["max_steps"] = max_steps
    return config


def write_best(config: Mapping[str, Any], path: Path) -> None:
    """Write a config as YAML, without a moment in which the file is not whole."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.write_text(yaml.safe_dump(dict(config), sort_keys=False))
    fresh.replace(path)


def keep_best(checkpoint: Path, path: Path) -> None:
    """Give the best trial's checkpoint a second name, without a moment in which neither is there."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a file system without hard links
        os.link(checkpoint, fresh)
    if not fresh.exists():
        shutil.copyfile(checkpoint, fresh)
    fresh.replace(path)
