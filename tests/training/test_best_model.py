"""``best_model()`` validates with the score of the best trial."""

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_hpo import PopulationTuner, RandomTuner
from tests.support.idioms import Data, Net

SPACE = {"lr": "loguniform(1e-2, 1)"}
QUIET = {"accelerator": "cpu", "logger": False}


class Anneals(Net):
    """Validation depends on attributes and a buffer that are in no ``state_dict``."""

    def __init__(self, lr, sharpness=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.temperature, self.shifts = 1.0, [0.1]
        self.register_buffer("centre", torch.zeros(6), persistent=False)
        self.mean = torchmetrics.MeanMetric()

    def loss(self, batch):
        if self.training:
            self.centre = 0.9 * self.centre + 0.1 * batch[0].mean(0)
        logits = self.net(batch[0] - self.centre) * self.hparams.sharpness / self.temperature
        return nn.functional.cross_entropy(logits + sum(self.shifts) * batch[0][:, :2], batch[1])

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.temperature *= 0.9
        self.shifts.append(0.01)
        self.hparams.sharpness *= 1.05

    def validation_step(self, batch, batch_idx):
        self.mean.update(self.loss(batch))
        self.log("val_loss", self.mean)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Resumes(pl.Callback):
    """Keeps a state under a name that callbacks of this package use too."""

    def state_dict(self):
        return {"resume": True}


@pytest.mark.parametrize("score", ["last", "best"])
@pytest.mark.parametrize("kind", ["random", "population"])
def test_a_validation_of_the_best_model_gives_the_score(tmp_path, kind, score):
    options = {"monitor": "val_loss", "root": tmp_path, "name": "s", "verbose": False, "score": score, "max_steps": 12}
    tuner: RandomTuner | PopulationTuner
    given = {**QUIET, "callbacks": [Resumes()]}
    if kind == "random":
        tuner = RandomTuner(SPACE, n_trials=1, trainer={**given, "val_check_interval": 2}, **options)
    else:
        tuner = PopulationTuner(SPACE, population_size=2, interval=4, trainer=given, **options)
    result = tuner.fit(Anneals, datamodule=Data)
    data = Data()
    data.setup("fit")
    trainer = pl.Trainer(**QUIET, enable_progress_bar=False, enable_model_summary=False)
    (found,) = trainer.validate(result.best_model(), data.val_dataloader(), verbose=False)
    assert found["val_loss"] == result.best_score
