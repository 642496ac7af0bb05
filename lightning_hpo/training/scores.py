"""The score of a trial while it trains, and the checkpoint that it came from."""

import logging
import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_hpo.records import BEST_CHECKPOINT, Mode, Task
from lightning_hpo.schedulers.scores import LAST, ScoreRule
from lightning_hpo.text import nearest
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO


class Scores:
    """Makes the score of a trial from its validations, and keeps the checkpoint of the best one where that counts.

    Args:
        monitor: metric that the score is made of.
        rule: that makes it.
        mode: whether lower or higher values are better.
        task: of the trial; its folder keeps the checkpoint, and it has the validations of earlier jobs.
    """

    def __init__(self, monitor: str, rule: ScoreRule, mode: Mode, task: Task) -> None:
        self.monitor = monitor
        self._rule, self._mode = rule, mode
        self._file, self._kept = task.folder / BEST_CHECKPOINT, task.scored_from
        self._improved = False
        self.metrics: dict[str, float] = {}
        """All that was logged at the last validation."""
        self.values: dict[int, float] = {}
        """Optimizer step -> score there, for each validation of this job."""

    @property
    def by_last(self) -> bool:
        """Whether the score is simply the last validation."""
        return self._rule == LAST

    def state(self) -> dict[str, Any]:
        """Return the metrics of the last validation, and what the score is made of, as plain values."""
        return {"metrics": self.metrics, "kept": [list(validation) for validation in self._kept]}

    def restore(self, kept: Iterable[tuple[int, float]]) -> None:
        """Take over the validations that a checkpoint of the trial holds."""
        for step, value in kept:
            self._kept = self._rule.add(self._kept, step, value, self._mode)

    def preview(self, step: int, value: float) -> float:
        """Return the score that a validation makes, whether it is noted already or not."""
        return self._rule.score(self._rule.add(self._kept, step, value, self._mode))

    def note(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Take over what a validation has logged."""
        self.metrics = {name: float(value) for name, value in metrics.items()}
        if self.monitor in self.metrics:
            before, self._kept = self._kept, self._rule.add(self._kept, step, self.metrics[self.monitor], self._mode)
            self.values[step] = self._rule.score(self._kept)
            self._improved = self._kept is not before and math.isfinite(self.values[step])

    def keep_best(self, trainer: pl.Trainer, note: Callable[[], None]) -> None:
        """Save the checkpoint of the validation whose hooks have just run, if it is the best one and that counts.

        Args:
            trainer: inside ``fit``.
            note: called before, so that the job's callback can note what the checkpoint is to hold.
        """
        if self._rule.name != "best" or not trainer.strategy.broadcast(self._improved):
            return
        self._improved = False
        note()
        io: Any = trainer.strategy.checkpoint_io
        closed = getattr(io, "closed", False)
        try:
            if isinstance(io, SealedCheckpointIO):
                io.closed = False  # it is closed at the end of a job, for files of others
            trainer.save_checkpoint(self._file)
        except OSError as error:
            logging.getLogger(__name__).warning(
                "step %d: no checkpoint of the best validation was saved: %s", trainer.global_step, error
            )
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where other processes of the trial are waiting
        finally:
            if isinstance(io, SealedCheckpointIO):
                io.closed = closed

    def outcome(self, step: int) -> dict[str, Any]:
        """Return score, metrics and validations as arguments of an outcome at a step, as the study counts."""
        made: dict[str, Any] = {"score": self._rule.score(self._kept), "metrics": self.metrics}
        if self.by_last:
            return made
        return {**made, "scored_from": self._kept, "validations": {step: self.metrics[self.monitor]}}


def require_logged(monitor: str, metrics: Mapping[str, Any]) -> None:
    """Raise MisconfigurationException if validation has not logged the metric that is the score."""
    if monitor not in metrics:
        logged = sorted(metrics)
        raise MisconfigurationException(
            f"`monitor` {monitor!r} is not logged in validation; logged: {', '.join(logged) or 'nothing'}."
            f"{nearest(monitor, logged)}"
        )
