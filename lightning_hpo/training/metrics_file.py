"""The metrics of a trial as a logger that appends to one file."""

import csv
import io
import logging
import os
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.apply_func import convert_tensors_to_scalars
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lightning_hpo.atomic import atomic_write, open_own
from lightning_hpo.text import csv_cell

METRICS = "metrics.csv"
"""In the folder of a trial."""


class MetricsFile(Logger):
    """Appends the metrics that a module logs to a CSV file with the columns ``step, metric, value``.

    Rows from the step ``start`` on are dropped first: those steps will be repeated. What the step before has, such as
    the means of an epoch that ended there, is not appended again.
    """

    def __init__(self, path: Path, start: int) -> None:
        super().__init__()
        self._path = path
        self._rows: list[tuple[int, str, float]] = []
        # Step of a row that is in the file, and what it has that is about to be logged again.
        self._ahead: tuple[int, set[str]] = start - 1, set(_drop_after(path, start) or ())

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
        known = self._ahead[1] if step == self._ahead[0] else set()
        again = known & metrics.keys()
        known -= again
        self._rows += [(step or 0, name, value) for name, value in metrics.items() if name not in {"epoch", *again}]

    @rank_zero_only
    def write_ahead(self, metrics: dict[str, float], step: int) -> None:
        """Append a row that Lightning logs a moment later; it is not appended again then."""
        self.log_metrics(metrics, step)
        self.save()
        self._ahead = step, set(metrics)

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


def write_row_ahead(trainer: Any, *, stops: bool) -> None:
    """Append the row of a batch to the trial's metrics, if there is one; the last batch of a job (``stops``) has one.

    A checkpoint is saved when the hooks of a batch have run, and Lightning logs the batch after them: a process that is
    killed in between goes on behind a row that no logger has.
    """
    connector = trainer._logger_connector  # noqa: SLF001  # no public name
    files = [logger for logger in trainer.loggers if isinstance(logger, MetricsFile)]
    is_logged = connector.should_update_logs or (stops and trainer.log_every_n_steps > 0)
    if files and is_logged and (row := convert_tensors_to_scalars(connector.metrics["log"])):
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
