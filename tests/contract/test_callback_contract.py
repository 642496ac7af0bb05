"""Every public callback of Lightning, under every tuner: training equals one uninterrupted job, or is refused.

The callbacks are found by introspection, so one of a later release of Lightning fails here until it has its place.
"""

import datetime as dt

import lightning.pytorch.callbacks as lightning_callbacks
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BaseFinetuning,
    BasePredictionWriter,
    BatchSizeFinder,
    Callback,
    Checkpoint,
    DeviceStatsMonitor,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    ModelPruning,
    ModelSummary,
    OnExceptionCheckpoint,
    ProgressBar,
    RichModelSummary,
    RichProgressBar,
    SpikeDetection,
    StochasticWeightAveraging,
    ThroughputMonitor,
    Timer,
    TQDMProgressBar,
    WeightAveraging,
)
from lightning.pytorch.loggers import CSVLogger
from optuna.pruners import MedianPruner

from lightning_hpo import BayesianTuner, HyperbandTuner, OptunaTuner, PopulationTuner, checkpoints
from lightning_hpo.records import CHECKPOINT, Task
from lightning_hpo.schedulers import Job
from tests.support.idioms import Data, Net

# What Lightning says of OnExceptionCheckpoint, and of ThroughputMonitor in a module that does not count its operations.
pytestmark = pytest.mark.filterwarnings(r"ignore:.?\.fit\(ckpt_path=", "ignore:When using the `ThroughputMonitor`")
R = 12  # optimizer steps; 5 make an epoch


