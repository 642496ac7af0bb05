"""A population's hyperparameters in modules of many forms: at each step, what is in effect is what the study says."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.lr_schedules import WarmupCosineLR
from lightning_hpo.study.lineage import lineage
from lightning_hpo.training.state_transfer import capture, transplant
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
        return [float(group[key]) for one in self.trainer.optimizers for group in one.param_groups]


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


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_in_effect_at_each_step_is_what_the_lineage_says(kind, tmp_path):
    kind.seen = {}
    result = population(kind, tmp_path)
    segments = lineage(result)
    assert len({str(one.params) for one in segments}) > 3
    assert len(kind.seen) == 3 * STEPS
    for (member, step), effective in kind.seen.items():
        (segment,) = [one for one in segments if one.member == member and one.start <= step < one.stop]
        assert effective == pytest.approx(kind.right(step, **segment.params), rel=1e-5), (member, step)


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
        (segment,) = [one for one in segments if one.member == member and one.start <= step < one.stop]
        reductions.setdefault(step, set()).add(round(rate / segment.params["lr"], 6))
    assert [reductions[step] for step in (0, 7, 13, 19)] == [{1.0}, {0.5}, {0.25}, {0.125}]


def names_nothing(lr_used):
    class Ignores(Base):
        SPACE = {"lr": "loguniform(1e-3, 1e-1)", "momentum": "uniform(0, 0.9)"}

        def __init__(self, lr=0.01, momentum=0.9):
            super().__init__()
            self.save_hyperparameters()
            self.momentum = momentum
            self.build()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr if lr_used else 0.01, momentum=0.9)

        def effects(self):
            raise AssertionError("must not train")

    return Ignores


@pytest.mark.parametrize(("lr_used", "name"), [(True, "'momentum' changes nothing"), (False, "'lr' changes nothing")])
def test_a_name_that_moves_nothing_is_refused_before_training(lr_used, name, tmp_path):
    with pytest.raises(MisconfigurationException, match=name):
        population(names_nothing(lr_used), tmp_path)


class Initial(Base):
    SPACE = {"std": "uniform(0.1, 1)"}

    def __init__(self, std=0.1):
        super().__init__()
        self.build()
        nn.init.normal_(self.net[0].weight, std=std)

    def effects(self):
        raise AssertionError("must not train")


def test_what_only_sets_initial_weights_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="only the initial weights"):
        population(Initial, tmp_path)


class Hooked(Base):
    SPACE = {"noise": "uniform(0, 1)"}

    def __init__(self, noise=0.1):
        super().__init__()
        self.build()

    def on_hyperparameters(self, hparams):
        self.noise = hparams["noise"]

    def effects(self):
        return [self.noise]

    @staticmethod
    def right(step, noise):
        return [noise]


class Deaf(Hooked):
    def on_hyperparameters(self, hparams):
        self.calls = getattr(self, "calls", 0) + 1


def test_a_hook_that_ignores_a_name_is_noticed(tmp_path):
    test_what_is_in_effect_at_each_step_is_what_the_lineage_says(Hooked, tmp_path / "a")
    with pytest.raises(MisconfigurationException, match="on_hyperparameters.* changes nothing with it"):
        population(Deaf, tmp_path / "b")


# --- Copies -----------------------------------------------------------------------------------------------------------


class SelfTuned(torch.optim.SGD):
    """Keeps an estimated step size and a sum in its groups, as Prodigy and schedule-free optimizers do."""

    def __init__(self, params, lr, d0=1e-3):
        super().__init__(params, lr=lr)
        self.defaults.update(d=d0, weight_sum=0.0)
        for group in self.param_groups:
            group.update(d=d0, weight_sum=0.0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["d"] *= 1.1
            group["weight_sum"] += group["lr"]
        return super().step(closure)


class Keeps(Base):
    def __init__(self, lr=0.01):
        super().__init__()
        self.lr = lr
        self.build()
        self.register_buffer("average", torch.zeros(4), persistent=False)
        self.queue = torch.zeros(4)

    def configure_optimizers(self):
        return SelfTuned(self.parameters(), lr=self.lr)

    def loss(self, batch):
        if self.training:
            self.average = 0.9 * self.average + batch[0].mean(0) + self.lr
            self.queue = self.queue + 1 + self.lr
        return super().loss(batch)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["queue"] = self.queue

    def on_load_checkpoint(self, checkpoint):
        self.queue = checkpoint["queue"]


def one(model, steps, lr):
    torch.manual_seed(0)
    module = model(lr)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    model.training_step = lambda self, batch, batch_idx: self.loss(batch)
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, **options, **QUIET)
    trainer.fit(module)
    return trainer, module


def test_a_copy_takes_along_what_is_in_no_state_dict():
    (donor, source), (member, target) = one(Keeps, 5, 0.02), one(Keeps, 3, 0.01)
    transplant(capture(donor, source), member, target)
    assert torch.equal(target.average, source.average)
    assert torch.equal(target.queue, source.queue)
    own, other = (trainer.optimizers[0].param_groups[0] for trainer in (member, donor))
    assert (own["d"], own["weight_sum"]) == (other["d"], other["weight_sum"])
    assert own["lr"] == 0.01  # applied by the hyperparameters
    assert target.average.data_ptr() != source.average.data_ptr()
    assert target.queue.data_ptr() != source.queue.data_ptr()
    assert member.global_step == 3  # clocks are its own


class KeepsItsLoss(Base):
    """Keeps its loss, which has a weight, in the checkpoint, and with its hyperparameters; reads both back."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.build()
        self.criterion = nn.PReLU(init=lr)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def loss(self, batch):
        return super().loss(batch) + self.criterion(torch.tensor([-1.0])).sum()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["criterion"] = self.criterion
        checkpoint["hyper_parameters"]["criterion"] = self.criterion
        checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] += 0
        checkpoint["seen"] = len(checkpoint["optimizer_states"]), len(checkpoint["lr_schedulers"])

    def on_load_checkpoint(self, checkpoint):
        assert checkpoint["hyper_parameters"]["criterion"] is checkpoint["criterion"]
        assert checkpoint["hyper_parameters"]["lr"] in (0.01, 0.02)
        assert checkpoint["seen"] == (1, 0)
        self.criterion = checkpoint["criterion"]


