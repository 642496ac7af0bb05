"""A population's hyperparameters in modules of many forms: at each step, what is in effect is what the study says."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo.lr_schedules import WarmupCosineLR
from lightning_hpo.study.lineage import lineage
from lightning_hpo.tuners.population import PopulationTuner

STEPS, INTERVAL, BATCHES = 24, 6, 6
QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}


def loader():
    rows = torch.randn(8 * BATCHES, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(rows, rows[:, 0] * rows[:, 1]), batch_size=8)


class Base(pl.LightningModule):
    """Notes at each step what ``effects`` returns; a subclass says what that is and what it must be."""

    SPACE = {"lr": "loguniform(1e-3, 1e-1)"}
    seen = {}

    def build(self):
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def training_step(self, batch, batch_idx):
        self.note(self.effects())
        return self.loss(batch)

    def note(self, effects):
        folder = self.trainer.default_root_dir.rpartition("/")[2]
        if folder.isdigit():  # of a member; the check before training has another
            self.seen[int(folder), self.trainer.global_step] = effects

    def loss(self, batch):
        return F.mse_loss(self.net(batch[0])[:, 0], batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def train_dataloader(self):
        return loader()

    val_dataloader = train_dataloader

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)

    def groups(self, key):
        return [float(group[key]) for optimizer in self.trainer.optimizers for group in optimizer.param_groups]


def population(model, tmp_path, space=None, **options):
    arguments = {"population_size": 3, "interval": INTERVAL, "max_steps": STEPS, "explore": "all", "seed": 3}
    trainer = {**QUIET, **options.pop("trainer", {})}
    tuner = PopulationTuner(
        space or model.SPACE, monitor="val_loss", root=tmp_path, name="run", verbose=False, trainer=trainer,
        **{**arguments, **options},
    )  # fmt: skip
    return tuner.fit(model)


class FixedGroupFirst(Base):
    SPACE = {"wd": "loguniform(1e-4, 1e-1)"}

    def __init__(self, wd=0.01):
        super().__init__()
        self.wd = wd
        self.build()

    def configure_optimizers(self):
        return torch.optim.AdamW(
            [
                {"params": self.net[0].bias, "weight_decay": 0.0},
                {"params": self.net[0].weight, "weight_decay": self.wd},
                {"params": self.net[2].parameters(), "weight_decay": 0.01},  # the default of wd, but fixed
            ],
            lr=0.01,
        )

    def effects(self):
        return self.groups("weight_decay")

    @staticmethod
    def right(step, wd):
        return [0.0, wd, 0.01]


class Cyclic(Base):
    def __init__(self, lr=0.01):
        super().__init__()
        self.lr = lr
        self.build()

    def configure_optimizers(self):
        return self.with_schedule(torch.optim.SGD(self.parameters(), lr=self.lr), self.lr)

    @staticmethod
    def with_schedule(optimizer, lr):
        schedule = lr_scheduler.CyclicLR(optimizer, base_lr=lr / 10, max_lr=lr, step_size_up=5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def effects(self):
        return self.groups("lr")

    @classmethod
    def right(cls, step, lr):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=lr)
        made = cls.with_schedule(optimizer, lr)
        for _ in range(step):
            optimizer.step()
            made["lr_scheduler"]["scheduler"].step()
        return [optimizer.param_groups[0]["lr"]]


class CosineWithFloor(Cyclic):
    @staticmethod
    def with_schedule(optimizer, lr):
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, STEPS, eta_min=2e-3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ScalarMaxLR(lr_scheduler.LRScheduler):
    def __init__(self, optimizer, max_lr):
        self.max_lr = max_lr
        super().__init__(optimizer)

    def get_lr(self):
        return [self.max_lr * (0.1 + self.last_epoch / STEPS)] * len(self.base_lrs)


class OwnScheduler(Cyclic):
    @staticmethod
    def with_schedule(optimizer, lr):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": ScalarMaxLR(optimizer, lr), "interval": "step"}}


class WarmupThenDecay(Cyclic):
    @staticmethod
    def with_schedule(optimizer, lr):
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        schedule = lr_scheduler.SequentialLR(optimizer, parts, [8])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Chained(Cyclic):
    @staticmethod
    def with_schedule(optimizer, lr):
        parts = [lr_scheduler.LinearLR(optimizer, 0.1, total_iters=8), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        schedule = lr_scheduler.ChainedScheduler(parts, optimizer=optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class OursWithFloor(Cyclic):
    @staticmethod
    def with_schedule(optimizer, lr):
        schedule = WarmupCosineLR(optimizer, STEPS, warmup=4, min_lr=1e-3)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Unbound(OursWithFloor):
    """As written for LRSchedule; the tuner gives the horizon."""

    @staticmethod
    def with_schedule(optimizer, lr):
        return [optimizer], [WarmupCosineLR(optimizer, warmup=4, min_lr=1e-3)]

    @classmethod
    def right(cls, step, lr):
        return [WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=lr), STEPS, warmup=4, min_lr=1e-3).lr_at(step)]


class TensorRate(Cyclic):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=torch.tensor(self.lr))

    @classmethod
    def right(cls, step, lr):
        return [lr]


class Warmup(Base):
    """A length of the schedule is searched, read from hparams in a lambda."""

    SPACE = {"warmup": "int(2, 200)"}

    def __init__(self, warmup=5):
        super().__init__()
        self.save_hyperparameters()
        self.build()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / self.hparams.warmup))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def effects(self):
        return self.groups("lr")

    @staticmethod
    def right(step, warmup):
        return [0.1 * min(1.0, (step + 1) / warmup)]


class Attention(Base):
    SPACE = {"dropout": "uniform(0.1, 0.6)"}

    def __init__(self, dropout=0.3):
        super().__init__()
        self.p = dropout
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(dropout / 2), nn.Dropout(0.3), nn.Linear(8, 1))
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, dropout=dropout, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, dropout=dropout)
        self.lstm = nn.LSTM(4, 4, num_layers=2, dropout=dropout)

    def loss(self, batch):
        return F.mse_loss(F.dropout(self.net(batch[0])[:, 0], self.p, self.training), batch[1])

    def effects(self):
        layer = self.layer
        return [self.net[1].p * 2, self.net[2].p, layer.self_attn.dropout, layer.dropout.p, layer.dropout1.p,
                layer.dropout2.p, self.attention.dropout, self.lstm.dropout, self.p]  # fmt: skip

    @staticmethod
    def right(step, dropout):
        return [dropout, 0.3, *[dropout] * 7]


class LossWeights(Base):
    SPACE = {"smoothing": "uniform(0, 0.3)", "weight": "uniform(0.5, 4)", "pos": "uniform(1, 9)"}

    def __init__(self, smoothing=0.1, weight=1.0, pos=2.0):
        super().__init__()
        self.save_hyperparameters("weight")
        self.criterion = nn.CrossEntropyLoss(label_smoothing=smoothing)
        self.positive = nn.BCEWithLogitsLoss(pos_weight=torch.tensor([pos]))
        self.build()

    def loss(self, batch):
        return self.hparams.weight * super().loss(batch)

    def effects(self):
        return [self.criterion.label_smoothing, self.hparams["weight"], float(self.positive.pos_weight)]

    @staticmethod
    def right(step, smoothing, weight, pos):
        return [smoothing, weight, pos]


class Adversarial(Base):
    SPACE = {"lr_g": "loguniform(1e-3, 1e-1)", "lr_d": "loguniform(1e-3, 1e-1)", "beta1": "uniform(0.3, 0.9)"}

    def __init__(self, lr_g=0.01, lr_d=0.01, beta1=0.5):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.build()

    def configure_optimizers(self):
        hp = self.hparams
        return [
            torch.optim.Adam(self.net[0].parameters(), lr=hp.lr_g, betas=(hp.beta1, 0.99)),
            torch.optim.SGD(self.net[2].parameters(), lr=hp.lr_d),
        ]

    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        one = self.optimizers()[batch_idx % 2]
        one.zero_grad()
        self.manual_backward(self.loss(batch))
        one.step()

    def effects(self):
        return [*self.groups("lr"), self.trainer.optimizers[0].param_groups[0]["betas"][0]]

    @staticmethod
    def right(step, lr_g, lr_d, beta1):
        return [lr_g, lr_d, beta1]


class ByHand(Base):
    """The module writes its learning rate itself, from what hparams hold."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.build()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def on_train_batch_start(self, batch, batch_idx):
        for group in self.optimizers().param_groups:
            group["lr"] = self.hparams.lr / (1 + self.trainer.global_step)

    def effects(self):
        return self.groups("lr")

    @staticmethod
    def right(step, lr):
        return [lr / (1 + step)]


