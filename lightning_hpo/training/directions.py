"""A check of whether everything that follows a metric takes the same of its values for better."""

import re
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

from lightning_hpo.records import Mode
from lightning_hpo.schedulers.direction import suggested

_USUAL = re.compile(r"acc|auroc|f1|recall|precision|iou|dice|loss|error|mse|mae", re.IGNORECASE)


class Directions(pl.Callback):
    """Compares the ``mode`` of callbacks and LR schedules with that of the search, and both with the metrics' names.

    Args:
        monitor: metric of the search.
        mode: whether lower or higher values of it are better; None if that is not known.
    """

    def __init__(self, monitor: str, mode: Mode | None) -> None:
        self._monitor, self._mode = monitor, mode
        self.warnings: list[str] = []
        """Sentences to warn with; the check may be in another process."""

    def on_fit_start(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Look at all callbacks, those of the module included."""
        said = _surely(self._monitor)
        if self._mode == "max" and said == "min":  # the other way round, the mode had to be given
            self.warnings.append(
                f"the search has mode={self._mode!r} for {self._monitor!r}, {_words(said)}: "
                f"give it mode={said!r} if that is not meant."
            )
        for owner, metric, mode in _followers(trainer):
            is_own = metric == self._monitor and self._mode is not None
            better = self._mode if is_own else _surely(metric)
            if better not in (None, mode):
                reason = f"but the search has mode={better!r} for it" if is_own else _words(better)
                self.warnings.append(
                    f"{owner} follows {metric!r} with mode={mode!r}, {reason}: give it mode={better!r}"
                    f"{'' if is_own else ' if that is not meant'}."
                )


def _surely(metric: str) -> Mode | None:
    """Return the mode that a metric's name suggests, if it is one of the usual names: ``fid_score`` says little."""
    return suggested(metric) if _USUAL.search(metric) else None


def _words(mode: Mode | None) -> str:
    return f"although its name suggests that {'higher' if mode == 'max' else 'lower'} is better"


def _followers(trainer: Any) -> Iterator[tuple[str, str, str]]:
    """What follows a metric: name of its class, metric, and mode."""
    found = [(callback, getattr(callback, "monitor", None)) for callback in trainer.callbacks]
    found += [(config.scheduler, config.monitor) for config in trainer.lr_scheduler_configs if config.reduce_on_plateau]
    for owner, metric in found:
        mode = getattr(owner, "mode", None)
        if isinstance(metric, str) and mode in ("min", "max"):
            yield type(owner).__name__, metric, mode
