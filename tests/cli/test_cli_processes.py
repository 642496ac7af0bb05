"""The command line as a person types it: real arguments, exit codes and kills, over `examples/cli/train.py`."""

from pathlib import Path

import pytest
import torch
import yaml

from tests.faults.scripts import Script

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "cli"
FIT, SPACE = str(EXAMPLE / "fit.yaml"), str(EXAMPLE / "space.yaml")
TUNE = ["tune", "-c", FIT, "--space", SPACE, "--tuner.monitor", "val_acc", "--tuner.mode", "max"]

# A script of somebody without this package: any import of it fails.
WITHOUT_US = """
import sys
for name in ["lightning_hpo", *sys.modules]:
    if name.partition(".")[0] == "lightning_hpo":
        sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from digits import DigitsData, DigitsNet
from lightning.pytorch.cli import LightningCLI
for name in sys.argv[2:]:
    args = ["fit", "-c", f"runs/{name}/best.yaml", "--trainer.enable_progress_bar", "false"]
    cli = LightningCLI(DigitsNet, DigitsData, args=args, save_config_kwargs={"overwrite": True})
    print("score", float(cli.trainer.callback_metrics["val_acc"]))
"""


def run(tmp_path, line, *, kill_at=None):
    """Run a command line in ``tmp_path``, to its end or until it has printed so much: its exit code, and its text."""
    process = Script(tmp_path, EXAMPLE / "train.py", *line, cwd=tmp_path)
    if kill_at is not None:
        process.wait_for(kill_at)
        process.kill()
    code, out, err = process.end()
    return code, out + err


class TestTune:
    TUNERS = {
        "hyperband": ["HyperbandTuner", "--tuner.max_steps", "81", "--tuner.min_steps", "27"],
        "bayesian": ["BayesianTuner", "--tuner.max_steps", "60", "--tuner.n_trials", "4", "--tuner.n_startup_trials=2"],
        "optuna": ["OptunaTuner", "--tuner.max_steps", "60", "--tuner.n_trials", "4", "--tuner.sampler", "TPESampler",
                   "--tuner.pruner", "MedianPruner", "--tuner.pruner.n_startup_trials", "2"],
    }  # fmt: skip

    def test_killed_continued_by_the_same_line_and_answered_in_plain_lightning(self, tmp_path):
        scores = {}
        for name, tuner in self.TUNERS.items():
            line = [*TUNE, "--tuner", *tuner, "--tuner.name", name]
            killed, before = run(tmp_path, line, kill_at="trial    1")
            code, after = run(tmp_path, line)
            assert killed == -9
            assert "trial    0 @" in before
            assert code == 0, after
            assert "continues: " in after
            assert "trial    0 @ 27" not in after
            assert "trial    0 @ 60" not in after
            comment = (tmp_path / "runs" / name / "best.yaml").read_text().partition(";")[0]
            scores[name] = float(comment.split(" = ")[1].split()[0])
            assert "lightning_hpo" not in (tmp_path / "runs" / name / "best.yaml").read_text()
        (tmp_path / "plain.py").write_text(WITHOUT_US)
        code, out, err = Script(tmp_path, tmp_path / "plain.py", EXAMPLE, *scores, cwd=tmp_path).end()
        assert code == 0, err
        plain = [float(line.split()[1]) for line in out.splitlines() if line.startswith("score")]
        assert plain == list(scores.values())

    def test_the_example_is_short(self):
        assert len((EXAMPLE / "train.py").read_text().splitlines()) < 10


