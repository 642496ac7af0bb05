"""LR schedules and the LRSchedule callback by flags of the stock LightningCLI."""

import sys

import lightning.pytorch as L
import pytest
from lightning.pytorch.cli import LightningCLI

from lightning_hpo.callbacks import LRSchedule
from lightning_hpo.lr_schedules import CosineLR, StepDecayLR, WarmupCosineLR
from tests.training.test_lr_schedule_callback import Batches, Regression, UsedLR, curve, fit


class PlainModel(Regression):
    """Leaves configure_optimizers to LightningCLI."""

    def __init__(self):
        super().__init__()

    configure_optimizers = L.LightningModule.configure_optimizers


QUIET_FLAGS = [
    "--trainer.logger=false",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--trainer.enable_checkpointing=false",
    "--trainer.accelerator=cpu",
]


def cli(*flags, monkeypatch, run=True):
    monkeypatch.setattr(sys, "argv", ["train.py", *flags, *QUIET_FLAGS])
    used = UsedLR()
    result = LightningCLI(
        PlainModel, Batches, run=run, save_config_callback=None, trainer_defaults={"callbacks": [used]}
    )
    return result, used.lrs


OPTIMIZER = ("--optimizer=SGD", "--optimizer.lr=0.1")


@pytest.mark.parametrize("flags", [[], ["--lr_scheduler.max_steps=30"]])
def test_stock_cli_without_the_callback_says_what_to_add(monkeypatch, flags):
    with pytest.raises(RuntimeError, match=r"--trainer.callbacks\+=lightning_hpo.LRSchedule"):
        cli(
            "fit",
            *OPTIMIZER,
            "--lr_scheduler=WarmupCosineLR",
            "--trainer.max_epochs=3",
            *flags,
            monkeypatch=monkeypatch,
        )


def test_stock_cli_by_flags(monkeypatch):
    result, used = cli(
        "fit",
        *OPTIMIZER,
        "--lr_scheduler=WarmupCosineLR",
        "--trainer.max_epochs=3",
        "--trainer.callbacks+=LRSchedule",
        monkeypatch=monkeypatch,
    )
    (config,) = result.trainer.lr_scheduler_configs
    assert (config.interval, config.scheduler.max_steps, config.scheduler.last_epoch) == ("step", 30, 30)
    assert used[:4] == pytest.approx([0, 0.1 / 3, 0.2 / 3, 0.1], rel=1e-12)
    assert used[-1] == pytest.approx(0.0003380821129028506, rel=1e-12)
    assert len(used) == 30


@pytest.mark.parametrize(("warmup", "steps"), [("0.2", 6), ("5", 5), ("1", 1)])
def test_stock_cli_knows_steps_from_fractions(monkeypatch, warmup, steps):
    result, _ = cli(
        "fit",
        *OPTIMIZER,
        "--lr_scheduler=WarmupCosineLR",
        f"--lr_scheduler.warmup={warmup}",
        "--trainer.max_epochs=3",
        "--trainer.callbacks+=LRSchedule",
        monkeypatch=monkeypatch,
    )
    assert result.trainer.lr_scheduler_configs[0].scheduler.warmup_steps == steps


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--lr_scheduler=CosineLR", "--lr_scheduler.min_lr=0.001"], curve(CosineLR, 30, min_lr=0.001)),
        (["--lr_scheduler=WarmupCosineLR", "--lr_scheduler.warmup=6"], curve(WarmupCosineLR, 30, warmup=6)),
        (
            ["--lr_scheduler=StepDecayLR", "--lr_scheduler.decay_rate=0.5", "--lr_scheduler.decay_steps=10"],
            curve(StepDecayLR, 30, decay_rate=0.5, decay_steps=10),
        ),
    ],
)
def test_stock_cli_trains_each_schedule(monkeypatch, flags, expected):
    flags = ["fit", *OPTIMIZER, *flags, "--trainer.max_steps=30", "--trainer.callbacks+=LRSchedule"]
    assert cli(*flags, monkeypatch=monkeypatch)[1] == expected


@pytest.mark.parametrize("warmup", ["--trainer.callbacks.warmup=6", "--trainer.callbacks.warmup_steps=6"])
def test_stock_cli_brings_a_schedule_by_flags(monkeypatch, warmup):
    flags = ["--trainer.callbacks+=LRSchedule", "--trainer.callbacks.name=cosine", warmup]
    _, used = cli("fit", *OPTIMIZER, "--trainer.max_steps=30", *flags, monkeypatch=monkeypatch)
    assert used == curve(CosineLR, 30, warmup=6)


def test_second_fit_on_one_cli_model_starts_over(monkeypatch):
    result, _ = cli(
        *OPTIMIZER,
        "--lr_scheduler=WarmupCosineLR",
        "--trainer.max_epochs=3",
        "--trainer.callbacks+=LRSchedule",
        monkeypatch=monkeypatch,
        run=False,
    )
    assert fit(result.model, LRSchedule(), max_epochs=3)[1] == curve(WarmupCosineLR, 30)
    assert fit(result.model, LRSchedule(), max_epochs=2)[1] == curve(WarmupCosineLR, 20)
