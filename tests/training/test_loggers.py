"""One run of each logger for each trial, through rungs, workers and a kill, read back by each tool's own reader."""

import csv
import multiprocessing
import os
import signal
from pathlib import Path

import lightning.pytorch as pl
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, Logger

from lightning_hpo import HyperbandTuner, PopulationTuner, RandomTuner, StudyPaused
from lightning_hpo.training.trial_info import Trial
from tests.faults.scripts import Script
from tests.support.logs import EVERY, check, read_csv, read_mlflow, read_tensorboard, read_wandb, trials_of
from tests.support.small import Data, Net

LR = {"model.lr": "loguniform(1e-3, 1)"}
CPU = {"accelerator": "cpu"}
OBJECTS = """[
    TensorBoardLogger({root!r} + "/logs", name="tensorboard"), CSVLogger({root!r} + "/logs", name="csv"),
    WandbLogger(save_dir={root!r} + "/logs", project="mine", tags=["small"], offline=True),
    MLFlowLogger("mine", tracking_uri="sqlite:///" + {root!r} + "/mlflow.db", tags={{"of": "me"}}),
]"""
SCRIPT = """
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from tests.faults.scripts import Script
from tests.support.small import Data
from tests.training.test_loggers import Killer, Secret, dying, mine
from lightning_hpo import HyperbandTuner
if __name__ == "__main__":
    HyperbandTuner(
        {{"model.lr": "loguniform(1e-3, 1)", "model.api_key": "choice('hunter22', 'hunter23')"}}, monitor="val_loss",
        max_steps=75, min_steps=25, workers={workers}, checkpoint_every=10, logger={logger}, callbacks=Killer.of,
        verbose=False, root={root!r}, name="r", trainer={{"accelerator": "cpu", "log_every_n_steps": 5, {trainer}}},
    ).fit(Secret, datamodule=Data)
"""


class Secret(Net):
    def __init__(self, lr=0.1, api_key=""):
        super().__init__(lr=lr)
        self.save_hyperparameters()


class Killer(pl.Callback):
    """Kills search and worker, if there are any, in the middle of a trial, once."""

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
            if multiprocessing.parent_process() is not None:  # of a worker
                os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)


def mine(trial):
    """A user's own factory; CSVLogger deletes the rows of earlier jobs, so each job has a file of its own."""
    assert trial.params["model.api_key"] == "***"
    return CSVLogger(trial.folder.parent.parent / "mine", name=trial.name, version=f"from-{trial.start}-{os.getpid()}",
                     flush_logs_every_n_steps=1)  # fmt: skip


class DiesBeforeARow(CSVLogger):
    """Kills the process, once, at a row whose batch is in the checkpoint that has just been saved."""

    def log_metrics(self, metrics, step=None):
        killed = Path(self.root_dir).parents[1] / "trials" / "killed"
        if step == 9 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        super().log_metrics(metrics, step)


def dying(trial):
    folder = trial.folder.parent.parent / "dying"
    return DiesBeforeARow(folder, name=trial.name, version=f"from-{trial.start}", flush_logs_every_n_steps=1)