class RoundsItsHparams(Base):
    SPACE = {"lr": "loguniform(1e-3, 1e-1)"}

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.hparams.lr = round(lr, 3)
        self.build()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

    def effects(self):
        return self.groups("lr")

    @staticmethod
    def right(step, lr):
        return [round(lr, 3)]


KINDS = [
    FixedGroupFirst, Cyclic, CosineWithFloor, OwnScheduler, WarmupThenDecay, Chained, OursWithFloor, Unbound,
    TensorRate, Warmup, Attention, LossWeights, Adversarial, ByHand, RoundsItsHparams,
]  # fmt: skip


def check_what_is_in_effect(kind, tmp_path):
    kind.seen = {}
    result = population(kind, tmp_path)
    segments = lineage(result)
    assert len({str(segment.params) for segment in segments}) > 3
    assert len(kind.seen) == 3 * STEPS
    for (member, step), effective in kind.seen.items():
        (segment,) = [
            segment for segment in segments if segment.member == member and segment.start <= step < segment.stop
        ]
        assert effective == pytest.approx(kind.right(step, **segment.params), rel=1e-5), (member, step)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_effect_at_each_step_is_what_the_lineage_says(kind, tmp_path):
    check_what_is_in_effect(kind, tmp_path)


class Plateau(Base):
    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.build()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        schedule = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=10.0, cooldown=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": "val_loss"}}

    def effects(self):
        return self.groups("lr")


def test_reductions_of_a_plateau_schedule_stay_in_effect_over_changes(tmp_path):
    Plateau.seen = {}
    segments = lineage(population(Plateau, tmp_path))
    reductions = {}
    for (member, step), (rate,) in Plateau.seen.items():
        (segment,) = [
            segment for segment in segments if segment.member == member and segment.start <= step < segment.stop
        ]
        reductions.setdefault(step, set()).add(round(rate / segment.params["lr"], 6))
    assert [reductions[step] for step in (0, 7, 13, 19)] == [{1.0}, {0.5}, {0.25}, {0.125}]
