"""Modules, data modules, callbacks and loggers of ``pytorch_lightning`` train as those of ``lightning``."""

import inspect
import logging

import lightning.pytorch as new
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_hpo import BayesianTuner, HyperbandTuner, PopulationTuner, RandomTuner
from lightning_hpo.training.namespaces import of_lightning
from tests.support.small import digits

old = pytest.importorskip("pytorch_lightning")
LR = {"lr": "loguniform(1e-2, 1)"}


def made(package):  # noqa: C901  # many small classes
    """The same classes over the bases of one package."""

    class Inner(package.LightningModule):  # type: ignore[name-defined]  # of either package
        """A module within the module."""

        def __init__(self, hidden):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(64, hidden), nn.ReLU(), nn.Dropout(0.2), nn.Linear(hidden, 10))

        def forward(self, x):
            assert self.trainer.global_step >= 0
            return self.net(x)

    class Net(package.LightningModule):  # type: ignore[name-defined]  # of either package
        def __init__(self, lr=0.1, hidden=16):
            super().__init__()
            self.save_hyperparameters()
            self.net = Inner(hidden)

        def training_step(self, batch, batch_idx):
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("train_loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log_dict({"val_loss": nn.functional.cross_entropy(self.net(batch[0]), batch[1])})

        def on_save_checkpoint(self, checkpoint):
            super().on_save_checkpoint(checkpoint)
            checkpoint["mine"] = 1

        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
            total = self.trainer.estimated_stepping_batches
            schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.hparams.lr, total_steps=total)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    class Data(package.LightningDataModule):  # type: ignore[name-defined]  # of either package
        def __init__(self, batch_size=16):
            super().__init__()
            self.save_hyperparameters()

        def setup(self, stage):
            self.ready = digits()
            assert self.trainer is not None

        def train_dataloader(self):
            return DataLoader(self.ready[0], batch_size=self.hparams.batch_size, shuffle=True)

        def val_dataloader(self):
            return DataLoader(self.ready[1], batch_size=200)

    class Counting(package.Callback):  # type: ignore[name-defined]  # of either package
        def __init__(self):
            super().__init__()
            self.steps = 0

        def on_train_batch_end(self, trainer, module, *rest):
            super().on_train_batch_end(trainer, module, *rest)
            self.steps += 1

        def state_dict(self):
            return {"steps": self.steps}

        def load_state_dict(self, state):
            self.steps = state["steps"]

    return Net, Data, Counting


def values(result):
    return [(dict(row.params), dict(row.values), row.state) for row in result.trials()]


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (HyperbandTuner, {"max_steps": 18}),
        (BayesianTuner, {"max_steps": 6, "n_trials": 3}),
        (PopulationTuner, {"max_steps": 9, "interval": 3, "population_size": 3}),
    ],
)
def test_a_search_over_one_equals_that_over_the_other(tmp_path, kind, options):
    results = []
    for package in (new, old):
        net, data, counting = made(package)
        callbacks = [counting(), package.callbacks.LearningRateMonitor(), package.callbacks.EarlyStopping("val_loss")]
        trainer = {"accelerator": "cpu", "callbacks": callbacks[: 1 if kind is PopulationTuner else 3]}
        result = kind(
            LR, monitor="val_loss", root=tmp_path, name=package.__name__, trainer=trainer, verbose=False, **options
        ).fit(net, datamodule=data)
        results.append(result)
        assert isinstance(result.best_model(), net)
        assert (
            net.load_from_checkpoint(result.best_checkpoint, weights_only=True).hparams.lr == result.best_params["lr"]
        )
    assert values(results[0]) == values(results[1])


def test_the_loggers_and_checkpoint_callbacks_of_the_other_package(tmp_path):
    net, data, _ = made(old)
    trainer = {
        "accelerator": "cpu",
        "logger": old.loggers.CSVLogger(tmp_path / "logs", name="csv"),
        "callbacks": [old.callbacks.ModelCheckpoint(monitor="val_loss", dirpath=tmp_path / "kept")],
    }
    RandomTuner(
        LR, max_steps=3, n_trials=1, monitor="val_loss", root=tmp_path, name="r", trainer=trainer, verbose=False
    ).fit(net, datamodule=data)
    assert list((tmp_path / "logs").rglob("metrics.csv"))
    assert list((tmp_path / "kept").glob("*.ckpt"))


def test_every_class_that_both_packages_export_takes_the_place_of_the_other():
    for where in ("", "callbacks", "loggers"):
        olds, news = (getattr(package, where) if where else package for package in (old, new))
        for name in news.__all__:
            kind = getattr(olds, name, None)
            if not inspect.isclass(kind) or name == "Trainer":
                continue
            own = type("Own", (kind,), {})
            own.__abstractmethods__ = frozenset()
            one = object.__new__(own)
            if isinstance(one, nn.Module):
                nn.Module.__init__(one)
            before = type(one)
            assert isinstance(of_lightning(one), getattr(news, name)), name
            assert isinstance(one, before)
            assert type(of_lightning(one)) is type(one)
            assert type(one).__name__ == "Own"


def test_a_module_is_refused_and_a_data_module_copied_as_ever_and_other_things_stay_as_they_are(tmp_path):
    net, data, _ = made(old)
    with pytest.raises(TypeError, match="got an instance of Net: pass `Net` itself"):
        RandomTuner(LR, max_steps=3, n_trials=1, monitor="val_loss").fit(net())
    given = data()
    result = RandomTuner(LR, max_steps=2, n_trials=1, monitor="val_loss", root=tmp_path).fit(net, datamodule=given)
    assert len(result.trials()) == 1
    assert type(given) is data
    ours = made(new)[0]()
    for value in (ours, nn.Linear(2, 2), 3, "text", [1]):
        before = type(value)
        assert type(of_lightning(value)) is before


@pytest.mark.parametrize("package", [new, old])
def test_nothing_is_said_for_each_trial_whichever_package_was_imported_last(tmp_path, package, caplog):
    rank_zero = pytest.importorskip("lightning_utilities.core.rank_zero")
    before = rank_zero.log
    try:
        rank_zero.log = logging.getLogger(f"{package.__name__}.utilities.rank_zero")  # what its import does
        net, data, _ = made(package)
        with caplog.at_level(logging.INFO):
            RandomTuner(
                LR, max_steps=3, n_trials=1, monitor="val_loss", root=tmp_path, name="r",
                trainer={"accelerator": "cpu"}, verbose=False,
            ).fit(net, datamodule=data)  # fmt: skip
    finally:
        rank_zero.log = before
    assert [
        record.message for record in caplog.records if "TPU" in record.message or "max_steps" in record.message
    ] == []
