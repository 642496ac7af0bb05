"""Searches over modules of other projects: killed and continued, they equal the uninterrupted ones and tell the truth.

They need the extra ``real``; ``tests/real/run.sh`` makes an environment with it and runs them.
"""

import importlib
import os
import signal

import lightning.pytorch as pl
import pytest
import torch

from lightning_hpo import BayesianTuner, HyperbandTuner, PopulationTuner
from tests.faults.test_kill import in_a_child

for name in ("chemprop", "gluonts", "pytorch_forecasting", "tensorboard"):
    pytest.importorskip(name)

from tests.real.modules import CASES  # noqa: E402  # after it is known that it can be imported

R = 24  # optimizer steps; 6 to 8 make an epoch
KILLS = (4, 17, 23)  # hooks into a process at which it dies, one after the other
QUIET = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}


class Kill(pl.Callback):
    """Ends the process by SIGKILL at one of its hooks."""

    process: int | None = None
    left = 0

    def count(self):
        if os.getpid() == Kill.process:  # not in the check before training, which has a process of its own
            Kill.left -= 1
            if Kill.left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, *_):
        self.count()

    def on_before_optimizer_step(self, *_):
        self.count()

    def on_validation_start(self, *_):
        self.count()

    def on_validation_end(self, *_):
        self.count()


def options(root, name, package):
    callbacks = importlib.import_module(f"{package}.callbacks")
    loggers = importlib.import_module(f"{package}.loggers")
    trainer = {
        "accelerator": "cpu",
        "gradient_clip_val": 0.5,
        "log_every_n_steps": 1,
        "logger": [loggers.TensorBoardLogger(root / f"{name}.logs"), loggers.CSVLogger(root / f"{name}.logs")],
        "callbacks": [
            callbacks.EarlyStopping("val_loss", patience=2),
            callbacks.LearningRateMonitor("step"),
            callbacks.ModelCheckpoint(monitor="val_loss", save_last=True),
            Kill(),
        ],
    }
    return {
        "monitor": "val_loss", "max_steps": R, "checkpoint_every": 5, "root": root, "name": name, "trainer": trainer,
        "verbose": False,
    }  # fmt: skip


def hyperband(case, *place):
    tuner = HyperbandTuner(case.space, min_steps=3, eta=3, **options(*place))
    return tuner.fit(case.make, datamodule=case.data)


def bayesian(case, *place):
    return BayesianTuner(case.space, n_trials=3, **options(*place)).fit(case.make, datamodule=case.data)


def population(case, *place):
    given = options(*place)
    del given["checkpoint_every"]
    tuner = PopulationTuner(case.population, population_size=3, interval=6, **given)
    return tuner.fit(case.make, datamodule=case.data)


def recorded(result):
    rows = [(row.number, row.params, row.values, row.state, row.parent) for row in result.rows]
    return rows, result.best_trial, result.best_score


@pytest.mark.parametrize("search", [hyperband, bayesian, population])
@pytest.mark.parametrize("name", CASES)
def test_a_killed_search_equals_the_uninterrupted_one_and_its_answer_is_true(name, search, tmp_path):
    case = CASES[name]
    package = "pytorch_lightning" if search is bayesian else "lightning.pytorch"
    whole = search(case, tmp_path, "whole", package)
    assert not [row for row in whole.rows if row.state == "failed"]
    if search is hyperband:
        assert any(len(row.values) > 1 for row in whole.rows), "no trial was promoted"

    for hooks in KILLS:

        def dies(hooks=hooks):
            Kill.process, Kill.left = os.getpid(), hooks
            search(case, tmp_path, "killed", package)

        assert os.waitpid(in_a_child(dies), 0)[1] == signal.SIGKILL
    killed = search(case, tmp_path, "killed", package)
    assert recorded(killed) == recorded(whole)
    weights = [result.best_model().state_dict() for result in (killed, whole)]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    assert recorded(search(case, tmp_path, "killed", package)) == recorded(whole)

    for module in (killed.best_model(), case.load(killed.best_checkpoint)):
        validated = pl.Trainer(**QUIET).validate(module, datamodule=case.data(), verbose=False)[0]["val_loss"]
        assert validated == pytest.approx(killed.best_score, abs=1e-6)
    logs = tmp_path / "killed.logs"
    assert list(logs.rglob("events.out.tfevents*"))
    assert any("lr-" in file.read_text().splitlines()[0] for file in logs.rglob("metrics.csv"))
    assert not list(logs.rglob("*.ckpt"))  # the files of ModelCheckpoint stand in the trial's folder
    if search is not population:
        kept = [len(list(folder.glob("epoch=*.ckpt"))) for folder in (tmp_path / "whole").glob("trials/*/checkpoints")]
        assert set(kept) == {1}