def test_hooks_of_a_checkpoint_see_what_lightning_shows_them_and_the_optimizer_still_trains_every_parameter():
    (donor, source), (member, target) = one(KeepsItsLoss, 5, 0.02), one(KeepsItsLoss, 3, 0.01)
    state = capture(donor, source)
    assert set(state["added"]) == {"criterion", "hyper_parameters", "seen"}
    transplant(state, member, target)
    assert torch.equal(target.criterion.weight, source.criterion.weight)
    assert target.criterion.weight.data_ptr() != source.criterion.weight.data_ptr()
    trained = {id(parameter) for parameter in member.optimizers[0].param_groups[0]["params"]}
    assert trained == {id(parameter) for parameter in target.parameters()}


class Workers(Base):
    """The dataset's noise is searched; workers that live on must not keep the old one."""

    SPACE = {"data.noise": "uniform(0, 1)"}

    def __init__(self):
        super().__init__()
        self.build()

    def effects(self):
        return None

    def training_step(self, batch, batch_idx):
        self.note([float(batch[2][0])])
        return self.loss(batch)

    train_dataloader = pl.LightningModule.train_dataloader
    val_dataloader = pl.LightningModule.val_dataloader


class Noisy(torch.utils.data.Dataset):
    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 8 * BATCHES

    def __getitem__(self, index):
        return torch.full((4,), index / 50), torch.tensor(0.1), torch.tensor(self.noise)


