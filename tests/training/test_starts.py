"""Starting points: tried first by every tuner, filled by the sampler, and kept under a kill."""

import os
import signal
from dataclasses import dataclass, field

import pytest
import yaml

from lightning_hpo import (
    HPOCLI,
    ASHATuner,
    BayesianTuner,
    FullBudget,
    HyperbandTuner,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Tuner,
    choice,
)
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net

SPACE = {
    "x": "uniform(0, 1)",
    "kind": ["a", "b"],
    "widths": [(1,), (1, 2)],
    "y": "uniform(0, 1) if kind == 'a'",
}
START = [{"x": 0.25, "widths": (1, 2)}, {"model.kind": "a", "y": 0.5}]
STORED = [{"x": 0.25, "widths": "(1, 2)"}, {"kind": "a", "y": 0.5}]
TUNERS = {
    "random": lambda **more: RandomTuner(SPACE, max_steps=9, n_trials=4, **more),
    "hyperband": lambda **more: HyperbandTuner(SPACE, max_steps=9, **more),
    "asha": lambda **more: ASHATuner(SPACE, max_steps=9, n_trials=9, **more),
    "bayesian": lambda **more: BayesianTuner(SPACE, max_steps=9, n_trials=4, **more),
    "optuna": lambda **more: OptunaTuner(SPACE, max_steps=9, n_trials=4, **more),
    "scheduler": lambda **more: Tuner(SPACE, FullBudget(9, 4), **more),
}


def loss(job, params):
    return params["x"] + params.get("y", 0) + len(params["widths"]) + 1 / job.max_steps


def search(kind, root, function=loss, **more):
    options = {"root": root, "mode": "min", "verbose": False, "start": START, **more}
    return TUNERS[kind](**options).optimize(function)


