"""Plain searches: a name that changes nothing is said once, and factories are not measured by what hparams hold."""

import warnings

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.tuner import Tuner as LightningTuner
from torch import nn
from torch.optim import lr_scheduler

from lightning_hpo import LRSchedule, Objective, RandomTuner
from lightning_hpo.checkpoints import load
from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.lr_schedules import LinearDecayLR, WarmupCosineLR
from lightning_hpo.records import CHECKPOINT, Task
from lightning_hpo.schedulers import Job
from lightning_hpo.study.lineage import ReplayLR
from tests.support.small import Data, Net

CPU = {"accelerator": "cpu", "logger": False}


def search(model, space, tmp_path, data=Data, **trainer):
    tuner = RandomTuner(
        space, n_trials=2, monitor="val_loss", max_steps=4, root=tmp_path, verbose=False, trainer={**CPU, **trainer}
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = tuner.fit(model, datamodule=data)
    assert [row.state for row in result.rows] == ["complete"] * 2
    return [str(warning.message) for warning in caught if "is in the space, but nothing" in str(warning.message)]


class Plain(Net):
    def __init__(self, lr=0.1, hidden=16, act="relu", init_std=0.1):
        super().__init__(hidden=hidden, dropout=0.1)
        self.save_hyperparameters()
        nn.init.normal_(self.net[0].weight, std=init_std)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def test_a_rate_that_no_optimizer_uses_is_said_once(tmp_path):
    said = search(Plain, {"lr": "loguniform(1e-3, 1)", "hidden": "int(4, 8)", "act": "choice(relu, gelu)"}, tmp_path)
    assert [text.split("'")[1] for text in said] == ["lr", "act"]


class Used(Plain):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.hparams["act"].__len__()


class Stops(Net):
    def __init__(self, patience=3):
        super().__init__()
        self.patience = patience

    def configure_callbacks(self):
        return [EarlyStopping("val_loss", patience=self.patience)]


class Reads(Data):
    def __init__(self, batch_size=16, noise=0.0):
        super().__init__(batch_size)
        self.noise = noise

    def setup(self, stage):
        self.moved = self.noise + 1


@pytest.mark.parametrize(
    ("model", "space", "data"),
    [
        (Used, {"act": "choice(relu, gelux)", "hidden": "int(4, 8)", "init_std": "uniform(0.1, 1)"}, Data),
        (Net, {"lr": "loguniform(1e-3, 1)", "dropout": "uniform(0, 0.5)", "data.batch_size": "choice(16, 32)"}, Data),
        (Stops, {"patience": "int(3, 5)"}, Data),
        (Net, {"data.noise": "uniform(0, 1)", "trainer.gradient_clip_val": "uniform(0.1, 1)"}, Reads),
    ],
)
def test_names_in_use_are_not_warned_of(model, space, data, tmp_path):
    assert search(model, space, tmp_path, data) == []


def make_translated(act="tanh", lr=0.1):
    class Translated(Net):
        def __init__(self, lr, act):
            super().__init__(lr)
            self.save_hyperparameters()
            self.net[1] = getattr(nn, act)()

    return Translated(lr, {"tanh": "Tanh", "relu": "ReLU"}[act])


class Rounds(Net):
    def __init__(self, hidden=16):
        hidden = 8 * round(hidden / 8)
        super().__init__(hidden=hidden)
        self.save_hyperparameters()


class RoundsLater(Net):
    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.hparams.lr = round(lr, 2) + 0.01


@pytest.mark.parametrize(
    ("model", "space"),
    [
        (make_translated, {"act": "choice(tanh, relu)", "lr": "loguniform(1e-3, 1)"}),
        (Rounds, {"hidden": "int(9, 40)"}),
        (RoundsLater, {"lr": "uniform(0.01, 0.5)"}),
    ],
)
def test_hparams_that_are_not_what_was_given_are_no_mismatch(model, space, tmp_path):
    assert search(model, space, tmp_path) == []


def test_a_module_that_holds_another_value_whatever_is_given_is_refused():
    class Stale(Net):
        def __init__(self, lr=0.1):
            super().__init__()
            self.save_hyperparameters()
            self.hparams.lr = 0.1

    objective = Objective(Stale, {"lr": "uniform(0.2, 1)"}, data=Data, monitor="val_loss", max_steps=4, trainer=CPU)
    with pytest.raises(ParameterMismatchError, match=r"lr=0\.6.* was asked for.*0\.1"):
        objective.check()


class TensorRate(Net):
    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=torch.tensor(self.hparams.lr))


class Floor(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        schedule = lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.01)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fork(model, tmp_path, seen, lrs=(0.1, 0.3)):
    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(float(trainer.optimizers[0].param_groups[0]["lr"]))

        def __deepcopy__(self, memo):
            return self

    options = {"data": Data, "monitor": "val_loss", "max_steps": 10}
    objective = Objective(model, {"lr": "uniform(0, 1)"}, trainer={**CPU, "callbacks": [Look()]}, **options)
    objective.run(Task(Job(5, trial=0), {"lr": lrs[0]}, tmp_path / "a"))
    objective.run(Task(Job(10, trial=1, parent=0), {"lr": lrs[1]}, tmp_path / "b", tmp_path / "a" / CHECKPOINT))
    return load(tmp_path / "b" / CHECKPOINT)


