"""Idioms of modules, loaders and callbacks that other tests do not have: a trial that is cut equals one that is not."""

import dataclasses
import multiprocessing
import random
import signal
import time
from collections import Counter, deque

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import CombinedLoader
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler

from lightning_hpo.interrupts import pausing_signals
from lightning_hpo.training.apart import call_apart
from tests.support.idioms import BATCHES, Data, Net, NetOfTwo, R, rows
from tests.training.test_exact import CUTS, run


def combined(mode):
    class Combined(Data):
        def train_dataloader(self):
            other = DataLoader(rows(56, 3), batch_size=8, shuffle=True)
            return CombinedLoader({"a": super().train_dataloader(), "b": other}, mode)

    return Combined


class Noisy(Dataset):
    def __len__(self):
        return BATCHES * 8

    def __getitem__(self, index):
        return torch.randn(6), torch.tensor(index % 2)


class TwoNoisyLoaders(Data):
    """Both draw from the global generator, one after the other."""

    def train_dataloader(self):
        return {name: DataLoader(Noisy(), batch_size=8, shuffle=True) for name in "ab"}


class OwnNumbers(BatchSampler):
    def __init__(self):
        self.rng = np.random.default_rng(4)

    def __len__(self):
        return BATCHES

    def __iter__(self):
        for _ in range(BATCHES):
            yield self.rng.integers(0, BATCHES * 8, 8).tolist()


class CountsEpochs(Sampler):
    def __init__(self):
        self.epoch, self.random = 0, random.Random(3)

    def __len__(self):
        return BATCHES * 8

    def __iter__(self):
        self.epoch += 1
        places = list(range(BATCHES * 8))
        self.random.shuffle(places)
        return iter(places[self.epoch :] + places[: self.epoch])


class Position(IterableDataset):
    """A stream that knows where it is, from epoch to epoch."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        for _ in range(BATCHES * 8):
            self.position += 1
            x = torch.randn(6, generator=torch.Generator().manual_seed(self.position))
            yield x, (x[0] > 0).long()


class Stronger(Dataset):
    """Augments more from epoch to epoch, and with each sample."""

    def __init__(self, data):
        self.data, self.strength, self.asked = data, 0.0, 0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.asked += 1
        x, y = self.data[index]
        return x * (1 - self.strength + 0.001 * self.asked), y


class Batches:
    """A loader of one's own."""

    def __init__(self, data):
        self.data = data

    def __len__(self):
        return BATCHES

    def __iter__(self):
        for places in torch.randperm(BATCHES * 8).split(8):
            yield list(self.data[places])


def loader(make):
    class WithLoader(Data):
        def train_dataloader(self):
            return make(self)

    return WithLoader


class StrongerData(Data):
    def train_dataloader(self):
        self.augmented = Stronger(self.train)
        return DataLoader(self.augmented, batch_size=8, shuffle=True)


class Strengthens(Net):
    def on_train_epoch_start(self):
        self.trainer.datamodule.augmented.strength = 0.1 * self.current_epoch


class TransferCounts(Data):
    """Changes before the first hook of a batch."""

    moved = 0

    def on_after_batch_transfer(self, batch, dataloader_idx):
        if self.trainer.training:
            self.moved += 1
        return [batch[0] * (1 + 0.01 * self.moved), batch[1]]


@dataclasses.dataclass
class Running:
    mean: float = 0.0
    recent: list = dataclasses.field(default_factory=list)


class Objects(Net):
    """State in the kinds of objects that people use, generators included."""

    def __init__(self):
        super().__init__()
        self.running = Running()
        self.weights, self.mean = np.ones(2), np.float64(1)
        self.recent, self.seen = deque(maxlen=3), Counter()
        self.generators: list = [np.random.default_rng(5), random.Random(5), torch.Generator().manual_seed(5)]
        self.teacher = [nn.Sequential(nn.Linear(6, 2), nn.BatchNorm1d(2))]

    def training_step(self, batch, batch_idx):
        numpys, pythons, torchs = self.generators
        loss = super().training_step(batch, batch_idx)
        loss = loss + (self.net(batch[0]) - self.teacher[0](batch[0]).detach()).square().mean()
        value = float(loss.detach())
        self.running.mean = 0.9 * self.running.mean + 0.1 * value
        self.running.recent = [*self.running.recent[-2:], value]
        self.weights = self.weights * 0.99
        self.mean = 0.9 * self.mean + 0.1 * value
        self.recent.append(value)
        self.seen["batches"] += 1
        with torch.no_grad():
            for parameter in self.teacher[0].parameters():
                parameter.mul_(0.95)
        drawn = numpys.random() + pythons.random() + float(torch.rand((), generator=torchs))
        return (
            loss
            * (drawn + self.running.mean + sum(self.running.recent) + float(self.weights.sum() * self.mean))
            / (5 + sum(self.recent) + 0.1 * self.seen["batches"])
        )


