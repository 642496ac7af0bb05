"""Budgets that are refused before training, and data whose length is not known."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset

from lightning_hpo import (
    ASHATuner,
    BayesianTuner,
    FullBudget,
    HyperbandTuner,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Tuner,
)
from lightning_hpo.errors import StudyMismatchError
from tests.support.small import Data, Net
from tests.training.test_budgets import CPU, LR, SIZES


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(64), torch.tensor(0)


class NoLength(Data):
    def train_dataloader(self):
        return DataLoader(Endless(), batch_size=16)


class TwoLoaders(Data):
    def train_dataloader(self):
        return {"a": super().train_dataloader(), "b": super().train_dataloader()}


@pytest.mark.parametrize(
    ("kind", "options", "error", "words"),
    [
        (
            HyperbandTuner, {}, TypeError,
            "is missing: give one of `max_steps`, `max_epochs`, `max_samples`, e.g. max_epochs=9",
        ),
        (
            HyperbandTuner, {"max_steps": 9, "max_epochs": 9}, TypeError,
            "one of `max_steps`, `max_epochs`, `max_samples`; got max_steps=9 and max_epochs=9",
        ),
        (
            HyperbandTuner, {"max_epochs": 9, "min_steps": 1}, TypeError,
            "`min_steps` is in optimizer steps, .* give `min_epochs`",
        ),
        (ASHATuner, {"max_steps": 9, "min_epochs": 1}, TypeError, "`min_epochs` is in epochs, .* give `min_steps`"),
        (
            HyperbandTuner, {"max_epochs": 9, "min_epochs": 10}, ValueError,
            "`min_epochs` must be at most `max_epochs`, got 10 > 9",
        ),
        (RandomTuner, {"max_epochs": 0, "n_trials": 1}, ValueError, "`max_epochs` must be above 0, got 0"),
        (RandomTuner, {"max_epochs": "3", "n_trials": 1}, TypeError, "`max_epochs` must be a number above 0, got '3'"),
        (RandomTuner, {"max_epochs": 0.12345, "n_trials": 1}, ValueError, "may have three decimals"),
        (
            BayesianTuner, {"max_samples": 1.5, "n_trials": 1}, TypeError,
            "`max_samples` must be an int above 0, got 1.5",
        ),
        (OptunaTuner, {"max_epochs": True, "n_trials": 1}, TypeError, "`max_epochs` must be a number"),
        (
            HyperbandTuner, {"max_epochs": 9, "total_steps": 100}, TypeError,
            "`total_steps` is in optimizer steps, .* `total`, in epochs",
        ),
        (
            HyperbandTuner, {"max_steps": 9, "total": 100, "total_steps": 100}, TypeError,
            "either `total` or `total_steps`",
        ),
        (HyperbandTuner, {"max_epochs": 9, "unit": "steps"}, TypeError, "no argument 'unit'"),
        (
            PopulationTuner, {"max_epochs": 9, "interval": 2}, ValueError,
            "`max_epochs` must be a multiple of `interval` 2, got 9",
        ),
        (PopulationTuner, {"max_samples": 900}, TypeError, "`interval` is missing"),
        (
            PopulationTuner, {"max_epochs": 9, "space": SIZES}, ValueError,
            "'data.batch_size', which changes while a member trains",
        ),
        (
            Tuner, {"scheduler": FullBudget(3, 1), "unit": "epoch"}, ValueError,
            "`unit` must be one of 'steps', 'epochs', 'samples'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_budget(kind, options, error, words):
    with pytest.raises(error, match=words):
        kind(**{"space": LR, "monitor": "val_loss", **options})


@pytest.mark.parametrize(
    ("budget", "data", "words"),
    [
        ({"max_epochs": 2}, NoLength, "no known length: give `max_steps` in place of `max_epochs`, or an int"),
        ({"max_samples": 2}, NoLength, "no known length: give `max_steps` in place of `max_samples`"),
        ({"max_samples": 2}, TwoLoaders, "does not say how many are in a batch: give `max_epochs`"),
    ],
)
def test_an_unknown_length_is_refused_before_training(tmp_path, budget, data, words):
    tuner = RandomTuner(LR, **budget, n_trials=1, monitor="val_loss", root=tmp_path, name="f", trainer=CPU)
    with pytest.raises(MisconfigurationException, match=words):
        tuner.fit(Net, datamodule=data)
    assert not list((tmp_path / "f").rglob("*.ckpt"))


def test_a_length_in_place_of_an_unknown_one(tmp_path):
    trainer = {**CPU, "limit_train_batches": 7}
    options = {"monitor": "val_loss", "root": tmp_path, "trainer": trainer}
    rows = RandomTuner(LR, max_epochs=2, n_trials=1, **options).fit(Net, datamodule=NoLength).trials()
    assert dict(rows[0].global_steps) == {2: 14}


def test_a_study_is_not_continued_in_another_unit(tmp_path):
    options = {"n_trials": 1, "monitor": "val_loss", "root": tmp_path, "name": "f", "trainer": CPU}
    RandomTuner(LR, max_steps=2, **options).fit(Net, datamodule=Data)
    with pytest.raises(StudyMismatchError, match="was the budget in steps.*now the budget in epochs"):
        RandomTuner(LR, max_epochs=2, **options).fit(Net, datamodule=Data)


def test_the_module_may_ask_for_the_length_in_setup(tmp_path):
    class Early(Net):
        def setup(self, stage):
            self.length = self.trainer.max_steps

        def on_train_start(self):
            assert self.length == self.trainer.max_steps == 50

    assert isinstance(Early(), pl.LightningModule)
    RandomTuner(LR, max_epochs=2, n_trials=1, monitor="val_loss", root=tmp_path, trainer=CPU).fit(
        Early, datamodule=Data
    )
