"""A run that is copied to a store, and goes on from there."""

import io
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import optuna
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from lightning_hpo import Hyperband, OptunaTuner, RandomTuner, Tuner
from lightning_hpo.checkpoints.origin import outline
from lightning_hpo.errors import StorageError, StudyMismatchError
from lightning_hpo.reporting import copies
from lightning_hpo.study.journal import read_journal
from lightning_hpo.study.remote import Remote
from tests.support.small import Data, Net

ROOT = Path(__file__).resolve().parents[2]
STORE = "store"  # beside the runs


class Killed(Net):
    """Kills its process in the first trial that goes on, once the store has what was done before."""

    def on_train_batch_start(self, batch, batch_idx):
        beside = Path(self.hparams.step_log).parent
        if self.global_step != 5 or (beside / "killed").exists():
            return
        number = int(Path(self.trainer.default_root_dir).name)
        file = beside / STORE / "s" / "study.journal"
        while not file.exists() or 3 not in _values(file, number):
            time.sleep(0.05)
        (beside / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)


def _values(file, number):
    trials = optuna.load_study(study_name="s", storage=read_journal(file)).trials
    return trials[number].intermediate_values if number < len(trials) else {}


def _logged(result):
    return {path.parent.name: path.read_text() for path in result.folder.glob("csv/*/metrics.csv")}


def search(root, log, module=Killed):
    space = {"lr": "loguniform(1e-3, 1)", "step_log": f"choice('{log}')"}
    options = {"root": root, "name": "s", "trainer": {"accelerator": "cpu"}, "verbose": False, "checkpoint_every": 1}
    options["logger"] = "csv"
    return Tuner(space, Hyperband(9, 2), monitor="val_loss", **options).fit(module, datamodule=Data)


def files_of(folder):
    kept = {"lock", "turn", "seal.key", "copies.json", "progress.json", "worker.lock"}
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in kept
    }


def test_a_killed_run_goes_on_from_its_copy_on_another_machine(tmp_path, monkeypatch):
    root, log = f"file://{tmp_path / STORE}", tmp_path / "steps"
    code = f"from tests.faults.test_remote import search; search({root!r}, {str(log)!r})"
    command = [sys.executable, "-c", code]
    child = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert child.returncode == -signal.SIGKILL
    copied = optuna.load_study(study_name="s", storage=read_journal(tmp_path / STORE / "s" / "study.journal")).trials
    shutil.rmtree(tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    there = search(root, log)
    steps = log.read_text().splitlines()
    assert len(steps) - len(set(steps)) <= 2  # of the job that was killed
    for trial in copied:
        assert trial.intermediate_values.items() <= dict(there.trials()[trial.number].values).items()
    here = search(tmp_path / "here", log)
    assert [(row.params, row.values, row.state) for row in there.trials()] == [
        (row.params, row.values, row.state) for row in here.trials()
    ]
    assert there.best_checkpoint.exists()
    assert _logged(there) == _logged(here)
    assert files_of(tmp_path / STORE / "s") == files_of(tmp_path / "runs" / "s")
    before = files_of(tmp_path / "runs" / "s" / "trials")
    shutil.rmtree(tmp_path / "runs" / "s" / "trials")
    search(root, log)
    assert files_of(tmp_path / "runs" / "s" / "trials") == before != {}


class Failing(MemoryFileSystem):
    """A store in memory that can be out of order."""

    protocol = "failing"
    store = {}  # as the class above has it
    pseudo_dirs = [""]
    broken = lost = False
    garbled = unreadable = "none"  # the end of a path

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("failing://", "memory://"))

    def _open(self, path, mode="rb", **options):
        if Failing.broken and "w" in mode:
            raise OSError("out of order")
        if path.endswith(Failing.unreadable):
            raise OSError("out of order")
        file = super()._open(path, mode, **options)
        if mode == "rb" and path.endswith(Failing.garbled):
            return io.BytesIO(file.read()[:-1])
        return Plain(file) if mode == "rb" else file

    def mv(self, path1, path2, **options):
        super().mv(path1, path2, **options)
        if Failing.lost and path2.endswith("study.journal"):
            Failing.lost = False
            raise OSError("the answer was lost")


class Plain:
    """A file that can be read and nothing else, as those of pyarrow."""

    def __init__(self, file):
        self.read = file.read

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


