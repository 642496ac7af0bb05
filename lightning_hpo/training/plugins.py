"""Plugins of a Trainer: checkpoints that are whole or absent, and a metrics file that only grows."""

import csv
import io
import logging
import os
from argparse import Namespace
from collections.abc import Collection
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from lightning_hpo.atomic import atomic_write, open_own
from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import NO_KEY, Key
from lightning_hpo.text import csv_cell

METRICS = "metrics.csv"
"""In the folder of a trial."""


class SealedCheckpointIO(CheckpointIO):
    """Saves and loads every checkpoint of a Trainer through :mod:`lightning_hpo.checkpoints`.

    Args:
        path: of a checkpoint that has been loaded already, or None.
        content: of that checkpoint; returned by the first load, and then dropped.
        key: of the run: checkpoints are signed with it, and a checkpoint that it has signed may hold objects of any
            class.
    """

    def __init__(self, path: Path | None = None, content: dict[str, Any] | None = None, key: Key = NO_KEY) -> None:
        super().__init__()
        self._key = key
        self._path = path
        self._content = content
        self.closed = False
        """Whether checkpoints are neither saved nor removed any more."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically; raises OSError where Lightning's own plugin can lose the file without a word."""
        if storage_options is not None:
            raise TypeError(f"`storage_options` are not supported, got {storage_options!r}.")
        if not self.closed:
            checkpoints.save(checkpoint, path, self._key)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Verify the hash, and load more than tensors and plain values only from a file that the run has signed.

        ``weights_only`` is ignored: the caller cannot know who wrote the file.
        """
        content, self._content = self._content, None
        if content is not None and path == self._path and map_location is None:
            return content
        return checkpoints.load(path, map_location=map_location or "cpu", key=self._key)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the checkpoint and its predecessor."""
        if not self.closed:
            checkpoints.remove(path)


class MetricsFile(Logger):
    """Appends the metrics that a module logs to a CSV file with the columns ``step, metric, value``.

    Rows from the step ``start`` on are dropped first: those steps will be repeated. What the step before has, such as
    the means of an epoch that ended there, is not appended again.
    """

    def __init__(self, path: Path, start: int) -> None:
        super().__init__()
        self._path = path
        self._rows: list[tuple[int, str, float]] = []
        # Step of a row that is in the file, and what it has.
        self._ahead: tuple[int, Collection[str]] = start - 1, _drop_after(path, start) or ()

    @property
    def name(self) -> str:
        """Empty: files of callbacks then stand in the folder of the trial itself."""
        return ""

    @property
    def version(self) -> str:
        """Empty: one file per trial."""
        return ""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Keep rows in memory until :meth:`save`."""
        step, (ahead, known) = step or 0, self._ahead
        new = {name: value for name, value in metrics.items() if step != ahead or name not in known}
        self._rows += [(step, name, value) for name, value in new.items() if name != "epoch"]

    @rank_zero_only
    def write_ahead(self, metrics: dict[str, float], step: int) -> None:
        """Append a row that Lightning logs a moment later; it is not appended again then."""
        self.log_metrics(metrics, step)
        self.save()
        self._ahead = step, metrics.keys()

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """Do nothing: the study has them."""

    @rank_zero_only
    def save(self) -> None:
        """Append the rows since the last call."""
        rows, self._rows = self._rows, []
        if not rows:
            return
        try:
            is_new = not self._path.exists()
            handle = open_own(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with open(handle, "a", newline="") as file:  # noqa: PTH123  # of a handle
                writer = csv.writer(file)
                if is_new:
                    writer.writerow(("step", "metric", "value"))
                writer.writerows((step, csv_cell(name), value) for step, name, value in rows)
        except OSError as error:  # a full disk: the search takes its metrics from elsewhere
            logging.getLogger(__name__).warning("%s could not be written: %s", self._path, error)

    def finalize(self, status: str) -> None:  # Lightning's signature
        """Append the remaining rows."""
        self.save()


def write_row_ahead(trainer: Any) -> None:
    """Append the row of a batch to the trial's metrics, if there is one.

    A checkpoint is saved when the hooks of a batch have run, and Lightning logs the batch after them: a process that is
    killed in between goes on behind a row that no logger has.
    """
    connector = trainer._logger_connector  # noqa: SLF001  # no public name
    files = [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
    if files and connector.should_update_logs and (row := convert_tensors_to_scalars(connector.metrics["log"])):
        step = row.pop("step", trainer.fit_loop.epoch_loop._batches_that_stepped)  # noqa: SLF001  # as Lightning does
        for file in files:
            file.write_ahead(row, int(step))


@rank_zero_only
def _drop_after(path: Path, start: int) -> list[str]:
    """Return the metrics of the last step that stays."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        header, *rows = list(csv.reader(file)) or [[]]
    kept = [row for row in rows if len(row) == 3 and row[0].isdigit() and int(row[0]) < start]
    if len(kept) < len(rows):
        text = io.StringIO(newline="")
        csv.writer(text).writerows([header, *kept])
        atomic_write(path, text.getvalue())
    return [name for step, name, _ in kept if int(step) == start - 1]
