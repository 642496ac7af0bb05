"""Which module may load what, checked in fresh processes."""

import subprocess
import sys
import warnings

import pytest

import lightning_hpo
from lightning_hpo.quiet import known_warnings_hidden

HEAVY = {"torch", "lightning", "optuna", "numpy", "scipy", "sklearn", "sqlalchemy", "pandas"}
LIGHT = {"optuna", "numpy"}
ALLOWED = {
    "lightning_hpo": set(),
    "lightning_hpo.schedulers": set(),
    "lightning_hpo.space": LIGHT,
    "lightning_hpo.study.table": LIGHT,
    "lightning_hpo.samplers.adapter": LIGHT,
    "lightning_hpo.study.run_folder": LIGHT,
    "lightning_hpo.reporting.report": LIGHT,  # to look at a run needs no torch
    "lightning_hpo.tuners.presets": LIGHT,  # a plain function needs no torch
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


def test_no_warning_filter_is_set_at_import():
    code = """
import importlib, pkgutil, sys, warnings
import lightning_hpo

filters = []
for name in ("filterwarnings", "simplefilter", "resetwarnings"):
    def noted(*args, _own=getattr(warnings, name), **options):
        filters.append(sys._getframe(1).f_globals["__name__"])
        return _own(*args, **options)
    setattr(warnings, name, noted)
for module in pkgutil.walk_packages(lightning_hpo.__path__, "lightning_hpo."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
print(*(name for name in filters if name.startswith("lightning_hpo")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_known_warnings_are_hidden_only_while_a_run_is_open_and_filters_of_users_stay():
    before = list(warnings.filters)
    with known_warnings_hidden():
        inside = list(warnings.filters)
        with known_warnings_hidden():
            assert warnings.filters == inside
            warnings.filterwarnings("ignore", "of a user")
    assert len(inside) > len(before)
    assert [entry for entry in warnings.filters if entry not in before] == [warnings.filters[0]]
    warnings.filters[:] = before
