"""The notebooks of the gallery are what their scripts make, and run: a few of them each day, in turn."""

import datetime as dt
import runpy
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks are run by nbclient")
pytest.importorskip("nbclient", reason="notebooks are run by nbclient")

ROOT = Path(__file__).resolve().parents[2]
GALLERY = runpy.run_path(str(ROOT / "docs" / "gallery_notebooks.py"))
NAMES = [*GALLERY["SCRIPTS"], "cli"]
BUDGETS = {
    "digits": {"max_steps": 27},
    "regression": {"max_epochs": 1, "n_trials": 2},
    "kfold": {"max_epochs": 1, "n_trials": 1},
    "characters": {"max_steps": 9},
    "gan": {"max_steps": 18},
    "finetuning": {"max_epochs": 3},
    "population": {"max_steps": 20},
    "lr_schedule_search": {"max_steps": 27},
    "optuna_search": {"n_trials": 2},
    "cli": {"max_steps": 9},
}
"""Small ones, of what runs with the extra ``test``. ``.ci/notebooks`` runs all twelve notebooks, whole."""


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_is_what_its_script_makes(name):
    stored = nbformat.read(ROOT / "examples" / "notebooks" / f"{name}.ipynb", as_version=4)
    assert [cell.source for cell in stored.cells] == [cell.source for cell in GALLERY["cells"](name)], (
        f"run docs/gallery_notebooks.py {name}"
    )


@pytest.mark.parametrize("number", range(2))
def test_notebooks_of_today_run_and_show_what_their_files_show(number):
    today = dt.datetime.now(dt.UTC).timetuple().tm_yday
    name = list(BUDGETS)[(2 * today + number) % len(BUDGETS)]
    assert GALLERY["differences"](name, **BUDGETS[name]) == "", name
