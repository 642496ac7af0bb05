"""The LRSchedule callback inside real fits: horizon, resume, manual optimization, LearningRateMonitor."""

import logging
from datetime import timedelta
from functools import partial

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, GradientAccumulationScheduler, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_hpo.callbacks import LRSchedule
from lightning_hpo.lr_schedules import CosineLR, InverseSqrtLR, LinearDecayLR, WarmupCosineLR

torch.set_num_threads(1)
# A resumed run has not the ModelCheckpoint that saved, and the loader is a plain one.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Be aware that when using `ckpt_path`, callbacks", "ignore:You.re resuming from a checkpoint that ended"
)
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.ERROR)


class Regression(L.LightningModule):
    """y = sum of x; ``schedule`` makes the scheduler, or the whole answer of configure_optimizers."""

    def __init__(self, lr: float = 0.1, schedule=None):
        super().__init__()
        self.lr = lr
        self.schedule = schedule
        self.layer = torch.nn.Linear(4, 1)

    def training_step(self, batch, batch_idx):
        (x,) = batch
        return torch.nn.functional.mse_loss(self.layer(x), x.sum(1, keepdim=True))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        if self.schedule is None:
            return optimizer
        scheduler = self.schedule(optimizer)
        return scheduler if isinstance(scheduler, dict) else ([optimizer], [scheduler])


class TwoOptimizers(Regression):
    def __init__(self, schedule=None):
        super().__init__(schedule=schedule)
        self.automatic_optimization = False
        self.training_steps = 0

    def configure_optimizers(self):
        optimizers = [torch.optim.SGD([parameter], lr=0.1) for parameter in self.layer.parameters()]
        return optimizers, [self.schedule(optimizer) for optimizer in optimizers] if self.schedule else []

    def training_step(self, batch, batch_idx):
        self.training_steps += 1
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()
            optimizer.zero_grad()
        if self.schedule:
            for schedule in self.lr_schedulers():
                schedule.step()


class Batches(L.LightningDataModule):
    def __init__(self, batches: int = 10):
        super().__init__()
        self.batches = batches

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(2 * self.batches, 4)), batch_size=2)


class Stream(IterableDataset):
    def __iter__(self):
        for _ in range(50):
            yield [torch.randn(4)]


class UsedLR(Callback):
    """Notes the learning rate that every optimizer step uses."""

    def __init__(self):
        self.lrs = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.lrs.append(optimizer.param_groups[0]["lr"])


def fit(model, *callbacks, batches=10, data=None, ckpt_path=None, **trainer):
    """Fit; return the Trainer and the learning rates used."""
    used = UsedLR()
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    quiet["enable_checkpointing"] = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    made = L.Trainer(**quiet, callbacks=[*callbacks, used], **trainer)
    if data is None:
        made.fit(model, datamodule=Batches(batches), ckpt_path=ckpt_path)
    else:
        made.fit(model, data, ckpt_path=ckpt_path)
    return made, used.lrs


def schedule_of(trainer):
    return trainer.lr_scheduler_configs[0].scheduler


def curve(schedule_class, total, lr=0.1, **arguments):
    return schedule_class(torch.optim.SGD([torch.zeros(1)], lr=lr), total, **arguments).simulate()


ACCUMULATION = {"accumulate": {0: 1, 1: 5}, "relax": {0: 5, 1: 1}}


