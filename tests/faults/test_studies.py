"""Damage to the study of a search, studies of the first edition, and SQLite as the storage."""

import random
import re

import optuna
import pytest

from lightning_hpo import HyperbandTuner, OptunaTuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.errors import StorageError, StudyMismatchError, exit_code
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.storage_errors import sqlite_url
from tests.faults.scripts import Script, run
from tests.support.studies import study_of
from tests.training.test_tuners import recorded

X = {"x": "uniform(0, 1)", "kind": "choice(a, b)"}
FLIPS = 300


def score(job, params):
    return params["x"] / job.max_steps


def tune(root, tuner=RandomTuner, function=score, **options):
    arguments = {"max_steps": 1, "n_trials": 8, "root": root, "name": "r", "verbose": False}
    return tuner(X, **{**arguments, **options}).optimize(function)


def hyperband(root):
    return HyperbandTuner(X, max_steps=9, root=root, name="r", verbose=False).optimize(score)


def with_optuna(root):
    return tune(root, OptunaTuner)


@pytest.mark.parametrize("search", [hyperband, with_optuna])
class TestJournal:
    def test_any_wrong_bit_is_found_and_no_trial_is_lost(self, tmp_path, caplog, search):
        whole = recorded(search(tmp_path))
        file = tmp_path / "r" / "study.journal"
        good, rows = file.read_bytes(), read_run(tmp_path / "r").rows
        chance = random.Random(0)
        for number in range(FLIPS):
            damaged = bytearray(good)
            damaged[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
            file.write_bytes(damaged)
            caplog.clear()
            assert read_run(tmp_path / "r").rows == rows
            assert "was put right" in caplog.text
            if number % 30 == 0:
                assert recorded(search(tmp_path)) == whole
                assert file.read_bytes() == good

    def test_the_line_that_a_kill_has_cut_off_is_dropped_and_the_search_goes_on(self, tmp_path, search):
        whole = recorded(search(tmp_path))
        file = tmp_path / "r" / "study.journal"
        lines = file.read_bytes().splitlines(keepends=True)
        for number in (len(lines) // 2, len(lines) - 1):
            for kept in (1, len(lines[number]) // 2, len(lines[number]) - 1):
                file.write_bytes(b"".join(lines[:number]) + lines[number][:kept])
                assert recorded(search(tmp_path)) == whole
        assert list(file.parent.glob("study.journal.corrupt-*"))

    def test_other_damage_is_refused_and_nothing_is_changed(self, tmp_path, search):
        search(tmp_path)
        file = tmp_path / "r" / "study.journal"
        good = file.read_bytes()
        damaged = good.replace(b'"values":[0.', b'"values":[6.', 1)  # two bits
        file.write_bytes(damaged)
        for _ in range(2):
            with pytest.raises(StorageError, match=r"study.journal is damaged in line \d+, which is about trial \d"):
                search(tmp_path)
        assert main(["show", str(tmp_path / "r")]) == 4
        assert file.read_bytes() == damaged
        file.write_bytes(good)
        search(tmp_path)


def test_a_plain_journal_of_optuna_in_the_folder_is_no_study_of_ours(tmp_path):
    folder = RunFolder(tmp_path, "r")
    folder.study_file.touch()
    with pytest.raises(StorageError, match="is not a study: it is empty or damaged"):
        tune(tmp_path)
    folder.study_file.unlink()
    tune(tmp_path)
    study_of(folder.path).enqueue_trial({"x": 0.5, "kind": "a"})  # by a dashboard
    assert len(tune(tmp_path, n_trials=9).trials()) == 9


def test_a_renamed_run_folder_is_refused_and_nothing_in_it_changes(tmp_path, capsys):
    tune(tmp_path)
    (tmp_path / "r").rename(tmp_path / "copied")
    before = {file: file.read_bytes() for file in (tmp_path / "copied").rglob("*") if file.is_file()}
    with pytest.raises(StudyMismatchError, match=r"holds the study 'r', as the folder was renamed.*Rename it to 'r'"):
        tune(tmp_path, name="copied")
    assert {file: file.read_bytes() for file in before} == before
    assert main(["show", str(tmp_path / "copied")]) == exit_code(StorageError())
    assert "holds the study 'r', as the folder was renamed or copied" in capsys.readouterr().err
    (tmp_path / "copied").rename(tmp_path / "r")
    assert len(tune(tmp_path, n_trials=9).rows) == 9


def test_a_call_that_changes_nothing_writes_nothing_into_the_study(tmp_path):
    tune(tmp_path)
    before = (tmp_path / "r" / "study.journal").read_bytes()
    tune(tmp_path)
    assert (tmp_path / "r" / "study.journal").read_bytes() == before


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path):
    study = tune(tmp_path).study
    before = (tmp_path / "r" / "study.journal").read_bytes()
    with pytest.raises(StorageError, match=r"16,777,216 bytes"):
        study.set_user_attr("large", "x" * 2**24)
    assert (tmp_path / "r" / "study.journal").read_bytes() == before


@pytest.mark.parametrize("folder", ["runs", "100% a?b#c"])
def test_a_run_of_the_first_edition_is_refused_with_the_ways_to_go_on(tmp_path, folder):
    root = tmp_path / folder
    file = root / "r" / "study.db"
    RunFolder(root, "r")
    storage = optuna.storages.RDBStorage(sqlite_url(file))
    first = tune(root, storage=storage)
    trials = recorded(first)
    noted = first.study.user_attrs["lightning_hpo"]
    first.study.set_user_attr("lightning_hpo", {**noted, "code": {"python": "3.11", "parts": {"score": "bytecode"}}})
    storage.engine.dispose()
    before = file.read_bytes()
    calls = []
    with pytest.raises(StudyMismatchError, match="choose another `name`, .* or go on with it by `storage=") as caught:
        tune(root, function=lambda job, params: calls.append(job) or 0.5)
    assert exit_code(caught.value) == 2
    assert not calls
    assert file.read_bytes() == before
    assert not (root / "r" / "study.journal").exists()
    assert main(["show", str(root / "r")]) == 0
    (url,) = re.findall(r"storage='(.*)'", str(caught.value))
    assert recorded(tune(root, storage=url, n_trials=9))[:8] == trials
    assert len(tune(root, name="other").trials()) == 8
    tune(root, overwrite=True)
    (aside,) = root.glob("r.old-*")
    assert (aside / "study.db").exists()
    assert not file.exists()


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_damage_that_sqlite_finds_is_said_in_one_line(tmp_path, share):
    url = f"sqlite:///{tmp_path}/s.db"
    tune(tmp_path, storage=url, n_trials=40)
    file = tmp_path / "s.db"
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    damaged = file.read_bytes()
    with pytest.raises(StorageError, match=r"the study in .* cannot be used: .*malformed"):
        tune(tmp_path, storage=url)
    assert file.read_bytes() == damaged
    assert main(["show", str(tmp_path / "r"), "--storage", url]) == 4


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


def test_shared_studies_go_on(tmp_path):
    tune(tmp_path, shared=True)
    assert len(tune(tmp_path, shared=True, n_trials=9).trials()) == 9
