"""Train a population on scikit-learn's handwritten digits, show the schedule that it found, and replay it.

Run it with ``python examples/population.py``; run it again after an interruption and it continues.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_hpo import PopulationTuner
from lightning_hpo.study.lineage import lineage, replay


class DigitsData(L.LightningDataModule):
    """1797 images of 8 x 8 pixels in 10 classes: 1200 to train on, 597 to validate."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images / 16.0, dtype=torch.float32), torch.tensor(labels))
        self.train, self.val = random_split(data, [1200, 597], generator=torch.Generator().manual_seed(0))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, batch_size=self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, batch_size=597)


class DigitsNet(L.LightningModule):
    """Two hidden layers with dropout."""

    def __init__(self, lr: float = 0.05, weight_decay: float = 1e-4, dropout: float = 0.2) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hp = self.hparams
        return torch.optim.SGD(self.parameters(), lr=hp.lr, momentum=0.9, weight_decay=hp.weight_decay)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=400, help="of each member: a multiple of 10")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    space = {
        "lr": "loguniform(1e-3, 1)",
        "weight_decay": "loguniform(1e-5, 1e-1)",
        "dropout": "uniform(0, 0.5)",
        "data.batch_size": "choice(32, 64, 128)",
    }
    result = PopulationTuner(
        space,
        population_size=6,
        interval=arguments.max_steps // 10,
        max_steps=arguments.max_steps,
        monitor="val_loss",
        root=arguments.root,
        name="digits-population",
        trainer={"accelerator": "cpu"},
    ).fit(DigitsNet, datamodule=DigitsData)
    copies = [segment for segment in lineage(result) if segment.parent is not None]
    print(f"best val_loss {result.best_score:.4f} after {len(copies)} copies")
    print("learning rate of the winner, from step:", *(f"{s}: {v:.4g}" for s, v in replay(result).schedule("lr")))


if __name__ == "__main__":
    main()
