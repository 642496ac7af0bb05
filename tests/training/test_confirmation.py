"""`confirm` and `retrain` through the tuners."""

import json
import statistics

import pytest
import torch
import yaml
from optuna.pruners import MedianPruner

from lightning_hpo import ASHATuner, BayesianTuner, HyperbandTuner, OptunaTuner, PopulationTuner, RandomTuner
from lightning_hpo.__main__ import main
from tests.support.small import Data, Net

X = {"x": "uniform(0, 1)"}


def noisy(job, params):
    generator = torch.Generator().manual_seed(job.seed)
    return abs(params["x"] - 0.4) + 0.3 * float(torch.rand((), generator=generator)) + 1 / job.max_steps


TUNERS = {
    "hyperband": (HyperbandTuner, {"max_steps": 9}),
    "asha": (ASHATuner, {"max_steps": 9, "n_trials": 9}),
    "bayesian": (BayesianTuner, {"max_steps": 9, "n_trials": 6, "n_startup_trials": 3}),
    "random": (RandomTuner, {"max_epochs": 2.5, "n_trials": 6}),
    "optuna": (OptunaTuner, {"max_steps": 9, "n_trials": 6, "pruner": MedianPruner(0)}),
}


@pytest.mark.parametrize("name", TUNERS)
def test_every_tuner_confirms_and_the_answer_is_the_best_by_mean(tmp_path, name, capsys):
    kind, options = TUNERS[name]
    options = {"root": tmp_path, "name": "r", "verbose": "lines", **options}
    alone = kind(X, **{**options, "name": "alone"}).optimize(noisy)
    tuner = kind(X, confirm=(2, 3), **options)
    assert tuner.planned_steps() == kind(X, **options).planned_steps() + 6 * tuner.scheduler.max_steps
    result = tuner.optimize(noisy)
    count = len(alone.rows)
    assert [row.values for row in result.rows[:count]] == [row.values for row in alone.rows]
    again = result.rows[count:]
    assert len(again) == 6
    assert len({row.seed for row in result.rows}) == len(result.rows)
    assert [each.n for each in result.confirmed] == [3, 3]
    first, second = result.confirmed
    assert first.mean <= second.mean
    assert result.best_score == first.mean == statistics.fmean(first.scores)
    assert dict(result.best_params) == dict(first.params) == dict(result.rows[result.best_trial].params)
    said = capsys.readouterr().out
    assert "the best 2 again, with 3 seeds each" in said
    assert "confirmed with other seeds:" in said
    assert "search saw" in (tmp_path / "r" / "report.html").read_text()
    if name == "random":
        check_shown(result, str(tmp_path / "r"), said, capsys)
    assert kind(X, confirm=(2, 3), **options).optimize(noisy).confirmed == result.confirmed
    assert not alone.confirmed


