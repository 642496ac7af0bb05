"""MultiFidelitySampler: Optuna's contract, exact resumption, and that it learns the end from early values."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState, create_trial

from lightning_hpo import MultiFidelitySampler, RandomTuner
from lightning_hpo.records import Row
from lightning_hpo.samplers.adapter import SamplerAdapter

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {
    "x": FloatDistribution(0.0, 1.0),
    "y": FloatDistribution(1e-4, 1.0, log=True),
    "act": CategoricalDistribution(["relu", "tanh", "gelu"]),
}


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: MultiFidelitySampler(max_steps=9)


def reached(params, step):
    """A loss that is smallest at x = 0.3 with tanh, less clearly so at early steps."""
    return (params["x"] - 0.3) ** 2 * (1 - math.exp(-step / 9)) + 0.2 * (params["act"] != "tanh") + 1 / step


def rows(count=30):
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    found = []
    for number in range(count):
        params = random.ask(SPACE).params
        steps = (1, 3, 9) if number % 5 == 0 else (1, 3) if number % 2 else (1,)
        values = {step: reached(params, step) for step in steps}
        found.append(Row(number, params, values=values, state="complete" if 9 in values else "running"))
    return found


def asked(known, seed, mode="min", notes=None):
    adapter = SamplerAdapter(MultiFidelitySampler(max_steps=9, seed=seed), SPACE, mode=mode, seed=seed)
    return adapter.ask(known, [{}] * len(known) if notes is None else notes, 1)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_suggestions_are_good_at_the_end(mode):
    sign = 1 if mode == "min" else -1
    known = [
        Row(row.number, row.params, values={step: sign * value for step, value in row.values.items()}, state=row.state)
        for row in rows()
    ]
    found = [asked(known, seed, mode)[0] for seed in range(12)]
    assert sum(params["act"] == "tanh" and abs(params["x"] - 0.3) < 0.25 for params in found) >= 8
    assert len({params["y"] for params in found}) == 12  # what does not matter stays spread


def test_a_suggestion_is_a_function_of_the_rows_and_its_model_is_noted():
    known = rows()
    params, notes = asked(known, 3)
    assert asked(known, 3) == (params, notes)
    assert asked(known, 4)[0] != params
    (noted,) = notes.values()
    known.append(Row(len(known), params, target=1))
    before = [{}] * (len(known) - 1)
    following, more = asked(known, 3, notes=[*before, notes])
    assert not more  # the model of the trial before is taken
    assert following != params
    assert len(noted) == len(SPACE) + 3


def test_failures_and_other_ranges_do_no_harm():
    study = optuna.create_study(sampler=MultiFidelitySampler(max_steps=9))
    for row in rows():
        study.add_trial(
            create_trial(
                params=row.params, distributions=SPACE, intermediate_values=row.values, state=TrialState.PRUNED
            )
        )
    study.add_trial(create_trial(params=rows()[0].params, distributions=SPACE, state=TrialState.FAIL))
    study.add_trial(
        create_trial(
            params=rows()[1].params, distributions=SPACE, state=TrialState.PRUNED, intermediate_values={1: math.nan}
        )
    )
    assert set(study.ask(SPACE).params) == set(SPACE)


def test_a_tuner_at_the_full_budget_takes_it(tmp_path):
    tuner = RandomTuner(
        {"x": "uniform(-1, 1)", "y": "uniform(-1, 1) if x > 0"}, max_steps=1, n_trials=14, root=tmp_path, name="r",
        sampler=MultiFidelitySampler(max_steps=1), verbose=False,
    )  # fmt: skip
    result = tuner.optimize(lambda job, params: params["x"] ** 2 + params.get("y", 0.5) ** 2)
    assert len(result.rows) == 14
    assert result.best_score < 0.3


@pytest.mark.parametrize(("given", "says"), [({"seed": -1}, "`seed` must be"), ({"max_steps": 0}, "`max_steps` must")])
def test_wrong_arguments_are_named(given, says):
    with pytest.raises(ValueError, match=says):
        MultiFidelitySampler(**{"max_steps": 9, **given})
