"""Checkpoints that are whole or absent, and say which trial, run and step they are of."""

from lightning_hpo.checkpoints.files import (
    DamagedCheckpointError,
    UnreadableStateError,
    keep,
    load,
    newest_intact,
    previous_of,
    remove,
    remove_leftovers,
    require_readable,
    save,
    set_aside,
    verify,
)

__all__ = [
    "DamagedCheckpointError",
    "UnreadableStateError",
    "keep",
    "load",
    "newest_intact",
    "previous_of",
    "remove",
    "remove_leftovers",
    "require_readable",
    "save",
    "set_aside",
    "verify",
]
