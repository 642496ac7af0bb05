"""The searches that are killed."""

import dataclasses
import functools

import torchmetrics
from lightning.pytorch.callbacks import EarlyStopping
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from lightning_hpo import HyperbandTuner, OptunaTuner, PopulationTuner, RandomTuner
from tests.faults.campaign import SPACE, Logged, Search
from tests.support.small import Data, digits


@dataclasses.dataclass
class Smoothing:
    """An object among the hyperparameters."""

    amount: float


class Idioms(Logged):
    """What other people's modules have: objects in hparams, a plateau schedule, a callback of their own."""

    def __init__(self, lr, hidden, loss=nn.CrossEntropyLoss(label_smoothing=0.1), smoothing=Smoothing(0.1)):  # noqa: B008
        super().__init__(lr, hidden)
        self.save_hyperparameters()

    def configure_callbacks(self):
        return [EarlyStopping("val_loss", patience=2, min_delta=0.01)]

    def configure_optimizers(self):
        optimizer = SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        plateau = ReduceLROnPlateau(optimizer, factor=0.3, patience=0, threshold=0.05)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}


class Steady(Logged):
    """Without an LR schedule, so that a population may change its rate; validation logs a metric as an object."""

    def __init__(self, lr, dropout):
        super().__init__(lr, hidden=16)
        self.net[2].p = dropout
        self.mean = torchmetrics.MeanMetric()

    def validation_step(self, batch, batch_idx):
        self.mean.update(nn.functional.cross_entropy(self.net(batch[0]), batch[1]))
        self.log("val_loss", self.mean)

    def configure_optimizers(self):
        return SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


class Persistent(Data):
    """10 batches in an epoch, read by a worker that outlives it."""

    def train_dataloader(self):
        return DataLoader(digits()[0], batch_size=40, shuffle=True, num_workers=1, persistent_workers=True)


RANDOM = Search(RandomTuner, {"max_steps": 240, "n_trials": 16}, planned=16, every=25, spacing=200)
HYPERBAND = Search(HyperbandTuner, {"max_steps": 54, "min_steps": 2}, planned=0, every=5, spacing=60)
HYPERBAND.planned = sum(bracket.trials for bracket in HyperbandTuner(SPACE, **HYPERBAND.arguments).plan())
OPTUNA = Search(
    functools.partial(
        OptunaTuner,
        sampler=TPESampler(n_startup_trials=4),
        pruner=MedianPruner(n_startup_trials=3, n_warmup_steps=30),
    ),
    {"max_steps": 75, "n_trials": 12},
    planned=12,
    every=7,
    spacing=60,
    model=Idioms,
    data=Persistent,
)
POPULATION = Search(
    PopulationTuner,
    {"max_steps": 120, "interval": 15, "population_size": 4},
    planned=None,
    every=15,
    spacing=60,
    model=Steady,
    space={"lr": "loguniform(1e-3, 1)", "dropout": "uniform(0, 0.6)"},
)