def test_a_fork_trains_at_its_own_rate_in_float32(tmp_path):
    seen = []
    fork(TensorRate, tmp_path, seen)
    assert seen == pytest.approx([0.1] * 5 + [0.3] * 5, rel=1e-6)


def test_a_fork_trains_at_the_rate_of_a_schedule_with_its_own_minimum(tmp_path):
    seen = []
    fork(Floor, tmp_path, seen)
    net = Net(0.3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    schedule, right = lr_scheduler.CosineAnnealingLR(optimizer, 10, eta_min=0.01), []
    for _ in range(10):
        right.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert seen[5:] == pytest.approx(right[5:], rel=1e-9)


# --- LR schedules in Lightning ----------------------------------------------------------------------------------------


def scheduled(make, with_interval=False):
    class Scheduled(Net):
        def __init__(self, lr=0.1):
            super().__init__(lr=lr)
            self.rates = []

        def on_train_batch_start(self, batch, batch_idx):
            self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
            return [optimizer], [make(optimizer)]

    return Scheduled


def rates(make, *callbacks, steps=30):
    net = scheduled(make)()
    options = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    pl.Trainer(max_steps=steps, max_epochs=-1, callbacks=list(callbacks), **options, **CPU).fit(net, datamodule=Data())
    return net.rates


def test_a_replayed_schedule_is_stepped_by_optimizer_steps(tmp_path):
    make = lambda optimizer: ReplayLR(optimizer, [(0, 0.1), (3, 0.2), (20, 0.05)])  # noqa: E731
    assert rates(make, LRSchedule()) == pytest.approx([0.1] * 3 + [0.2] * 17 + [0.05] * 10)
    with pytest.raises(RuntimeError, match="once per epoch"):
        rates(make)
    seen = []
    fork(scheduled(make), tmp_path, seen, (0.1, 0.1))
    assert seen == pytest.approx([0.1] * 3 + [0.2] * 7)


def test_a_schedule_inside_sequential_is_bound(tmp_path):
    def make(optimizer):
        return lr_scheduler.SequentialLR(
            optimizer, [lr_scheduler.ConstantLR(optimizer, 0.5, total_iters=100), LinearDecayLR(optimizer)], [10]
        )

    right = [0.05] * 10 + [0.1 * (1 - step / 20) for step in range(20)]
    assert rates(make, LRSchedule()) == pytest.approx(right)
    assert search(scheduled(make), {"lr": "uniform(0.1, 0.2)"}, tmp_path) == []


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("cut", [5, 10, 17])
def test_a_schedule_inside_sequential_is_continued(ours_first, cut, tmp_path):
    def make(optimizer):
        ours, other = WarmupCosineLR(optimizer, warmup=0.2), lr_scheduler.ExponentialLR(optimizer, 0.9)
        return lr_scheduler.SequentialLR(optimizer, [ours, other] if ours_first else [other, ours], [10])

    seen = [[], []]
    for taken, cuts in zip(seen, ([25], [cut, 25]), strict=True):

        class Look(pl.Callback):
            def on_train_batch_start(self, trainer, pl_module, batch, batch_idx, taken=taken):
                taken.append(trainer.optimizers[0].param_groups[0]["lr"])

            def __deepcopy__(self, memo):
                return self

        trainer = {**CPU, "callbacks": [Look()]}
        objective = Objective(
            scheduled(make), {"lr": "uniform(0, 1)"}, data=Data, monitor="val_loss", max_steps=25, trainer=trainer
        )
        for step in cuts:
            objective.run(Task(Job(step, trial=0), {"lr": 0.1}, tmp_path / str(len(cuts))))
    assert seen[0] == seen[1]
    assert len(seen[0]) == 25


@pytest.mark.parametrize("first", [True, False])
def test_chained_with_another_schedule_is_refused(first):
    def make(optimizer):
        parts = [LinearDecayLR(optimizer, 30), lr_scheduler.ExponentialLR(optimizer, 0.9)]
        return lr_scheduler.ChainedScheduler(parts if first else parts[::-1], optimizer=optimizer)

    for callbacks in ([], [LRSchedule()]):
        with pytest.raises(RuntimeError, match=r"ChainedScheduler.*loses effects.*SequentialLR"):
            rates(make, *callbacks)


@pytest.mark.parametrize("tool", ["lr_find", "scale_batch_size"])
def test_lightnings_tuner_works_with_an_unbound_schedule(tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = lambda optimizer: WarmupCosineLR(optimizer, warmup=0.1)  # noqa: E731
    net, data = scheduled(make)(), Data()
    trainer = pl.Trainer(
        max_steps=30,
        max_epochs=-1,
        callbacks=[LRSchedule()],
        enable_progress_bar=False,
        default_root_dir=tmp_path,
        **CPU,
    )
    options = {"num_training": 12} if tool == "lr_find" else {"max_trials": 2, "steps_per_trial": 3}
    getattr(LightningTuner(trainer), tool)(net, datamodule=data, **options)
    net.rates.clear()
    trainer.fit(net, datamodule=data)
    base = net.hparams.lr
    assert len(net.rates) == 30
    assert max(net.rates) == pytest.approx(base)
    assert net.rates[0] == 0.0
