"""Keep the libraries underneath from printing a line for every trial."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

# Lightning 2.6 about itself under torch 2.13; nobody who trains can do anything about it. A user's filter comes first.
warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated", append=True)

# Optuna of a choice that is a list: it can be stored, which is all that the warning is about.
warnings.filterwarnings("ignore", message=r"Choices for a categorical .* which is of type (list|dict)", append=True)

# Of both packages: whichever was imported last is the one that speaks.
CHATTY = tuple(
    f"{package}{inner}"
    for package in ("lightning.pytorch", "lightning.fabric", "pytorch_lightning", "lightning_fabric")
    for inner in ("", ".utilities.rank_zero")
)


@contextmanager
def warnings_only(*names: str) -> Iterator[None]:
    """Let the named loggers pass warnings and errors only, while the block runs."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
