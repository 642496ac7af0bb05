"""Metric names and values of a space as people type them."""

import enum
import importlib
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torchmetrics
from optuna.distributions import CategoricalDistribution as Choice
from torch import nn

from lightning_hpo import BayesianTuner, OptunaTuner, RandomTuner
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.space import parse_space
from tests.small import Data, Net

MISTAKEN = {"SpectralDistortionIndex", "DaviesBouldinScore"}  # torchmetrics says so; by definition lower is better

GROUPS = [
    "audio",
    "classification",
    "clustering",
    "image",
    "nominal",
    "regression",
    "retrieval",
    "segmentation",
    "text",
]
SOUND_HIGHER = {"DeepImageStructureAndTextureSimilarity", "WordInfoPreserved"}


def metrics():
    for group in GROUPS:
        module = importlib.import_module(f"torchmetrics.{group}")
        for name, one in vars(module).items():
            if inspect.isclass(one) and issubclass(one, torchmetrics.Metric) and name not in MISTAKEN:
                yield name, getattr(one, "higher_is_better", None)


def asks(name):
    try:
        return direction(name, None) != "min"
    except ValueError as error:
        return f"`mode` must be given for `monitor` {name!r}" in str(error)


def test_metrics_of_torchmetrics_ask_for_the_mode_where_more_is_better_and_only_there():
    for name, more in metrics():
        for written in (name, f"val_{name}", f"val/{name}", f"val{name}"):
            if more is True:
                assert asks(written), written
            elif more is False and name not in SOUND_HIGHER:
                assert not asks(written), written


@pytest.mark.parametrize(
    "name",
    [
        "valAcc", "val_acc", "acc5", "top5", "mAP", "val/mAP_50", "mIoU", "nDCG@10", "pAUC", "R2", "reward",
        "ep_return", "hit_rate", "hitRate", "sensitivity", "corr", "spearmanr", "explained_variance",
        "val_balancedaccuracy",
        "log_likelihood", "logProb", "win_rate", "rougeL", "val_psnr", "F1", "f_beta", "VALACCURACY",
        "neg_mean_squared_error", "NegativePredictiveValue", "cosine_similarity", "episodeReward", "C-index",
    ],
)  # fmt: skip
def test_names_of_which_more_is_better_ask(name):
    assert asks(name)


@pytest.mark.parametrize(
    "name",
    [
        "val_loss", "valLoss", "loss", "val/mse", "rmse", "negative_log_likelihood", "nll", "val_perplexity", "wer",
        "precision_loss", "acc_error", "accLoss", "fid", "brier_score", "time", "x", "metric", "mapping", "f", "regret",
        "cross_entropy", "valloss", "KLDivergence",
    ],
)  # fmt: skip
def test_other_names_do_not(name):
    assert not asks(name)


def test_a_mode_that_is_given_counts():
    assert direction("val_MulticlassAccuracy", "min") == "min"
    assert direction("val_loss", "max") == "max"
    assert direction(None, None) == "min"


class Wide(Net):
    """Its widths as a list."""

    def __init__(self, lr=0.1, widths=(12,)):
        super().__init__(lr)
        self.save_hyperparameters()
        assert isinstance(widths, list)


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


LISTS = Choice([(12,), (12, 12)])


@pytest.mark.parametrize(
    "space", ["choice([12], [12, 12])", "choice((12,), (12, 12))", LISTS, Choice([[12], [12, 12]])]
)
@pytest.mark.parametrize("kind", [RandomTuner, BayesianTuner, OptunaTuner])
def test_lists_and_tuples_among_choices_are_delivered_as_lists_also_when_continued(tmp_path, space, kind):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "`isinstance|Choices for a categorical")
        for n_trials in (3, 5):
            result = kind(
                {"widths": space, "lr": "loguniform(1e-3, 1)"}, monitor="val_loss", max_steps=2, n_trials=n_trials,
                root=tmp_path, name="r", trainer={"accelerator": "cpu", "logger": False}, verbose=False,
            ).fit(Wide, datamodule=Data)  # fmt: skip
    assert {str(row.params["widths"]) for row in result.trials()} <= {"[12]", "[12, 12]"}
    assert len(result.trials()) == 5
    assert result.best_model().hparams.widths == result.best_params["widths"]


@pytest.mark.parametrize(
    "choices", [[nn.ReLU, nn.GELU], list(Colour), list(Number), [len], [Path("a")], [b"a"], [float("nan")], [[nn.ReLU]],
                [{"a": nn.ReLU}], [{1: 2}], [torch.zeros(2)]],
)  # fmt: skip
def test_what_a_study_cannot_store_is_refused_by_name_with_the_remedy(choices):
    with pytest.raises(ValueError, match=r"space\['act'\]: the choice .* is not text, .* Write its name, e.g. choice"):
        RandomTuner({"act": Choice(choices)}, max_steps=1, n_trials=1)


@pytest.mark.parametrize("choices", [(1, True), (False, 0), (1, 1.0), ([1], [True]), (2, 2), ("a", "a")])
def test_choices_that_optuna_takes_for_one_are_refused(choices):
    text = f"choice({', '.join(map(repr, choices))})"
    for space in (text, Choice(choices)):
        with pytest.raises(ValueError, match="is given twice.* Leave one out, or write it as text"):
            RandomTuner({"k": space}, max_steps=1, n_trials=1)


def test_numbers_of_numpy_among_choices_are_plain_numbers():
    (distribution,) = parse_space({"k": Choice([np.int64(3), np.float32(0.5), torch.tensor(7)])}).values()
    assert distribution.choices == (3, 0.5, 7)
    assert [type(one) for one in distribution.choices] == [int, float, int]