class NoisyData(pl.LightningDataModule):
    def __init__(self, noise=0.5):
        super().__init__()
        self.noise = noise

    def setup(self, stage):
        self.train = Noisy(self.noise)

    def on_hyperparameters(self, hparams):
        self.train.noise = hparams["noise"]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, num_workers=1, persistent_workers=True)

    def val_dataloader(self):
        return DataLoader(Noisy(0.0), batch_size=48)


class ReadByLoader(pl.LightningDataModule):
    """Without a hook: ``train_dataloader`` reads the attribute."""

    def __init__(self, noise=0.5):
        super().__init__()
        self.noise = noise

    def train_dataloader(self):
        return DataLoader(Noisy(self.noise), batch_size=8, num_workers=1, persistent_workers=True)

    val_dataloader = NoisyData.val_dataloader


class ReadInSetup(ReadByLoader):
    def setup(self, stage):
        self.train = Noisy(self.noise)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8)


def test_data_that_would_not_follow_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"'data.noise' changes nothing.*data module, or define on_hyp"):
        test_workers_that_live_on_get_the_new_value_with_the_next_epoch(ReadInSetup, tmp_path)


@pytest.mark.parametrize("data", [NoisyData, ReadByLoader])
def test_workers_that_live_on_get_the_new_value_with_the_next_epoch(data, tmp_path):
    Workers.seen = {}
    tuner = PopulationTuner(
        Workers.SPACE, monitor="val_loss", root=tmp_path, name="run", verbose=False, trainer=QUIET, explore="all",
        population_size=2, interval=INTERVAL, max_steps=2 * INTERVAL, seed=3,
    )  # fmt: skip
    segments = lineage(tuner.fit(Workers, datamodule=data))
    assert len(segments) > 2
    for (member, step), effective in Workers.seen.items():
        (segment,) = [one for one in segments if one.member == member and one.start <= step < one.stop]
        assert effective == pytest.approx([segment.params["data.noise"]]), (member, step)


# --- The callback, where the module may not be buildable again --------------------------------------------------------


def member_of_one_folder(module, space, tmp_path):
    pbt = PopulationBasedTraining(tmp_path / "pbt", space, member=0, population_size=2, interval=INTERVAL)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": INTERVAL}
    trainer = pl.Trainer(
        max_steps=4, max_epochs=-1, callbacks=[pbt], default_root_dir=tmp_path / "0", **options, **QUIET
    )
    trainer.fit(module)
    (segment,) = lineage(tmp_path / "pbt")
    return segment.params


class NoDecayFirst(FixedGroupFirst):
    def configure_optimizers(self):
        return torch.optim.AdamW(
            [{"params": [self.net[0].bias], "weight_decay": 0.0}, {"params": [self.net[0].weight]}],
            weight_decay=self.wd,
        )


def test_without_saved_hparams_only_what_is_certain_is_bound(tmp_path):
    NoDecayFirst.seen = {}
    params = member_of_one_folder(NoDecayFirst(), {"weight_decay": "loguniform(1e-4, 1e-2)"}, tmp_path / "a")
    assert set(map(tuple, NoDecayFirst.seen.values())) == {(0.0, params["weight_decay"])}
    with pytest.raises(MisconfigurationException, match=r"'lr'.*self.save_hyperparameters\(\) in its __init__"):
        member_of_one_folder(Cyclic(), {"lr": "loguniform(1e-4, 1e-2)"}, tmp_path / "b")
    with pytest.raises(MisconfigurationException, match=r"'dropout'.*self.save_hyperparameters\(\) in its __init__"):
        member_of_one_folder(Attention(), {"dropout": "uniform(0, 0.5)"}, tmp_path / "c")


def test_with_saved_hparams_a_module_is_built_again(tmp_path):
    Adversarial.seen = {}
    params = member_of_one_folder(Adversarial(), Adversarial.SPACE, tmp_path)
    assert list(Adversarial.seen.values()) == [pytest.approx(Adversarial.right(0, **params))] * 4
