"""HyperbandTuner of two versions on three real modules: the best validation loss after equal optimizer steps.

Modules: the CNN of ``examples/digits.py``, a 1-D CNN on mnist1d (``pip install mnist1d``), and a small character model on
the docstrings of Python's builtins. A line for each search goes to ``results/hyperband_real.jsonl``; those that are there
are not run again.

    python benchmarks/hyperband_real.py --label now
    PYTHONPATH=<work tree of another commit> python benchmarks/hyperband_real.py --label before
    python benchmarks/hyperband_real.py --table
"""

import argparse
import builtins
import functools
import json
import logging
import math
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))  # after PYTHONPATH, which may name another version
warnings.simplefilter("ignore")

import lightning as L  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset, random_split  # noqa: E402

RESULTS = HERE / "results" / "hyperband_real.jsonl"
BUDGETS = (5, 10, 20)
STEPS: list[tuple[int, int, float]] = []
"""Of each job of the search that is running: the step where it begins, twice; then, of each of its validations, the step of
the one before, its own step, and the loss there. Not an attribute of the module: that comes back with a checkpoint."""


class Model(L.LightningModule):
    """Cross-entropy by AdamW with momentum; notes where its jobs begin and end."""

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def on_train_start(self) -> None:
        STEPS.append((self.trainer.global_step, self.trainer.global_step, math.inf))

    def on_validation_end(self) -> None:
        if not self.trainer.sanity_checking:
            loss = float(self.trainer.callback_metrics["val_loss"])
            STEPS.append((STEPS[-1][1], self.trainer.global_step, loss))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        of = self.hparams
        return torch.optim.AdamW(self.parameters(), lr=of.lr, weight_decay=of.weight_decay, betas=(of.momentum, 0.999))


