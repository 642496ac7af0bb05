"""The confirmed answer of a search against the unconfirmed best, at the same optimizer steps in all: noisy digits.

200 images to train on, 60 to validate: which configuration validates best is partly luck. The test loss is that of 1,000
other images. `confirm=(3, 3)` takes 9 of the 30 full budgets from the search.

python benchmarks/confirmation.py --seeds 20
"""

import argparse
import math
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]
warnings.simplefilter("ignore")

import lightning.pytorch as pl  # noqa: E402
import torch  # noqa: E402
from sklearn.datasets import load_digits  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from lightning_hpo import RandomTuner, Result  # noqa: E402

SPACE = {
    "lr": "loguniform(0.003, 1)",
    "dropout": "uniform(0, 0.7)",
    "hidden": "logint(4, 64)",
    "weight_decay": "loguniform(1e-5, 0.1)",
}
STEPS, BUDGETS, CONFIRM, FRESH = 60, 30, (3, 3), 10


def split(first: int, last: int) -> TensorDataset:
    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[first:last]
    noise = torch.randn((len(labels), 64), generator=torch.Generator().manual_seed(1))
    inputs = torch.tensor(images / 16, dtype=torch.float32) + 0.3 * noise
    return TensorDataset(inputs[order], torch.tensor(labels)[order])


TRAIN, VALIDATE, TEST = split(0, 200), split(200, 260), split(260, 1260)


class Digits(pl.LightningDataModule):
    """200 noisy images to train on, 60 to validate."""

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TRAIN, batch_size=20, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(VALIDATE, batch_size=60)


class Net(pl.LightningModule):
    """One hidden layer."""

    def __init__(self, lr: float, dropout: float, hidden: int, weight_decay: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10))

    def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(images), labels)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(*batch)

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(*batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = {"lr": self.hparams.lr, "weight_decay": self.hparams.weight_decay}
        return torch.optim.SGD(self.parameters(), momentum=0.9, **settings)


def searched(root: str, name: str, seed: int, **options: object) -> Result:
    options = {"monitor": "val_loss", "root": root, "name": name, "seed": seed, "verbose": False, **options}
    options["trainer"] = {"accelerator": "cpu", "logger": False}
    return RandomTuner(SPACE, max_steps=STEPS, **options).fit(Net, datamodule=Digits)


def test_loss(result: Result) -> float:
    """Test loss of the best checkpoint."""
    with torch.no_grad():
        return float(result.best_model().loss(*TEST.tensors))


def fresh(result: Result) -> tuple[float, float]:
    """Mean validation loss and mean test loss of the best configuration over seeds that no search has had."""
    scores, losses = [], []
    for seed in range(FRESH):
        again = result.retrain(seed=seed)
        scores.append(again.best_score)
        losses.append(test_loss(again))
    return statistics.fmean(scores), statistics.fmean(losses)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("test, plain", "test, confirmed", "expected, plain", "expected, conf.", "optimism, true", "optimism, rep.")
    print(f"{'seed':>4} " + " ".join(f"{name:>15}" for name in names))
    rows = []
    for seed in range(arguments.first, arguments.first + arguments.seeds):
        with tempfile.TemporaryDirectory() as root:
            plain = searched(root, "plain", seed, n_trials=BUDGETS)
            confirmed = searched(root, "confirmed", seed, n_trials=BUDGETS - math.prod(CONFIRM), confirm=CONFIRM)
            _, expected_plain = fresh(plain)
            of_confirmed, expected_confirmed = fresh(confirmed)
            best = confirmed.confirmed[0]
            rows.append((test_loss(plain), test_loss(confirmed), expected_plain, expected_confirmed,
                         of_confirmed - best.seen, best.optimism))  # fmt: skip
        print(f"{seed:>4} " + " ".join(f"{value:>15.4f}" for value in rows[-1]), flush=True)
    columns = list(zip(*rows, strict=True))
    print("mean " + " ".join(f"{statistics.fmean(column):>15.4f}" for column in columns))
    for name, without, other in (("test", columns[0], columns[1]), ("expected", columns[2], columns[3])):
        gaps = [before - after for before, after in zip(without, other, strict=True)]
        error = statistics.stdev(gaps) / math.sqrt(len(gaps))
        print(f"{name}: confirmed is better by {statistics.fmean(gaps):.4f} (standard error {error:.4f})")


if __name__ == "__main__":
    main()
