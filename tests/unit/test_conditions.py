"""Conditional parameters: which trial has them, what samplers, studies, tables and the module see."""

from functools import partial

import optuna
import pytest
from optuna.samplers import CmaEsSampler, GPSampler, QMCSampler, RandomSampler, TPESampler

from lightning_hpo import (
    ASHATuner,
    BayesianTuner,
    GaussianProcessSampler,
    HyperbandTuner,
    KernelDensitySampler,
    OptunaTuner,
    RandomTuner,
    choice,
)
from lightning_hpo.samplers.adapter import SamplerAdapter
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.schedulers.population import Rules
from lightning_hpo.space import parse_space, when
from tests.support.small import Data, Net

SPACE = {
    "momentum": "uniform(0.8, 0.99) if optimizer == 'sgd'",
    "optimizer": ["sgd", "adam"],
    "depth": "int(1, 4)",
    "width": "choice(8, 16) if depth > 2 and optimizer in ('sgd', 'adam')",
    "nesterov": "choice(True, False) if momentum > 0.9",
}


def has_its_parameters(params):
    sgd = params["optimizer"] == "sgd"
    nested = sgd and params["momentum"] > 0.9
    expected = {"optimizer", "depth", *["momentum"] * sgd, *["width"] * (params["depth"] > 2), *["nesterov"] * nested}
    return params.keys() == expected


class TestGrammar:
    @pytest.mark.parametrize(
        ("condition", "params", "holds"),
        [
            ("optimizer == 'sgd'", {"optimizer": "sgd"}, True),
            ("'sgd' == optimizer", {"optimizer": "adam"}, False),
            ("model.optimizer != 'sgd'", {"optimizer": "adam"}, True),
            ("optimizer != 'sgd'", {}, False),
            ("optimizer in ('sgd', 'adam')", {"optimizer": "adam"}, True),
            ("optimizer not in ['adam']", {"optimizer": "sgd"}, True),
            ("depth >= 3", {"depth": 3}, True),
            ("3 > depth", {"depth": 3}, False),
            ("1 < depth <= 3", {"depth": 3}, True),
            ("not depth == 1", {"depth": 1}, False),
            ("depth == 1 or optimizer == 'sgd'", {"depth": 2, "optimizer": "sgd"}, True),
            ("depth == 1 and optimizer == 'sgd'", {"depth": 2, "optimizer": "sgd"}, False),
            ("size > 16", {"size": 32}, True),
            ("size > 16", {"size": 16}, False),
            ("flag == True", {"flag": "True"}, True),
            ("flag == 1", {"flag": "True"}, False),
            ("kind == 'small'", {"kind": "small"}, True),
            ("act == 'GELU'", {"act": "GELU"}, True),
            ("widths == (8, 8)", {"widths": "(8, 8)"}, True),
        ],
    )
    def test_a_condition_holds_for_the_parameters_that_it_says(self, condition, params, holds):
        space = parse_space(
            {
                "optimizer": ["sgd", "adam"],
                "depth": "int(1, 4)",
                "size": "choice(16, 32)",
                "flag": "choice(1, True)",
                "kind": choice(small={"a": 1}, large={"a": 2}),
                "act": "choice('ReLU', 'GELU')",
                "widths": "choice((8,), (8, 8))",
                "x": f"uniform(0, 1) if {condition}",
            }
        )
        assert space.has("x", params) is holds
        assert parse_space(space.texts()) == space

    @pytest.mark.parametrize(
        ("condition", "words"),
        [
            ("optimiser == 'sgd'", ["names 'optimiser', which is not in the space", "Did you mean 'optimizer'?"]),
            ("optimizer == sgd", ["write 'sgd' in quotes"]),
            ("optimizer == 'sdg'", ["'optimizer' is never 'sdg'", "one of sgd, adam", "Did you mean 'sgd'?"]),
            ("optimizer > 3", ["choices of 'optimizer' are not all numbers", "use == or in"]),
            ("depth == 'two'", ["'depth' is compared with 'two', which is no number"]),
            ("depth > 7", ["it lies between 1 and 4"]),
            ("optimizer", ["is not of the form name == value"]),
            ("optimizer == open('x')", ["is not a plain value"]),
            ("depth + 1 > 2", ["is no name of the space"]),
            ("optimizer in 'sgd'", ["is not of the form name == value"]),
            ("optimizer is 'sgd'", ["is not of the form name == value"]),
            ("optimizer == 'sgd' else int(1, 2)", ["has an `else`"]),
            ("x > 0.5", ["depend on each other: x -> x"]),
        ],
    )
    def test_a_wrong_condition_is_refused_with_what_to_write(self, condition, words):
        with pytest.raises(ValueError) as caught:
            parse_space({"optimizer": ["sgd", "adam"], "depth": "int(1, 4)", "x": f"uniform(0, 1) if {condition}"})
        assert all(word in str(caught.value) for word in words), caught.value

    def test_a_circle_is_named(self):
        with pytest.raises(ValueError, match=r"depend on each other: a -> b -> a. Take one condition out"):
            parse_space({"a": "uniform(0, 1) if b > 0.5", "b": "uniform(0, 1) if a > 0.5"})

    def test_values_that_are_not_text_take_a_condition_too(self):
        space = parse_space({"a": [1, 2], "b": when("a == 2", choice(len, max))})
        assert space.texts() == {"a": "choice(1, 2)", "b": "choice('len', 'max') if a == 2"}
        with pytest.raises(ValueError, match="two conditions: join them with `and`"):
            parse_space({"a": [1, 2], "b": when("a == 2", "uniform(0, 1) if a == 1")})


