"""One run of each logger for each trial, through rungs, workers and a kill, read back by each tool's own reader."""

import csv
import json
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger

from lightning_hpo import PopulationTuner, RandomTuner
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.training.trial_info import Trial
from tests.support.small import Data, Net

LR = {"model.lr": "loguniform(1e-3, 1)"}
CPU = {"accelerator": "cpu"}
EVERY = 5  # steps between two rows
SCRIPT = """
from tests.support.small import Data
from tests.training.test_loggers import Killer, Secret, mine
from lightning_hpo import HyperbandTuner
if __name__ == "__main__":
    HyperbandTuner(
        {{"model.lr": "loguniform(1e-3, 1)", "model.api_key": "choice('hunter22', 'hunter23')"}}, monitor="val_loss",
        max_steps=75, min_steps=25, workers=2, checkpoint_every=10, logger={logger}, callbacks=Killer.of, verbose=False,
        root={root!r}, name="r", trainer={{"accelerator": "cpu", "log_every_n_steps": 5}},
    ).fit(Secret, datamodule=Data)
"""


class Secret(Net):
    def __init__(self, lr=0.1, api_key=""):
        super().__init__(lr=lr)
        self.save_hyperparameters()


class Killer(pl.Callback):
    """Kills worker and search in the middle of a trial, once."""

    def __init__(self, trial):
        self.trial = trial

    @classmethod
    def of(cls, trial):
        assert isinstance(trial, Trial)
        assert trial.params["model.api_key"].startswith("hunter")
        return cls(trial)

    def on_train_batch_end(self, trainer, *_):
        killed = self.trial.folder.parent / "killed"
        if self.trial.number == 1 and trainer.global_step == 17 and not killed.exists():
            killed.touch()
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def mine(trial):
    """A user's own factory; CSVLogger deletes the rows of earlier jobs, so each job has a file of its own."""
    assert trial.params["model.api_key"] == "***"
    return CSVLogger(trial.folder.parent.parent / "mine", name=trial.name, version=f"from-{trial.start}-{os.getpid()}",
                     flush_logs_every_n_steps=1)  # fmt: skip


