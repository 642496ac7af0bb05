"""Import paths of earlier versions keep working."""

import importlib

import pytest

import lightning_hpo
from lightning_hpo._moved import _HOMES


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("options", "direction"),
        ("search", "SearchFailedError"),
        ("runs", "StudyMismatchError"),
        ("runs", "open_study"),
        ("trials", "Row"),
        ("trials", "read_rows"),
        ("options", "Limits"),
        ("jobs", "Task"),
        ("population", "Rules"),
        ("population", "perturb"),
        ("objective", "Objective"),
        ("report", "read_run"),
        ("gp", "GaussianProcess"),
        ("failures", "JobError"),
        ("lineage", "replay"),
    ],
)
def test_an_old_import_path_gives_the_name(module, name):
    found = importlib.import_module(f"lightning_hpo.{module}")
    assert getattr(found, name).__name__ == name


def test_every_moved_module_exists_and_an_unknown_name_is_an_error():
    for homes in _HOMES.values():
        for home in homes.split():
            importlib.import_module(f"lightning_hpo.{home}")
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        exec("from lightning_hpo.search import nothing")
    with pytest.raises(ModuleNotFoundError, match="No module named 'lightning_hpo.nothing'"):
        importlib.import_module("lightning_hpo.nothing")
    assert lightning_hpo.__version__
