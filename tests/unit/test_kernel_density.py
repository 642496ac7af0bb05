"""KernelDensitySampler: Optuna's contract, exact resumption, and that it learns."""

import math

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase
from optuna.trial import TrialState, create_trial

from lightning_hpo import KernelDensitySampler

optuna.logging.set_verbosity(optuna.logging.WARNING)
SPACE = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "units": IntDistribution(16, 512, log=True),
    "act": CategoricalDistribution(["relu", "tanh", "gelu"]),
    "batch": CategoricalDistribution([32, 8, 16, 64]),
}


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: KernelDensitySampler(seed=0)


def known(study, count=40):
    """Trials whose value is the distance from lr = 1e-3, and 1 more unless act is tanh."""
    random = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    for _ in range(count):
        params = random.ask(SPACE).params
        value = abs(SPACE["lr"].to_internal_repr(params["lr"]) ** 0.1 - 1e-3**0.1) * 4 + (params["act"] != "tanh")
        study.add_trial(create_trial(params=params, distributions=SPACE, value=value))


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_suggestions_resemble_the_best(direction):
    study = optuna.create_study(direction=direction)
    known(study)
    asked = []
    for seed in range(40):
        study.sampler = KernelDensitySampler(seed)
        asked.append(study.ask(SPACE).params)
    tanh = sum(params["act"] == "tanh" for params in asked)
    assert tanh > 25 if direction == "minimize" else tanh < 8
    assert len({params["units"] for params in asked}) > 25  # what does not matter stays spread


def test_values_that_are_no_numbers_and_other_ranges_do_not_count():
    def asked_after(**last):
        study = optuna.create_study(sampler=KernelDensitySampler(0))
        known(study)
        study.add_trial(create_trial(**last))
        return study.ask(SPACE).params

    odd = {"lr": 1e-5, "units": 512, "act": "gelu", "batch": 64}
    failed = asked_after(state=TrialState.FAIL)
    assert asked_after(params=odd, distributions=SPACE, value=-math.inf) == failed
    wider = {"lr": FloatDistribution(1e-9, 1.0, log=True)}
    assert 1e-5 <= asked_after(params={"lr": 1e-8}, distributions=wider, value=-9.0)["lr"] <= 1e-1


def test_a_resumed_study_asks_the_same():
    asked = []
    for _ in range(2):
        study = optuna.create_study(sampler=KernelDensitySampler(3))
        known(study)
        asked.append(study.ask(SPACE).params)
    assert asked[0] == asked[1]
    study.sampler = KernelDensitySampler(4)
    assert study.ask(SPACE).params != asked[0]


@pytest.mark.parametrize("seed", [-1, 0.5, True, None])
def test_wrong_seeds_are_named(seed):
    with pytest.raises(ValueError, match="`seed` must be an int >= 0, got"):
        KernelDensitySampler(seed)
