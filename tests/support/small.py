"""A small module and data module on scikit-learn's digits, for tests that really train."""

import functools
import os

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@functools.cache
def digits():
    images, labels = load_digits(return_X_y=True)
    data = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    return TensorDataset(data[0][:400], data[1][:400]), TensorDataset(data[0][1400:1600], data[1][1400:1600])


class Data(pl.LightningDataModule):
    """25 batches of 16 in an epoch."""

    def __init__(self, batch_size=16, own_generator=False, num_workers=0):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(3) if self.hparams.own_generator else None
        return DataLoader(
            digits()[0],
            batch_size=self.hparams.batch_size,
            shuffle=True,
            generator=generator,
            num_workers=self.hparams.num_workers,
        )

    def val_dataloader(self):
        return DataLoader(digits()[1], batch_size=200)


class Net(pl.LightningModule):
    """Dropout and momentum, so that random numbers and optimizer state matter; writes a line per step if asked."""

    def __init__(self, lr=0.1, hidden=16, dropout=0.2, step_log=None):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))

    def training_step(self, batch, batch_idx):
        if self.hparams.step_log:
            line = f"{self.trainer.default_root_dir} {self.global_step}\n".encode()
            handle = os.open(self.hparams.step_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            os.write(handle, line)
            os.close(handle)
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        scores = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=self.hparams.lr, total_steps=self.trainer.estimated_stepping_batches
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
