"""Modules of other projects on tiny data, each with its own dataset class and loaders, as their users write it."""

import dataclasses
import functools
from collections.abc import Callable

import chemprop
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from gluonts.dataset.common import ListDataset
from gluonts.torch.model.simple_feedforward import SimpleFeedForwardEstimator, SimpleFeedForwardLightningModule
from pytorch_forecasting import DeepAR, TemporalFusionTransformer, TimeSeriesDataSet
from pytorch_forecasting.metrics import NormalDistributionLoss, QuantileLoss


@dataclasses.dataclass(frozen=True)
class Case:
    """A module to search over.

    Args:
        make: builds it.
        data: class of the data module.
        space: of a search.
        population: space of a population.
        load: builds the module from a checkpoint by what its library offers.
    """

    make: Callable
    data: type
    space: dict
    population: dict
    load: Callable


# pytorch-forecasting: a noisy sine in four groups


@functools.cache
def series():
    noise = np.random.default_rng(0).normal(0, 0.1, 240)
    frame = pd.DataFrame({"time": np.tile(np.arange(60), 4), "group": np.repeat(list("abcd"), 60)})
    frame["value"] = np.sin(frame.time / 5) + noise + 3.0
    return frame


@functools.cache
def forecasting():
    """Training and validation data."""
    frame = series()
    training = TimeSeriesDataSet(
        frame[frame.time < 45],
        time_idx="time",
        target="value",
        group_ids=["group"],
        max_encoder_length=12,
        max_prediction_length=4,
        static_categoricals=["group"],
        time_varying_known_reals=["time"],
        time_varying_unknown_reals=["value"],
    )
    return training, TimeSeriesDataSet.from_dataset(training, frame, min_prediction_idx=45)


class Series(pl.LightningDataModule):
    def train_dataloader(self):
        return forecasting()[0].to_dataloader(train=True, batch_size=16, num_workers=0)

    def val_dataloader(self):
        return forecasting()[1].to_dataloader(train=False, batch_size=64, num_workers=0)


def temporal_fusion_transformer(learning_rate=0.01, dropout=0.1, weight_decay=0.0):
    return TemporalFusionTransformer.from_dataset(
        forecasting()[0],
        learning_rate=learning_rate,
        dropout=dropout,
        weight_decay=weight_decay,
        hidden_size=4,
        attention_head_size=2,
        hidden_continuous_size=2,
        loss=QuantileLoss(),
        log_interval=-1,
        reduce_on_plateau_patience=1,
    )


def deep_ar(learning_rate=0.01, dropout=0.1):
    return DeepAR.from_dataset(
        forecasting()[0],
        learning_rate=learning_rate,
        dropout=dropout,
        hidden_size=4,
        rnn_layers=2,
        loss=NormalDistributionLoss(),
        optimizer="adamw",
    )


# chemprop: the length of a name as a property of 40 small molecules


@functools.cache
def molecules():
    names = ["C" * length + end for length in range(1, 9) for end in ("O", "N", "Cl", "C(=O)O", "c1ccccc1")]
    return [chemprop.data.MoleculeDatapoint.from_smi(name, np.array([len(name) * 0.1])) for name in names]


class Molecules(pl.LightningDataModule):
    def train_dataloader(self):
        data = chemprop.data.MoleculeDataset(molecules()[:32])
        return chemprop.data.build_dataloader(data, batch_size=5, shuffle=True, num_workers=0)

    def val_dataloader(self):
        data = chemprop.data.MoleculeDataset(molecules()[32:])
        return chemprop.data.build_dataloader(data, batch_size=8, shuffle=False, num_workers=0)


def message_passing(max_lr=0.01, dropout=0.1, hidden=8):
    return chemprop.models.MPNN(
        chemprop.nn.BondMessagePassing(d_h=hidden, depth=2, dropout=dropout),
        chemprop.nn.MeanAggregation(),
        chemprop.nn.RegressionFFN(input_dim=hidden, hidden_dim=hidden, dropout=dropout),
        batch_norm=True,
        metrics=[chemprop.nn.metrics.RMSE(), chemprop.nn.metrics.MAE()],
        warmup_epochs=1,
        max_lr=max_lr,
    )


# gluonts: the estimator builds the module, its transformation the samples


FEED_FORWARD = {"prediction_length": 4, "context_length": 12, "hidden_dimensions": [8], "batch_norm": True}


@functools.cache
def estimator():
    return SimpleFeedForwardEstimator(batch_size=16, **FEED_FORWARD)


@functools.cache
def samples(mode):
    """All windows of one kind, as tensors."""
    stop = {"training": 45, "validation": 60}[mode]
    rows = [{"start": "2026-01", "target": group.value[:stop]} for _, group in series().groupby("group")]
    data = estimator().create_transformation().apply(ListDataset(rows, freq="D"), is_train=True)
    splitter = estimator()._create_instance_splitter(None, mode)
    np.random.seed(0)
    names = ("past_target", "past_observed_values", "future_target", "future_observed_values")
    windows = [window for _ in range(20 if mode == "training" else 1) for window in splitter.apply(data, is_train=True)]
    return [{name: torch.tensor(window[name], dtype=torch.float32) for name in names} for window in windows]


class Windows(pl.LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(samples("training"), batch_size=16, shuffle=True)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(samples("validation"), batch_size=16)


def feed_forward(lr=0.01, weight_decay=1e-8):
    return SimpleFeedForwardLightningModule(FEED_FORWARD, lr=lr, weight_decay=weight_decay)


def load_feed_forward(path):
    """The module saves no hyperparameters, so Lightning asks for them."""
    return SimpleFeedForwardLightningModule.load_from_checkpoint(path, model_kwargs=FEED_FORWARD)


LEARNING_RATE = "loguniform(1e-3, 1e-1)"
DROPOUT = "uniform(0.05, 0.5)"
CASES = {
    "TemporalFusionTransformer": Case(
        temporal_fusion_transformer,
        Series,
        {"learning_rate": LEARNING_RATE, "dropout": DROPOUT},
        {"learning_rate": LEARNING_RATE, "dropout": DROPOUT},
        lambda path: TemporalFusionTransformer.load_from_checkpoint(path, weights_only=False),
    ),
    "DeepAR": Case(
        deep_ar,
        Series,
        {"learning_rate": LEARNING_RATE},
        {"learning_rate": LEARNING_RATE, "dropout": DROPOUT},
        lambda path: DeepAR.load_from_checkpoint(path, weights_only=False),
    ),
    "MPNN": Case(
        message_passing,
        Molecules,
        {"max_lr": LEARNING_RATE, "hidden": "int(4, 12)"},
        {"dropout": DROPOUT},
        chemprop.models.MPNN.load_from_checkpoint,
    ),
    "SimpleFeedForward": Case(
        feed_forward,
        Windows,
        {"lr": LEARNING_RATE, "weight_decay": "loguniform(1e-8, 1e-2)"},
        {"lr": LEARNING_RATE, "weight_decay": "loguniform(1e-8, 1e-2)"},
        load_feed_forward,
    ),
}
