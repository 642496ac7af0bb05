"""Tune a small network on scikit-learn's handwritten digits with Hyperband, then test the best checkpoint.

Run it with ``python examples/digits.py``; run it again after an interruption and it continues.
"""

import argparse
import functools
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split
from torchmetrics.classification import MulticlassAccuracy

from lightning_hpo import HyperbandTuner


@functools.cache  # the data is the same for every trial, so it is read once
def digits() -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """1797 images of 8 x 8 pixels in 10 classes: 1000 to train on, 397 to validate, 400 to test."""
    images, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels))
    parts = random_split(data, [1000, 397, 400], generator=torch.Generator().manual_seed(0))
    train, val, test = (TensorDataset(*part.dataset[part.indices]) for part in parts)
    return train, val, test


class DigitsData(L.LightningDataModule):
    """The digits, in batches of ``batch_size``."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(digits()[0], batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(digits()[1], batch_size=397)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(digits()[2], batch_size=400)


class DigitsNet(L.LightningModule):
    """Two convolutions and a linear layer."""

    def __init__(self, lr: float = 1e-2, weight_decay: float = 1e-4, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            nn.Linear(32 * width, 10),
        )
        self.accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        scores = self.net(images)
        self.log("val_loss", nn.functional.cross_entropy(scores, labels))
        self.accuracy(scores, labels)
        self.log("val_acc", self.accuracy)

    def test_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.accuracy(self.net(images), labels)
        self.log("test_acc", self.accuracy)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr, weight_decay=self.hparams.weight_decay)


SPACE = {
    "lr": "loguniform(1e-4, 1e-1)",
    "weight_decay": "loguniform(1e-6, 1e-1)",
    "width": "logint(4, 32)",
    "dropout": "uniform(0, 0.5)",
    "data.batch_size": "choice(16, 32, 64, 128)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=300, help="full budget of a trial, in optimizer steps")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time, each in a process of its own")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # so small a network is slower on several

    result = HyperbandTuner(
        SPACE,
        monitor="val_loss",
        max_steps=arguments.max_steps,
        name="digits",
        root=arguments.root,
        workers=arguments.workers,
        trainer={"accelerator": "cpu", "log_every_n_steps": 10},
    ).fit(DigitsNet, datamodule=DigitsData)

    print(f"best of {len(result.trials())} trials: val_loss {result.best_score:.4f} with {result.best_params}")
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    trainer.test(result.best_model(), datamodule=DigitsData())
    print(f"checkpoint: {result.best_checkpoint}")


if __name__ == "__main__":
    main()
