"""One run of a logger for each trial, through all its rungs, kills and workers; in a population, for each member.

Every job of a trial opens the same run again, and logs each row once: steps that a kill makes the trial repeat are
dropped from the run, where its files allow that, or not logged again. Hyperparameters are logged once, with secrets
hidden; the final score and how the trial ended are added when the search has decided it.
"""

import copy
import importlib.util
import os
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from lightning_hpo.study.locks import Lock
from lightning_hpo.training.logged_rows import Logged, log_once, own_folder, reopen, rows_before
from lightning_hpo.training.metrics_file import METRICS
from lightning_hpo.training.namespaces import is_a, of_lightning
from lightning_hpo.training.trial_info import Trial

Status: TypeAlias = Literal["complete", "pruned", "failed"]
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


@dataclass(frozen=True)
class Template:
    """Class and attributes of a user's logger: to copy or to send a ``WandbLogger`` would begin a run."""

    kind: type[Logger]
    state: Mapping[str, Any] = field(repr=False)

    def make(self) -> Any:
        """Return a copy of the logger."""
        logger = self.kind.__new__(self.kind)
        vars(logger).update(copy.deepcopy(dict(self.state)))
        return of_lightning(logger)


@dataclass(frozen=True)
class ToolRun(TrialLogger):
    """The run of a tool.

    Args:
        given: a logger of the tool whose settings are used; None for the defaults of this package.
        place: among the loggers of a trial.
    """

    given: Template | None = None
    place: int = 0


class CsvRun(ToolRun):
    """``csv/<trial>/metrics.csv`` in the run folder, and ``hparams.yaml`` beside it with parameters and final score."""

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Keep the rows before the step at which the job begins."""
        logger = self._logger(trial)
        if _is_first_rank():
            own_folder(Path(logger.log_dir), trial.id)
            reopen(logger, trial.start, _rows(trial)).log_hparams(dict(trial.params))
        return [_logging_no_parameters(logger)]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the parameters with the final score."""
        logger = self._logger(trial)
        own_folder(Path(logger.log_dir), trial.id)
        writer = reopen(logger, None)
        writer.log_hparams({**trial.params, "hp_metric": score, "step": step, "status": status})
        writer.save()

    def _logger(self, trial: Trial) -> CSVLogger:
        logger: Any = CSVLogger(_home(trial) / "csv", name="") if self.given is None else self.given.make()
        vars(logger).update(_version=trial.name, _flush_logs_every_n_steps=1)
        return logger  # type: ignore[no-any-return]  # of the template's class


class TensorBoardRun(ToolRun):
    """``tensorboard/<trial>`` in the run folder; HPARAMS shows parameters and ``hp_metric``, the final score."""

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Let TensorBoard drop what was logged at steps that are about to be repeated."""
        file = _note(trial, self.place)
        note = Logged.read(file)
        logger = self._logger(trial)
        if note.step >= trial.start:
            logger._kwargs["purge_step"] = trial.start  # noqa: SLF001  # no public name
        log, note.step = logger.log_metrics, min(note.step, trial.start - 1)

        def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
            log(metrics, step)
            logger.save()  # a checkpoint may follow, from which a killed trial goes on
            note.step = max(note.step, step or 0)
            note.write(file)

        if _is_first_rank():
            own_folder(Path(logger.root_dir) / trial.name, trial.id)
            _wait_for_a_second_without_files(Path(logger.log_dir))
            logger.log_metrics = log_metrics  # type: ignore[method-assign]  # of this one only
            for step, row in _rows(trial):
                if step > note.step:  # a kill came before the logger had it
                    log_metrics(row, step)
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
        logger = self._logger(trial)
        own_folder(Path(logger.root_dir) / trial.name, trial.id)
        folder = Path(logger.log_dir)
        _wait_for_a_second_without_files(folder)
        with SummaryWriter(str(folder)) as writer:
            for summary in hparams(plain, metrics):  # type: ignore[no-untyped-call]  # torch types it not
                writer._get_file_writer().add_summary(summary, step)  # noqa: SLF001  # as Lightning does
            for name, value in metrics.items():
                writer.add_scalar(name, value, step)
            writer.add_text("status", status, step)

    def _logger(self, trial: Trial) -> TensorBoardLogger:
        given = self.given
        logger: Any = TensorBoardLogger(_home(trial) / "tensorboard", name="") if given is None else given.make()
        graph = logger._log_graph and trial.start == 0  # noqa: SLF001  # no public name
        vars(logger).update(_version=trial.name, _default_hp_metric=False, _log_graph=graph)
        return logger  # type: ignore[no-any-return]  # of the template's class


def _wait_for_a_second_without_files(folder: Path) -> None:
    """Wait where this second has a file already: TensorBoard reads files by name, which is second, host, process."""
    while any(file.name.split(".")[3] == f"{int(time.time()):010d}" for file in folder.glob("events.out.tfevents.*")):
        time.sleep(0.05)


class WandbRun(ToolRun):
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
        file = _note(trial, self.place)
        note = Logged.read(file)
        for part in (Path(logger.save_dir or ".") / "wandb").glob(f"offline-run-*-{trial.id}"):
            if part.name not in note.parts:
                shutil.rmtree(part, ignore_errors=True)
        run = logger.experiment
        run.config.update(dict(trial.params), allow_val_change=True)
        log = logger.log_metrics
        for step, row in _rows(trial):
            if new := note.take(row, step):
                log(new, step)

        def log_metrics(metrics: Mapping[str, Any], step: int | None = None) -> None:
            if new := note.take(metrics, step or 0):
                log(new, step)

        def finalize(status: str) -> None:
            type(logger).finalize(logger, status)
            part = Path(run.dir).parent.name
            run.finish()
            note.parts.append(part)
            note.write(file)

        logger.log_metrics, logger.finalize = log_metrics, finalize  # type: ignore[method-assign]  # of this one only
        return [logger]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the final score into the summary of the run."""
        run = self._logger(trial).experiment
        run.summary.update({"hp_metric": score, "step": step, "status": status})
        run.finish(exit_code=1 if status == "failed" else 0)

    def _logger(self, trial: Trial) -> WandbLogger:
        project = os.environ.get("WANDB_PROJECT", trial.study)
        given = self.given
        logger: Any = WandbLogger(save_dir=_home(trial), project=project) if given is None else given.make()
        settings = logger._wandb_init  # noqa: SLF001  # no public name
        settings |= {"name": trial.name, "id": trial.id, "reinit": "create_new"}
        settings["group"] = settings.get("group") or trial.study
        vars(logger).update(_name=trial.name, _id=trial.id)
        Path(logger.save_dir or ".").mkdir(parents=True, exist_ok=True)
        return logger  # type: ignore[no-any-return]  # of the template's class


