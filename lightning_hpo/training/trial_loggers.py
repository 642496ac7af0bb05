"""One run of a logger for each trial, through all its rungs, kills and workers.

Every job of a trial opens the same run again, and logs each row once: steps that a kill makes the trial repeat are
dropped from the run, where its files allow that, or not logged again. Hyperparameters are logged once, with secrets
hidden; the final score and how the trial ended are added when the search has decided it.
"""

import csv
import importlib.util
import io
import json
import os
import shutil
import time
from abc import ABC, abstractmethod
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only

from lightning_hpo.atomic import atomic_write, open_new
from lightning_hpo.study.locks import Lock
from lightning_hpo.text import masked_config
from lightning_hpo.training.plugins import METRICS
from lightning_hpo.training.trial_info import Trial

LoggerName: TypeAlias = Literal["tensorboard", "csv", "wandb", "mlflow"]
Status: TypeAlias = Literal["complete", "pruned", "failed"]
_NOTE = "logged.json"
_PACKAGES = {"tensorboard": "tensorboard", "csv": "lightning", "wandb": "wandb", "mlflow": "mlflow"}


MakeLogger: TypeAlias = Callable[[Trial], Logger | Sequence[Logger]]


class TrialLogger(ABC):
    """Opens the run of a trial for a job, and closes it when the trial has ended."""

    @abstractmethod
    def open(self, trial: Trial) -> Sequence[Logger]:
        """Return the loggers of a job."""

    @abstractmethod
    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Add how the trial has ended; called once, in the process of the search."""


class CsvRun(TrialLogger):
    """``csv/<trial>/metrics.csv`` in the run folder, and ``hparams.yaml`` beside it with parameters and final score."""

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Keep the rows before the step at which the job begins."""
        logger = CSVLogger(_home(trial) / "csv", name="", version=trial.name, flush_logs_every_n_steps=1)
        if _is_first_rank():
            _reopen(logger, trial.start).log_hparams(dict(trial.params))
        return [_logging_no_parameters(logger)]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the parameters with the final score."""
        logger = CSVLogger(_home(trial) / "csv", name="", version=trial.name)
        writer = _reopen(logger, None)
        writer.log_hparams({**trial.params, "hp_metric": score, "step": step, "status": status})
        writer.save()


class TensorBoardRun(TrialLogger):
    """``tensorboard/<trial>`` in the run folder; HPARAMS shows parameters and ``hp_metric``, the final score."""

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Let TensorBoard drop what was logged at steps that are about to be repeated."""
        file = trial.folder / _NOTE
        note = _Logged.read(file)
        again: dict[str, Any] = {"purge_step": trial.start} if note.step >= trial.start else {}
        logger = TensorBoardLogger(
            _home(trial) / "tensorboard", name="", version=trial.name, default_hp_metric=False, **again
        )
        log, note.step = logger.log_metrics, min(note.step, trial.start - 1)

        def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
            log(metrics, step)
            logger.save()  # a checkpoint may follow, from which a killed trial goes on
            note.step = max(note.step, step or 0)
            note.write(file)

        if _is_first_rank():
            logger.log_metrics = log_metrics  # type: ignore[method-assign]  # of this one only
        return [_logging_no_parameters(logger)]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the summary that TensorBoard's HPARAMS shows."""
        from torch.utils.tensorboard import SummaryWriter  # noqa: PLC0415  # tensorboard is optional
        from torch.utils.tensorboard.summary import hparams  # noqa: PLC0415

        metrics = {} if score is None else {"hp_metric": score}
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in trial.params.items()
        }
        folder = self._folder(trial)
        while any(
            file.name.split(".")[3] == f"{int(time.time()):010d}" for file in folder.glob("events.out.tfevents.*")
        ):
            time.sleep(0.05)  # TensorBoard reads files in the order of their names, which begin with the second
        with SummaryWriter(str(folder)) as writer:
            for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]  # torch types it not
                writer._get_file_writer().add_summary(summary, step)  # noqa: SLF001  # as Lightning does
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.add_text("status", status, step)

    def _folder(self, trial: Trial) -> Path:
        return _home(trial) / "tensorboard" / trial.name


