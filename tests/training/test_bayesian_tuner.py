"""BayesianTuner: better than random on the same trials, stops when nothing is to be gained, says what it believes."""

import functools
import json

import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from lightning_hpo import BayesianTuner, RandomTuner
from lightning_hpo.samplers import importance, predicted_best, slices
from tests.support.small import Data, Net
from tests.training.test_tuners import recorded

XY = {"x": "uniform(0, 1)", "y": "uniform(0, 1)", "idle": "uniform(0, 1)"}


def bowl(job, params):
    return (params["x"] - 0.3) ** 2 + 3 * (params["y"] - 0.7) ** 2


def test_finds_a_minimum_and_knows_what_matters(tmp_path, capsys):
    result = BayesianTuner(XY, max_steps=1, n_trials=30, root=tmp_path, name="b").optimize(bowl)
    random = RandomTuner(XY, max_steps=1, n_trials=30, root=tmp_path, name="r").optimize(bowl)
    assert result.best_score < 1e-3 < random.best_score
    assert list(importance(result.study))[-1] == "idle"
    assert predicted_best(result.study).mean == pytest.approx(0, abs=5e-3)
    out = capsys.readouterr().out
    assert "the model expects most of" in out
    assert "how much each parameter matters to it: y" in out
    assert (tmp_path / "b" / "slices.png").stat().st_size > 1000


def test_continued_equals_uninterrupted(tmp_path):
    make = functools.partial(BayesianTuner, XY, max_steps=1, root=tmp_path, verbose=False)
    whole = make(n_trials=16, name="whole").optimize(bowl)
    for n_trials in (3, 12, 16):
        parts = make(n_trials=n_trials, name="parts").optimize(bowl)
    assert recorded(parts) == recorded(whole)


def test_stops_when_the_model_expects_no_more(tmp_path):
    make = functools.partial(BayesianTuner, XY, max_steps=1, n_trials=60, stop_below=1e-3, root=tmp_path, name="b")
    result = make().optimize(bowl)
    assert 10 < len(result.trials()) < 60
    assert result.best_score < 5e-3
    assert recorded(make().optimize(bowl)) == recorded(result)  # and starts none when it is called again


@pytest.mark.parametrize("space", [{"x": "choice(1)"}, {"x": "uniform(2, 2)"}])
def test_a_space_with_one_point_has_a_result(tmp_path, space):
    tuner = BayesianTuner(space, max_steps=1, n_trials=12, stop_below=0.1, root=tmp_path, verbose=False)
    result = tuner.optimize(lambda job, params: float(params["x"]))
    assert len(result.trials()) == 12
    assert result.best_score in (1.0, 2.0)


def test_any_regressor_may_be_the_surrogate(tmp_path, capsys):
    tuner = BayesianTuner(
        XY, max_steps=1, n_trials=14, surrogate=GaussianProcessRegressor(alpha=1e-6), root=tmp_path, name="b"
    )
    assert len(tuner.optimize(bowl).trials()) == 14
    assert "the model expects most of" in capsys.readouterr().out


def test_trains_a_module_with_median_stopping(tmp_path):
    result = BayesianTuner(
        {"lr": "loguniform(1e-4, 1)", "hidden": "logint(4, 64)"},
        monitor="val_acc",
        mode="max",
        max_steps=40,
        n_trials=14,
        n_startup_trials=6,
        median_stopping=True,
        root=tmp_path,
        name="b",
        trainer={"accelerator": "cpu"},
    ).fit(Net, datamodule=Data)
    states = [row.state for row in result.trials()]
    assert len(states) == 14
    assert {"complete", "pruned"} == set(states)
    assert result.best_score > 0.5
    assert result.best_checkpoint.exists()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"n_trials": 0}, "`n_trials` must be an int >= 1, got 0"),
        ({"stop_below": 2}, "`stop_below` must be between 0 and 1, got 2"),
        ({"surrogate": "forest"}, "'forest'"),
        ({"sampler": 1}, "chooses its own sampler"),
        ({"n_startup_trials": 0}, "n_startup_trials"),
    ],
)
def test_wrong_arguments(arguments, text):
    with pytest.raises((TypeError, ValueError), match=text):
        BayesianTuner(XY, **{"max_steps": 1, "n_trials": 5, **arguments})


def test_a_parameter_that_was_widened_stays_in_what_the_model_says(tmp_path, capsys):
    space = {"x": "loguniform(1e-3, 0.1)", "n": "int(1, 8)", "kind": "choice('a', 'b')"}

    def search(n_trials, **wider):
        tuner = BayesianTuner(
            {**space, **wider}, max_steps=1, n_trials=n_trials, n_startup_trials=4, root=tmp_path, name="r",
            allow_changed=True, verbose="lines",
        )  # fmt: skip
        return tuner.optimize(lambda job, params: abs(params["x"] - 0.2) + 0.1 * params["n"] + (params["kind"] == "a"))

    search(5)
    with pytest.warns(UserWarning, match="from trial 5 on"):
        study = search(7, x="loguniform(1e-3, 1)", kind="choice('a', 'b', 'c')").study
    lines = slices(study)
    assert predicted_best(study).params.keys() == importance(study).keys() == lines.keys() == space.keys()
    assert lines["x"].values[-1] == pytest.approx(1)
    assert sorted(lines["kind"].values) == ["a", "b", "c"]
    kept = json.loads((tmp_path / "r" / "slices.json").read_text())["slices"]
    assert {part["name"] for part in kept} == space.keys()
    capsys.readouterr()
    with pytest.warns(UserWarning, match="from trial 7 on"):
        search(8, new="uniform(0, 1)")
    assert "the model is of the parameters that all trials have, so not of new" in capsys.readouterr().out