class MlflowRun(ToolRun):
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
            type(logger).log_hyperparams(logger, dict(trial.params))
        else:
            client.update_run(run, status="RUNNING")
        logger.finalize = lambda status="": None  # type: ignore[method-assign]  # noqa: ARG005  # the trial may go on
        return [log_once(_logging_no_parameters(logger), _note(trial, self.place), _rows(trial))]

    def end(self, trial: Trial, score: float | None, step: int, status: Status) -> None:
        """Write the final score, and end the run."""
        logger = self._logger(trial)
        client, run = logger.experiment, logger.run_id
        if score is not None:
            client.log_metric(run, "hp_metric", score, step=step)
        client.set_tag(run, "status", status)
        client.set_terminated(run, {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}[status])

    def _logger(self, trial: Trial) -> MLFlowLogger:
        if self.given is None:
            place = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{_home(trial) / 'mlflow.db'}"
            logger: Any = MLFlowLogger(trial.study, tracking_uri=place)
        else:
            logger = self.given.make()
        tags = {"lightning_hpo": trial.id, "study": trial.study, "trial": str(trial.number)}
        logger.tags = {**(logger.tags or {}), **tags}
        client = logger._mlflow_client  # noqa: SLF001  # its property would begin a run
        found = []
        if (experiment := client.get_experiment_by_name(logger._experiment_name)) is not None:  # noqa: SLF001  # as above
            found = client.search_runs([experiment.experiment_id], f"tags.lightning_hpo = '{trial.id}'", max_results=1)
        vars(logger).update(_run_name=trial.name, _run_id=found[0].info.run_id if found else None)
        return logger  # type: ignore[no-any-return]  # of the template's class


@dataclass(frozen=True)
class FactoryRun(TrialLogger):
    """Loggers that a function of the trial makes for each job; it should open the run of ``trial.id`` again."""

    make: MakeLogger

    def open(self, trial: Trial) -> Sequence[Logger]:
        """Make them, and let them log each row and the parameters once."""
        made = self._made(trial)
        return (
            [log_once(logger, _note(trial, place), _rows(trial)) for place, logger in enumerate(made)]
            if _is_first_rank()
            else made
        )

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
            if not isinstance(of_lightning(logger), Logger):
                raise TypeError(f"`logger` must return a Lightning logger or a list of them, got {logger!r}.")
        return loggers


_RUNS: Mapping[str, type[ToolRun]] = {
    "tensorboard": TensorBoardRun, "csv": CsvRun, "wandb": WandbRun, "mlflow": MlflowRun
}  # fmt: skip
_KNOWN: Mapping[type[Logger], type[ToolRun]] = {
    TensorBoardLogger: TensorBoardRun, CSVLogger: CsvRun, WandbLogger: WandbRun, MLFlowLogger: MlflowRun
}  # fmt: skip


def trial_logger(logger: str | MakeLogger) -> TrialLogger:
    """Return what opens the runs that a user asks for.

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


def known_logger(logger: Any, place: int = 0) -> TrialLogger | None:
    """Return what opens the runs of a logger that a user has given to the Trainer; None if its class is not known.

    True stands for TensorBoard, or CSV without it, as for a Trainer.
    """
    if logger is True:
        has_tensorboard = importlib.util.find_spec("tensorboard") is not None
        return TensorBoardRun(place=place) if has_tensorboard else CsvRun(place=place)
    run = next((run for kind, run in _KNOWN.items() if is_a(logger, kind)), None)
    if run is None:
        return None
    is_begun = any(getattr(logger, name, None) is not None for name in ("_experiment", "_run_id"))
    is_remote = "://" in str(logger.save_dir) and run in (TensorBoardRun, CsvRun)
    return None if is_begun or is_remote else run(Template(type(logger), vars(logger)), place)


def _note(trial: Trial, place: int) -> Path:
    """File beside the trial that says what the run has."""
    of_fold = f"fold{trial.fold}." if trial.fold else ""
    return trial.folder / f"{of_fold}{f'{place}.' if place else ''}logged.json"


def _rows(trial: Trial) -> list[tuple[int, dict[str, float]]]:
    """All rows before a job, from the metrics of its trial."""
    return rows_before(trial.folder / METRICS, trial.start)


def _is_first_rank() -> bool:
    return bool(rank_zero_only.rank == 0)  # type: ignore[attr-defined]  # set by Lightning


def _home(trial: Trial) -> Path:
    """The run folder."""
    return trial.folder.parent.parent


def _logging_no_parameters(logger: Any) -> Any:
    """Keep the Trainer from logging hyperparameters again in each job: they are logged by us, without secrets."""
    logger.log_hyperparams = lambda *_, **__: None
    return logger
