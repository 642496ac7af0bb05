"""What the loggers of a trial have taken: each row once, and in folders that are the trial's own."""

import csv
import io
import json
import os
import warnings
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter

from lightning_hpo.atomic import atomic_write, open_new
from lightning_hpo.study.trial_folders import OWNER, free_name
from lightning_hpo.text import masked_config


@dataclass
class Logged:
    """What a trial's run has: up to a step, and these metrics there.

    Args:
        step: the last one; -1 for none.
        names: metrics that were logged at it.
        parts: folders of jobs that have come to their end.
    """

    step: int = -1
    names: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, file: Path) -> "Logged":
        """Read what was noted; nothing if that cannot be read."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            content = json.loads(file.read_text(encoding="utf-8"))
            return cls(int(content["step"]), [*map(str, content["names"])], [*map(str, content["parts"])])
        return cls()

    def take(self, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        """Return the metrics that the run does not have yet, and take note of them."""
        if step < self.step:
            return {}
        if step > self.step:
            self.step, self.names = step, []
        new = {name: value for name, value in metrics.items() if name not in self.names}
        self.names += new
        return {} if new.keys() <= {"epoch"} else new

    def write(self, file: Path) -> None:
        """Keep the note; without it, on a full disk, rows may be logged twice after a kill."""
        fresh = file.with_name(f".{file.name}.tmp")
        with suppress(OSError):
            fresh.unlink(missing_ok=True)
            with os.fdopen(open_new(fresh), "w", encoding="utf-8") as content:
                json.dump(asdict(self), content)
            fresh.replace(file)


def log_once(logger: Any, file: Path, rows: Sequence[tuple[int, Mapping[str, float]]]) -> Any:
    """Let a logger drop the rows that it has had before: after a kill a trial repeats steps, with the same values.

    Args:
        logger: of a job.
        file: beside the trial, where each row is noted once the logger has taken it.
        rows: all rows before the job; it logs the last ones, if a kill came before the logger had them.
    """
    is_new, note = not file.exists(), Logged.read(file)
    log, log_hyperparams = logger.log_metrics, logger.log_hyperparams

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None, **more: Any) -> None:
        if new := note.take(metrics, step or 0):
            log(new, step, **more)
            note.write(file)

    def log_parameters(params: Any, *args: Any, **more: Any) -> None:
        if is_new:
            log_hyperparams(without_secrets(params), *args, **more)

    logger.log_metrics, logger.log_hyperparams = log_metrics, log_parameters
    for step, row in rows:
        log_metrics(row, step)
    return logger


def hiding_secrets(logger: Any) -> Any:
    """Let a logger have the parameters that a module logs without the values of secrets."""
    log_hyperparams = logger.log_hyperparams
    logger.log_hyperparams = lambda params, *args, **more: log_hyperparams(without_secrets(params), *args, **more)
    return logger


def without_secrets(params: Any) -> Any:
    """Hide the values of secrets among parameters."""
    return masked_config(vars(params) if isinstance(params, Namespace) else params)


def own_folder(folder: Path, trial: str) -> None:
    """Make the folder of a trial's logs, or find it again; one of a trial with another id is moved aside."""
    mark = folder / OWNER
    if folder.is_dir() and any(file.name != OWNER for file in folder.iterdir()):
        if mark.is_file() and mark.read_text(encoding="utf-8") == trial:
            return
        folder.rename(free_name(folder, "other"))
        warnings.warn(  # the same text for each of them: Python shows it once
            f"folders in {folder.parent} that hold the logs of other trials are moved aside, to names with '.other-'",
            stacklevel=2,
        )
    folder.mkdir(parents=True, exist_ok=True)
    mark.write_text(trial, encoding="utf-8")


def rows_before(file: Path, start: int) -> list[tuple[int, dict[str, float]]]:
    """Read the rows before a step from the metrics of a trial."""
    rows: dict[int, dict[str, float]] = {}
    with suppress(OSError, ValueError, KeyError), file.open(newline="", encoding="utf-8") as content:
        for line in csv.DictReader(content):
            rows.setdefault(int(line["step"]), {})[line["metric"]] = float(line["value"])
    return [(step, row) for step, row in sorted(rows.items()) if step < start]


class _KeptRows(ExperimentWriter):
    """A writer that keeps the rows of earlier jobs, which Lightning's own deletes."""

    def _check_log_dir_exists(self) -> None:
        pass


def reopen(
    logger: CSVLogger, start: int | None, before: Sequence[tuple[int, Mapping[str, float]]] = ()
) -> ExperimentWriter:
    """Open the file of a CSV logger again, without the rows from the step ``start`` on; None keeps all.

    Of the rows ``before`` it, the last ones are written, if a kill came before the logger had them.
    """
    writer = _KeptRows(logger.log_dir)
    logger._experiment = writer  # noqa: SLF001  # no public name
    file = Path(writer.metrics_file_path)
    last = -1.0
    if file.exists():
        with file.open(newline="", encoding="utf-8") as content:
            rows = list(csv.DictReader(content))
        kept = [row for row in rows if start is None or _step(row) < start]
        writer.metrics_keys = sorted({name for row in rows for name in row if name is not None})
        if len(kept) < len(rows):
            text = io.StringIO(newline="")
            lines = csv.DictWriter(text, fieldnames=writer.metrics_keys, extrasaction="ignore")
            lines.writeheader()
            lines.writerows(kept)
            atomic_write(file, text.getvalue())
        last = max(map(_step, kept), default=last)
    for step, metrics in before:
        if step > last:
            writer.log_metrics(dict(metrics), step)
            writer.save()
    return writer


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row["step"])
    except (KeyError, ValueError, TypeError):
        return float("inf")
