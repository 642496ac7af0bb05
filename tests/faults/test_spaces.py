"""Metric names and values of a space as people type them."""

import enum
import importlib
import inspect
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from optuna.distributions import CategoricalDistribution as Choice
from torch import nn

from lightning_hpo import BayesianTuner, OptunaTuner, RandomTuner
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.space import parse_space
from tests.support.small import Data, Net

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
    assert {more for _, more in metrics()} >= {True, False}
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
        "cross_entropy", "valloss", "KLDivergence", "val_lpips", "LearnedPerceptualImagePatchSimilarity",
    ],
)  # fmt: skip
def test_other_names_do_not(name):
    assert not asks(name)


def test_a_mode_that_is_given_counts():
    assert direction("val_MulticlassAccuracy", "min") == "min"
    assert direction("val_loss", "max") == "max"
    assert direction(None, None) == "min"


class Wide(Net):
    """Its widths as a list or a tuple."""

    def __init__(self, lr=0.1, widths=(12,), kind=list):
        super().__init__(lr)
        self.save_hyperparameters()
        assert type(widths) is kind


def other():
    class ReLU:
        pass

    return ReLU


Relu = other()


class Colour(enum.Enum):
    RED = 1


class Number(enum.IntEnum):
    ONE = 1


TUPLES = Choice([(12,), (12, 12)])  # type: ignore[list-item]  # Optuna takes them, with a warning


@pytest.mark.parametrize(
    ("space", "kind"),
    [
        ("choice([12], [12, 12])", list),
        ("choice((12,), (12, 12))", tuple),
        (TUPLES, tuple),
        (Choice([[12], [12, 12]]), list),  # type: ignore[list-item]  # as above
        ([[12], [12, 12]], list),
    ],
)
@pytest.mark.parametrize("tuner", [RandomTuner, BayesianTuner, OptunaTuner])
def test_lists_and_tuples_are_delivered_as_they_were_given_also_when_continued(tmp_path, space, kind, tuner):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "`isinstance|Choices for a categorical|'kind'|'widths'")
        for n_trials in (3, 5):
            result = tuner(
                {"widths": space, "lr": "loguniform(1e-3, 1)", "kind": kind}, monitor="val_loss", max_steps=2,
                n_trials=n_trials, root=tmp_path, name="r", trainer={"accelerator": "cpu", "logger": False},
                verbose=False,
            ).fit(Wide, datamodule=Data)  # fmt: skip
    assert {row.params["widths"] for row in result.trials()} <= {"[12]", "[12, 12]", "(12,)", "(12, 12)"}
    assert len(result.trials()) == 5
    assert type(result.best_params["widths"]) is kind
    assert result.best_model().hparams.widths == result.best_params["widths"]


@pytest.mark.parametrize(
    "choices", [[Path("a")], [b"a"], [float("nan")], [lambda: 0], [{1: 2}], [torch.zeros(2)], [nn.ReLU()]],
)  # fmt: skip
def test_a_choice_without_a_name_is_refused_with_the_remedy(choices):
    with pytest.raises(ValueError, match=r"space\['act'\]: a study has no name for the choice .* Give it one: "):
        RandomTuner({"act": Choice(choices)}, max_steps=1, n_trials=1)


@pytest.mark.parametrize(
    ("choices", "stored"),
    [
        ([nn.ReLU, nn.GELU], ("ReLU", "GELU")),
        ([Colour.RED], ("Colour.RED",)),
        ([Number.ONE], ("Number.ONE",)),
        ([len, math.floor], ("len", "floor")),
        ([[nn.ReLU], [nn.GELU]], ("[ReLU]", "[GELU]")),
        ([{"a": nn.ReLU}], ("{'a': ReLU}",)),
        ([nn.ReLU, Relu], ("torch.nn.modules.activation.ReLU", f"{__name__}.other.<locals>.ReLU")),
        ([1, True], ("1", "True")),
        ([1, 1.0], ("1", "1.0")),
        ([[1], [True]], ("[1]", "[True]")),
        (["1", 1, True], ("'1'", "1", "True")),
        (["a", [1]], ("a", "[1]")),
    ],
)
def test_any_choice_is_stored_as_a_text_and_delivered_as_it_was_given(choices, stored):
    space = parse_space({"k": Choice(choices)})
    assert space["k"].choices == stored
    for label, value in zip(stored, choices, strict=True):
        delivered = space.deliver({"k": label})["k"]
        assert delivered == value
        assert type(delivered) is type(value)
        assert space.stored("k", value) == label
    assert parse_space(space.texts())["k"] == space["k"]


@pytest.mark.parametrize("choices", [(2, 2), ("a", "a"), ([1], [1]), (nn.ReLU, nn.ReLU)])
def test_a_choice_that_is_given_twice_is_refused(choices):
    with pytest.raises(ValueError, match="is given twice. Leave one out, or give each a name"):
        RandomTuner({"k": Choice(choices)}, max_steps=1, n_trials=1)


def test_numbers_of_numpy_among_choices_are_plain_numbers():
    numbers: Any = [np.int64(3), np.float32(0.5), torch.tensor(7)]
    (distribution,) = parse_space({"k": Choice(numbers)}).values()
    assert distribution.choices == (3, 0.5, 7)
    assert [type(choice) for choice in distribution.choices] == [int, float, int]