@pytest.mark.parametrize("brought", [False, True], ids=["bound", "brought"])
@pytest.mark.parametrize(
    ("arguments", "callback", "steps"),
    [
        ({"max_epochs": 3}, None, 75),
        ({"max_steps": 7}, None, 7),
        ({"max_steps": 60}, None, 60),
        ({"max_steps": 7, "max_epochs": 3}, None, 7),
        ({"max_steps": 90, "max_epochs": 3}, None, 75),
        ({"max_epochs": -1, "max_steps": 60}, None, 60),
        ({"max_epochs": 3, "accumulate_grad_batches": 4}, None, 21),
        ({"max_epochs": 3, "accumulate_grad_batches": 30}, None, 3),
        ({"max_epochs": 3, "limit_train_batches": 0.5}, None, 36),
        ({"max_epochs": 3, "limit_train_batches": 0.5, "accumulate_grad_batches": 4}, None, 9),
        ({"max_epochs": 3, "limit_train_batches": 10}, None, 30),
        ({"max_epochs": 3, "overfit_batches": 5}, None, 15),
        ({"fast_dev_run": 4}, None, 4),
        ({"max_epochs": 3}, {0: 1, 1: 5}, 35),
        ({"max_epochs": 3}, {0: 5, 1: 1}, 55),
        ({"max_epochs": 3, "max_time": timedelta(hours=1)}, None, 75),
    ],
)
def test_horizon_is_the_number_of_optimizer_steps(arguments, callback, steps, brought):
    model = Regression(schedule=None if brought else WarmupCosineLR)
    callbacks = [LRSchedule("linear_warmup_cosine") if brought else LRSchedule()]
    if callback is not None:
        callbacks.append(GradientAccumulationScheduler(dict(callback)))
    trainer, used = fit(model, *callbacks, batches=25, **arguments)
    assert schedule_of(trainer).max_steps == trainer.global_step == steps
    assert schedule_of(trainer).last_epoch == steps
    assert used == curve(WarmupCosineLR, steps)


def test_stream_with_steps_or_a_limit_is_right():
    data = DataLoader(Stream(), batch_size=2)
    for arguments, steps in (({"max_steps": 60}, 60), ({"max_epochs": 3, "limit_train_batches": 10}, 30)):
        _, used = fit(Regression(schedule=WarmupCosineLR), LRSchedule(), data=data, **arguments)
        assert used == curve(WarmupCosineLR, steps)


@pytest.mark.parametrize("arguments", [{"max_epochs": 3}, {"max_epochs": 3, "max_steps": 1000}])
def test_stream_with_epochs_of_unknown_length_is_an_error(arguments):
    data = DataLoader(Stream(), batch_size=2)
    with pytest.raises(MisconfigurationException, match=r"no length.*max_steps"):
        fit(Regression(schedule=WarmupCosineLR), LRSchedule(), data=data, **arguments)


@pytest.mark.parametrize("arguments", [{"max_time": timedelta(hours=1)}, {"max_epochs": -1}])
def test_training_without_a_count_is_an_error(arguments):
    with pytest.raises(MisconfigurationException, match="max_time"):
        fit(Regression(schedule=WarmupCosineLR), LRSchedule(), **arguments)


def test_curve_without_an_end_needs_no_count():
    def schedule(optimizer):
        return InverseSqrtLR(optimizer, warmup=5)

    class StopAt30(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 30

    _, used = fit(Regression(schedule=schedule), LRSchedule(), StopAt30(), max_epochs=-1)
    assert used == InverseSqrtLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), warmup=5).simulate(30)


def test_a_horizon_given_by_the_user_stays():
    trainer, used = fit(Regression(schedule=lambda optimizer: CosineLR(optimizer, 100)), LRSchedule(), max_steps=20)
    assert schedule_of(trainer).max_steps == 100
    assert used == curve(CosineLR, 100)[:20]