SAMPLERS = [
    RandomSampler,
    partial(TPESampler, n_startup_trials=3),
    partial(TPESampler, n_startup_trials=3, multivariate=True, group=True),
    partial(GPSampler, n_startup_trials=3),
    QMCSampler,
    partial(GaussianProcessSampler, 0, n_startup_trials=3),
    KernelDensitySampler,
]


@pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
@pytest.mark.parametrize("make", SAMPLERS, ids=lambda make: getattr(make, "func", make).__name__)
def test_every_sampler_sees_trials_without_the_parameters_that_they_lack(tmp_path, make):
    calls = []

    def function(job, params):
        calls.append(dict(params))
        return params["depth"] + params.get("momentum", 1.0)

    result = RandomTuner(
        SPACE, max_steps=1, n_trials=25, sampler=make(), mode="min", root=tmp_path, verbose=False
    ).optimize(function)
    assert all(map(has_its_parameters, calls))
    assert {"sgd", "adam"} == {params["optimizer"] for params in calls}
    assert any("nesterov" in params for params in calls)
    for trial, params in zip(result.study.trials, calls, strict=True):
        assert trial.params == params
        assert trial.distributions.keys() == params.keys()


@pytest.mark.parametrize("kind", [RandomTuner, BayesianTuner, OptunaTuner, HyperbandTuner, ASHATuner])
def test_the_module_gets_no_argument_for_a_parameter_that_a_trial_lacks(tmp_path, capsys, kind):
    number = {} if kind in (HyperbandTuner, ASHATuner) else {"n_trials": 6}
    space = {"lr": "loguniform(1e-3, 1e-1)", "bias": [True, False], "scale": "uniform(2, 3) if bias == True"}
    tuner = kind(
        space, monitor="val_loss", max_steps=9, root=tmp_path, trainer={"accelerator": "cpu", "logger": False}, **number
    )
    result = tuner.fit(Scaled, datamodule=Data)
    assert {row.state for row in result.trials()} <= {"complete", "pruned"}
    assert {("scale" in row.params) == row.params["bias"] for row in result.trials()} == {True}
    printed = capsys.readouterr().out
    assert "uniform(2.0, 3.0) if bias == True" in printed
    table = [line for line in printed.splitlines() if " False " in f"{line} " and "trial" not in line]
    assert table
    assert all(line.split()[-1] == "-" for line in table)


class Scaled(Net):
    """Takes a scale only with a bias."""

    def __init__(self, lr=0.1, bias=True, scale=1.0):
        super().__init__(lr)
        assert (scale != 1.0) == bias
        self.save_hyperparameters()
        self.scale = scale if bias else 0.5

    def training_step(self, batch, index):
        return super().training_step(batch, index) * self.scale