class Slow(LocalFileSystem):
    """A store to which a checkpoint takes as long as the next jobs; notes what it has with each new journal."""

    protocol = "slow"
    trained = 0
    found = []

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("slow://", ""))

    def _open(self, path, mode="rb", **options):
        if mode == "wb" and "last.ckpt" in path:
            until = Slow.trained + 20
            for _ in range(15):
                time.sleep(0 if Slow.trained >= until else 0.02)
        return super()._open(path, mode, **options)

    def mv(self, path1, path2, **options):
        super().mv(path1, path2, **options)
        if path2.endswith("study.journal"):
            trials = optuna.load_study(study_name="s", storage=read_journal(Path(path2))).trials
            for trial in (trial for trial in trials if trial.intermediate_values and not trial.state.is_finished()):
                content = outline(Path(path2).parent / "trials" / f"{trial.number:04}" / "last.ckpt") or {}
                Slow.found.append((trial.last_step, content.get("global_step")))


class Counting(Net):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        Slow.trained += 1
        while Slow.trained > 60 and not Slow.found:
            time.sleep(0.02)


fsspec.register_implementation("failing", Failing, clobber=True)
fsspec.register_implementation("slow", Slow, clobber=True)


def test_a_store_that_is_slow_has_what_a_killed_process_leaves(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_HPO_RUNS", str(tmp_path / "runs"))
    monkeypatch.setattr(copies, "_LEAST", 0.0)
    monkeypatch.setattr(copies, "_SHARE", 0.0)
    options = {"root": f"slow://{tmp_path / STORE}", "name": "s", "trainer": {"accelerator": "cpu"}, "verbose": False}
    Tuner({"lr": "loguniform(1e-3, 1)"}, Hyperband(27, 3), monitor="val_loss", **options).fit(Counting, datamodule=Data)
    assert Slow.found
    assert [at for at in Slow.found if at[0] != at[1]] == []  # value in the journal, step of the checkpoint
    assert not (tmp_path / "runs" / "s" / ".copies").exists()


def test_an_answer_of_the_store_that_is_lost(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Failing.lost = True
    optimize(lambda job, params: params["x"], root="failing://lost", verbose="lines")
    assert not Failing.lost
    assert capsys.readouterr().out.splitlines()[-1] == "copied to failing://lost/a"


def test_a_file_that_the_store_gives_back_otherwise_is_no_copy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Failing, "garbled", ".part")
    with pytest.raises(StorageError, match="is not read back as it was written"):
        optimize(lambda job, params: params["x"], root="failing://garbled")


def test_the_study_comes_back_after_all_other_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = optimize(lambda job, params: params["x"], root="failing://back")
    shutil.rmtree("runs")
    monkeypatch.setattr(Failing, "unreadable", "best.yaml")
    with pytest.raises(StorageError, match="failing://back/a, .* out of order"):
        optimize(lambda job, params: params["x"], root="failing://back")
    assert not Path("runs", "a", "study.journal").exists()
    monkeypatch.setattr(Failing, "unreadable", "none")
    again = optimize(lambda job, params: params["x"], root="failing://back")
    assert [row.score for row in again.trials()] == [row.score for row in result.trials()]


def test_a_file_is_removed_there_one_copy_after_it_is_gone_here(tmp_path):
    """By then the journal in the store knows that it is not needed."""
    folder, trial = tmp_path / "a", tmp_path / "a" / "trials" / "0000"
    trial.mkdir(parents=True)
    for file in (folder / "study.journal", trial / "last.ckpt"):
        file.write_bytes(b"{}\n")
    remote, store = Remote("memory://gone", folder), fsspec.filesystem("memory")
    remote.keep([trial])
    found = []
    for _ in range(3):
        remote.copy()
        found.append(store.exists("/gone/a/trials/0000/last.ckpt"))
        (trial / "last.ckpt").unlink(missing_ok=True)
    assert found == [True, True, False]


def optimize(function, **options):
    tuner = RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=4, name="a", **{"verbose": False, **options})
    return tuner.optimize(function)