class Tuned(Net):
    """A backbone and a head, so that all callbacks have something to work on."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = self.net[0]

    def training_step(self, batch, batch_idx):
        return {"loss": super().training_step(batch, batch_idx)}

    def configure_optimizers(self):
        return torch.optim.SGD(
            [parameter for parameter in self.parameters() if parameter.requires_grad], lr=self.hparams.lr, momentum=0.5
        )


class Unfreeze(BaseFinetuning):
    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer)


class Writer(BasePredictionWriter):
    def write_on_batch_end(self, *_):
        raise AssertionError("nothing is predicted in a search")


class Bar(ProgressBar):
    def disable(self):
        pass


REFUSED = "refused"
CALLBACKS = {
    Callback: Callback,
    Checkpoint: Checkpoint,
    BackboneFinetuning: lambda: BackboneFinetuning(1, lambda epoch: 1.5),
    BaseFinetuning: Unfreeze,
    BasePredictionWriter: lambda: Writer("batch"),
    BatchSizeFinder: REFUSED,
    DeviceStatsMonitor: DeviceStatsMonitor,
    EarlyStopping: lambda: EarlyStopping("val_loss", patience=1),
    EMAWeightAveraging: lambda: EMAWeightAveraging(decay=0.8),
    GradientAccumulationScheduler: lambda: GradientAccumulationScheduler({0: 2, 2: 1}),
    LambdaCallback: lambda: LambdaCallback(on_train_epoch_start=lambda trainer, module: module.net.train()),
    LearningRateFinder: REFUSED,
    LearningRateMonitor: LearningRateMonitor,
    ModelCheckpoint: lambda: ModelCheckpoint(monitor="val_loss", save_last=True),
    ModelPruning: REFUSED,
    ModelSummary: ModelSummary,
    OnExceptionCheckpoint: lambda: OnExceptionCheckpoint("."),
    ProgressBar: Bar,
    RichModelSummary: RichModelSummary,
    RichProgressBar: RichProgressBar,
    SpikeDetection: REFUSED,
    StochasticWeightAveraging: REFUSED,
    ThroughputMonitor: lambda: ThroughputMonitor(lambda batch: len(batch[0])),
    Timer: lambda: Timer(dt.timedelta(hours=9)),
    TQDMProgressBar: TQDMProgressBar,
    WeightAveraging: WeightAveraging,
}
EXAMPLES = {
    BatchSizeFinder: BatchSizeFinder,
    LearningRateFinder: LearningRateFinder,
    ModelPruning: lambda: ModelPruning("l1_unstructured", amount=0.3),
    SpikeDetection: SpikeDetection,
    StochasticWeightAveraging: lambda: StochasticWeightAveraging(swa_lrs=0.05),
}
SPACE = {"lr": "loguniform(1e-2, 1)"}


class Killed(Callback):
    """Ends the whole search at one step of the second trial or member, as a signal would."""

    left = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7 and Killed.left:
            Killed.left -= 1
            if not Killed.left:
                raise KeyboardInterrupt


def common(tmp_path, name, callback, *, killed=0):
    Killed.left = killed
    trainer = {
        "callbacks": [callback, Killed()],
        "accelerator": "cpu",
        "logger": CSVLogger(tmp_path / "logs"),
        "log_every_n_steps": 1,
    }
    return {
        "monitor": "val_loss", "max_steps": R, "root": tmp_path, "name": name, "trainer": trainer, "verbose": False,
    }  # fmt: skip


def hyperband(tmp_path, name, callback, **killed):
    return HyperbandTuner(SPACE, min_steps=3, eta=2, **common(tmp_path, name, callback, **killed))


def bayesian(tmp_path, name, callback, **killed):
    return BayesianTuner(SPACE, n_trials=3, checkpoint_every=2, **common(tmp_path, name, callback, **killed))


def optuna(tmp_path, name, callback, **killed):
    pruner = MedianPruner(n_startup_trials=1, n_warmup_steps=0)
    options = common(tmp_path, name, callback, **killed)
    return OptunaTuner(SPACE, n_trials=4, pruner=pruner, checkpoint_every=2, **options)


def population(tmp_path, name, callback, **killed):
    return PopulationTuner(SPACE, population_size=3, interval=3, **common(tmp_path, name, callback, **killed))


TUNERS = {"Hyperband": hyperband, "Bayesian": bayesian, "Optuna with a pruner": optuna, "population": population}


def test_every_public_callback_of_lightning_is_in_the_table():
    public = {getattr(lightning_callbacks, name) for name in lightning_callbacks.__all__}
    assert public == set(CALLBACKS)


def found(result):
    return [(row.params, row.values, row.state, row.parent) for row in result.rows], result.best_score


@pytest.mark.parametrize("tuner", TUNERS)
@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_a_search_with_the_callback_is_exact_or_refused(kind, tuner, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make = TUNERS[tuner]
    if CALLBACKS[kind] is REFUSED:
        with pytest.raises(Exception, match=kind.__name__) as refusal:
            make(tmp_path, "run", EXAMPLES[kind]()).fit(Tuned, datamodule=Data)
        assert any(
            word in str(refusal.value)
            for word in ("into the space", "use EMAWeightAveraging", "prune the best", "stop_on_nan")
        )
        assert not (tmp_path / "run").exists()
        return
    whole = make(tmp_path, "whole", CALLBACKS[kind]()).fit(Tuned, datamodule=Data)
    assert not [row for row in whole.rows if row.state == "failed"]
    if tuner == "Hyperband":
        promoted = [row for row in whole.rows if len(row.values) > 1]
        assert promoted or kind is EarlyStopping
        for row in promoted:
            assert row.values[max(row.values)] == in_one_job(make(tmp_path, "one", CALLBACKS[kind]()), row, tmp_path)
    else:
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, "cut", CALLBACKS[kind](), killed=2).fit(Tuned, datamodule=Data)
        cut = make(tmp_path, "cut", CALLBACKS[kind]()).fit(Tuned, datamodule=Data)
        assert found(cut) == found(whole)
        weights = [checkpoints.load(result.best_checkpoint)["state_dict"] for result in (cut, whole)]
        torch.testing.assert_close(*weights, rtol=0, atol=0)


def in_one_job(tuner, row, tmp_path):
    """Train a trial to the same step without a rung in between."""
    folder = tmp_path / "job" / str(row.number)
    steps = R if row.state == "complete" else max(row.values)
    outcome = tuner.objective(Tuned, datamodule=Data).run(Task(Job(steps, trial=row.number), row.params, folder))
    assert (folder / CHECKPOINT).exists()
    assert outcome.step == max(row.values)
    return outcome.score
