"""Modules and data in the idioms of other people: state in attributes, hyperparameters, hooks, streams, loaders."""

from collections import deque
from enum import Enum
from typing import Any, NamedTuple

import lightning.pytorch as pl
import torch
import torchmetrics
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

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


class Manual:
    """Mixed into a module with a ``loss``: steps each of its optimizers by hand."""

    automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = self.loss(batch)
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()
        self.log("train_loss", loss)


class TwoOptimizers(Manual, Net):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.net[0].parameters(), lr=0.1), torch.optim.Adam(self.net[3].parameters())]


class Phase(Enum):
    WARM = 1
    COOL = 2


class Seen(NamedTuple):
    batches: int
    loss: float


class Keeps(Net):
    """State in its hyperparameters, in containers, and in objects that Lightning does not know; sets the Trainer."""

    def __init__(self, beta=1.0):
        super().__init__()
        self.save_hyperparameters()
        self.history, self.by_name = [0.5], {"epochs": [1.0]}
        self.part = torch.nn.Identity()
        vars(self.part)["hparams"] = {"width": 64}  # not Lightning's
        self.phase, self.seen = Phase.WARM, deque([Seen(0, 0.0)], maxlen=3)
        self.shift = [nn.Parameter(torch.zeros(2))]
        self.dual = [torch.zeros(1, requires_grad=True)]
        self.dual_optimizer = torch.optim.Adam(self.dual, lr=0.1)
        self.dual_schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.dual_optimizer, T_max=R)

    def on_train_epoch_start(self):
        self.trainer.gradient_clip_val = 0.5 / (1 + self.current_epoch)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.history.append(float(outputs["loss"]))
        self.seen.append(Seen(self.seen[-1].batches + 1, float(outputs["loss"])))
        self.phase = Phase.COOL if self.global_step > 6 else Phase.WARM

    def configure_optimizers(self):
        return torch.optim.SGD([*self.parameters(), *self.shift], lr=0.2, momentum=0.9)

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]) + self.shift[0], batch[1])

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
        kept += sum(seen.batches * seen.loss for seen in self.seen) / 10 + self.phase.value
        return loss * (self.hparams.beta + 0.1 * kept + self.dual[0].detach().sum())


class Backbone(Net):
    def __init__(self):
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self):
        return torch.optim.SGD(
            [parameter for parameter in self.parameters() if parameter.requires_grad], lr=0.2, momentum=0.9
        )


class LeavesEpochs(Net):
    """Each epoch ends before its fourth batch."""

    def on_train_batch_start(self, batch, batch_idx):
        return -1 if batch_idx == 3 else None


class Level:
    def __init__(self, number):
        self.number = number


class HarderEachEpoch(Data):
    """More of its data are read in each epoch, by an object that the module replaces."""

    def __init__(self):
        super().__init__()
        self.stage = Level(1)

    def train_dataloader(self):
        self.made = getattr(self, "made", 0) + 1
        part = torch.utils.data.Subset(self.train, range(min(16 * self.stage.number, 40)))
        return DataLoader(part, batch_size=8, shuffle=True)


class Raises(Net):
    def on_train_epoch_end(self):
        data = self.trainer.datamodule
        assert data.made > 0  # what `train_dataloader` sets stays
        data.stage = Level(data.stage.number + 1)


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