def test_a_store_that_fails_does_not_end_the_search(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def breaks(job, params):
        Failing.broken = True
        return params["x"]

    def never(job, params):
        raise AssertionError

    result = optimize(breaks, root="failing://r")
    assert [row.state for row in result.trials()] == ["complete"] * 4
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("not copied to failing://r/a: study.journal, best.yaml")
    assert "out of order" in last
    assert "the same command tries again" in last
    with pytest.raises(StorageError, match="failing://r/a, the copy of the run, cannot be used"):
        optimize(never, root="failing://r")
    Failing.broken = False
    with pytest.warns(UserWarning, match="has changed"):
        optimize(never, root="failing://r", verbose="lines")
    assert capsys.readouterr().out.splitlines()[-1] == "copied to failing://r/a"
    shutil.rmtree("runs")
    with pytest.warns(UserWarning, match="has changed"):
        again = optimize(breaks, root="failing://r")
    assert [row.score for row in again.trials()] == [row.score for row in result.trials()]


def test_a_full_disk_here_is_not_blamed_on_the_store(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    optimize(lambda job, params: params["x"], root="memory://here")
    shutil.rmtree("runs")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # less than the journal has
    try:
        with pytest.raises(StorageError, match=r"the run folder cannot be used: .*EFBIG") as found:
            optimize(lambda job, params: params["x"], root="memory://here")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "memory://" not in str(found.value)


def test_two_machines_that_have_gone_on_in_different_ways(tmp_path, monkeypatch):
    def half(job, params):
        if job.trial == 2:
            raise KeyboardInterrupt
        return params["x"]

    def value(job, params):
        return params["x"]

    options = {"root": "memory://two", "allow_changed": True}
    monkeypatch.setenv("LIGHTNING_HPO_RUNS", str(tmp_path / "one"))
    with pytest.raises(KeyboardInterrupt):
        optimize(half, **options)
    with pytest.warns(UserWarning, match="has changed"):
        optimize(value, **options)
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    with pytest.warns(UserWarning, match="has changed"):
        optimize(lambda job, params: params["x"], **options)
    monkeypatch.setenv("LIGHTNING_HPO_RUNS", str(tmp_path / "two"))
    journal = (tmp_path / "two" / "a" / "study.journal").read_bytes()
    with pytest.warns(UserWarning, match="has changed"):  # what is older here comes back first
        optimize(value, **options)
    assert (tmp_path / "two" / "a" / "study.journal").read_bytes().startswith(journal)
    with pytest.warns(UserWarning, match="has changed"):
        optimize(half, root=tmp_path / "one", allow_changed=True)
    monkeypatch.setenv("LIGHTNING_HPO_RUNS", str(tmp_path / "one"))
    with pytest.raises(StudyMismatchError, match="gone on in different ways"):
        optimize(half, **options)
    result = optimize(value, root="memory://two", overwrite=True)
    assert len(result.trials()) == 4
    assert [name for name in fsspec.filesystem("memory").ls("/two", detail=False) if "/a.old-" in name]


def test_what_no_store_can_take_is_refused_before_training(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def never(job, params):
        raise AssertionError

    for options, message in (
        ({"root": "nowhere://r"}, "fsspec does not know"),
        ({"root": Path("s3://bucket")}, "a Path is no URL"),
        ({"root": "s3:/bucket"}, "which is no URL: write '://'"),
        ({"root": "file://bucket/runs"}, "has three slashes"),
        ({"root": "memory://r", "shared": True}, "`shared` needs locks"),
        ({"root": "memory://r", "storage": "sqlite:///a.db"}, "`storage` has the study elsewhere"),
    ):
        with pytest.raises(ValueError, match=message):
            optimize(never, **options)
    with pytest.raises(ValueError, match="`study` is your own"):
        OptunaTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=1, study=optuna.create_study(), root="memory://r")
    with pytest.raises(StorageError, match="http://127.0.0.1:9/r/a, the copy of the run"):
        optimize(never, root="http://127.0.0.1:9/r")
    assert not Path("runs", "a", "study.journal").exists()


def test_a_run_folder_that_is_deleted_while_the_search_runs_leaves_its_copy_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("LIGHTNING_HPO_RUNS", str(tmp_path / "runs"))
    journal = tmp_path / STORE / "s" / "study.journal"

    def deletes(job, params):
        if job.trial == 3 and not (tmp_path / "deleted").exists():
            while not journal.exists() or 1 not in _values(journal, 2):
                time.sleep(0.05)
            (tmp_path / "deleted").touch()
            shutil.rmtree(tmp_path / "runs" / "s")
        return params["x"]

    def go():
        options = {"max_steps": 1, "n_trials": 5, "root": f"file://{tmp_path / STORE}", "name": "s", "verbose": False}
        return RandomTuner({"x": "uniform(0, 1)"}, **options).optimize(deletes)

    with pytest.raises(StorageError):
        go()
    kept = journal.read_bytes()
    assert len(go().trials()) == 5
    assert journal.read_bytes().startswith(kept)
    assert len(kept) > 0