class WandbRun(TrialLogger):
    """A run of Weights & Biases, in the project of ``WANDB_PROJECT`` or the study's name, grouped by the study."""

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Resume the run, and finish it when the job is over: the next trial of the process has a run of its own.

        Weights & Biases keeps rows in memory for a while, so a kill can lose them. What a job that was killed has left
        of an offline run is removed, and its rows are logged again from the trial's own file of metrics.
        """
        logger = self._logger(trial)
        if not _is_first_rank():
            return [logger]
        _logging_no_parameters(logger)
        note = _Logged.read(trial.folder / _NOTE)
        for part in (_home(trial) / "wandb").glob(f"offline-run-*-{trial.id}"):
            if part.name not in note.parts:
                shutil.rmtree(part, ignore_errors=True)
        run = logger.experiment
        run.config.update(dict(trial.params), allow_val_change=True)
        log = logger.log_metrics
        for step, row in _rows_of(trial.folder / METRICS, trial.start):
            if new := note.take(row, step):
                log(new, step)

        def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
            if new := note.take(metrics, step or 0):
                log(new, step)

        def finalize(status: str) -> None:
            WandbLogger.finalize(logger, status)
            part = Path(run.dir).parent.name
            run.finish()
            note.parts.append(part)
            note.write(trial.folder / _NOTE)

        logger.log_metrics, logger.finalize = log_metrics, finalize  # type: ignore[method-assign]  # of this one only
        return [logger]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the final score into the summary of the run."""
        run = self._logger(trial).experiment
        run.summary.update({"hp_metric": score, "step": step, "status": status})
        run.finish(exit_code=1 if status == "failed" else 0)

    def _logger(self, trial: Trial) -> WandbLogger:
        project = os.environ.get("WANDB_PROJECT", trial.study)
        return WandbLogger(
            name=trial.name, save_dir=_home(trial), id=trial.id, project=project, group=trial.study,
            reinit="create_new",
        )  # fmt: skip


class MlflowRun(TrialLogger):
    """A run of MLflow, in the experiment of the study's name; at ``MLFLOW_TRACKING_URI``, or in the run folder."""

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Find the run by its tag, or begin it."""
        lock = Lock(_home(trial) / "mlflow.lock")  # two processes cannot make a new database at a time
        lock.take(wait=True)
        try:
            logger = self._logger(trial)
            if not _is_first_rank():
                return [logger]
            is_new = logger._run_id is None  # noqa: SLF001  # no public name
            client, run = logger.experiment, logger.run_id
        finally:
            lock.free()
        if is_new:
            MLFlowLogger.log_hyperparams(logger, dict(trial.params))
        else:
            client.update_run(run, status="RUNNING")
        logger.finalize = lambda status="": None  # type: ignore[method-assign]  # noqa: ARG005  # the trial may go on
        return [_log_once(_logging_no_parameters(logger), trial.folder)]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the final score, and end the run."""
        logger = self._logger(trial)
        client, run = logger.experiment, logger.run_id
        if score is not None:
            client.log_metric(run, "hp_metric", score, step=step)
        client.set_tag(run, "status", status)
        client.set_terminated(run, {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[status])

    def _logger(self, trial: Trial) -> MLFlowLogger:
        place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_home(trial) / 'mlflow.db'}"
        tags = {"lightning_hpo": trial.id, "study": trial.study, "trial": str(trial.number)}
        logger = MLFlowLogger(trial.study, run_name=trial.name, tracking_uri=place, tags=tags)
        client = logger._mlflow_client  # noqa: SLF001  # its property would begin a run
        if (experiment := client.get_experiment_by_name(trial.study)) is not None:
            found = client.search_runs([experiment.experiment_id], f"tags.lightning_hpo = '{trial.id}'", max_results=1)
            logger._run_id = found[0].info.run_id if found else None  # noqa: SLF001  # no public name
        return logger


