"""Checkpoints that are whole or absent, and say which trial, run and step they are of."""

from lightning_hpo.checkpoints.files import (
    keep,
    load,
    newest_intact,
    previous_of,
    read_newest,
    remove,
    remove_later,
    remove_leftovers,
    require_readable,
    save,
    set_aside,
    verify,
)
from lightning_hpo.errors import DamagedCheckpointError, UnreadableStateError

__all__ = [
    "DamagedCheckpointError",
    "UnreadableStateError",
    "keep",
    "load",
    "newest_intact",
    "previous_of",
    "read_newest",
    "remove",
    "remove_later",
    "remove_leftovers",
    "require_readable",
    "save",
    "set_aside",
    "verify",
]