@pytest.mark.parametrize("kind", TUNERS)
def test_every_tuner_begins_with_them_and_a_killed_search_goes_on_with_them(tmp_path, kind):
    whole = search(kind, tmp_path / "whole").trials()
    assert all(row.params.items() >= point.items() for row, point in zip(whole, STORED, strict=False))
    assert [len(row.params) for row in whole if row.params["kind"] == "a"] >= [4]

    deaths = tmp_path / "deaths"
    deaths.touch()

    def mortal(job, params):
        if job.trial == deaths.stat().st_size < 3:
            deaths.write_text("x" * (job.trial + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(job, params)

    for _ in range(3):
        child = in_a_child(lambda: search(kind, tmp_path / "killed", mortal, name="k"))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    again = search(kind, tmp_path / "killed", mortal, name="k").trials()
    assert [(row.params, row.values) for row in again] == [(row.params, row.values) for row in whole]


def test_other_starting_points_are_another_study(tmp_path):
    search("random", tmp_path, name="s")
    with pytest.raises(ValueError, match='was made with other settings: was "x": 0.25; now "x": 0.75'):
        search("random", tmp_path, name="s", start=[{**START[0], "x": 0.75}, START[1]])


def test_a_function_of_a_trial_begins_with_them(tmp_path):
    def define(trial):
        kind = trial.suggest_categorical("kind", ["a", "b"])
        return {"kind": kind, "x": trial.suggest_float("x", 0, 1 if kind == "a" else 2)}

    def tuner(start):
        return OptunaTuner(define, max_steps=1, n_trials=3, root=tmp_path, mode="min", verbose=False, start=start)

    result = tuner([{"kind": "b", "x": 1.5}, {"x": 0.5}]).optimize(lambda job, params: params["x"])
    assert result.trials()[0].params == {"kind": "b", "x": 1.5}
    assert result.trials()[1].params["x"] == 0.5
    with pytest.raises(ValueError, match=r"`start\[0\]`: 'x' is 1.5, which is not in its space: FloatDistribution"):
        tuner([{"kind": "a", "x": 1.5}])
    with pytest.raises(ValueError, match="names 'kid', which the function of a trial does not suggest there. Did you"):
        tuner([{"kid": "a"}])


@dataclass
class Opt:
    lr: float = 0.05
    momentum: float = 0.9


@dataclass
class Cfg:
    opt: Opt = field(default_factory=Opt)


class Nested(Net):
    """With defaults of several types; `log` has none."""

    def __init__(self, log, *, cfg=Cfg(), hidden=(16,), kind="adam", beta=2.0, dropout=0.2):  # noqa: B008  # never changed
        super().__init__(cfg.opt.lr, hidden[0], dropout)


def fitted(tuner, space, root, model=Nested, **more):
    options = {"monitor": "val_loss", "root": root, "verbose": False, "start": "defaults", **more}
    return tuner(space, **options).fit(model, datamodule=Data)


def test_defaults_are_those_of_the_signatures(tmp_path):
    space = {
        "model.cfg.opt.lr": "uniform(0, 1)",
        "hidden": [(16,), (8,)],
        "log": ["x", "y"],
        "kind": ["sgd", "adam"],
        "beta": "uniform(0, 1) if kind == 'sgd'",  # its default is outside, and the trial lacks it
        "dropout": choice(little=0.2, much=0.5),
        "data.batch_size": [8, 16, 32],
        "trainer.accumulate_grad_batches": "int(1, 2)",
    }
    result = fitted(RandomTuner, space, tmp_path, max_steps=2, n_trials=1)
    params = dict(result.trials()[0].params)
    assert params.pop("log") in "xy"
    assert params == {
        "model.cfg.opt.lr": 0.05, "hidden": "(16,)", "kind": "adam", "dropout": "little",
        "data.batch_size": 16, "trainer.accumulate_grad_batches": 1,
    }  # fmt: skip


def test_members_of_a_population_begin_with_them(tmp_path):
    space = {"lr": "loguniform(1e-3, 1)", "dropout": "uniform(0, 0.5)"}
    options = {"max_steps": 4, "interval": 2, "population_size": 3}
    start = [{"lr": 0.3}, {"lr": 0.2, "dropout": 0.25}]
    result = fitted(PopulationTuner, space, tmp_path, Net, start=start, **options)
    first = [row.params for row in result.trials()[:3]]
    plain = fitted(PopulationTuner, space, tmp_path / "plain", Net, start=None, **options)
    others = [row.params for row in plain.trials()[:3]]
    assert first == [{**others[0], "lr": 0.3}, {"lr": 0.2, "dropout": 0.25}, others[2]]


class Typed(Net):
    def __init__(self, lr: float = 0.1, hidden: int = 16):
        super().__init__(lr, hidden)


class Batches(Data):
    def __init__(self, batch_size: int = 16):
        super().__init__(batch_size)


def test_flags_and_files_say_them(tmp_path):
    args = ["tune", "--trainer.accelerator", "cpu", "--tuner.max_steps", "1", "--tuner.n_trials", "2"]
    args += ["--tuner.monitor", "val_loss", "--tuner.root", str(tmp_path), "--model.hidden", "12"]
    args += ["--space.model.lr", "uniform(0, 1)", "--space.model.hidden", "int(4, 20)"]
    file = tmp_path / "tune.yaml"
    points = [{"model.hidden": 7}, {"model.lr": 0.5}]
    file.write_text(yaml.safe_dump({"tuner": {"class_path": "RandomTuner", "init_args": {"start": points}}}))

    def tune(*more):
        result = HPOCLI(Typed, Batches, args=[*args[:1], *more[:2], *args[1:], *more[2:]]).result
        return [row.params for row in result.rows]

    flag = tune("--tuner", "RandomTuner", "--tuner.start", "[{model.hidden: 7}, {model.lr: 0.5}]", "--tuner.name", "a")
    assert flag[0]["model.hidden"] == 7
    assert flag[1]["model.lr"] == 0.5
    assert tune("-c", str(file), "--tuner.name", "b") == flag
    defaults = tune("--tuner", "RandomTuner", "--tuner.start", "defaults", "--tuner.name", "c")
    assert defaults[0] == {"model.lr": 0.1, "model.hidden": 12}
