"""A trial that is cut anywhere and continued equals one that is not, in the idioms of other people's modules."""

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
import torchmetrics
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_hpo import checkpoints
from lightning_hpo.records import CHECKPOINT, Task
from lightning_hpo.schedulers import Job
from lightning_hpo.training.objective import Objective
from lightning_hpo.training.plugins import METRICS

# What Lightning says of `overfit_batches` with a loader that shuffles, and of ReduceLROnPlateau without its score.
pytestmark = pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:ReduceLROnPlateau conditioned on")
R = 22
BATCHES = 5


def rows(n, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] - x[:, 1] * x[:, 2] > 0).long())


class Data(pl.LightningDataModule):
    """5 batches in an epoch."""

    def setup(self, stage):
        assert stage == "fit"
        self.train, self.val = rows(BATCHES * 8, 0), rows(24, 1)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(self.val, batch_size=24)


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 2))

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.2, momentum=0.9)


class Unfreezes(Net):
    """Frozen in __init__, unfrozen in one epoch's start hook only."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        if self.current_epoch == 2:
            self.net[0].requires_grad_(True)
            self.net[2].p = 0.4  # type: ignore[assignment]  # torch declares all attributes as tensors or modules


class Counts(Net):
    """Plain attributes that change in every hook, one of them after all callbacks."""

    def __init__(self):
        super().__init__()
        self.epochs = self.batches = self.validations = 0
        self.history = []
        self.register_buffer("running", torch.zeros(1), persistent=False)

    def on_train_start(self):
        self.epochs = 0

    def on_train_epoch_start(self):
        self.epochs += 1

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.batches += 1
        self.running += outputs["loss"].detach()
        self.history.append(float(outputs["loss"]))

    def on_validation_end(self):
        if self.trainer.global_step % BATCHES == 0:
            self.validations += 1

    def on_train_epoch_end(self):
        self.history.clear()

    def training_step(self, batch, batch_idx):
        scale = 1 + 0.1 * self.epochs + 0.01 * self.batches + 0.1 * self.validations + 0.01 * sum(self.history)
        return super().training_step(batch, batch_idx) * scale + 0 * self.running.sum()


class Metrics(Net):
    """A torchmetric over an epoch decides the learning rate of the next."""

    def __init__(self):
        super().__init__()
        self.accuracy = torchmetrics.classification.MulticlassAccuracy(2)
        self.factor = 1.0

    def training_step(self, batch, batch_idx):
        self.accuracy(self.net(batch[0]), batch[1])
        self.log("train_acc", self.accuracy, on_epoch=True, on_step=False)
        return super().training_step(batch, batch_idx) * self.factor

    def on_train_epoch_end(self):
        self.factor = 0.5 + float(self.accuracy.compute())


class MetricOfValidation(Net):
    """A torchmetric over a validation scales the loss; Lightning resets it after the last hook."""

    def __init__(self):
        super().__init__()
        self.mean = torchmetrics.MeanMetric()
        self.factor = 1.0

    def on_validation_epoch_end(self):
        self.factor = float(self.mean.compute())

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.factor

    def validation_step(self, batch, batch_idx):
        self.mean.update(self.loss(batch))
        self.log("val_loss", self.mean)


class EvaluatesOnly(Net):
    """Goes back to training in a hook of its own, after the last hook of a callback; a layer stays as it is."""

    def __init__(self):
        super().__init__()
        self.validations = 0

    def on_validation_model_train(self):
        self.net[0].train()
        self.validations += 1

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (1 + 0.1 * self.validations)


class Plateau(Net):
    interval, monitor = "epoch", "val_loss"

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {
                "scheduler": schedule,
                "monitor": self.monitor,
                "interval": self.interval,
                "strict": False,
            },
        }


class PlateauOfTraining(Plateau):
    monitor = "train_loss_epoch"


class PlateauOfSome(Plateau):
    """Follows what only the first batch of an epoch logs."""

    monitor = "first"

    def on_train_epoch_start(self):
        self.log("epoch_began", float(self.current_epoch))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        if batch_idx == 0:
            self.log("first", loss, on_step=False, on_epoch=True)
        if batch_idx % 2 == 0:
            self.log("even", loss, on_step=True, on_epoch=True, reduce_fx="sum")
            self.log("most", loss, on_step=False, on_epoch=True, reduce_fx=max)
        return loss


class PlateauPerStep(Plateau):
    interval, monitor = "step", "train_loss_step"


class Steps(Net):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)]


class TwoOptimizers(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)

    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.Adam(self.net[3].parameters())]


class Keeps(Net):
    """State in its hyperparameters, in containers, and in objects that Lightning does not know; sets the Trainer."""

    def __init__(self, beta=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.history, self.by_name = [0.5], {"epochs": [1.0]}
        self.part = torch.nn.Identity()
        vars(self.part)["hparams"] = {"width": 64}  # not Lightning's
        self.dual = [torch.zeros(1, requires_grad=True)]
        self.dual_optimizer = torch.optim.Adam(self.dual, lr=0.1)
        self.dual_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.dual_optimizer, T_max=R)

    def on_train_epoch_start(self):
        self.trainer.gradient_clip_val = 0.5 / (1 + self.current_epoch)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.history.append(float(outputs["loss"]))

    def on_train_epoch_end(self):
        self.hparams.beta *= 0.7
        metrics: dict[str, Any] = self.trainer.callback_metrics
        metrics["by_hand"] = 0.8  # no tensor
        self.by_name["epochs"].append(1.0)
        self.by_name[f"epoch {self.current_epoch}"] = [0.1]

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.dual_optimizer.zero_grad()
        (self.dual[0] * (0.5 - loss.detach())).sum().backward()
        self.dual_optimizer.step()
        self.dual_schedule.step()
        kept = sum(self.history) / len(self.history) + sum(map(sum, self.by_name.values()))
        return loss * (self.hparams.beta + 0.1 * kept + self.dual[0].detach().sum())


class Backbone(Net):
    def __init__(self):
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self):
        return torch.optim.SGD([one for one in self.parameters() if one.requires_grad], lr=0.2, momentum=0.9)


class Workers(Data):
    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, shuffle=True, num_workers=1, persistent_workers=True)


class TwoLoaders(Data):
    def train_dataloader(self):
        short = DataLoader(rows(16, 3), batch_size=8, shuffle=True)
        return {"a": super().train_dataloader(), "b": short}


class NetOfTwo(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch["a"], batch_idx) + 0.3 * self.loss(batch["b"])


class Stream(IterableDataset):
    """Draws from the global generator, as augmentations do."""

    def __iter__(self):
        for _ in range(BATCHES * 8):
            x = torch.randn(6)
            yield x, (x[0] > 0).long()


class Streams(Data):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=8)


class Endless(Data):
    def train_dataloader(self):
        class Forever(IterableDataset):
            def __iter__(self):
                while True:
                    x = torch.randn(6)
                    yield x, (x[0] > 0).long()

        return DataLoader(Forever(), batch_size=8)


def run(folder, stops, model, data, trainer, *, crash=(), pause=(), every=3):
    objective = Objective(
        model, lambda trial: {}, data=data, monitor="val_loss", max_steps=R, trainer=trainer, checkpoint_every=every
    )
    for target in stops:
        for asks in pause:
            objective.run(Task(Job(target, trial=0), {}, folder), Asked(asks))
        for step in crash:
            with pytest.raises(RuntimeError, match="killed"):
                objective.run(Task(Job(target, trial=0), {}, folder), callbacks=[Crash(step)])
        outcome = objective.run(Task(Job(target, trial=0), {}, folder))
    saved = checkpoints.load(folder / CHECKPOINT)
    return outcome, saved


def logged(folder):
    """Rows that loggers are given."""
    return sorted((folder / METRICS).read_text().splitlines())


def test_a_killed_trial_has_the_same_files_of_a_model_checkpoint(tmp_path):
    """No second version of one, and none that an uninterrupted trial has removed."""

    def files(name, crash):
        callback = ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)
        run(tmp_path / name, [R], Net, Data, {"callbacks": [callback], "val_check_interval": 2}, crash=crash, every=4)
        loaded = {file.name: checkpoints.load(file) for file in (tmp_path / name / "checkpoints").iterdir()}
        return {name: content["state_dict"] for name, content in loaded.items() if "previous" not in name}

    whole, cut = files("whole", ()), files("cut", (3, 7, 11, 15, 19))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


class Iterates(Net):
    """Reads a second loader by itself."""

    def on_fit_start(self):
        self.others = iter(DataLoader(rows(400, 3), batch_size=8, shuffle=True))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.loss(next(self.others))


def test_an_iterator_that_begins_anew_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="model.*others: a checkpoint holds no position of an iterator"):
        run(tmp_path, [R], Iterates, Data, {}, crash=(7,))


class Asked:
    """Wants a pause at the n-th question."""

    def __init__(self, left):
        self.left = left

    def __call__(self):
        self.left -= 1
        return self.left <= 0


class Crash(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.step:
            raise RuntimeError("killed")


CASES = {
    "plain": (Net, Data, {}),
    "unfreezes in a start hook": (Unfreezes, Data, {}),
    "counts in attributes": (Counts, Data, {}),
    "a torchmetric over an epoch": (Metrics, Data, {}),
    "a torchmetric over a validation": (MetricOfValidation, Data, {"val_check_interval": 2}),
    "back to training in a hook of its own": (EvaluatesOnly, Data, {"val_check_interval": 2}),
    "plateau by a validation": (Plateau, Data, {}),
    "plateau by an epoch's training loss": (PlateauOfTraining, Data, {}),
    "plateau at every step": (PlateauPerStep, Data, {}),
    "plateau by what some batches log": (PlateauOfSome, Data, {"val_check_interval": 2, "log_every_n_steps": 1}),
    "state of many kinds": (Keeps, Data, {}),
    "schedule by max_epochs": (Steps, Data, {}),
    "two optimizers": (TwoOptimizers, Data, {"log_every_n_steps": 1}),
    "backbone finetuning": (Backbone, Data, {"callbacks": [BackboneFinetuning(2, lambda epoch: 1.5)]}),
    "accumulation": (Net, Data, {"accumulate_grad_batches": 2}),
    "accumulation by epoch": (Net, Data, {"callbacks": [GradientAccumulationScheduler({0: 3, 2: 1})]}),
    "weight averages": (Net, Data, {"callbacks": [EMAWeightAveraging(decay=0.8)]}),
    "early stopping, patient": (Net, Data, {"callbacks": [EarlyStopping("val_loss", patience=9, min_delta=0.01)]}),
    "validations inside an epoch": (Plateau, Data, {"val_check_interval": 2}),
    "validations across epochs": (Plateau, Data, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "a validation every second epoch": (Plateau, Data, {"check_val_every_n_epoch": 2}),
    "limited epochs": (Counts, Data, {"limit_train_batches": 3}),
    "persistent workers": (Net, Workers, {}),
    "a loader that Lightning makes anew": (Net, Data, {"overfit_batches": BATCHES}),
    "two loaders that Lightning makes anew": (NetOfTwo, TwoLoaders, {"overfit_batches": BATCHES}),
    "two loaders": (NetOfTwo, TwoLoaders, {}),
    "a stream": (Net, Streams, {}),
    "an endless stream": (Net, Endless, {"val_check_interval": 4}),
    "reloaded loaders": (Net, Data, {"reload_dataloaders_every_n_epochs": 1}),
}
CUTS = {
    "inside and at the end of epochs": ([3, BATCHES, 12, R], ()),
    "killed again and again": ([R], (2, 5, 7, 11, 16)),
    "promoted and killed": ([9, R], (4, 8)),
    "paused again and again": ([R], (1, 2, 3, 1, 5, 1, 2, 1)),
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_trial_that_is_cut_equals_one_that_is_not(case, cuts, tmp_path):
    model, data, trainer = CASES[case]
    stops, crash = CUTS[cuts]
    whole, one = run(tmp_path / "whole", [R], model, data, trainer)
    if cuts == "paused again and again":
        outcome, other = run(tmp_path / "cut", stops, model, data, trainer, pause=crash, every=100)
    elif len(stops) > 1 and crash:
        run(tmp_path / "cut", stops[:1], model, data, trainer, crash=crash, every=2)
        outcome, other = run(tmp_path / "cut", stops[1:], model, data, trainer, every=2)
    else:
        outcome, other = run(tmp_path / "cut", stops, model, data, trainer, crash=crash, every=2)
    if stops == [R]:  # at other rungs the job itself validates
        assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    assert outcome.score == whole.score
    assert outcome.step == whole.step == one["global_step"] == other["global_step"]
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(other["optimizer_states"], one["optimizer_states"], rtol=0, atol=0)
    assert other["lr_schedulers"] == one["lr_schedulers"]
    assert {
        key: state for key, state in other["callbacks"].items() if "RunToStep" not in key and "Model" not in key
    } == {key: state for key, state in one["callbacks"].items() if "RunToStep" not in key and "Model" not in key}
