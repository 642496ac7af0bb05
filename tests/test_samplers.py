"""GaussianProcessSampler: Optuna's contract, the rules of what it learns from, and exact resumption."""

import pytest
from optuna.testing.pytest_samplers import BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase

from lightning_hpo.samplers import GaussianProcessSampler


@pytest.fixture
def sampler():
    return lambda: GaussianProcessSampler(seed=0, n_startup_trials=5)


class TestContract(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    @pytest.fixture
    def sampler(self):
        return lambda: GaussianProcessSampler(seed=0, n_startup_trials=1)
