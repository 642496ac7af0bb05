"""A sequence: a recurrent network predicts the next character of the docstrings of Python's builtins.

``python examples/characters.py``: about a minute. ASHA, as few steps already tell good configurations from bad.
"""

import argparse
import builtins
import functools
import math
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import ASHATuner, LRSchedule, WarmupCosineLR

LENGTH = 32


@functools.cache  # the text is the same for every trial
def text() -> tuple[torch.Tensor, int]:
    """Letters as numbers, and how many different ones there are."""
    docs = "\n".join(getattr(builtins, name).__doc__ or "" for name in sorted(vars(builtins)) if name[0] != "_")
    letters = sorted(set(docs))
    return torch.tensor([letters.index(letter) for letter in docs]), len(letters)


class Data(L.LightningDataModule):
    """Pieces of 33 characters; the last tenth of the text is for validation."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def setup(self, stage: str) -> None:
        letters, _ = text()
        pieces = letters[: len(letters) // (LENGTH + 1) * (LENGTH + 1)].view(-1, LENGTH + 1)
        count = len(pieces) * 9 // 10
        self.train, self.val = TensorDataset(pieces[:count]), TensorDataset(pieces[count:])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val, 256)


class CharacterModel(L.LightningModule):
    """One GRU layer; the score is in bits for each character."""

    def __init__(self, lr: float = 3e-3, hidden: int = 64, dropout: float = 0.0, warmup: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        count = text()[1]
        self.embedding = nn.Embedding(count, 24)
        self.recurrent = nn.GRU(24, hidden, batch_first=True)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(hidden, count))

    def loss(self, pieces: torch.Tensor) -> torch.Tensor:
        states, _ = self.recurrent(self.embedding(pieces[:, :-1]))
        return nn.functional.cross_entropy(self.head(states).flatten(0, 1), pieces[:, 1:].flatten())

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return self.loss(batch[0])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_bits", self.loss(batch[0]) / math.log(2))

    def configure_optimizers(self) -> tuple[list, list]:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.hparams.lr)
        return [optimizer], [WarmupCosineLR(optimizer, warmup=self.hparams.warmup)]

    def configure_callbacks(self) -> list[L.Callback]:
        return [LRSchedule()]  # for a plain Trainer; a tuner needs no callback


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=270)
    parser.add_argument("--n-trials", type=int, default=40)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    space = {
        "lr": "loguniform(1e-4, 1e-1)",
        "hidden": "logint(16, 128)",
        "dropout": "uniform(0, 0.5)",
        "warmup": "uniform(0, 0.3)",
        "data.batch_size": [16, 32, 64],
    }
    result = ASHATuner(
        space,
        monitor="val_bits",
        max_steps=arguments.max_steps,
        n_trials=arguments.n_trials,
        root=arguments.root,
        name="characters",
        trainer={"accelerator": "cpu"},
    ).fit(CharacterModel, datamodule=Data)
    print(f"best: {result.best_score:.2f} bits for each character, {math.log2(text()[1]):.2f} without a model")


if __name__ == "__main__":
    main()