def check_shown(result, path, said, capsys):
    """What is printed at the end, ``show``, its JSON and the report give the answer that ``fit`` has returned."""
    answer = f"{result.best_score:.6g}, the mean of trial {result.confirmed[0].trial} over 3 seeds"
    answer += f" (trial {result.best_trial} is the best of them)"
    assert main(["show", path]) == 0
    table = capsys.readouterr().out
    for text in (said, table):
        assert f"best: score {answer}" in text
        lines = [line.split() for line in text[text.rindex("trial  epochs") :].splitlines()]
        assert sorted(int(line[0]) for line in lines[1:7]) == list(range(6))  # the trials of the search, and then
        assert lines[7] == ["confirmed", "with", "other", "seeds:"]
    assert f"Best: score = {answer}" in (result.folder / "report.html").read_text()
    assert main(["show", "--json", path]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["best_score"] == result.best_score
    assert content["best"]["number"] == result.best_trial
    first = result.confirmed[0]
    assert [row.get("confirms") for row in content["rows"]] == [row.confirms for row in result.rows]
    assert content["confirmed"][0]["trial"] == content["best"]["confirms"] == first.trial
    assert content["confirmed"][0] == {
        "trial": first.trial, "params": dict(first.params), "seen": first.seen, "scores": list(first.scores),
        "mode": "min", "failed": 0, "feasible": True, "tied": first.tied,
        "n": 3, "mean": first.mean, "std": first.std, "optimism": first.optimism,
    }  # fmt: skip
    assert main(["show", path, str(result.best_trial)]) == 0
    assert f": complete, confirms {first.trial}\n" in capsys.readouterr().out


def test_limits_leave_room_and_a_confirmation_may_come_later(tmp_path, capsys):
    options = {"root": tmp_path, "name": "r", "verbose": False, "max_steps": 9}
    limited = HyperbandTuner(X, total_steps=120, confirm=(2, 2), **options).optimize(noisy)
    own = [row for row in limited.rows if row.confirms is None]
    assert 120 - 36 <= sum(row.step for row in own) <= 120 - 36 + 9
    assert len(limited.rows) - len(own) == 4
    options["name"] = "s"
    assert not RandomTuner(X, n_trials=3, **options).optimize(noisy).confirmed
    later = RandomTuner(X, n_trials=3, confirm=(1, 2), **options).optimize(noisy)
    assert [row.confirms for row in later.rows] == [None] * 3 + [later.confirmed[0].trial] * 2
    warning = "up to 2 more trials, if others than those confirmed so far become the best"
    for is_continued in (True, False):
        RandomTuner(X, n_trials=5, confirm=(1, 2), **{**options, "verbose": "lines"}).optimize(noisy)
        assert (warning in capsys.readouterr().out) is is_continued


@pytest.mark.parametrize("confirm", [0, (3,), (3, 1), "3", True, (2, 2.0), -1])
def test_a_wrong_number(confirm):
    with pytest.raises(ValueError, match=r"`confirm` must be a number of configurations >= 1, e\.g\. 3, or that"):
        RandomTuner(X, max_steps=9, n_trials=3, confirm=confirm)


def test_searches_that_cannot_be_confirmed_are_refused():
    with pytest.raises(ValueError, match="leaves nothing for the search"):
        HyperbandTuner(X, max_steps=9, total_steps=100, confirm=3)
    with pytest.raises(ValueError, match="needs a search with one `monitor`"):
        OptunaTuner(X, max_steps=9, n_trials=3, monitor=("a", "b"), confirm=3)
    with pytest.raises(ValueError, match="`confirm` means nothing for a population"):
        PopulationTuner(X, max_steps=10, interval=5, confirm=3)


def test_modules_confirmed_and_trained_once_more(tmp_path):
    options = {
        "monitor": "val_loss",
        "root": tmp_path,
        "name": "r",
        "verbose": False,
        "trainer": {"accelerator": "cpu"},
    }
    space = {"lr": "loguniform(0.01, 1)", "data.batch_size": "choice(16, 32)"}
    result = RandomTuner(space, max_steps=6, n_trials=2, confirm=(2, 2), **options).fit(Net, datamodule=Data)
    best = result.rows[result.best_trial]
    assert best.score == min(result.confirmed[0].scores)
    saved = torch.load(result.best_checkpoint, weights_only=True)["lightning_hpo"]
    assert (saved["trial"], saved["seed"]) == (best.number, best.seed)
    assert yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())["seed_everything"] == best.seed
    assert [path.parent.name for path in tmp_path.rglob("last.ckpt")] == [f"{best.number:04d}"]
    assert main(["show", str(tmp_path / "r")]) == 0
    same = result.retrain(seed=best.seed)
    assert same.best_score == best.score
    assert same.best_params == result.best_params
    assert len(same.rows) == 1
    other = result.retrain(lr=0.02, max_steps=4)
    assert other.best_params == {**result.best_params, "lr": 0.02}
    assert other.rows[0].step == 4
    assert other.rows[0].seed not in {row.seed for row in result.rows}
    with pytest.raises(TypeError, match=r"retrain\(\) got 'lrr'.* Did you mean 'lr'\?"):
        result.retrain(lrr=0.1)
    with pytest.raises(ValueError, match="`seed` must be an int from 0"):
        result.retrain(seed=-1)
