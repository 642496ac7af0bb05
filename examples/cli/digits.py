"""A module and a data module as anybody has them: nothing in them knows of a search, or of an optimizer."""

import functools

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


@functools.cache  # the data is the same for every trial, so it is read once
def digits() -> tuple[TensorDataset, TensorDataset]:
    """1797 images of 8 x 8 pixels in 10 classes: 1297 to train on, 500 to validate."""
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs, targets = torch.tensor(images / 16.0, dtype=torch.float32)[order], torch.tensor(labels)[order]
    return TensorDataset(inputs[:1297], targets[:1297]), TensorDataset(inputs[1297:], targets[1297:])


class DigitsData(L.LightningDataModule):
    """The digits, in batches of ``batch_size``."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(digits()[0], batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(digits()[1], batch_size=500)


class DigitsNet(L.LightningModule):
    """One hidden layer; optimizer and LR schedule come from the command line."""

    def __init__(self, hidden: int = 64, dropout: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        scores = self.net(batch[0])
        self.log("val_loss", nn.functional.cross_entropy(scores, batch[1]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())
