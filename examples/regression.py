"""Tabular regression: a network on scikit-learn's diabetes data, 30 full trainings chosen by a Gaussian process.

``python examples/regression.py``: about a minute. It prints which hyperparameters matter.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_diabetes
from sklearn.linear_model import LinearRegression
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import BayesianTuner
from lightning_hpo.samplers import importance

INPUTS, TARGETS = load_diabetes(return_X_y=True, scaled=True)
INPUTS, TARGETS = INPUTS / INPUTS.std(0), (TARGETS - TARGETS.mean()) / TARGETS.std()
TRAIN, VAL = slice(0, 320), slice(320, None)


class Data(L.LightningDataModule):
    """442 patients with ten measurements; the target is the progress of the disease, with variance 1."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def loader(self, rows: slice, batch_size: int, *, shuffle: bool = False) -> DataLoader:
        inputs = torch.tensor(INPUTS[rows], dtype=torch.float32)
        targets = torch.tensor(TARGETS[rows, None], dtype=torch.float32)
        return DataLoader(TensorDataset(inputs, targets), batch_size, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader:
        return self.loader(TRAIN, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return self.loader(VAL, 200)


class Regressor(L.LightningModule):
    """A multilayer perceptron with SGD or Adam; only SGD has a momentum."""

    def __init__(
        self,
        lr: float = 1e-2,
        *,
        optimizer: str = "adam",
        momentum: float = 0.0,
        layers: int = 1,
        dropout: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        hidden = [part for _ in range(layers - 1) for part in (nn.Linear(32, 32), nn.ReLU(), nn.Dropout(dropout))]
        self.net = nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Dropout(dropout), *hidden, nn.Linear(32, 1))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_mse", nn.functional.mse_loss(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        hp = self.hparams
        if hp.optimizer == "sgd":
            return torch.optim.SGD(self.parameters(), hp.lr, momentum=hp.momentum, weight_decay=hp.weight_decay)
        return torch.optim.AdamW(self.parameters(), hp.lr, weight_decay=hp.weight_decay)


SPACE = {
    "lr": "loguniform(1e-4, 1e-1)",
    "optimizer": ["sgd", "adam"],
    "momentum": "uniform(0, 0.95) if optimizer == 'sgd'",
    "layers": "int(1, 3)",
    "dropout": "uniform(0, 0.5)",
    "weight_decay": "loguniform(1e-4, 1)",
    "data.batch_size": [16, 32, 64],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-epochs", type=int, default=20)
    parser.add_argument("--n-trials", type=int, default=30)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    result = BayesianTuner(
        SPACE,
        monitor="val_mse",
        max_epochs=arguments.max_epochs,
        n_trials=arguments.n_trials,
        n_startup_trials=min(10, arguments.n_trials),
        median_stopping=True,
        root=arguments.root,
        name="regression",
        trainer={"accelerator": "cpu"},
    ).fit(Regressor, datamodule=Data)
    linear = LinearRegression().fit(INPUTS[TRAIN], TARGETS[TRAIN])
    error = ((linear.predict(INPUTS[VAL]) - TARGETS[VAL]) ** 2).mean()
    print(f"best val_mse {result.best_score:.3f}; a linear regression has {error:.3f}")
    if arguments.n_trials >= 10:
        print("importance:", {name: round(share, 2) for name, share in importance(result.study).items()})


if __name__ == "__main__":
    main()