@dataclass(frozen=True)
class FactoryRun(TrialLogger):
    """Loggers that a function of the trial makes for each job.

    Args:
        make: the function. It should open the run of ``trial.id`` again where the trial has logged before.
    """

    make: MakeLogger

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Make them, and let them log each row and the parameters once."""
        loggers = enumerate(self._made(trial))
        return [_log_once(logger, trial.folder, f"{place}." if place else "") for place, logger in loggers]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Log the final score as ``hp_metric``, and finalize the loggers with the status of the trial."""
        for logger in self._made(trial):
            if score is not None:
                logger.log_metrics({"hp_metric": score}, step)
            logger.save()
            logger.finalize({"complete": "success", "pruned": "success", "failed": "failed"}[status])

    def _made(self, trial: Trial) -> list[Logger]:
        made: Any = self.make(trial)
        loggers = list(made) if isinstance(made, list | tuple) else [made]
        for logger in loggers:
            if not isinstance(logger, Logger):
                raise TypeError(f"`logger` must return a Lightning logger or a list of them, got {logger!r}.")
        return loggers


_RUNS: Mapping[str, Callable[[], TrialLogger]] = {
    "tensorboard": TensorBoardRun, "csv": CsvRun, "wandb": WandbRun, "mlflow": MlflowRun
}  # fmt: skip


def trial_logger(logger: str | MakeLogger) -> TrialLogger:
    """Return what opens the runs that a user asks for.

    Args:
        logger: the name of a tool, or a function of the trial.

    Raises:
        ValueError: for another name.
        ImportError: if the tool is not installed, with the line that installs it.
    """
    if isinstance(logger, str):
        if logger not in _RUNS:
            raise ValueError(
                f"`logger` must be {', '.join(map(repr, _RUNS))}, or a function of the trial, got {logger!r}."
            )
        if importlib.util.find_spec(_PACKAGES[logger]) is None:
            raise ImportError(f"`logger`={logger!r} needs a package: pip install {_PACKAGES[logger]}")
        return _RUNS[logger]()
    if isinstance(logger, Logger) or not callable(logger):
        raise TypeError(
            f"`logger` must be a name or a function of the trial that returns a Lightning logger, so that each trial "
            f"has a run of its own; got {logger!r}."
        )
    return FactoryRun(logger)


def _is_first_rank() -> bool:
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # set by Lightning


def _home(trial: Trial) -> Path:
    """The run folder."""
    return trial.folder.parent.parent


def _logging_no_parameters(logger: Any) -> Any:
    """Keep the Trainer from logging hyperparameters again in each job: they are logged by us, without secrets."""
    logger.log_hyperparams = lambda *_, **__: None
    return logger


def _log_once(logger: Any, folder: Path, prefix: str = "") -> Any:
    """Let a logger drop the rows that it has had before: after a kill a trial repeats steps, with the same values.

    What was logged is noted beside the trial after each row.
    """
    if not _is_first_rank():
        return logger
    file = folder / f"{prefix}{_NOTE}"
    is_new, note = not file.exists(), _Logged.read(file)
    log, log_hyperparams = logger.log_metrics, logger.log_hyperparams

    def log_metrics(metrics: Mapping[str, Any], step: int | None = None, **more: Any) -> None:
        if new := note.take(metrics, step or 0):
            log(new, step, **more)
            note.write(file)

    def log_parameters(params: Any, *args: Any, **more: Any) -> None:
        if is_new:
            plain = vars(params) if isinstance(params, Namespace) else params
            log_hyperparams(masked_config(plain), *args, **more)

    logger.log_metrics, logger.log_hyperparams = log_metrics, log_parameters
    return logger


@dataclass
class _Logged:
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
    def read(cls, file: Path) -> "_Logged":
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


def _rows_of(file: Path, start: int) -> list[tuple[int, dict[str, float]]]:
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


def _reopen(logger: CSVLogger, start: int | None) -> _KeptRows:
    """Open the file of a CSV logger again, without the rows from ``start`` on; None keeps all."""
    writer = _KeptRows(logger.log_dir)
    logger._experiment = writer  # noqa: SLF001  # no public name
    file = Path(writer.metrics_file_path)
    if not file.exists():
        return writer
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
    return writer


def _step(row: Mapping[str, str]) -> float:
    try:
        return float(row["step"])
    except (KeyError, ValueError, TypeError):
        return float("inf")
