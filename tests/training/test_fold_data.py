"""How data are told their fold, and what is refused before training."""

import functools
import itertools

import lightning.pytorch as pl
import pytest

from lightning_hpo import (
    BayesianTuner,
    HyperbandTuner,
    KFold,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Row,
)
from tests.training.test_folds import SPACE, WHOLE, Cut, LoadersOfAFold, OwnLoaders, Plain, options


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


def test_a_model_with_its_own_loaders_gets_its_fold_as_an_attribute(tmp_path):
    result = RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path)).fit(Methods)
    assert len(set(result.rows[0].folds)) == 3


class Held(LoadersOfAFold, pl.LightningDataModule):
    """Holds its fold, which ``setup`` reads."""

    def __init__(self, fold=0):
        super().__init__()
        self.save_hyperparameters()


def make_held():
    return Held()


def test_a_data_module_that_is_an_object_or_comes_from_a_function_gets_its_fold(tmp_path):
    seen = [
        RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path, name)).fit(Plain, datamodule=data).rows[0].folds
        for name, data in (("class", Cut), ("object", Cut()), ("held", Held()), ("function", make_held))
    ]
    assert seen[0] == seen[1]
    assert seen[2] == seen[3]
    assert len(set(seen[2])) == 3


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
    with pytest.raises(IndexError, match="list index out of range"):
        RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path)).fit(Plain, datamodule=TooFew)
    assert not (tmp_path / "s").exists()


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
