"""Which trial is best, and the files that hold it."""

import math
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_hpo.atomic import atomic_write, replacing
from lightning_hpo.schedulers import Mode
from lightning_hpo.space import split_name
from lightning_hpo.trials import Row


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
    atomic_write(path, yaml.safe_dump(dict(config), sort_keys=False))


def keep_best(checkpoint: Path, path: Path) -> None:
    """Give the best trial's checkpoint a second name, without a moment in which neither is there."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    try:
        os.link(checkpoint, fresh)
    except OSError:  # a file system without hard links
        with checkpoint.open("rb") as source, replacing(path) as copy:
            shutil.copyfileobj(source, copy)
        return
    fresh.replace(path)
    fresh.unlink(missing_ok=True)  # a rename leaves both names if they were one file already
