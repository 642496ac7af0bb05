"""One torch thread: the models are small, and the machine is shared."""

import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
# For the processes that tests start, also where the project is not installed.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent.parent), os.environ.get("PYTHONPATH", "")])

import pytest
import torch
from hypothesis import HealthCheck, settings

pytest.register_assert_rewrite("lightning_hpo.testing")
torch.set_num_threads(1)
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")


def pytest_configure(config):
    """Hide the GPU from all tests but tests/gpu: they fork, which CUDA does not survive, or expect results of a CPU."""
    if not all("gpu" in Path(argument.split("::")[0]).parts for argument in config.args):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and tests/gpu run alone"))
