"""TrialReport in a plain Trainer, in one process and in ranks."""

import os

import lightning.pytorch as pl
import optuna
import pytest
from optuna.pruners import NopPruner, ThresholdPruner

from lightning_hpo import TrialReport
from tests.faults.scripts import run
from tests.support.small import Data, Net
from tests.training.test_optuna_tuner import EVERY_5


class TestTrialReport:
    def fit(self, trial, tmp_path, **options):
        report = TrialReport(trial, "val_loss")
        trainer = pl.Trainer(
            max_steps=20, callbacks=[report], default_root_dir=tmp_path, enable_progress_bar=False, **EVERY_5, **options
        )
        trainer.fit(Net(0.1), Data())
        return report, trainer

    def test_every_validation_is_reported_at_its_step(self, tmp_path):
        study = optuna.create_study(pruner=NopPruner())

        def objective(trial):
            report, trainer = self.fit(trial, tmp_path)
            report.raise_if_pruned()
            return trainer.callback_metrics["val_loss"].item()

        study.optimize(objective, n_trials=1)
        assert list(study.trials[0].intermediate_values) == [5, 10, 15, 20]

    def test_a_pruned_fit_ends_normally_with_its_checkpoint(self, tmp_path):
        study = optuna.create_study(pruner=ThresholdPruner(upper=0, n_warmup_steps=10))
        trainers = []

        def objective(trial):
            report, trainer = self.fit(trial, tmp_path)
            trainers.append(trainer)
            report.raise_if_pruned()
            return 0.0

        study.optimize(objective, n_trials=1)
        assert study.trials[0].state.name == "PRUNED"
        assert trainers[0].global_step == 10
        assert trainers[0].state.status == "finished"
        assert os.path.exists(trainers[0].checkpoint_callback.best_model_path)

    def test_mistakes(self, tmp_path):
        study = optuna.create_study()
        with pytest.raises(pl.utilities.exceptions.MisconfigurationException, match="Did you mean 'val_loss'?"):
            pl.Trainer(
                max_steps=5, callbacks=[TrialReport(study.ask(), "val_los")], enable_checkpointing=False, **EVERY_5
            ).fit(Net(), Data())
        with pytest.raises(ValueError, match="several objectives"):
            TrialReport(optuna.create_study(directions=["minimize", "minimize"]).ask(), "val_loss")


DDP = """
import sys, torch
torch.set_num_threads(1)
import lightning.pytorch as pl, optuna
from optuna.pruners import ThresholdPruner
from lightning_hpo import TrialReport
from tests.support.small import Data, Net
import os
rank = int(os.environ.get("LOCAL_RANK", 0))
trial = None
if rank == 0:
    study = optuna.create_study(study_name="s", storage=sys.argv[1], pruner=ThresholdPruner(upper=0, n_warmup_steps=5))
    trial = study.ask()
report = TrialReport(trial, "val_loss")
trainer = pl.Trainer(max_steps=10, devices=2, strategy="ddp", accelerator="cpu", callbacks=[report], logger=False,
    val_check_interval=3, check_val_every_n_epoch=None, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Net(0.1), Data())
print(f"rank {rank} stopped at {trainer.global_step} pruned {report.pruned}", flush=True)
"""


def test_trial_report_in_plain_ddp(tmp_path):
    (tmp_path / "script.py").write_text(DDP)
    url = f"sqlite:///{tmp_path}/study.db"
    code, out, err = run(tmp_path, tmp_path / "script.py", url)
    assert code == 0, err
    for rank in (0, 1):
        assert f"rank {rank} stopped at 6 pruned True" in out
    trials = optuna.load_study(study_name="s", storage=url).trials
    assert [list(trial.intermediate_values) for trial in trials] == [[3, 6]]
