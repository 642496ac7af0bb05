"""Which trial, at which step, a checkpoint file is of: read without its tensors, and without executing anything.

A checkpoint may hold objects of any class. Here every class and function that its pickle names is replaced by an inert
stand-in, so only plain values are real.
"""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

STAMP = "lightning_hpo"
"""Key in a checkpoint under which the identity of its trial stands."""


def difference(path: Path, identity: Mapping[str, Any], step: int) -> str | None:
    """Say how a checkpoint differs from what it should be.

    Args:
        path: of the checkpoint.
        identity: study, number and parameters of the trial (see :class:`~lightning_hpo.records.Task`).
        step: that it should have been saved at.

    Returns:
        For example ``"is of trial 3, not of trial 5"``; None if it agrees. What a checkpoint does not say, as one of a
        user's own function, is not compared.
    """
    content = outline(path)
    if content is None:
        return "is no readable checkpoint"
    found = content.get(STAMP)
    stamp = found if isinstance(found, Mapping) else {}
    for name in ("study", "trial", "params"):
        if name in stamp and name in identity and stamp[name] != identity[name]:
            if name == "params":  # some may be secrets
                return "is of other parameters"
            return f"is of {name} {stamp[name]}, not of {name} {identity[name]}"
    at = content.get("global_step", step)
    return None if at == step else f"is of step {at}, not of step {step}"


def outline(path: Path) -> Mapping[str, Any] | None:
    """Return the plain values of a checkpoint; None if the file cannot be read as one."""
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as file:
                content = _Inert(file).load()
    except Exception:  # noqa: BLE001  # whatever a damaged file makes of a pickle
        return None
    return content if isinstance(content, Mapping) else None


class _Inert(pickle.Unpickler):
    """Reads plain values; all else becomes a :class:`_StandIn`."""

    def find_class(self, module: str, name: str) -> Any:
        return _StandIn

    def persistent_load(self, pid: Any) -> None:
        """Leave out the tensors."""


class _StandIn(dict[Any, Any]):
    """Takes whatever a pickle does with an object, and does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    def __call__(self, *args: Any, **kwargs: Any) -> "_StandIn":
        return self

    def __hash__(self) -> int:  # type: ignore[override]  # it may be a key
        return id(self)

    def _ignore(self, _: Any) -> None:
        pass

    __setstate__ = append = extend = add = _ignore