class Images(Model):
    """Two convolutions and a linear layer."""

    def __init__(
        self,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        width: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(width, 2 * width, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Dropout(dropout),
            nn.Linear(32 * width, 10),
        )  # fmt: skip


class Signals(Model):
    """Strided 1-D convolutions and a linear layer."""

    def __init__(
        self,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        width: int = 16,
        kernel: int = 5,
        dropout: float = 0.1,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        active = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU}[activation]
        half = kernel // 2
        self.net = nn.Sequential(
            nn.Conv1d(1, width, kernel, stride=2, padding=half), active(),
            nn.Conv1d(width, 2 * width, kernel, stride=2, padding=half), active(), nn.Flatten(), nn.Dropout(dropout),
            nn.LazyLinear(10),
        )  # fmt: skip
        self.net(torch.zeros(1, 1, 40))


class Characters(Model):
    """The next character from the eight before it: an embedding and two linear layers."""

    def __init__(
        self,
        lr: float = 1e-2,
        weight_decay: float = 1e-4,
        momentum: float = 0.9,
        width: int = 64,
        embedding: int = 16,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        count = len(text()[1])
        self.net = nn.Sequential(
            nn.Embedding(count, embedding), nn.Flatten(), nn.Linear(8 * embedding, width), nn.ReLU(),
            nn.Dropout(dropout), nn.Linear(width, count),
        )  # fmt: skip


@functools.cache
def images() -> tuple[TensorDataset, TensorDataset]:
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    data = TensorDataset(torch.tensor(pixels / 16.0, dtype=torch.float32).view(-1, 1, 8, 8), torch.tensor(labels))
    return _parts(data, 1000, 797)


@functools.cache
def signals() -> tuple[TensorDataset, TensorDataset]:
    from mnist1d.data import get_dataset_args, make_dataset

    made = make_dataset(get_dataset_args())
    inputs = torch.tensor(made["x"], dtype=torch.float32)[:, None]
    return _parts(TensorDataset(inputs, torch.tensor(made["y"])), 3000, 1000)


@functools.cache
def text() -> tuple[str, list[str]]:
    """The text, and its different letters."""
    docs = "\n".join(getattr(builtins, name).__doc__ or "" for name in sorted(vars(builtins)) if name[0] != "_")
    return docs, sorted(set(docs))


@functools.cache
def characters() -> tuple[TensorDataset, TensorDataset]:
    docs, letters = text()
    numbers = torch.tensor([letters.index(letter) for letter in docs])
    pieces = numbers.unfold(0, 9, 1)
    cut = len(pieces) * 9 // 10
    return TensorDataset(pieces[:cut, :8], pieces[:cut, 8]), TensorDataset(pieces[cut:, :8], pieces[cut:, 8])


def _parts(data: TensorDataset, *sizes: int) -> tuple[TensorDataset, TensorDataset]:
    parts = random_split(data, sizes, generator=torch.Generator().manual_seed(0))
    train, val = (TensorDataset(*data[torch.tensor(part.indices)]) for part in parts)
    return train, val


class Data(L.LightningDataModule):
    """Batches of one of the data sets."""

    def __init__(self, name: str = "digits", batch_size: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(MODULES[self.hparams.name].data()[0], self.hparams.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(MODULES[self.hparams.name].data()[1], 1024)


SHARED = {
    "lr": "loguniform(1e-4, 1e-1)",
    "weight_decay": "loguniform(1e-5, 1)",
    "momentum": "uniform(0.5, 0.99)",
    "dropout": "uniform(0, 0.6)",
    "data.batch_size": "choice(16, 32, 64, 128)",
}


@dataclass(frozen=True)
class Real:
    """A module, its data and its space."""

    model: type[Model]
    data: Callable[[], tuple[TensorDataset, TensorDataset]]
    space: dict[str, str]


MODULES = {
    "digits": Real(Images, images, {**SHARED, "width": "logint(4, 24)"}),
    "mnist1d": Real(
        Signals,
        signals,
        {
            **SHARED,
            "width": "logint(4, 32)",
            "kernel": "choice(3, 5, 7)",
            "activation": "choice('relu', 'tanh', 'gelu')",
        },
    ),
    "characters": Real(Characters, characters, {**SHARED, "width": "logint(16, 256)", "embedding": "logint(4, 32)"}),
}


def search(name: str, seed: int, max_steps: int) -> list[float]:
    """Return the best validation loss after each of the budgets."""
    from lightning_hpo import HyperbandTuner

    of = MODULES[name]
    STEPS.clear()
    with tempfile.TemporaryDirectory() as root:
        HyperbandTuner(
            of.space,
            monitor="val_loss",
            max_steps=max_steps,
            total_steps=BUDGETS[-1] * max_steps,
            seed=seed,
            root=root,
            trainer={"accelerator": "cpu", "logger": False},
            verbose=False,
        ).fit(of.model, datamodule=functools.partial(Data, name))
    spent, best, losses = 0, math.inf, dict.fromkeys(BUDGETS, math.inf)
    for start, stop, loss in STEPS:
        if (start, stop) == (0, 1):  # the check, which fits one batch
            continue
        spent += stop - start
        best = min(best, loss)
        losses.update({budget: best for budget in BUDGETS if spent <= budget * max_steps})
    return [losses[budget] for budget in BUDGETS]


def _jobs() -> int:
    return sum(start == stop for start, stop, _ in STEPS)


def records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table(label: str, other: str) -> None:
    """Print means, and differences paired by seed."""
    found = {(r["module"], r["label"], r["seed"]): r["losses"] for r in records()}
    print(
        f"| module | seeds | {other} 5R, 10R, 20R | {label} 5R, 10R, 20R | difference (standard error) |\n{'|---' * 5}|"
    )
    for name in MODULES:
        seeds = [seed for module, made_by, seed in found if (module, made_by) == (name, label)]
        pairs = [(found[name, other, s], found[name, label, s]) for s in seeds if (name, other, s) in found]
        if not pairs:
            continue
        cells: list[list[str]] = [[], [], []]
        for i in range(len(BUDGETS)):
            older, newer = (statistics.mean(pair[side][i] for pair in pairs) for side in (0, 1))
            apart = [pair[1][i] - pair[0][i] for pair in pairs]
            error = statistics.stdev(apart) / math.sqrt(len(apart)) if len(apart) > 1 else math.nan
            cells[0].append(f"{older:.4f}")
            cells[1].append(f"{newer:.4f}")
            cells[2].append(f"{newer - older:+.4f} ({error:.4f})")
        print(f"| {name} | {len(pairs)} | {' | '.join(', '.join(cell) for cell in cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", default="now", help="name of the version that is imported")
    parser.add_argument("--against", default="before", help="the other column of the table")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=90)
    parser.add_argument("--modules", nargs="+", default=list(MODULES), choices=list(MODULES))
    parser.add_argument("--table", action="store_true", help="print the summary and run nothing")
    arguments = parser.parse_args()
    if arguments.table:
        return table(arguments.label, arguments.against)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    done = {(r["module"], r["label"], r["seed"]) for r in records()}
    RESULTS.parent.mkdir(exist_ok=True)
    for seed in range(arguments.seeds):
        for name in arguments.modules:
            if (name, arguments.label, seed) in done:
                continue
            begin = time.process_time()
            losses = search(name, seed, arguments.max_steps)
            record = {"module": name, "label": arguments.label, "seed": seed, "losses": losses, "jobs": _jobs()}
            with RESULTS.open("a") as file:
                file.write(json.dumps(record) + "\n")
            print(record, f"{time.process_time() - begin:.0f} s", flush=True)
    return None


if __name__ == "__main__":
    main()
