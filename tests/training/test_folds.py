"""Cross-validation: a job is a fold, a trial's value is the mean over its folds, and hopeless trials are stopped."""

import csv
import functools
import math
import random
import statistics
import time

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch.utils.data import DataLoader, Subset

from lightning_hpo import (
    BayesianTuner,
    KFold,
    OptunaTuner,
    RandomTuner,
    SearchFailedError,
)
from lightning_hpo.reporting.notebook import shown_in_notebook
from lightning_hpo.reporting.outside import view_of
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.schedulers.folds import FoldByFold
from lightning_hpo.testing import SchedulerTestCase
from lightning_hpo.testing.schedulers import simulate
from tests.support.small import Net, digits
from tests.training.test_tuners import CPU, recorded

SPACE = {"lr": "loguniform(1e-3, 1)"}
WHOLE = functools.partial(KFold, digits()[0], 64)  # its arguments `fold` and `folds` are filled in


class Plain(Net):
    """A constant learning rate, so that scores differ more."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Cut(pl.LightningDataModule):
    """Told by methods, after its ``setup``."""

    def setup(self, stage):
        self.dataset = digits()[0]

    def setup_folds(self, folds):
        self.parts = torch.arange(len(self.dataset)) % folds

    def setup_fold_index(self, fold):
        self.fold = fold

    def loader(self, chosen):
        return DataLoader(Subset(self.dataset, chosen.nonzero().flatten().tolist()), batch_size=64)

    def train_dataloader(self):
        return self.loader(self.parts != self.fold)

    def val_dataloader(self):
        return self.loader(self.parts == self.fold)


class LoadersOfAFold:
    """Mixed into a module or data module whose hyperparameters have a fold."""

    def setup(self, stage):
        self.data = WHOLE(folds=3, fold=self.hparams.fold)

    def train_dataloader(self):
        return self.data.train_dataloader()

    def val_dataloader(self):
        return self.data.val_dataloader()


class OwnLoaders(LoadersOfAFold, Plain):
    """A model with loaders of its own."""

    def __init__(self, fold, lr=0.1):
        super().__init__(lr)


def options(root, name="s", **more):
    return {"monitor": "val_loss", "root": root, "name": name, "verbose": False, "trainer": CPU, "folds": 3, **more}


def test_a_value_is_the_mean_over_folds_that_are_each_trained_from_scratch(tmp_path):
    tuner = RandomTuner(SPACE, max_steps=8, n_trials=2, **options(tmp_path, verbose="lines"))
    assert tuner.planned_steps() == 2 * 3 * 8
    result = tuner.fit(Plain, datamodule=WHOLE)
    for row in result.rows:
        assert row.state == "complete"
        assert list(row.values) == [8, 16, 24]
        for count, value in enumerate(row.values.values(), start=1):
            assert value == statistics.fmean(row.folds[:count])
        assert row.spread == statistics.stdev(row.folds)
    for fold in range(3):
        alone = RandomTuner(SPACE, max_steps=8, n_trials=2, **options(tmp_path, f"alone{fold}", folds=None))
        rows = alone.fit(Plain, datamodule=functools.partial(WHOLE, folds=3, fold=fold)).rows
        assert [row.score for row in rows] == [row.folds[fold] for row in result.rows]
    best = result.rows[result.best_trial]
    assert result.best_score == best.score == min(row.score for row in result.rows if row.score is not None)
    assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 8
    assert list(result.dataframe()["spread"]) == [row.spread for row in result.rows]
    assert "± over folds" in (tmp_path / "s" / "report.html").read_text()
    text = (tmp_path / "s" / "best.yaml").read_text()
    assert f"on fold 2 at step 8 of trial {best.number}, which has {best.score} ± " in text
    config = yaml.safe_load(text)
    assert config["trainer"]["max_steps"] == 8
    assert config["data"]["fold"] == 2
    pl.seed_everything(config["seed_everything"], workers=True)
    trainer = pl.Trainer(**config["trainer"], logger=False, enable_checkpointing=False)
    trainer.fit(Plain(**config["model"]), datamodule=WHOLE(folds=3, fold=2))
    assert trainer.callback_metrics["val_loss"].item() == best.folds[-1]
    again = result.retrain(seed=best.seed)
    assert again.rows[0].folds == best.folds


class Lines(Logger):
    """Appends to a file of the run."""

    name = version = ""

    def __init__(self, folder, name):
        super().__init__()
        self.file = folder / "csv" / name / "metrics.csv"

    def log_hyperparams(self, params, *args, **more):
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text("step,val_loss\n")

    def log_metrics(self, metrics, step=None):
        with self.file.open("a") as file:
            file.write(f"{step},{metrics.get('val_loss', '')}\n")


@pytest.mark.parametrize("logger", ["csv", "function"])
def test_each_fold_has_a_run_of_its_own(tmp_path, logger):
    made = {"csv": "csv", "function": lambda trial: Lines(tmp_path / "s", trial.name)}[logger]
    trainer = {"accelerator": "cpu", "log_every_n_steps": 1, "callbacks": [ModelCheckpoint(save_top_k=-1)]}
    more = {"logger": made, "trainer": trainer}
    row = RandomTuner(SPACE, max_steps=4, n_trials=1, **options(tmp_path, **more)).fit(Plain, datamodule=WHOLE).rows[0]
    for fold, score in enumerate(row.folds):
        with (tmp_path / "s" / "csv" / f"s-0000-fold{fold}" / "metrics.csv").open(newline="") as file:
            logged = [line for line in csv.DictReader(file) if line["val_loss"]]
        assert [(int(line["step"]), float(line["val_loss"])) for line in logged] == [(3, score)]
        assert len([*(tmp_path / "s" / "trials" / "0000" / "checkpoints" / f"fold{fold}").iterdir()]) == 1


@pytest.mark.parametrize("kind", ["bayesian", "optuna"])
def test_a_search_that_was_cut_equals_one_that_was_not(tmp_path, kind):
    kinds = {"bayesian": functools.partial(BayesianTuner, n_startup_trials=2, confirm=(1, 2)), "optuna": OptunaTuner}

    def search(name):
        callbacks = [Interrupt(), EarlyStopping("val_acc", mode="max", min_delta=2, patience=1)]
        more = {"trainer": {**CPU, "callbacks": callbacks, "val_check_interval": 2}, "score": "best"}
        return kinds[kind](
            SPACE, n_trials=3, max_epochs=2.5, checkpoint_every=1, **options(tmp_path, name, folds=2, **more)
        ).fit(Plain, datamodule=Cut)

    whole = search("whole")
    assert all(len(row.folds) == 2 for row in whole.rows)
    for batches in (2, 5, 8):
        Interrupt.left = batches
        with pytest.raises(KeyboardInterrupt):
            search("cut")
    Interrupt.left = 0
    cut = search("cut")
    assert recorded(cut) == recorded(whole)
    assert [row.folds for row in cut.rows] == [row.folds for row in whole.rows]
    assert set(whole.rows[0].global_steps.values()) == {4}  # EarlyStopping at the second validation of each fold
    assert [row.confirms is None for row in whole.rows] == [True] * 3 + [False] * 2 * (kind == "bayesian")


class Interrupt(pl.Callback):
    """Ends the search in the middle of a fold."""

    left = 0

    def on_train_batch_end(self, trainer, *_):
        if trainer.max_steps > 1 and type(self).left:
            type(self).left -= 1
            if not type(self).left:
                raise KeyboardInterrupt


def test_worker_processes_train_the_same_folds(tmp_path):
    first, second = (
        RandomTuner(SPACE, max_steps=4, n_trials=2, **options(tmp_path, f"w{workers}", folds=2, workers=workers)).fit(
            OwnLoaders
        )
        for workers in (1, 2)
    )
    assert [row.folds for row in second.rows] == [row.folds for row in first.rows]
    assert len({score for row in first.rows for score in row.folds}) == 4


class Limited(Plain):
    """Infeasible on one of the folds only."""

    def on_validation_epoch_end(self):
        self.log("too_big", float(self.hparams.hidden > 8 and self.trainer.datamodule.fold == 1) - 0.5)


def test_a_trial_is_feasible_if_it_is_on_each_fold(tmp_path):
    space = {"hidden": [8, 16, 4, 12, 32]}
    start = [{"hidden": width} for width in (16, 8, 4, 8, 12)]
    result = RandomTuner(space, max_steps=2, n_trials=5, start=start, **options(tmp_path, constraints=["too_big"])).fit(
        Limited, datamodule=KFold(digits()[0], 64)
    )
    assert [row.feasible for row in result.rows] == [False, True, True, True, False]
    assert result.study.trials[0].constraints == {"too_big": 0.5}
    assert [len(row.folds) for row in result.rows] == [3, 3, 3, 3, 2]  # the last one is hopeless


def test_a_function_has_folds(tmp_path):
    told = []

    def loss(job, params):
        told.append((job.trial, job.fold, job.max_steps))
        return params["x"] + job.fold

    result = RandomTuner(
        {"x": "uniform(0, 1)"}, max_epochs=1.5, n_trials=1, **options(tmp_path, trainer=None)
    ).optimize(loss)
    assert told == [(0, fold, 1.5) for fold in range(3)]
    assert result.best_score == pytest.approx(result.best_params["x"] + 1)


def scores(number, fold):
    """Noise of 0.02 and an effect of each fold of 0.1; every fourth configuration is near the best."""
    rng = random.Random(number)
    quality = 0.01 * rng.random() if number % 4 == 0 else 0.1 + 0.4 * rng.random()
    return quality + 0.1 * fold + random.Random(1000 * number + fold).gauss(0, 0.02)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_hopeless_trial_is_stopped_after_two_folds(mode):
    sign = 1 if mode == "min" else -1

    def mean(number, step):
        return sign * statistics.fmean(scores(number, fold) for fold in range(step // 10))

    rows = simulate(FoldByFold(10, 5, 40, mode), mean).rows
    late = rows[12:]
    assert statistics.fmean(row.step for row in late if row.number % 4 == 0) > 30
    assert statistics.fmean(row.step for row in late if row.number % 4) < 25
    assert min(row.step for row in rows) >= 20
    best = min(rows, key=lambda row: sign * mean(row.number, 50))
    assert best.step == 50


def falling_behind(job, params):
    time.sleep(0.05)  # so that the time left can be known
    return (10.0 if job.trial > 2 else 0.1 * job.trial) + 0.01 * job.fold


def test_a_search_that_is_over_has_no_time_left_and_says_what_was_stopped(tmp_path, capsys):
    given = options(tmp_path, verbose="lines") | {"monitor": None, "trainer": None}
    result = RandomTuner(SPACE, max_steps=1, n_trials=5, **given).optimize(falling_behind)
    assert [row.state for row in result.rows] == ["complete"] * 3 + ["pruned"] * 2
    said = capsys.readouterr().out
    assert said.count("stopped after 2 folds") == 2
    lines = [line for line in said.splitlines() if line.endswith("]")]
    assert len(lines) == 13
    assert lines[-1].endswith("[13 steps]")
    view = view_of(read_run(tmp_path / "s"))
    assert view.plan.steps == 15
    assert "100%  13 of 13 steps" in shown_in_notebook(view)["text/plain"]


class TestContract(SchedulerTestCase):
    @pytest.fixture(params=[FoldByFold(3, 2, 5), FoldByFold(7, 5, 9, "max")], ids=str)
    def scheduler(self, request):
        return request.param


def test_trials_that_all_fail_in_a_later_fold_end_the_search(tmp_path):
    def fails_late(job, params):
        return 1.0 if job.fold < 2 else math.nan

    def search(n_trials):
        return RandomTuner(SPACE, max_steps=2, n_trials=n_trials, **options(tmp_path)).optimize(fails_late)

    with pytest.raises(SearchFailedError, match="no trial succeeded"):
        search(3)
    with pytest.raises(SearchFailedError, match="5 trials in a row failed"):
        search(20)