def test_stopping_early_leaves_the_horizon():
    class StopAt9(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.should_stop = trainer.global_step >= 9

    trainer, used = fit(Regression(schedule=WarmupCosineLR), LRSchedule(), StopAt9(), max_steps=81)
    assert trainer.global_step == 9
    assert used == curve(WarmupCosineLR, 81)[:9]


def test_without_the_callback_an_unbound_schedule_says_what_to_add():
    def schedule(optimizer):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": WarmupCosineLR(optimizer), "interval": "step"}}

    with pytest.raises(RuntimeError, match=r"LRSchedule\(\)"):
        fit(Regression(schedule=schedule), max_steps=5)


@pytest.mark.parametrize("arguments", [{}, {"max_steps": 5}])
def test_what_lightning_would_step_per_epoch_is_refused_before_the_first_update(arguments):
    module = Regression(schedule=partial(WarmupCosineLR, **arguments))
    before = [parameter.clone() for parameter in module.parameters()]
    with pytest.raises(RuntimeError, match=r"trainer.callbacks\+=lightning_hpo.LRSchedule"):
        fit(module, max_steps=5)
    assert all(torch.equal(*pair) for pair in zip(before, module.parameters(), strict=True))
    fit(Regression(schedule=partial(WarmupCosineLR, **arguments)), LRSchedule(), max_steps=5)


def test_nothing_to_bind():
    with pytest.raises(MisconfigurationException, match="no LR scheduler"):
        fit(Regression(), LRSchedule(), max_steps=5)

    def torch_schedule(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5)

    with pytest.raises(MisconfigurationException, match="CosineAnnealingLR"):
        fit(Regression(schedule=torch_schedule), LRSchedule(), max_steps=5)


def test_never_replaces_a_schedule():
    with pytest.raises(MisconfigurationException, match=r"does not replace.*LinearDecayLR"):
        fit(Regression(schedule=LinearDecayLR), LRSchedule("cosine"), max_steps=5)


def test_frequency_is_refused():
    def schedule(optimizer):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": CosineLR(optimizer), "frequency": 2}}

    with pytest.raises(MisconfigurationException, match="frequency 2"):
        fit(Regression(schedule=schedule), LRSchedule(), max_steps=5)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"name": "cosin"}, ValueError, "Did you mean 'cosine'"),
        ({"name": "cosine", "wamup": 3}, TypeError, "Did you mean 'warmup'"),
        ({"name": "cosine", "warmup": -3}, ValueError, "-3"),
        ({"name": "cosine", "max_lr": 0.1, "min_lr": 0.2}, ValueError, "0.2 > 0.1"),
        ({"warmup": 3}, TypeError, "no `name`"),
        ({"on_resume": "widen"}, ValueError, "widen"),
    ],
)
def test_bad_arguments_fail_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        LRSchedule(**arguments)


def test_warmup_longer_than_training_is_an_error_before_the_first_step():
    with pytest.raises(ValueError, match="500 > 20"):
        fit(Regression(), LRSchedule("cosine", warmup=500), max_steps=20)


def test_brought_schedule_takes_every_argument():
    _, used = fit(Regression(), LRSchedule("step", max_lr=0.2, decay_rate=0.5, decay_steps=10), max_steps=30)
    assert used == [0.2] * 10 + [0.1] * 10 + [0.05] * 10


# --- resume -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brought", [False, True], ids=["bound", "brought"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_in_the_middle_of_an_epoch_is_bit_equal(tmp_path, accumulate, brought):
    def run(*callbacks, **arguments):
        schedule = LRSchedule("linear_warmup_cosine", warmup=3) if brought else LRSchedule()
        model = Regression(schedule=None if brought else lambda optimizer: WarmupCosineLR(optimizer, warmup=3))
        return fit(model, schedule, *callbacks, max_epochs=3, accumulate_grad_batches=accumulate, **arguments)[1]

    at = 14 // accumulate
    whole = run(ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=at, save_top_k=-1))
    assert run(ckpt_path=tmp_path / f"step={at}.ckpt") == whole[at:]
    assert len(whole[at:]) == (16 if accumulate == 1 else 8)


@pytest.mark.parametrize("brought", [False, True], ids=["bound", "brought"])
@pytest.mark.parametrize(("on_resume", "total"), [("extend", 200), ("keep", 100)])
def test_resumed_with_a_longer_horizon(tmp_path, on_resume, total, brought):
    def run(*callbacks, **arguments):
        named = {"name": "linear_warmup_cosine", "warmup": 10} if brought else {}
        model = Regression(schedule=None if brought else lambda optimizer: WarmupCosineLR(optimizer, warmup=10))
        return fit(model, LRSchedule(on_resume=on_resume, **named), *callbacks, **arguments)[1]

    run(ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=37, save_top_k=-1), max_steps=100)
    used = run(max_steps=200, ckpt_path=tmp_path / "step=37.ckpt")
    expected = WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), total, warmup=10).simulate(200)
    assert used == expected[37:]
    if on_resume == "extend":
        assert [used[38 - 37], used[100 - 37], used[199 - 37]] == pytest.approx(
            [0.094736, 0.054129, 6.835e-6], rel=1e-4
        )