def test_a_continued_search_equals_the_uninterrupted_one(tmp_path):
    def search(name, *counts):
        for count in counts:
            tuner = BayesianTuner(
                SPACE, max_steps=1, n_trials=count, n_startup_trials=4, mode="min", root=tmp_path, name=name,
                verbose=False,
            )  # fmt: skip
            result = tuner.optimize(lambda job, params: params["depth"] - params.get("momentum", 0.0))
        return [row.params for row in result.trials()]

    assert search("whole", 12) == search("parts", 5, 9, 12)


def test_a_population_refuses_conditions_with_the_remedy():
    with pytest.raises(ValueError, match="condition for 'momentum'.* leave the condition out"):
        Rules(parse_space(SPACE), "min")


class TestEncoding:
    ENCODING = Encoding(parse_space({**SPACE, "fixed": 3, "act": "choice(relu, gelu) if depth == 4"}))

    def test_configurations_come_back_as_they_were(self):
        space = parse_space({**SPACE, "fixed": 3, "act": "choice(relu, gelu) if depth == 4"})
        study = optuna.create_study(sampler=RandomSampler(seed=0))
        seen = set()
        for _ in range(60):
            trial = study.ask()
            params = space.draw(lambda name, trial=trial: trial._suggest(name, space[name]))
            assert self.ENCODING.holds(params)
            (unit,) = self.ENCODING.encode([params])
            decoded = self.ENCODING.decode(unit)
            assert decoded == pytest.approx({name: value for name, value in params.items() if name != "fixed"})
            assert (self.ENCODING.settle(unit[None].copy()) == unit).all()
            seen.add(frozenset(params))
        assert len(seen) >= 8

    def test_a_configuration_of_another_branch_has_no_place(self):
        assert not self.ENCODING.holds({"optimizer": "adam", "momentum": 0.9, "depth": 1, "fixed": 3})
        assert not self.ENCODING.holds({"optimizer": "sgd", "depth": 1, "fixed": 3})

    def test_what_a_configuration_lacks_changes_no_feature(self):
        units = self.ENCODING.encode([{"optimizer": "adam", "depth": 1, "fixed": 3}] * 2)
        units[1, self.ENCODING.names.index("momentum")] = 0.9
        features = self.ENCODING.features(self.ENCODING.settle(units))
        assert (features[0] == features[1]).all()


def test_cma_es_is_asked_for_what_all_trials_have(tmp_path):
    pytest.importorskip("cmaes")
    result = RandomTuner(
        SPACE, max_steps=1, n_trials=8, sampler=CmaEsSampler(), mode="min", root=tmp_path, verbose=False
    ).optimize(lambda job, params: params["depth"])
    assert all(has_its_parameters(row.params) for row in result.trials())


class TestStartingPoints:
    SPACE = parse_space({**SPACE, "sizes": [(1,), (2,)]})

    def test_a_partial_point_is_stored_and_filled_by_any_sampler(self):
        point = self.SPACE.starting_point({"model.optimizer": "sgd", "sizes": (2,), "momentum": 0.95})
        assert point == {"optimizer": "sgd", "sizes": "(2,)", "momentum": 0.95}
        for sampler in (RandomSampler(), GaussianProcessSampler(0), KernelDensitySampler()):
            params, _ = SamplerAdapter(sampler, self.SPACE, mode="min", seed=0).ask([], [], 1, point)
            assert params.items() >= point.items()
            assert self.SPACE.fits(params)

    @pytest.mark.parametrize(
        ("point", "words"),
        [
            ({"optimiser": "sgd"}, "names 'optimiser', which is not in the space. Did you mean 'optimizer'?"),
            ({"depth": 9}, r"'depth' is 9, which is not in its space: int\(1, 4\)"),
            ({"optimizer": "adagrad"}, "'optimizer' is 'adagrad', which is not in its space"),
            ({"optimizer": "adam", "momentum": 0.9}, "its condition `optimizer == 'sgd'` does not hold there"),
            ({"momentum": 0.9}, "its condition `optimizer == 'sgd'` needs 'optimizer': give it too"),
            ({"lr": 0.1}, "names 'lr', which is not in the space"),
        ],
    )
    def test_a_point_outside_is_refused_with_both_shown(self, point, words):
        with pytest.raises(ValueError, match=words):
            self.SPACE.starting_point(point)
