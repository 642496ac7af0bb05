"""The classes that the pages call yours, small: LitModel, LitData and MyCLI."""

import lightning as L
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn

from tests.support.small import Data


class LitData(Data):
    """25 batches of 16 in an epoch."""


class LitModel(L.LightningModule):
    """A layer or two, with all that the spaces of the pages name."""

    def __init__(
        self, lr=0.1, hidden=16, dropout=0.1, *, optimizer="adam", momentum=0.9, weight_decay=0.0, depth=1, width=16
    ):
        super().__init__()
        self.save_hyperparameters()
        inner = [part for _ in range(depth - 1) for part in (nn.Linear(hidden, hidden), nn.ReLU())]
        layers = nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), *inner, nn.Linear(hidden, width)
        self.net = nn.Sequential(*layers)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        hp = self.hparams
        if hp.optimizer == "adam":
            return torch.optim.AdamW(self.parameters(), hp.lr, weight_decay=hp.weight_decay)
        return torch.optim.SGD(self.parameters(), hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay)


class MyCLI(LightningCLI):
    """Yours."""


def objective_fn(config):
    return -((config["lr"] - 0.01) ** 2)