def test_checkpoint_of_another_scheduler_resumes_at_its_step(tmp_path):
    def torch_schedule(optimizer):
        return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)

    fit(Regression(schedule=torch_schedule), ModelCheckpoint(tmp_path, filename="last"), max_epochs=2)
    _, used = fit(Regression(schedule=CosineLR), LRSchedule(), max_epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert used == curve(CosineLR, 30)[20:]


def test_changed_base_lr_survives_the_next_step_and_a_resume(tmp_path):
    class Halve(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 10:
                schedule_of(trainer).set_base_lr([0.5 * lr for lr in schedule_of(trainer).base_lrs])

    full = curve(WarmupCosineLR, 30)
    checkpoint = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=15, save_top_k=-1)
    _, used = fit(Regression(schedule=WarmupCosineLR), LRSchedule(), Halve(), checkpoint, max_steps=30)
    assert used == pytest.approx(full[:10] + [0.5 * lr for lr in full[10:]], rel=1e-15)
    resume_from = tmp_path / "step=15.ckpt"
    _, resumed = fit(Regression(schedule=WarmupCosineLR), LRSchedule(), max_steps=30, ckpt_path=resume_from)
    assert resumed == used[15:]


def test_resumed_with_another_learning_rate_trains_at_it(tmp_path):
    """Lightning restores the optimizer with the old learning rate; the schedule is that of the new module."""
    fit(Regression(lr=0.1, schedule=CosineLR), LRSchedule(), ModelCheckpoint(tmp_path, filename="last"), max_epochs=2)
    model = Regression(lr=0.01, schedule=CosineLR)
    trainer, used = fit(model, LRSchedule(), max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    assert used == curve(CosineLR, 40, lr=0.01)[20:]
    assert trainer.optimizers[0].param_groups[0]["initial_lr"] == 0.01


# --- manual optimization ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brought", [False, True], ids=["bound", "brought"])
@pytest.mark.parametrize(("arguments", "steps"), [({"max_steps": 20}, 10), ({"max_epochs": 1}, 25)])
def test_two_manual_optimizers_count_training_steps(arguments, steps, brought):
    model = TwoOptimizers(schedule=None if brought else WarmupCosineLR)
    callback = LRSchedule("linear_warmup_cosine") if brought else LRSchedule()
    trainer, used = fit(model, callback, batches=25, **arguments)
    assert model.training_steps == steps
    assert len(trainer.lr_scheduler_configs) == 2
    for config in trainer.lr_scheduler_configs:
        assert (config.scheduler.max_steps, config.scheduler.last_epoch) == (steps, steps)
    assert used[::2] == used[1::2] == curve(WarmupCosineLR, steps)


# --- LearningRateMonitor ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("brought", [False, True], ids=["bound", "brought"])
def test_learning_rate_monitor_logs_what_is_used(tmp_path, brought):
    logger = CSVLogger(tmp_path)
    used = UsedLR()
    trainer = L.Trainer(
        max_steps=30,
        logger=logger,
        log_every_n_steps=1,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        callbacks=[
            LearningRateMonitor("step"),
            LRSchedule("linear_warmup_cosine") if brought else LRSchedule(),
            used,
        ],
    )
    trainer.fit(Regression(schedule=None if brought else WarmupCosineLR), datamodule=Batches())
    logged = [row["lr-SGD"] for row in logger.experiment.metrics if "lr-SGD" in row]
    if not logged:  # already written
        lines = (tmp_path / "lightning_logs/version_0/metrics.csv").read_text().splitlines()
        column = lines[0].split(",").index("lr-SGD")
        logged = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert logged == used.lrs == curve(WarmupCosineLR, 30)