class LazyBuffer(Net):
    scale: torch.Tensor

    def training_step(self, batch, batch_idx):
        if not hasattr(self, "scale"):
            self.register_buffer("scale", torch.ones(1), persistent=False)
        self.scale *= 0.98
        return super().training_step(batch, batch_idx) * self.scale.squeeze()


class AddsGroup(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.net[0].parameters(), lr=0.1, momentum=0.9)

    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            self.trainer.optimizers[0].add_param_group({"params": list(self.net[3].parameters()), "lr": 0.05})


class Numbers(pl.Callback):
    """Without a state_dict."""

    def __init__(self):
        self.factor, self.recent = np.ones(3), deque(maxlen=3)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.factor = self.factor * 0.99
        self.recent.append(float(self.factor[0]))
        for parameter in pl_module.parameters():
            parameter.data.mul_(sum(self.recent) / len(self.recent))


CASES = {
    "combined loaders, the shortest counts": (NetOfTwo, combined("min_size"), {}),
    "combined loaders, the longest counts": (NetOfTwo, combined("max_size_cycle"), {}),
    "two loaders that draw random numbers": (NetOfTwo, TwoNoisyLoaders, {}),
    "a batch sampler with a generator of numpy": (
        Net, loader(lambda data: DataLoader(data.train, batch_sampler=OwnNumbers())), {},
    ),
    "a sampler that counts epochs": (
        Net, loader(lambda data: DataLoader(data.train, batch_size=8, sampler=CountsEpochs())), {},
    ),
    "a stream with a position": (Net, loader(lambda data: DataLoader(Position(), batch_size=8)), {}),
    "a loader that is no DataLoader": (Net, loader(lambda data: Batches(data.train)), {}),
    "a dataset that changes": (Strengthens, StrongerData, {}),
    "a count in on_after_batch_transfer": (Net, TransferCounts, {}),
    "objects of all kinds": (Objects, Data, {}),
    "a buffer that is registered late": (LazyBuffer, Data, {}),
    "a parameter group that is added late": (AddsGroup, Data, {}),
    "a callback with arrays": (Net, Data, {"callbacks": [Numbers()]}),
    "double precision": (Net, Data, {"precision": "64-true"}),
}  # fmt: skip


@pytest.mark.parametrize("cuts", ["inside and at the end of epochs", "killed again and again"])
@pytest.mark.parametrize("case", CASES)
def test_a_trial_that_is_cut_equals_one_that_is_not(case, cuts, tmp_path):
    model, data, trainer = CASES[case]
    stops, crash = CUTS[cuts]
    whole, one = run(tmp_path / "whole", [R], model, data, trainer)
    outcome, other = run(tmp_path / "cut", stops, model, data, trainer, crash=crash, every=2)
    assert (outcome.score, outcome.step) == (whole.score, whole.step)
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(other["optimizer_states"], one["optimizer_states"], rtol=0, atol=0)


def code_of_an_ended_process():
    """Fork a process as a pool does, and end it as a pool does."""
    fork = multiprocessing.get_context("fork")
    begun = fork.Event()
    process = fork.Process(target=lambda: (begun.set(), time.sleep(60)))
    process.start()
    assert begun.wait(5)
    process.terminate()
    process.join(5)
    code = process.exitcode
    process.kill()
    return code


def test_a_process_that_a_module_forks_can_be_ended():
    with pausing_signals() as interrupts:
        assert code_of_an_ended_process() == -signal.SIGTERM
        assert call_apart(code_of_an_ended_process) == -signal.SIGTERM
    assert interrupts.received is None
