"""Which module may load what, checked in fresh processes."""

import inspect
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import lightning_hpo
from lightning_hpo.quiet import known_warnings_hidden

ROOT = Path(__file__).resolve().parents[2]
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


@pytest.mark.parametrize("name", lightning_hpo.__all__)
def test_a_public_name_is_explained(name):
    """A docstring of its own, a place in the API reference, and use in the code of a page or an example."""
    thing = getattr(lightning_hpo, name)
    assert inspect.getdoc(thing), "no docstring"
    assert f"::: lightning_hpo.{name}\n" in (ROOT / "docs" / "api.md").read_text(), "add it to docs/api.md"
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    codes = [code for page in pages for code in re.findall(r"(?sm)^```\w+[^\n]*\n(.*?)^```", page.read_text())]
    codes += [file.read_text() for file in (ROOT / "examples").rglob("*.py")]
    found = any(re.search(rf"\b{name}\b", code) for code in [*codes, thing.__doc__.partition("Example")[2]])
    assert found, "use it in the code of a page or of an example"


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


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "jsonargparse", None)
    monkeypatch.delitem(sys.modules, "lightning_hpo.cli.hpo_cli", raising=False)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-hpo-suite\[cli\]'"):
        lightning_hpo.HPOCLI  # noqa: B018  # its import


WINDOWS = """
import os, random, signal, sys
import lightning, optuna  # they ask for the system's name, and not for what it lacks

sys.modules["fcntl"] = None
del signal.SIGHUP, signal.pthread_sigmask, os.register_at_fork, os.pwrite, os.setpgid, os.killpg

import lightning_hpo
from lightning_hpo import GaussianProcessSampler, HPOCLI, HyperbandTuner, Objective, RandomTuner
from tests.support.small import Data, Net

def score(job, params):
    return params["x"]

space = {"x": "uniform(0, 1)"}
for name in lightning_hpo.__all__:
    getattr(lightning_hpo, name)
for trials in (2, 3):
    result = RandomTuner(space, max_steps=3, n_trials=trials, name="r", root=sys.argv[1]).optimize(score)
    print(len(result.study.trials), "trials")
study = optuna.create_study(sampler=GaussianProcessSampler(seed=0))
objective = Objective(Net, {"lr": "loguniform(0.01, 1)"}, data=Data, monitor="val_loss", max_steps=2)
study.optimize(objective, n_trials=1)
print(study.best_value > 0)
for option in ({"shared": True}, {"workers": 2}):
    try:
        HyperbandTuner(space, max_steps=3, name="h", root=sys.argv[1], **option).optimize(score)
    except Exception as error:
        print(error)
HPOCLI(Net, Data, args=["tune", "--help"])
"""


def test_what_works_without_file_locks_and_signals_of_posix(tmp_path):
    """Windows has no fcntl, SIGHUP, process groups or fork."""
    done = subprocess.run([sys.executable, "-c", WINDOWS, tmp_path], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line for line in lines if line in ("2 trials", "3 trials", "True")] == ["2 trials", "3 trials", "True"]
    assert any(line.startswith("shared=True needs locks") for line in lines)
    assert any(line.startswith("`workers` is 2, but this system has no process groups") for line in lines)
    assert "--space" in done.stdout
