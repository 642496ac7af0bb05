"""The folder of a trial belongs to that trial: ``trial.json`` in it says of which study, number and parameters.

A study that was moved away, or one in memory that was made anew, leaves folders behind. Their checkpoints are of other
trials, so such a folder is moved aside, and never continued.
"""

import json
import os
import time
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optuna

FILE = "trial.json"
OWNER = ".trial"
"""In a folder of logs: the id of the trial that it belongs to."""
STUDY_ID = "lightning_hpo_id"  # user attribute of a study
_OURS = {FILE, f".{FILE}.tmp", "lease"}  # what may be there before a trial has trained


def study_id(study: optuna.Study) -> str:
    """Return the id that tells a study from all others, whatever their names; made the first time."""
    known = study.user_attrs.get(STUDY_ID)
    if known is None:
        study.set_user_attr(STUDY_ID, uuid.uuid4().hex)
        known = study.user_attrs[STUDY_ID]
    return str(known)


def identity_of(study: str, number: int, params: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return what a trial's folder and checkpoints carry, as plain values that JSON gives back unchanged.

    Args:
        study: id of the study.
        number: of the trial.
        params: of the trial; None if they are not known yet.
    """
    plain = json.loads(json.dumps(params, default=lambda value: type(value).__qualname__))
    return {"study": study, "trial": number, "params": plain}


def belongs(folder: Path, identity: Mapping[str, Any]) -> bool:
    """Whether a folder says that it belongs to a trial."""
    found = _read(folder / FILE)
    if None in (found.get("params"), identity.get("params")):
        return bool(identity) and all(found.get(name) == identity[name] for name in ("study", "trial"))
    return found == identity


def settle(folder: Path, identity: Mapping[str, Any]) -> None:
    """Make a trial's folder, or find it again; one with another trial's files is moved aside, with a warning.

    Args:
        folder: of the trial.
        identity: of the trial, from :func:`identity_of`; empty for one without a study, which takes over nothing.

    Raises:
        OSError: if the folder cannot be written.
    """
    if os.path.lexists(folder) and not belongs(folder, identity) and _has_files(folder):
        folder.rename(free_name(folder, "other"))
        warnings.warn(  # the same text for each of them: Python shows it once
            f"folders in {folder.parent} that hold files of other trials are moved aside, to names with '.other-': "
            "nothing in them is continued",
            stacklevel=2,
        )
    if identity and _read(folder / FILE) != identity:
        folder.mkdir(parents=True, exist_ok=True)
        fresh = folder / f".{FILE}.tmp"
        fresh.unlink(missing_ok=True)
        with fresh.open("x") as file:
            json.dump(identity, file)
        fresh.replace(folder / FILE)


def identity_in(folder: Path) -> Mapping[str, Any]:
    """Return the identity of the trial that a folder belongs to; empty if it says none."""
    return _read(folder / FILE)


def _has_files(folder: Path) -> bool:
    """Whether something is there that a trial does not begin with."""
    return not folder.is_dir() or any(file.name not in _OURS for file in folder.iterdir())


def _read(file: Path) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def free_name(folder: Path, mark: str) -> Path:
    """Return a name beside a folder that says why and when the folder was set aside."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    names = (folder.with_name(f"{folder.name}.{mark}-{stamp}{end}") for end in ("", *map("-{}".format, range(1000))))
    return next(name for name in names if not name.exists())
