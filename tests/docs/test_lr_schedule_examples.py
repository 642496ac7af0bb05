"""The examples train the digits: through the Python API and through flags of the stock LightningCLI."""

import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parents[2] / "examples"
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def examples_on_path(monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)


def test_python_api_trains_with_each_schedule():
    import lr_schedules

    accuracies = lr_schedules.main()
    assert set(accuracies) == {"cosine", "linear_warmup_cosine", "step"}
    assert min(accuracies.values()) > 0.9


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--lr_scheduler=CosineLR", "--lr_scheduler.min_lr=0.001"],
        ["--lr_scheduler=WarmupCosineLR", "--lr_scheduler.warmup=30"],
        ["--lr_scheduler=StepDecayLR", "--lr_scheduler.decay_rate=0.5", "--lr_scheduler.decay_steps=100"],
    ],
)
def test_stock_cli_trains_with_each_schedule(monkeypatch, flags):
    import lr_schedules_cli

    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    monkeypatch.setattr(sys, "argv", ["train.py", "fit", "-c", str(EXAMPLES / "lr_schedules.yaml"), *flags, *quiet])
    trainer = lr_schedules_cli.main().trainer
    (config,) = trainer.lr_scheduler_configs
    assert (config.interval, config.scheduler.last_epoch, trainer.global_step) == ("step", 300, 300)
    assert trainer.callback_metrics["val_acc"] > 0.9
