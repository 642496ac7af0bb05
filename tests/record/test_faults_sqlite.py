"""Wrong bits in a study's SQLite file: found, whether SQLite sees them or not."""

import random
import sqlite3

import optuna
import pytest

from lightning_hpo import OptunaTuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.errors import StorageError
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.study.sqlite_file import check_study_file
from tests.faults.scripts import Script, run

X = {"x": "uniform(0, 1)", "kind": "choice(a, b)"}


def tune(root, kind=RandomTuner, n_trials=8, **options):
    return kind(X, max_steps=1, n_trials=n_trials, root=root, name="r", verbose=False, **options).optimize(
        lambda job, params: params["x"]
    )


@pytest.fixture
def file(tmp_path):
    tune(tmp_path)
    return tmp_path / "r" / "study.db"


def test_any_wrong_bit_is_found(file):
    good = file.read_bytes()
    chance = random.Random(0)
    used = [place for place, byte in enumerate(good) if byte]
    places = [*range(24, 28), *range(92, 96), *(chance.choice(used) for _ in range(292))]
    for place in places:
        damaged = bytearray(good)
        damaged[place] ^= 1 << chance.randrange(8)
        file.write_bytes(damaged)
        with pytest.raises(StorageError):
            check_study_file(file)
    file.write_bytes(good)
    check_study_file(file)


def test_the_same_call_and_a_look_refuse_with_the_remedy_and_change_nothing(file, tmp_path):
    good = file.read_bytes()
    place = good.rfind(b"uniform(0.0, 1.0)")
    damaged = good[:place] + b"U" + good[place + 1 :]  # SQLite finds nothing
    with sqlite3.connect(file) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    file.write_bytes(damaged)
    for _ in range(2):
        with pytest.raises(StorageError, match=r"it is damaged: .* checksum in study.db.sum.* remove study.db.sum"):
            tune(tmp_path)
    assert main(["show", str(file.parent)]) == 4
    assert file.read_bytes() == damaged
    file.write_bytes(good)
    assert len(tune(tmp_path).trials()) == 8


def test_a_study_that_others_have_changed_since_goes_on(file, tmp_path):
    study = optuna.load_study(study_name="r", storage=f"sqlite:///{file}")
    study.set_user_attr("note", "of a dashboard")
    assert len(tune(tmp_path, n_trials=9).trials()) == 9
    (file.parent / "study.db.sum").unlink()  # as of an older version
    assert len(tune(tmp_path, n_trials=10).trials()) == 10
    assert (file.parent / "study.db.sum").exists()


def test_a_study_that_replaces_one_that_was_moved_away_has_a_checksum_of_its_own(file, tmp_path):
    file.rename(file.with_name("old.db"))  # its checksum stays behind, and both files were changed as often
    assert len(tune(tmp_path, seed=1).trials()) == 8
    check_study_file(file)


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_search_that_is_killed_or_paused_goes_on(tmp_path, signal):
    code = """
RandomTuner(X, max_steps=1, n_trials=30, root=ROOT, name="r").optimize(lambda job, params: time.sleep(0.02) or 0.5)
"""
    assert run(tmp_path, code.replace("30", "3"))[0] == 0
    process = Script(tmp_path, code)
    process.wait_for("trial ")
    if signal == "SIGKILL":
        process.kill()
    else:
        process.send_signal(15)
        assert process.end()[0] == 143
    assert run(tmp_path, code)[0] == 0
    assert len(read_run(tmp_path / "runs" / "r").rows) == 30


def test_other_tuners_and_shared_studies(tmp_path):
    tune(tmp_path / "optuna", OptunaTuner)
    assert len(tune(tmp_path / "optuna", OptunaTuner, n_trials=9).trials()) == 9
    tune(tmp_path / "shared", shared=True)
    assert len(tune(tmp_path / "shared", shared=True, n_trials=9).trials()) == 9
    assert (tmp_path / "shared" / "r" / "study.db.sum").exists()
