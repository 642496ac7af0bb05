"""The command line as a person types it: real arguments, exit codes and kills, over `examples/cli/train.py`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "cli"
FIT, SPACE = str(EXAMPLE / "fit.yaml"), str(EXAMPLE / "space.yaml")
TUNE = ["tune", "-c", FIT, "--space", SPACE, "--tuner.monitor", "val_acc", "--tuner.mode", "max"]

# Torch and Lightning are imported once; every line then runs in a fork of that process, as its own main script.
FORKS = """
import json, os, runpy, signal, sys, traceback
import lightning_hpo.cli
script, answers = sys.argv[1], []
for line, kill_at in json.loads(sys.argv[2]):
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write, 1), os.dup2(write, 2)
        sys.argv = [script, *line]
        code = 0
        try:
            runpy.run_path(script, run_name="__main__")
        except SystemExit as left:
            code = left.code or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    os.close(write)
    text = ""
    with os.fdopen(read) as printed:
        for one in printed:
            text += one
            if kill_at and one.startswith(kill_at):
                os.kill(pid, signal.SIGKILL)
    answers.append((os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), text))
print(json.dumps(answers))
"""

# A script of somebody without this package: any import of it fails.
WITHOUT_US = """
import sys
sys.modules["lightning_hpo"] = None
from digits import DigitsData, DigitsNet
from lightning.pytorch.cli import LightningCLI
for name in sys.argv[1:]:
    args = ["fit", "-c", f"runs/{name}/best.yaml", "--trainer.enable_progress_bar", "false"]
    cli = LightningCLI(DigitsNet, DigitsData, args=args, save_config_kwargs={"overwrite": True})
    print("score", float(cli.trainer.callback_metrics["val_acc"]))
"""


def start(*arguments, cwd):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", *arguments],
        cwd=cwd,
        check=False,
        text=True,
        capture_output=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLE}", "PYTHONSAFEPATH": "1"},
    )
    return done.returncode, done.stdout, done.stderr


def run(*lines, cwd, script=EXAMPLE / "train.py"):
    """Run command lines one after the other; a pair is a line and what it prints when it is to be killed."""
    jobs = [line if isinstance(line, tuple) else (line, None) for line in lines]
    code, out, err = start("-c", FORKS, str(script), json.dumps(jobs), cwd=cwd)
    assert code == 0, err
    return json.loads(out)


class TestTune:
    TUNERS = {
        "hyperband": ["HyperbandTuner", "--tuner.max_steps", "81", "--tuner.min_steps", "27"],
        "bayesian": ["BayesianTuner", "--tuner.max_steps", "60", "--tuner.n_trials", "4", "--tuner.n_startup_trials=2"],
        "optuna": ["OptunaTuner", "--tuner.max_steps", "60", "--tuner.n_trials", "4", "--tuner.sampler", "TPESampler",
                   "--tuner.pruner", "MedianPruner", "--tuner.pruner.n_startup_trials", "2"],
    }  # fmt: skip

    def test_killed_continued_by_the_same_line_and_answered_in_plain_lightning(self, tmp_path):
        lines = [[*TUNE, "--tuner", *tuner, "--tuner.name", name] for name, tuner in self.TUNERS.items()]
        answers = run(*((line, killed) for line in lines for killed in ("trial    1", None)), cwd=tmp_path)
        scores = {}
        for name, (killed, before), (code, after) in zip(self.TUNERS, answers[::2], answers[1::2], strict=True):
            assert killed == -9
            assert "trial    0 @" in before
            assert code == 0, after
            assert "continues: " in after
            assert "trial    0 @ 27" not in after
            assert "trial    0 @ 60" not in after
            scores[name] = float(after.split("best ")[-1].split()[0])
            assert "lightning_hpo" not in (tmp_path / "runs" / name / "best.yaml").read_text()
        (tmp_path / "plain.py").write_text(WITHOUT_US)
        code, out, err = start("plain.py", *scores, cwd=tmp_path)
        assert code == 0, err
        plain = [float(line.split()[1]) for line in out.splitlines() if line.startswith("score")]
        assert plain == pytest.approx(list(scores.values()), abs=0.06)  # of 500 images; a fit has other random numbers

    def test_the_example_is_short(self):
        assert len((EXAMPLE / "train.py").read_text().splitlines()) < 10


def test_fit_with_each_schedule_what_is_printed_and_what_is_refused(tmp_path):
    """Many lines in one go, as each process costs seconds of imports."""
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
        "population of workers": ([*population, "--tuner.workers", "2"], 2, "`workers`"),
    }
    answers = run(*fits, *(line for line, _, _ in lines.values()), cwd=tmp_path)
    for name, (code, text) in zip(schedules, answers, strict=False):
        assert code == 0, text
        (saved,) = (tmp_path / name).rglob("*.ckpt")
        state = torch.load(saved, weights_only=True)
        assert state["lr_schedulers"][0]["last_epoch"] == 30
        lr = state["optimizer_states"][0]["param_groups"][0]["lr"]
        assert lr == pytest.approx({"linear": 0.0, "cosine": 0.001, "step": 0.01 / 8}[name])
    for (name, (_, code, said)), (left, text) in zip(lines.items(), answers[len(fits) :], strict=True):
        assert left == code, (name, text)
        assert said in " ".join(text.split()), (name, text)
        assert (code == 0) or "Traceback" not in text
    assert {one.name for one in (tmp_path / "runs").iterdir()} == {"r", "p"}
    assert not list((tmp_path / "runs" / "r" / "trials").iterdir())
    best = yaml.safe_load((tmp_path / "runs" / "p" / "best.yaml").read_text())
    assert best["trainer"]["max_steps"] == 20


MAIN = """
from lightning_hpo import HPOCLI
from tests.small import Data, Net


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
    code, out, err = start("main.py", *line, cwd=tmp_path)
    assert code == 0, err
    assert "failed" not in out
    best = torch.load(tmp_path / "runs" / "two" / "best.ckpt", weights_only=True)
    config = yaml.safe_load((tmp_path / "runs" / "two" / "best.yaml").read_text())
    assert best["hyper_parameters"]["lr"] == config["model"]["lr"]
