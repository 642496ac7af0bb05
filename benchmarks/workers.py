"""Two worker processes beside one process: the same trials on digits, and a population of 4, in turn.

    python benchmarks/workers.py --pairs 3

On two cores that nothing else uses, the throughput is the ratio of the wall times. On a busy machine it says nothing, but
the CPU times still do: what two workers cost more than one process is lost, so twice the ratio is the most that two
cores can gain.
"""

import argparse
import os
import resource
import time
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as pl
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import PopulationTuner, RandomTuner


class Net(pl.LightningModule):
    """A perceptron of two layers."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.ReLU(), torch.nn.Linear(256, 10))

    def training_step(self, batch: Any) -> torch.Tensor:
        """Return the loss."""
        return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any) -> None:
        """Log the loss."""
        self.log("val_loss", torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=self.hparams["lr"])


class Data(pl.LightningDataModule):
    """Digits of scikit-learn."""

    def _loader(self, part: slice, *, shuffle: bool) -> DataLoader[Any]:
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images[part] / 16, dtype=torch.float32), torch.tensor(labels[part]))
        return DataLoader(data, batch_size=32, shuffle=shuffle)

    def train_dataloader(self) -> DataLoader[Any]:
        """Return 1400 images."""
        return self._loader(slice(1400), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the others."""
        return self._loader(slice(1400, None), shuffle=False)


def measured(kind: str, workers: int, steps: int) -> tuple[float, float]:
    """Return wall and CPU seconds of a search, those of its workers included."""
    options: dict[str, Any] = {"monitor": "val_loss", "verbose": False, "trainer": {"accelerator": "cpu"}}
    with TemporaryDirectory() as root:
        options |= {"root": root, "workers": workers, "max_steps": steps}
        space = {"lr": "loguniform(1e-3, 1)"}
        tuner: RandomTuner | PopulationTuner
        if kind == "trials":
            tuner = RandomTuner(space, n_trials=8, **options)
        else:
            tuner = PopulationTuner(space, population_size=4, interval=steps // 4, **options)
        begun, before = time.monotonic(), _cpu()
        tuner.fit(Net, datamodule=Data)
        return time.monotonic() - begun, _cpu() - before


def _cpu() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def main() -> None:
    """Print a line for each search."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[2000])
    given = parser.parse_args()
    torch.set_num_threads(1)
    measured("trials", 1, 8)  # what is imported once
    for kind in ("trials", "population"):
        for steps in given.steps:
            for _ in range(given.pairs):
                (wall, cpu), (wall2, cpu2) = measured(kind, 1, steps), measured(kind, 2, steps)
                print(
                    f"{kind:<10} {steps:>5} steps  wall {wall:6.1f} s, with two workers {wall2:6.1f} s: x {wall / wall2:.2f}"
                    f"   CPU {cpu:6.1f} s, {cpu2:6.1f} s: x {2 * cpu / cpu2:.2f} at most   load {os.getloadavg()[0]:.1f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
