"""Cross-validation: a job is a fold, a trial's value is the mean over its folds, and hopeless trials are stopped."""

import csv
import functools
import itertools
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
    HyperbandTuner,
    KFold,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Row,
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


class OwnLoaders(Plain):
    """A model with loaders of its own."""

    def __init__(self, fold, lr=0.1):
        super().__init__(lr)

    def setup(self, stage):
        self.data = WHOLE(folds=3, fold=self.hparams.fold)

    def train_dataloader(self):
        return self.data.train_dataloader()

    def val_dataloader(self):
        return self.data.val_dataloader()


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
    assert result.best_score == best.score == min(row.score for row in result.rows)
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


class Methods(Plain):
    """A model with loaders of its own, and methods by which only a data module is told."""

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.fold = 0

    def setup(self, stage):
        self.data = WHOLE(folds=3, fold=self.fold)

    def setup_folds(self, folds):
        raise AssertionError

    setup_fold_index = setup_folds
    train_dataloader, val_dataloader = OwnLoaders.train_dataloader, OwnLoaders.val_dataloader


def test_a_model_with_loaders_of_its_own_is_told_by_its_attribute(tmp_path):
    result = RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path)).fit(Methods)
    assert len(set(result.rows[0].folds)) == 3


class Held(pl.LightningDataModule):
    """Holds its fold, which ``setup`` reads."""

    def __init__(self, fold=0):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.data = WHOLE(folds=3, fold=self.hparams.fold)

    def train_dataloader(self):
        return self.data.train_dataloader()

    def val_dataloader(self):
        return self.data.val_dataloader()


def make_held():
    return Held()


def test_a_data_module_that_is_an_object_or_comes_from_a_function_is_told_too(tmp_path):
    seen = [
        RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path, name)).fit(Plain, datamodule=data).rows[0].folds
        for name, data in (("class", Cut), ("object", Cut()), ("held", Held()), ("function", make_held))
    ]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert len(set(seen[2])) == 3


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


class Deaf(pl.LightningDataModule):
    """Knows no folds."""

    def train_dataloader(self):
        return WHOLE().train_dataloader()

    def val_dataloader(self):
        return WHOLE().val_dataloader()


class Named(Plain):
    """Has an argument `fold`, but does not bring the loaders."""

    def __init__(self, lr=0.1, fold=0):
        super().__init__(lr)

    def on_fit_start(self):
        self.fold = self.hparams.fold


class Ignores(Deaf):
    """Takes a fold and never reads it."""

    def __init__(self, fold=0):
        super().__init__()
        self.fold = fold


def test_what_is_refused_before_training(tmp_path):
    def random_search(**more):
        return RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path, **more))

    with pytest.raises(ValueError, match="`folds` is 3, but Deaf cannot be told which part of the data validates"):
        random_search().fit(Plain, datamodule=Deaf)
    with pytest.raises(ValueError, match="but Deaf cannot be told which part"):
        random_search().fit(Named, datamodule=Deaf)
    with pytest.warns(UserWarning, match="nothing that training reads changes with the argument 'data.fold'"):
        random_search().fit(Plain, datamodule=Ignores)
    with pytest.raises(ValueError, match="only its constructor reads `fold`: give the class as `datamodule`"):
        random_search(name="object").fit(Plain, datamodule=Ignores())
    for make in (HyperbandTuner, functools.partial(BayesianTuner, n_trials=2, median_stopping=True)):
        with pytest.raises(ValueError, match="compares trials before their full budget"):
            make(SPACE, max_steps=400, **options(tmp_path))
    with pytest.raises(ValueError, match="`folds` means nothing for a population: members copy weights"):
        PopulationTuner(SPACE, max_steps=400, **options(tmp_path))
    for folds in (1, 2.0, "3", True):
        with pytest.raises(ValueError, match="`folds` must be an int >= 2, got "):
            random_search(folds=folds)
    with pytest.raises(ValueError, match="`folds` needs a search with one `monitor`"):
        OptunaTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path, monitor=("val_loss", "val_acc")))


class TooFew(Cut):
    """Has two parts, whatever it is told."""

    def setup_folds(self, folds):
        super().setup_folds(2)

    def setup_fold_index(self, fold):
        super().setup_fold_index([0, 1][fold])


def test_more_folds_than_the_data_have_parts_are_found_before_training(tmp_path):
    with pytest.raises(IndexError):
        RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path)).fit(Plain, datamodule=TooFew)
    assert not (tmp_path / "s").exists()


def test_trials_that_all_fail_in_a_later_fold_end_the_search(tmp_path):
    def fails_late(job, params):
        return 1.0 if job.fold < 2 else math.nan

    def search(n_trials):
        return RandomTuner(SPACE, max_steps=2, n_trials=n_trials, **options(tmp_path)).optimize(fails_late)

    with pytest.raises(SearchFailedError, match="no trial succeeded"):
        search(3)
    with pytest.raises(SearchFailedError, match="5 trials in a row failed"):
        search(20)


def test_folds_are_disjoint_and_cover_everything():
    for parts in (None, [0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 2]):
        cut = [KFold(range(11), folds=3, fold=fold, parts=parts) for fold in range(3)]
        held = [list(data.val_dataloader().dataset) for data in cut]
        assert sorted(itertools.chain(*held)) == list(range(11))
        for data, part in zip(cut, held, strict=True):
            assert sorted([*data.train_dataloader().dataset, *part]) == list(range(11))
    assert held[0] == [0, 3, 6]
    assert KFold(range(5), num_workers=1).val_dataloader().num_workers == 1


def test_wrong_arguments_of_kfold():
    for error, message, arguments in (
        (ValueError, "`fold` must be below `folds` 5, got 5", {"fold": 5}),
        (ValueError, "`folds` is 11, but no sample is in part 10: 10 samples", {"folds": 11}),
        (ValueError, "`parts` must have a number for each sample, got 2 for 10", {"parts": [0, 1]}),
        (TypeError, "`parts` must be integers", {"parts": [0.5, 1] * 5, "folds": 2}),
        (TypeError, "`shuffle` is not an argument: parts are drawn at random", {"shuffle": True}),
        (
            ValueError,
            "`parts` must be from 0 to 1, as `folds` is 2, got 0 to 4",
            {"parts": [0, 1, 2, 3, 4] * 2, "folds": 2},
        ),
        (TypeError, "`dataset` must have a length", {"dataset": iter(())}),
    ):
        with pytest.raises(error, match=message):
            KFold(**{"dataset": range(10), **arguments})
    assert Row(0, folds=(0.1,)).spread is None
