"""Starting points: tried first by every tuner, filled by the sampler, kept under a kill; trials of earlier runs."""

import os
import shutil
import signal
from dataclasses import dataclass, field

import pytest
import yaml
from optuna.samplers import GPSampler, TPESampler

from lightning_hpo import (
    HPOCLI,
    ASHATuner,
    BayesianTuner,
    FullBudget,
    HyperbandTuner,
    KernelDensitySampler,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Tuner,
    choice,
)
from tests.cli.test_cli import Batches
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
def test_every_tuner_begins_with_the_starting_points_also_after_kills(tmp_path, kind):
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


def test_a_function_of_a_trial_begins_with_the_starting_points(tmp_path):
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


def test_members_of_a_population_begin_with_the_starting_points(tmp_path):
    space = {"lr": "loguniform(1e-3, 1)", "dropout": "uniform(0, 0.5)"}
    options = {"max_steps": 4, "interval": 2, "population_size": 3}
    start = [{"lr": 0.3}, {"lr": 0.2, "dropout": 0.25}]
    result = fitted(PopulationTuner, space, tmp_path, Net, start=start, **options)
    first = [row.params for row in result.trials()[:3]]
    plain = fitted(PopulationTuner, space, tmp_path / "plain", Net, start=None, **options)
    others = [row.params for row in plain.trials()[:3]]
    assert first == [{**others[0], "lr": 0.3}, {"lr": 0.2, "dropout": 0.25}, others[2]]


class Typed(Net):
    def __init__(self, lr: float = 0.1, hidden: int = 16, step_log: str | None = None):
        super().__init__(lr, hidden)


def test_starting_points_by_flags_and_files(tmp_path):
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


BOWL = {"x": "uniform(0, 1)", "kind": ["a", "b"]}


def bowl(job, params):
    return (params["x"] - 0.3) ** 2 + (params["kind"] == "a")


@pytest.fixture(scope="module")
def earlier(tmp_path_factory):
    root = tmp_path_factory.mktemp("earlier")
    RandomTuner(BOWL, max_steps=1, n_trials=30, name="earlier", root=root, mode="min", verbose=False).optimize(bowl)
    return root / "earlier"


LEARNERS = {
    "bayesian": lambda n, **more: BayesianTuner(BOWL, max_steps=1, n_trials=n, **more),
    "tpe": lambda n, **more: RandomTuner(BOWL, max_steps=1, n_trials=n, sampler=TPESampler(), **more),
    "densities": lambda n, **more: RandomTuner(BOWL, max_steps=1, n_trials=n, sampler=KernelDensitySampler(), **more),
    "optuna": lambda n, **more: OptunaTuner(BOWL, max_steps=1, n_trials=n, **more),
    "optuna_gp": lambda n, **more: OptunaTuner(BOWL, max_steps=1, n_trials=n, sampler=GPSampler(), **more),
}


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_sampler_learns_from_an_earlier_run_which_may_then_be_deleted(tmp_path, earlier, kind):
    copy = shutil.copytree(earlier, tmp_path / "earlier")

    def search(n, name, **more):
        options = {"root": tmp_path, "name": name, "mode": "min", "verbose": False, "from_run": copy, **more}
        return LEARNERS[kind](n, **options).optimize(bowl)

    whole = search(4, "whole")
    assert len(whole.trials()) == len(whole.study.trials) == 4
    assert [row.params["kind"] for row in whole.trials()] == ["b"] * 4
    assert min(abs(row.params["x"] - 0.3) for row in whole.trials()) < 0.1
    search(2, "part")
    shutil.rmtree(copy)
    assert [row.params for row in search(4, "part").trials()] == [row.params for row in whole.trials()]
    with pytest.raises(ValueError, match='was "from_run": "earlier"'):
        search(5, "part", from_run=None)


def test_what_does_not_belong_to_the_space_is_left_out_and_counted(tmp_path, earlier):
    def search(space, **more):
        options = {"max_steps": 1, "n_trials": 2, "root": tmp_path, "mode": "min", "verbose": False, **more}
        return RandomTuner(space, from_run=str(earlier), **options).optimize(bowl)

    half = {**BOWL, "x": "uniform(0, 0.5)"}
    with pytest.warns(UserWarning, match=r"\d+ of 30 finished trials of .*earlier are used; \d+ have values outside"):
        search(half, name="half")
    with pytest.warns(UserWarning, match="have 1 optimizer step, those of this search 9 optimizer steps"):
        search(BOWL, name="longer", max_steps=9)
    with pytest.raises(ValueError, match="0 of 30 finished .* 30 lack 'y'. Names there: x, kind; here: x, kind, y"):
        search({**BOWL, "y": "uniform(0, 1)"}, name="more")
    with pytest.raises(ValueError, match="30 have 'kind', which is not in this space"):
        search({"x": "uniform(0, 1)"}, name="less")
    with pytest.raises(ValueError, match="has the mode 'min', and this search 'max'"):
        search(BOWL, name="mode", mode="max")
    with pytest.raises(ValueError, match="has the monitor 'score', and this search 'val_loss'"):
        search(BOWL, name="monitor", monitor="val_loss")
    with pytest.raises(OSError, match="holds no study.journal: give the folder of a run"):
        RandomTuner(BOWL, max_steps=1, n_trials=1, root=tmp_path, name="no", from_run="nowhere").optimize(bowl)
