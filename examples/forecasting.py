"""Forecasting: DeepAR of pytorch-forecasting on noisy sines. The module is theirs, and is not changed.

``pip install "pytorch-forecasting>=1.8,<2"``, then ``python examples/forecasting.py``: about a minute.
"""

import argparse
import functools
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
from pytorch_forecasting import DeepAR, TimeSeriesDataSet
from torch.utils.data import DataLoader

from lightning_hpo import HyperbandTuner


@functools.cache
def series() -> tuple[TimeSeriesDataSet, TimeSeriesDataSet]:
    """Four groups of 120 steps: the last 30 are for validation."""
    frame = pd.DataFrame({"time": np.tile(np.arange(120), 4), "group": np.repeat(list("abcd"), 120)})
    phase = frame.group.map({"a": 0, "b": 1, "c": 2, "d": 3})
    frame["value"] = 3 + np.sin(frame.time / 5 + phase) + np.random.default_rng(0).normal(0, 0.1, len(frame))
    training = TimeSeriesDataSet(
        frame[frame.time < 90],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=24,
        max_prediction_length=6,
        static_categoricals=["group"],
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
    )
    return training, TimeSeriesDataSet.from_dataset(training, frame, min_prediction_idx=90)


class Data(L.LightningDataModule):
    """Loaders of the series."""

    def __init__(self, batch_size: int = 32) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return series()[0].to_dataloader(train=True, batch_size=self.batch_size, num_workers=0)

    def val_dataloader(self) -> DataLoader:
        return series()[1].to_dataloader(train=False, batch_size=128, num_workers=0)


def deep_ar(learning_rate: float = 0.01, hidden_size: int = 10, dropout: float = 0.1) -> DeepAR:
    """A function that makes the module serves as well as a class."""
    return DeepAR.from_dataset(
        series()[0], learning_rate=learning_rate, hidden_size=hidden_size, dropout=dropout, log_interval=-1
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=27)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    space = {
        "learning_rate": "loguniform(1e-4, 1e-1)",
        "hidden_size": "logint(4, 32)",
        "dropout": "uniform(0, 0.3)",
        "data.batch_size": [16, 32, 64],
        "trainer.gradient_clip_val": "loguniform(0.01, 1)",
    }
    result = HyperbandTuner(
        space,
        monitor="val_loss",
        max_steps=arguments.max_steps,
        root=arguments.root,
        name="forecasting",
        trainer={"accelerator": "cpu"},
    ).fit(deep_ar, datamodule=Data)
    print(f"best val_loss {result.best_score:.3f} with {dict(result.best_params)}")


if __name__ == "__main__":
    main()
