"""PopulationBasedTraining in a real Trainer: what is asked for takes effect, and nothing else is touched."""

import copy

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.optim import lr_scheduler
from torch.utils.data import DataLoader

from lightning_hpo import lr_schedules
from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.study.lineage import lineage
from lightning_hpo.study.member_files import read_record
from lightning_hpo.training.state_transfer import capture, transplant
from tests.support.small import digits

STEPS, INTERVAL = 60, 20
SCHEDULES = {
    "none": None,
    "LambdaLR": lambda opt, lr: lr_scheduler.LambdaLR(opt, lambda step: 1 / (1 + step / 20)),
    "CosineAnnealingLR": lambda opt, lr: lr_scheduler.CosineAnnealingLR(opt, STEPS),
    "OneCycleLR": lambda opt, lr: lr_scheduler.OneCycleLR(opt, max_lr=lr, total_steps=STEPS, cycle_momentum=False),
    "SequentialLR": lambda opt, lr: lr_scheduler.SequentialLR(
        opt, [lr_scheduler.LinearLR(opt, 0.1, total_iters=10), lr_scheduler.CosineAnnealingLR(opt, STEPS)], [10]
    ),
}
OURS = "Cosine WarmupCosine LinearDecay WarmupStableDecay StepDecay InverseSqrt CosineRestarts"
for shape in (f"{name}LR" for name in OURS.split()):
    options = {"warmup": 0.2} if shape == "WarmupCosineLR" else {}
    SCHEDULES[shape] = lambda opt, lr, shape=shape, options=options: getattr(lr_schedules, shape)(
        opt, max_steps=STEPS, **options
    )


class Net(pl.LightningModule):
    def __init__(self, *, lr=0.1, weight_decay=1e-3, momentum=0.8, dropout=0.1, schedule="none", hidden=16, adam=False):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(
            nn.Linear(64, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 10)
        )
        self.rates = []

    def training_step(self, batch, batch_idx):
        self.rates.append([group["lr"] for group in self.trainer.optimizers[0].param_groups])
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self):
        hp = self.hparams
        groups = [
            {"params": self.net[0].parameters(), "lr": hp.lr, "weight_decay": hp.weight_decay},
            {"params": self.net[1:].parameters(), "lr": hp.lr / 10, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups) if hp.adam else torch.optim.SGD(groups, momentum=hp.momentum)
        make = SCHEDULES[hp.schedule]
        if make is None:
            return optimizer
        rates = [hp.lr, hp.lr / 10] if hp.schedule == "OneCycleLR" else hp.lr
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer, rates), "interval": "step"}}


