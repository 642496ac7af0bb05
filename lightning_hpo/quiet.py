"""Keep the libraries underneath from printing a line for every trial."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

# Of both packages: the package that was imported last is the one that logs.
CHATTY = tuple(
    f"{package}{inner}"
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    for inner in ("", ".utilities.rank_zero")
)
_KNOWN_WARNINGS = (
    # Lightning 2.6 about itself under torch 2.13; a user can do nothing about it.
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    # Lightning, of a folder for checkpoints that is a trial's own, when the trial goes on.
    r"Checkpoint directory .*[\\/]trials[\\/]\d{4,}[\\/]checkpoints([\\/]fold\d+)? exists and is not empty",
    # Optuna, of a choice that is a list: it can be stored, and the warning is about nothing else.
    r"Choices for a categorical .* which is of type (list|dict)",
)


@contextmanager
def known_warnings_hidden() -> Iterator[None]:
    """Ignore, while the block runs, the warnings about which a user can do nothing; a user's own filter comes first.

    Other filters that are added in the block stay. Inside another such block it changes nothing.
    """
    filters: Any = warnings.filters
    before = list(filters)
    if not {getattr(message, "pattern", None) for _, message, *_ in before}.issuperset(_KNOWN_WARNINGS):
        hide_known_warnings()
    own = [entry for entry in filters if entry not in before]
    try:
        yield
    finally:
        for entry in own:
            with suppress(ValueError):  # user code has reset the filters
                filters.remove(entry)


def hide_known_warnings() -> None:
    """Ignore these warnings from now on, in a process of our own."""
    for message in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", message=message, append=True)


@contextmanager
def warnings_only(*names: str, least: int = logging.WARNING) -> Iterator[None]:
    """Let the named loggers pass warnings and errors only, or what is at ``least`` so bad, while the block runs."""
    loud = [logger for name in names if (logger := logging.getLogger(name)).level < least]
    levels = [logger.level for logger in loud]
    for logger in loud:  # only these: each change empties the cache of every logger of the process
        logger.setLevel(least)
    try:
        yield
    finally:
        for logger, level in zip(loud, levels, strict=True):
            logger.setLevel(level)
