"""Tune lr, batch size, number of layers and dropout of a network with Optuna in one call.

Run it with ``python examples/optuna_search.py``; ``--n-trials 100`` is what you want for real.
"""

import argparse

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import create_optuna_study

IMAGES, LABELS = load_digits(return_X_y=True)
DATA = TensorDataset(torch.tensor(IMAGES / 16, dtype=torch.float32), torch.tensor(LABELS))
TRAIN, VAL = torch.utils.data.random_split(DATA, [1297, 500], generator=torch.Generator().manual_seed(0))


class Net(L.LightningModule):
    """A multilayer perceptron."""

    def __init__(self, lr: float, layers: int, dropout: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        hidden = [part for _ in range(layers - 1) for part in (nn.Linear(64, 64), nn.ReLU(), nn.Dropout(dropout))]
        self.net = nn.Sequential(*hidden, nn.Linear(64, 10))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_acc", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)


SPACE = {
    "lr": "loguniform(1e-5, 1e-1)",
    "batch_size": "choice(16, 32, 64, 128)",
    "layers": "int(1, 4)",
    "dropout": "uniform(0, 0.5)",
}


def score(config: dict) -> float:
    torch.manual_seed(0)
    train = DataLoader(TRAIN, config["batch_size"], shuffle=True)
    trainer = L.Trainer(max_steps=100, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(Net(config["lr"], config["layers"], config["dropout"]), train, DataLoader(VAL, 500))
    return trainer.validate(dataloaders=DataLoader(VAL, 500), model=trainer.lightning_module, verbose=False)[0][
        "val_acc"
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n-trials", type=int, default=20)
    torch.set_num_threads(1)
    create_optuna_study(score, SPACE, n_trials=parser.parse_args().n_trials)