def searched(tmp_path, logger=None, trainer="", workers=1, **environment):
    """Run the script until nothing kills it any more; return the run folder and the trials."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(root=str(tmp_path), logger=logger, trainer=trainer, workers=workers))
    for code in (-signal.SIGKILL, 0):
        ended = Script(tmp_path, script, env={"WANDB_SILENT": "true", **environment}).end(timeout=900)
        assert ended[0] == code, ended
    return tmp_path / "r", trials_of(tmp_path / "r", 5)


@pytest.mark.timeout(1900)
def test_wandb(tmp_path):
    pytest.importorskip("wandb")
    run, rows = searched(tmp_path, "'wandb'", WANDB_MODE="offline")
    check(rows, read_wandb(run))


@pytest.mark.timeout(1900)
def test_logger_objects_of_the_trainer(tmp_path):
    """They keep their settings and places, and each trial has a run of its own in each of them."""
    for package in ("mlflow", "tensorboard", "wandb"):
        pytest.importorskip(package)
    from mlflow import MlflowClient

    rows = searched(tmp_path, trainer=f"'logger': {OBJECTS.format(root=str(tmp_path))}", workers=2)[1]
    place = f"sqlite:///{tmp_path}/mlflow.db"
    check(rows, read_csv(tmp_path / "logs" / "csv"))
    check(rows, read_tensorboard(tmp_path / "logs" / "tensorboard"))
    check(rows, read_wandb(tmp_path / "logs"))
    check(rows, read_mlflow(place, "mine"))
    client = MlflowClient(place)
    runs = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert {run.data.tags["of"] for run in runs} == {"me"}


@pytest.mark.parametrize("logger", ["csv", "tensorboard", "mlflow", True])
def test_a_logger_by_its_name_and_the_default_one(tmp_path, monkeypatch, logger):
    pytest.importorskip({"csv": "lightning", True: "tensorboard"}.get(logger, logger))
    place = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", place)
    trainer = {**CPU, "log_every_n_steps": 5}
    given = {"trainer": {**trainer, "logger": True}} if logger is True else {"trainer": trainer, "logger": logger}
    tuner(tmp_path, max_steps=10, **given).fit(Net, datamodule=Data)
    rows = trials_of(tmp_path / "r", 2)
    if logger == "mlflow":
        check(rows, read_mlflow(place, "r"))
    elif logger == "csv":
        check(rows, read_csv(tmp_path / "r" / "csv"))
    else:
        check(rows, read_tensorboard(tmp_path / "r" / "tensorboard"))


def test_folders_of_logs_of_another_study_are_moved_aside(tmp_path):
    options = {"trainer": {**CPU, "log_every_n_steps": 5, "logger": CSVLogger(tmp_path / "logs")}, "max_steps": 5}
    tuner(tmp_path / "a", **options).fit(Net, datamodule=Data)
    with pytest.warns(UserWarning, match="logs of other trials are moved aside"):
        tuner(tmp_path / "b", **options).fit(Net, datamodule=Data)
    assert len(list((tmp_path / "logs" / "lightning_logs").glob("*.other-*"))) == 2
    runs = read_csv(tmp_path / "logs" / "lightning_logs")
    check(trials_of(tmp_path / "b" / "r", 2), {name: run for name, run in runs.items() if ".other" not in name})


class Elsewhere(Logger):
    """A logger whose class nobody knows."""

    params: list = []
    name = version = ""

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        self.params.append(params)


@pytest.mark.filterwarnings("ignore:'model.api_key' is in the space, but nothing")
def test_another_logger_is_copied_with_a_warning_and_gets_no_secret(tmp_path):
    Elsewhere.params.clear()
    space = {**LR, "model.api_key": "choice('hunter22', 'hunter23')"}
    with pytest.warns(UserWarning, match="the Elsewhere in `trainer` is copied for each job"):
        tuner(tmp_path, space=space, trainer={**CPU, "logger": Elsewhere()}).fit(Secret, datamodule=Data)
    assert [params["api_key"] for params in Elsewhere.params] == ["***", "***"]
    assert (tmp_path / "r/trials/0000/metrics.csv").exists()


@pytest.mark.timeout(1900)
@pytest.mark.parametrize("factory", ["mine", "dying"])
def test_a_factory_of_loggers(tmp_path, factory):
    run, rows = searched(tmp_path, factory)
    for row in rows:
        steps, scores = [], []
        for file in (run / factory / f"r-{row.number:04d}").glob("*/metrics.csv"):
            with file.open(newline="") as content:
                lines = list(csv.DictReader(content))
            steps += [int(line["step"]) for line in lines if line.get("train_loss")]
            scores += [float(line["hp_metric"]) for line in lines if line.get("hp_metric")]
        assert sorted(steps) == list(range(EVERY - 1, row.step, EVERY))
        assert scores == [pytest.approx(row.score)]


# Wrong calls, callbacks


def tuner(tmp_path, space=LR, **options):
    defaults = {"trainer": CPU, "max_steps": 4, "n_trials": 2, "monitor": "val_loss", "verbose": False}
    return RandomTuner(space, root=tmp_path, name="r", **{**defaults, **options})


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
    assert not list((tmp_path / "r").glob("trials/*"))


def test_a_logger_that_is_not_installed_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install wandb"):
        tuner(tmp_path, logger="wandb").fit(Net, datamodule=Data)


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


class Losses(pl.Callback):
    """Remembers the loss of each step."""

    def __init__(self):
        self.losses = []

    def state_dict(self):
        return {"losses": self.losses}

    def load_state_dict(self, state_dict):
        self.losses = state_dict["losses"]

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(float(outputs["loss"]))


def test_callbacks_of_each_trial_can_be_had_from_the_result(tmp_path):
    def search(**options):
        return HyperbandTuner(
            LR, monitor="val_loss", max_steps=9, min_steps=3, root=tmp_path, name="r", verbose=False, trainer=CPU,
            **options,
        ).fit(Net, datamodule=Data)  # fmt: skip

    result = search(callbacks=Losses())
    gone = [row for row in result.trials() if not (tmp_path / f"r/trials/{row.number:04d}/last.ckpt").exists()]
    assert gone
    for row in result.trials():
        (callback,) = result.callbacks(row.number)
        assert len(callback.losses) == row.step
    with pytest.raises(ValueError, match="no trial 99"):
        result.callbacks(99)
    with pytest.raises(RuntimeError, match="give the tuner `callbacks=`"):
        search().callbacks(0)
    with pytest.raises(RuntimeError, match="others than trial 0 had"):
        search(callbacks=[Losses(), pl.Callback()]).callbacks(0)


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


class Stopper(pl.Callback):
    """Presses Ctrl-C in the middle of a member's second interval, once."""

    def __init__(self, trial):
        self.trial, self.steps = trial, 0

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state_dict):
        self.steps = state_dict["steps"]

    def on_train_batch_end(self, trainer, *_):
        self.steps += 1
        stopped = self.trial.folder / "stopped"
        if self.trial.number == 1 and trainer.global_step == 18 and not stopped.exists():
            stopped.touch()
            signal.raise_signal(signal.SIGINT)