class Data(pl.LightningDataModule):
    def __init__(self, batch_size=40):
        super().__init__()
        self.batch_size = batch_size
        self.sizes = []

    def train_dataloader(self):
        self.sizes.append(self.batch_size)
        return DataLoader(digits()[0], batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(digits()[1], batch_size=200)


SPACE = {
    "lr": "loguniform(1e-3, 1)",
    "weight_decay": "loguniform(1e-5, 1e-1)",
    "momentum": "uniform(0.5, 0.95)",
    "dropout": "uniform(0.05, 0.5)",
    "data.batch_size": "choice(20, 40, 80)",
    "trainer.gradient_clip_val": "uniform(0.5, 5)",
}


class Spy(pl.Callback):
    """Notes weights before and after each step."""

    def __init__(self):
        self.seen = []
        self.state = None

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append((trainer.global_step, len(batch[0])))
        self.state = copy.deepcopy(capture(trainer, pl_module))


def trainer(tmp_path, *callbacks, max_steps=STEPS, **options):
    return pl.Trainer(
        max_steps=max_steps,
        callbacks=list(callbacks),
        default_root_dir=tmp_path,
        accelerator="cpu",
        **{
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "check_val_every_n_epoch": None,
            "val_check_interval": INTERVAL,
            "log_every_n_steps": 1,
            **options,
        },
    )


def member(tmp_path, number=0, space=SPACE, **options):
    return PopulationBasedTraining(
        tmp_path / "pbt", space, member=number, interval=INTERVAL, **{"population_size": 2, **options}
    )


def segments_of_member_0(folder):
    return [segment for segment in lineage(folder / "pbt") if segment.member == 0]


def good_donor(tmp_path, space=SPACE, step=INTERVAL, **net):
    """A member 1 that is at work in the same folder, with better weights than anybody; returns its state."""
    spy = Spy()
    torch.manual_seed(1)
    trainer(tmp_path, spy, max_steps=5).fit(Net(**net), datamodule=Data())
    donor = member(tmp_path, 1, space).folder
    donor.join(0, None)
    donor.report(step, 0.0, lambda: spy.state)
    return spy.state


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_every_hyperparameter_takes_effect_and_stays(tmp_path, schedule):
    good_donor(tmp_path, schedule=schedule)
    torch.manual_seed(0)
    pbt, spy, net, data = member(tmp_path), Spy(), Net(schedule=schedule), Data()
    fit = trainer(tmp_path, pbt, spy)
    fit.fit(net, datamodule=data)
    # The unperturbed schedule of a plain run, per unit of base learning rate.
    plain, unit = Net(schedule=schedule), trainer(tmp_path)
    unit.fit(plain, datamodule=Data())
    segments = segments_of_member_0(tmp_path)
    assert len(segments) > 1
    assert segments[1].parent == 1
    for one, until in zip(segments, [*(later.start for later in segments[1:]), STEPS], strict=True):
        for step in range(one.start, until):
            asked = [shape * one.params["lr"] / 0.1 for shape in plain.rates[step]]
            assert net.rates[step] == pytest.approx(asked, rel=1e-6)
    last = segments[-1].params
    groups = fit.optimizers[0].param_groups
    assert [group["weight_decay"] for group in groups] == [last["weight_decay"], 0.0]
    assert [group["momentum"] for group in groups] == [last["momentum"]] * 2
    assert net.net[3].p == last["dropout"]
    assert fit.gradient_clip_val == last["trainer.gradient_clip_val"]
    assert {name: net.hparams[name] for name in ("lr", "weight_decay", "momentum", "dropout")} == {
        name: last[name] for name in ("lr", "weight_decay", "momentum", "dropout")
    }


def test_batch_size_follows_with_the_next_epoch(tmp_path):
    space = {"data.batch_size": "choice(20, 40, 80)"}
    good_donor(tmp_path, space)
    other = {20: 80, 40: 20, 80: 20}
    explore = lambda params, space, generator: {"data.batch_size": other[params["data.batch_size"]]}  # noqa: E731
    pbt, spy, data = member(tmp_path, space=space, explore=explore), Spy(), Data(10)
    trainer(tmp_path, pbt, spy).fit(Net(), datamodule=data)
    segments = segments_of_member_0(tmp_path)
    sizes = [segment.params["data.batch_size"] for segment in segments]
    assert spy.seen[0][1] == sizes[0]  # the first loader has it already
    assert len(set(sizes)) > 1
    changed_at = next(step for step, size in spy.seen if size != sizes[0])
    epoch = 400 // sizes[0]
    assert changed_at == (-(-segments[1].start // epoch)) * epoch + 1
    assert spy.seen[-1][1] == sizes[-1] or STEPS - segments[-1].start < 400 // sizes[-2]


def test_a_batch_size_that_changes_back_within_an_epoch(tmp_path):
    space, spy = {"data.batch_size": "choice(20, 40)"}, Spy()
    pbt = member(tmp_path, space=space)

    class Back(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            first = pbt._params["data.batch_size"]
            for step, size in ((2, 60 - first), (4, first)):
                if trainer.global_step == step:
                    pbt._effects.apply({"data.batch_size": size})

    trainer(tmp_path, pbt, Back(), spy).fit(Net(), datamodule=Data())
    assert {size for _, size in spy.seen} == {pbt._params["data.batch_size"]}


def test_the_copy_is_whole_and_shares_nothing(tmp_path):
    state = good_donor(tmp_path, adam=True)
    pbt, taken = member(tmp_path, space={"lr": SPACE["lr"]}), []
    (tmp_path / "pbt" / "population.json").unlink()

    class After(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == INTERVAL:
                taken.append(copy.deepcopy(capture(trainer, pl_module)))

    trainer(tmp_path, pbt, After()).fit(Net(adam=True), datamodule=Data())
    assert_equal(taken[0]["module"], state["module"])
    assert_equal(taken[0]["optimizers"][0]["state"], state["optimizers"][0]["state"])


def assert_equal(found, expected):
    assert set(found) == set(expected)
    for name, value in expected.items():
        if isinstance(value, dict):
            assert_equal(found[name], value)
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.parametrize("fresh", [True, False])
@pytest.mark.parametrize("adam", [True, False])
def test_no_tensor_is_shared_with_the_donor(tmp_path, adam, fresh):
    a, b = Net(adam=adam), Net(adam=adam)
    fits = [trainer(tmp_path, max_steps=steps) for steps in (3, 1 if fresh else 3)]
    for fit, net in zip(fits, (a, b), strict=True):
        fit.fit(net, datamodule=Data())
    if fresh:
        fits[1].optimizers[0].state.clear()
    transplant(capture(fits[0], a), fits[1], b)
    moments = [
        {id_ for values in fit.optimizers[0].state.values() for value in values.values() if (id_ := pointer(value))}
        for fit in fits
    ]
    assert len(moments[0]) == len(moments[1]) > 0
    assert not moments[0] & moments[1]
    assert_equal(capture(fits[1], b)["optimizers"][0]["state"], capture(fits[0], a)["optimizers"][0]["state"])


def pointer(value):
    return value.data_ptr() if isinstance(value, torch.Tensor) else None


def test_weight_averages_are_copied(tmp_path):
    nets, averages = [Net(), Net()], [EMAWeightAveraging(decay=0.5), EMAWeightAveraging(decay=0.5)]
    fits = [trainer(tmp_path, average, max_steps=3) for average in averages]
    for fit, net in zip(fits, nets, strict=True):
        fit.fit(net, datamodule=Data())
    transplant(capture(fits[0], nets[0]), fits[1], nets[1])
    assert_equal(averages[1]._average_model.state_dict(), averages[0]._average_model.state_dict())


def test_model_checkpoint_and_early_stopping_stay_truthful(tmp_path):
    good_donor(tmp_path)
    keep = ModelCheckpoint(tmp_path / "kept", "{step}-{val_loss:.6f}", monitor="val_loss", save_top_k=-1)
    stop = EarlyStopping("val_loss", patience=1, min_delta=100.0)  # every validation counts as one without progress
    net = Net()
    trainer(tmp_path, member(tmp_path), keep, stop, enable_checkpointing=True).fit(net, datamodule=Data())
    files = sorted((tmp_path / "kept").glob("*.ckpt"))
    assert len(files) >= 2
    for file in files:
        labelled = float(file.stem.split("val_loss=")[1])
        loaded = Net.load_from_checkpoint(file, weights_only=True)
        (scores,) = trainer(tmp_path).validate(loaded, datamodule=Data(), verbose=False)
        assert scores["val_loss"] == pytest.approx(labelled, abs=2e-6)
    assert (stop.stopped_epoch, stop.wait_count) == (0, 0)  # counted anew after each copy


def test_pending_gradients_are_dropped(tmp_path):
    good_donor(tmp_path)
    pending = []

    class After(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pending.append(any(parameter.grad is not None for parameter in pl_module.parameters()))

    fit = trainer(tmp_path, member(tmp_path), After(), accumulate_grad_batches=4, val_check_interval=82)
    fit.fit(Net(), datamodule=Data())
    assert pending[78:84] == [True, True, True, True, False, True]  # copied after batch 82, in the middle of four


def test_hyperparameters_and_parent_are_logged(tmp_path):
    good_donor(tmp_path)
    logger = CSVLogger(tmp_path, name="log", version=0)
    trainer(tmp_path, member(tmp_path), logger=logger).fit(Net(), datamodule=Data())
    header = (tmp_path / "log" / "version_0" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"pbt/lr", "pbt/dropout", "pbt/parent", "pbt/data.batch_size"} <= set(header)


@pytest.mark.parametrize("schedule", ["LambdaLR", "CosineAnnealingLR", "OneCycleLR", "WarmupCosineLR"])
def test_a_continued_member_keeps_its_hyperparameters(tmp_path, schedule):
    good_donor(tmp_path, schedule=schedule)
    plain = Net(schedule=schedule)
    trainer(tmp_path).fit(plain, datamodule=Data())
    first = trainer(tmp_path, member(tmp_path), max_steps=STEPS)
    saved = tmp_path / "half.ckpt"

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 30:
                trainer.save_checkpoint(saved)
                raise KeyboardInterrupt

    first.callbacks.append(Save())
    with pytest.raises(SystemExit):
        first.fit(Net(schedule=schedule), datamodule=Data())
    asked = next(segment for segment in segments_of_member_0(tmp_path) if segment.start == INTERVAL)
    net, data, seen = Net(schedule=schedule), Data(), []

    class Look(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            group = trainer.optimizers[0].param_groups[0]
            seen.append((trainer.global_step, group["weight_decay"], pl_module.net[3].p))

    again = trainer(tmp_path, member(tmp_path), Look(), max_steps=35)
    again.fit(net, datamodule=data, ckpt_path=saved, weights_only=True)
    assert seen[0][0] == 30
    assert seen[0][1:] == pytest.approx([asked.params[name] for name in ("weight_decay", "dropout")])
    assert len(net.rates) == 5
    for step, rates in enumerate(net.rates, 30):
        assert rates == pytest.approx([rate * asked.params["lr"] / 0.1 for rate in plain.rates[step]])
    assert data.sizes[0] == asked.params["data.batch_size"]
    assert [segment.number for segment in segments_of_member_0(tmp_path)] == [0, 2]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"hidden": "choice(8, 16)"}, "hidden size"),
        ({"data.augment": "uniform(0, 1)"}, "data module"),
        ({"trainer.accumulate_grad_batches": "choice(1, 2)"}, "gradient_clip_val"),
    ],
)
def test_what_needs_a_rebuild_is_refused_at_the_start(tmp_path, space, message):
    with pytest.raises(MisconfigurationException, match=message):
        trainer(tmp_path, member(tmp_path, space=space)).fit(Net(), datamodule=Data())


def test_a_cycled_momentum_and_a_batch_size_without_data_module_are_refused(tmp_path, monkeypatch):
    cycled = lambda opt, lr: lr_scheduler.OneCycleLR(opt, max_lr=lr, total_steps=STEPS)  # noqa: E731
    monkeypatch.setitem(SCHEDULES, "OneCycleLR", cycled)
    with pytest.raises(MisconfigurationException, match="cycle_momentum=False"):
        trainer(tmp_path, member(tmp_path)).fit(Net(schedule="OneCycleLR"), datamodule=Data())
    data = Data()
    with pytest.raises(MisconfigurationException, match="data module"):
        trainer(tmp_path, member(tmp_path / "b")).fit(Net(), data.train_dataloader(), data.val_dataloader())


def test_a_module_may_apply_what_only_it_knows(tmp_path):
    class Smooth(Net):
        smoothing = None

        def on_hyperparameters(self, hparams):
            self.smoothing = hparams["smoothing"]

    space = {"smoothing": "uniform(0, 0.2)"}
    good_donor(tmp_path, space)
    net = Smooth()
    trainer(tmp_path, member(tmp_path, space=space)).fit(net, datamodule=Data())
    assert net.smoothing == segments_of_member_0(tmp_path)[-1].params["smoothing"]


def test_a_value_that_does_not_hold_stops_the_run(tmp_path):
    class Stubborn(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.optimizers[0].param_groups[0]["weight_decay"] = 0.5

    with pytest.raises(ParameterMismatchError, match=r"weight_decay=.* was asked for, 0.5 is in effect"):
        trainer(tmp_path, member(tmp_path), Stubborn()).fit(Net(), datamodule=Data())
    assert read_record(tmp_path / "pbt", 0).status == "failed"
    assert "ParameterMismatchError" in read_record(tmp_path / "pbt", 0).events[-1]


def test_an_unlogged_metric_is_named(tmp_path):
    with pytest.raises(MisconfigurationException, match="Did you mean 'val_loss'"):
        trainer(tmp_path, member(tmp_path, monitor="val_los")).fit(Net(), datamodule=Data())


def test_a_nan_member_is_replaced(tmp_path):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (float("nan") if self.global_step < 15 else 1)

    good_donor(tmp_path)
    net = Breaks()
    trainer(tmp_path, member(tmp_path)).fit(net, datamodule=Data())
    assert all(parameter.isfinite().all() for parameter in net.parameters())
