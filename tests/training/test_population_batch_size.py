"""A batch size that a population changes inside an epoch takes effect with the next one, after a kill too."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import PopulationTuner


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 8, generator=generator)
    return TensorDataset(x, x.sum(1, keepdim=True))


class Data(pl.LightningDataModule):
    """8 batches of 16 in an epoch, so that no interval of 5 steps ends with one."""

    def __init__(self, batch_size=16):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return DataLoader(rows(128, 0), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(rows(64, 1), batch_size=64)


class Net(pl.LightningModule):
    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Killed(pl.Callback):
    """Ends the search at one batch, counted over all members."""

    left = 0

    def on_train_batch_start(self, *_):
        Killed.left -= 1
        if Killed.left == 0:
            raise KeyboardInterrupt


def search(root, name):
    tuner = PopulationTuner(
        {"lr": "loguniform(1e-3, 1e-1)", "data.batch_size": "choice(8, 16, 32)"}, population_size=3, interval=5,
        max_steps=30, explore="all", factor=1.5, seed=4, monitor="val_loss", root=root, name=name, verbose=False,
        trainer={"accelerator": "cpu", "callbacks": [Killed()]},
    )  # fmt: skip
    return [(dict(row.params), dict(row.values)) for row in tuner.fit(Net, datamodule=Data).trials()]


def test_a_killed_population_continues_an_epoch_with_the_batch_size_that_it_began_with(tmp_path):
    Killed.left = 0
    whole = search(tmp_path, "whole")
    assert len({params["data.batch_size"] for params, _ in whole}) > 1
    for at in (49, 73, 85):  # inside an epoch in which a member has taken over another batch size
        Killed.left = at
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path, f"cut{at}")
        assert search(tmp_path, f"cut{at}") == whole
