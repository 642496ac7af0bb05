"""Which module may load what, checked in fresh processes."""

import subprocess
import sys

import pytest

import lightning_hpo

HEAVY = {"torch", "lightning", "optuna", "numpy", "scipy", "sklearn"}
ALLOWED = {
    "lightning_hpo": set(),
    "lightning_hpo.schedulers": set(),
    "lightning_hpo.space": {"optuna", "numpy", "scipy", "sklearn"},
    "lightning_hpo.study.table": {"optuna", "numpy", "scipy", "sklearn"},
    "lightning_hpo.samplers.adapter": {"optuna", "numpy", "scipy", "sklearn"},
    "lightning_hpo.study.run_folder": {"optuna", "numpy", "scipy", "sklearn"},
    "lightning_hpo.reporting.report": {"optuna", "numpy", "scipy", "sklearn"},  # to look at a run needs no torch
    "lightning_hpo.tuners.presets": {"optuna", "numpy", "scipy", "sklearn"},  # a plain function needs no torch
    "lightning_hpo.executors": set(),  # a worker process for a plain function starts at once
    "lightning_hpo.checkpoints": set(),
    "lightning_hpo.interrupts": set(),
}


@pytest.mark.parametrize("module", ALLOWED)
def test_a_module_loads_only_what_it_may(module):
    code = f"import sys, {module}; print(*({HEAVY} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) <= ALLOWED[module]


def test_every_public_name_is_there():
    for name in lightning_hpo.__all__:
        assert getattr(lightning_hpo, name).__name__ == name
    assert set(lightning_hpo.__all__) == set(lightning_hpo._HOMES) <= set(dir(lightning_hpo))
    with pytest.raises(AttributeError, match="Hyperbandd"):
        getattr(lightning_hpo, "Hyperbandd")  # noqa: B009  # the name must not be checked before it runs