def test_fit_with_each_schedule_what_is_printed_and_what_is_refused(tmp_path):
    schedules = {
        "linear": ["WarmupCosineLR", "--lr_scheduler.warmup", "5"],
        "cosine": ["CosineLR", "--lr_scheduler.min_lr_ratio", "0.1"],
        "step": ["StepDecayLR", "--lr_scheduler.decay_rate", "0.5", "--lr_scheduler.decay_steps", "10"],
    }
    fit = ["fit", "-c", FIT, "--trainer.max_steps", "30", "--trainer.logger", "false"]
    fits = [[*fit, "--trainer.default_root_dir", name, "--lr_scheduler", *one] for name, one in schedules.items()]
    random = ["--tuner", "RandomTuner", "--tuner.max_steps", "5", "--tuner.n_trials", "2", "--tuner.name", "r"]
    random = [*TUNE, *random]
    population = ["PopulationTuner", "--tuner.population_size", "2", "--tuner.max_steps", "20", "--tuner.interval=10"]
    population = ["tune", "-c", FIT, "--space.optimizer.lr", "loguniform(1e-3, 1e-1)", "--tuner", *population]
    population += ["--tuner.monitor", "val_acc", "--tuner.mode", "max", "--tuner.name", "p"]
    lines = {
        "--help": (["tune", "--help"], 0, "loguniform(low, high)"),
        "--print_config": ([*random, "--print_config"], 0, "model.dropout: uniform(0, 0.5)"),
        "--dry-run": ([*random, "--dry-run"], 0, "in all: 2 trials, 2 jobs, 10 optimizer steps"),
        "path": ([*random, "--space.model.hiden", "int(4, 8)"], 2, "Did you mean 'model.hidden'?"),
        "type": ([*random, "--space.model.hidden", "uniform(4, 8)"], 2, "'model.hidden' with the value 4.0"),
        "metric": ([*random, "--tuner.monitor", "val_ac"], 2, "Did you mean 'val_acc'?"),
        "tuner": ([*random, "--tuner.n_trials", "0"], 2, "`n_trials` must be"),
        "population": (population, 0, "report: "),
        "population of workers": ([*population, "--tuner.workers", "2", "--tuner.name", "w"], 0, "report: "),
    }
    for name, line in zip(schedules, fits, strict=True):
        code, text = run(tmp_path, line)
        assert code == 0, text
        (saved,) = (tmp_path / name).rglob("*.ckpt")
        state = torch.load(saved, weights_only=True)
        assert state["lr_schedulers"][0]["last_epoch"] == 30
        lr = state["optimizer_states"][0]["param_groups"][0]["lr"]
        assert lr == pytest.approx({"linear": 0.0, "cosine": 0.001, "step": 0.01 / 8}[name])
    for name, (line, code, said) in lines.items():
        left, text = run(tmp_path, line)
        assert left == code, (name, text)
        assert said in " ".join(text.split()), (name, text)
        assert (code == 0) or "Traceback" not in text
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"p", "w"}
    best = yaml.safe_load((tmp_path / "runs" / "p" / "best.yaml").read_text())
    assert best["trainer"]["max_steps"] == 20


MAIN = """
from lightning_hpo import HPOCLI
from tests.support.small import Data, Net


class Mine(Net):
    def __init__(self, lr: float = 0.1, step_log: str | None = None):
        super().__init__(lr)
        self.save_hyperparameters()


class Batches(Data):
    def __init__(self, batch_size: int = 16, own_generator: bool = False, num_workers: int = 0):
        super().__init__(batch_size)


if __name__ == "__main__":
    HPOCLI(Mine, Batches)
"""


def test_worker_processes_with_classes_of_the_main_script(tmp_path):
    (tmp_path / "main.py").write_text(MAIN)
    line = ["tune", "--trainer.accelerator", "cpu", "--space.model.lr", "loguniform(1e-3, 1)"]
    line += ["--space.data.batch_size", "choice(16, 32)", "--tuner", "HyperbandTuner", "--tuner.max_steps", "9"]
    line += ["--tuner.monitor", "val_loss", "--tuner.workers", "2", "--tuner.name", "two"]
    # In full: a test that ran in this process may have made another class of this name.
    line += ["--trainer.logger", "lightning.pytorch.loggers.CSVLogger"]
    line += ["--trainer.logger.save_dir", str(tmp_path / "logs")]
    code, out, err = Script(tmp_path, tmp_path / "main.py", *line, cwd=tmp_path).end()
    assert code == 0, err
    assert "failed" not in out
    best = torch.load(tmp_path / "runs" / "two" / "best.ckpt", weights_only=True)
    config = yaml.safe_load((tmp_path / "runs" / "two" / "best.yaml").read_text())
    assert best["hyper_parameters"]["lr"] == config["model"]["lr"]
    runs = sorted((tmp_path / "logs" / "lightning_logs").iterdir())  # a logger of the config has a run for each trial
    assert [run.name for run in runs] == [
        f"two-{path.name}" for path in sorted((tmp_path / "runs/two/trials").iterdir())
    ]
    params = [yaml.safe_load((run / "hparams.yaml").read_text()) for run in runs]
    assert {found["status"] for found in params} == {"complete", "pruned"}
    assert config["data"]["batch_size"] in {found["data.batch_size"] for found in params}