def searched(tmp_path, logger, **environment):
    """Run the script until nothing kills it any more; return the run folder and the trials."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(tmp_path), logger=logger))
    environment = {**os.environ, **environment}
    for code in (-signal.SIGKILL, 0):
        done = subprocess.run([sys.executable, str(script)], env=environment, timeout=150, check=False)
        assert done.returncode == code
    run = tmp_path / "r"
    rows = read_run(run).rows
    assert len(rows) == 5
    assert {row.state for row in rows} == {"complete", "pruned"}
    return run, rows


def check(rows, runs):
    """Each trial has one run: every row once and in order, the parameters, the final score."""
    assert len(runs) == 5
    for row in rows:
        steps, params, score, status = runs[f"r-{row.number:04d}"]
        assert steps == list(range(EVERY - 1, row.step, EVERY)), row
        assert float(params["model.lr"]) == pytest.approx(row.params["model.lr"])
        assert params["model.api_key"] == "***"
        assert score == pytest.approx(row.score)
        assert status == row.state


def test_csv(tmp_path):
    run, rows = searched(tmp_path, "'csv'")
    runs = {}
    for folder in (run / "csv").iterdir():
        with (folder / "metrics.csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        params = yaml.safe_load((folder / "hparams.yaml").read_text())
        steps = [int(line["step"]) for line in lines if line["train_loss"]]
        runs[folder.name] = steps, params, params["hp_metric"], params["status"]
    check(rows, runs)


def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run, rows = searched(tmp_path, "'tensorboard'")
    runs = {}
    for folder in (run / "tensorboard").iterdir():
        events = EventAccumulator(str(folder)).Reload()
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        given = HParamsPluginData.FromString(content).session_start_info.hparams
        params = {name: value.number_value or value.string_value for name, value in given.items()}
        (metric,) = events.Scalars("hp_metric")
        (status,) = events.Tensors("status/text_summary")
        steps = sorted(event.step for event in events.Scalars("train_loss"))  # files of one second have any order
        runs[folder.name] = steps, params, metric.value, status.tensor_proto.string_val[0].decode()
    check(rows, runs)


def logged(content, block=32768):
    """Records of a ``.wandb`` file, which is a log of LevelDB after 7 bytes; wandb itself reads it in Go only."""
    assert content[:4] == b":W&B"
    at, parts = 7, []
    while at + 7 <= len(content):
        if block - at % block < 7:
            at += block - at % block
            continue
        length, kind = struct.unpack("<HB", content[at + 4 : at + 7])
        parts.append(content[at + 7 : at + 7 + length])
        at += 7 + length
        if kind in (1, 4) and at <= len(content):  # whole, or the last part; a kill can leave half a record
            yield b"".join(parts)
            parts = []


def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    run, rows = searched(tmp_path, "'wandb'", WANDB_MODE="offline", WANDB_SILENT="true")
    runs = {}
    for file in sorted((run / "wandb").glob("offline-run-*/*.wandb"), key=lambda file: file.stat().st_mtime):
        name, steps, params, summary = "", [], {}, {}
        for data in logged(file.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.HasField("run"):
                name = record.run.display_name
                params |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            params |= {item.key: json.loads(item.value_json) for item in record.config.update}
            for item in record.summary.update:
                summary[item.key or item.nested_key[0]] = json.loads(item.value_json)
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            if "train_loss" in items:
                steps.append(items["trainer/global_step"])
        if not name:  # killed before the run had its name
            assert not steps
            continue
        before = runs.get(name, ([], {}, None, None))
        runs[name] = (
            before[0] + steps, before[1] | params,
            summary.get("hp_metric", before[2]), summary.get("status", before[3]),
        )  # fmt: skip
    check(rows, runs)


def test_mlflow(tmp_path):
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    place = f"sqlite:///{tmp_path}/mlflow.db"
    rows = searched(tmp_path, "'mlflow'", MLFLOW_TRACKING_URI=place)[1]
    client = MlflowClient(place)
    experiment = client.get_experiment_by_name("r")
    runs = {}
    for found in client.search_runs([experiment.experiment_id]):
        steps = sorted(metric.step for metric in client.get_metric_history(found.info.run_id, "train_loss"))
        (score,) = client.get_metric_history(found.info.run_id, "hp_metric")
        assert found.info.status == {"complete": "FINISHED", "pruned": "KILLED"}[found.data.tags["status"]]
        runs[found.info.run_name] = steps, found.data.params, score.value, found.data.tags["status"]
    check(rows, runs)


def test_a_factory_of_loggers(tmp_path):
    run, rows = searched(tmp_path, "mine")
    for row in rows:
        steps, scores = [], []
        for file in (run / "mine" / f"r-{row.number:04d}").glob("*/metrics.csv"):
            with file.open(newline="") as content:
                lines = list(csv.DictReader(content))
            steps += [int(line["step"]) for line in lines if line.get("train_loss")]
            scores += [float(line["hp_metric"]) for line in lines if line.get("hp_metric")]
        assert sorted(steps) == list(range(EVERY - 1, row.step, EVERY))
        assert scores == [pytest.approx(row.score)]


# Wrong calls, callbacks


def tuner(tmp_path, **options):
    return RandomTuner(
        LR, monitor="val_loss", max_steps=4, n_trials=2, root=tmp_path, name="r", verbose=False,
        **{"trainer": CPU, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logger": "tensorbord"}, "'tensorboard', 'csv', 'wandb', 'mlflow'"),
        ({"logger": CSVLogger("x")}, "a run of its own"),
        ({"logger": "csv", "trainer": {**CPU, "logger": False}}, "leave one of them out"),
        ({"callbacks": [3]}, "got 3"),
        ({"callbacks": lambda trial: [None]}, "must give Lightning callbacks"),
    ],
)
def test_wrong_loggers_and_callbacks_fail_before_training(tmp_path, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        tuner(tmp_path, **options).fit(Net, datamodule=Data)
    assert not list((tmp_path / "r" / "trials").glob("*")) if (tmp_path / "r").exists() else True


def test_a_logger_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        tuner(tmp_path, logger="wandb").fit(Net, datamodule=Data)


def test_an_object_that_would_log_all_trials_into_one_run_is_warned_of(tmp_path):
    pytest.importorskip("mlflow")
    logger = MLFlowLogger("x", tracking_uri=f"sqlite:///{tmp_path}/m.db")
    with pytest.warns(UserWarning, match="MLFlowLogger in `trainer`"):
        tuner(tmp_path, trainer={**CPU, "logger": logger}).objective(Net, datamodule=Data)


@pytest.mark.parametrize("options", [{"logger": "csv"}, {"callbacks": [pl.Callback()]}])
def test_a_function_takes_no_logger_and_no_callbacks(tmp_path, options):
    with pytest.raises(ValueError, match="a function has none"):
        RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=1, root=tmp_path, **options).optimize(lambda *_: 0.0)


class Counts(pl.Callback):
    """Counts the batches of one instance."""

    def __init__(self):
        self.batches = 0

    def on_train_batch_end(self, trainer, *_):
        self.batches += 1
        Path(trainer.default_root_dir, "count").write_text(str(self.batches))


@pytest.mark.parametrize("given", [lambda trial: Counts(), Counts(), [Counts()]])
def test_each_job_has_callbacks_of_its_own(tmp_path, given):
    tuner(tmp_path, callbacks=given).fit(Net, datamodule=Data)
    assert [(tmp_path / f"r/trials/000{number}/count").read_text() for number in range(2)] == ["4", "4"]


def test_a_failed_trial_is_failed_in_its_run(tmp_path):
    class Fails(Net):
        def training_step(self, batch, batch_idx):
            if self.trainer.max_steps and self.global_step == 2 and self.hparams.lr > 0.05:
                raise RuntimeError("no luck")
            return super().training_step(batch, batch_idx)

    result = RandomTuner(
        LR, monitor="val_loss", max_steps=4, n_trials=6, root=tmp_path, name="r", verbose=False, trainer=CPU,
        logger="csv", max_failed=6,
    ).fit(Fails, datamodule=Data)  # fmt: skip
    states = {row.number: row.state for row in result.trials()}
    assert set(states.values()) == {"complete", "failed"}
    for number, state in states.items():
        found = yaml.safe_load((tmp_path / f"r/csv/r-{number:04d}/hparams.yaml").read_text())
        assert found["status"] == state


def test_a_population_takes_no_logger(tmp_path):
    with pytest.raises(ValueError, match="`logger` means nothing for a population"):
        PopulationTuner(LR, monitor="val_loss", max_steps=4, interval=2, root=tmp_path, logger="csv")