def test_each_member_of_a_population_has_one_run(tmp_path):
    """Steps go on where a member copies; its run begins with its first parameters, and says which ones came when."""

    def search():
        return PopulationTuner(
            LR, monitor="val_loss", max_steps=30, interval=10, population_size=3, root=tmp_path, name="r",
            logger="csv", callbacks=Stopper, verbose=False, trainer={**CPU, "log_every_n_steps": 5},
        ).fit(Net, datamodule=Data)  # fmt: skip

    with pytest.raises(StudyPaused):
        search()
    result = search()
    trials = result.trials()
    assert len(trials) > 3
    assert [result.callbacks(row.number)[0].steps for row in trials] == [30] * len(trials)
    runs = read_csv(tmp_path / "r" / "csv")
    assert set(runs) == {"r-0000", "r-0001", "r-0002"}
    for member in range(3):
        own = [row for row in trials if row.home == member]
        steps, params, score, status = runs[f"r-{member:04d}"]
        assert steps == list(range(EVERY - 1, 30, EVERY))
        assert params["model.lr"] == pytest.approx(own[0].params["model.lr"])
        assert score == pytest.approx(own[-1].score)
        assert status == "complete"
        with (tmp_path / "r" / "csv" / f"r-{member:04d}" / "metrics.csv").open(newline="") as file:
            lines = [line for line in csv.DictReader(file) if line["pbt/model.lr"]]
        began = [(int(line["step"]), float(line["pbt/model.lr"])) for line in lines]
        assert began == [(row.start, pytest.approx(row.params["model.lr"])) for row in own]
