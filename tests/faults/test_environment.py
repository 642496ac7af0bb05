"""Unusual environments: a user without a home, output that goes nowhere, signals, processes without children."""

import os
import pathlib
import pwd
import signal
import subprocess
import sys
import time

import pytest

from lightning_hpo import BayesianTuner, PopulationTuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.reporting.run_view import read_run
from tests.faults.scripts import HEAD, Script, run
from tests.support.small import Data, Net

LR = {"lr": "loguniform(1e-3, 1)"}
CPU = {"accelerator": "cpu"}


@pytest.fixture
def homeless(monkeypatch):
    """As under ``docker run -u 54321``: a uid without a passwd entry, and no HOME."""

    def unknown(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)
    with pytest.raises(RuntimeError, match="home"):
        pathlib.Path.home()


def test_a_user_without_a_home(tmp_path, homeless, capsys):
    options = {"monitor": "val_loss", "root": tmp_path, "trainer": CPU}
    result = RandomTuner(LR, max_steps=3, n_trials=1, name="r", **options).fit(Net, datamodule=Data)
    assert result.best_model() is not None
    PopulationTuner(LR, population_size=2, interval=2, max_steps=4, name="p", **options).fit(Net, datamodule=Data)
    BayesianTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=3, root=tmp_path, name="b").optimize(
        lambda job, params: params["x"]
    )
    assert main(["show", str(tmp_path / "r")]) == 0
    with pytest.raises(ValueError, match="`root` must be a folder of its own"):
        RandomTuner(LR, max_steps=3, n_trials=1, root="/").optimize(lambda *_: 0.0)


PRINTING = """
RandomTuner(X, max_steps=1, n_trials=6, root=ROOT, name="r").optimize(f)
BayesianTuner(X, max_steps=1, n_trials=4, root=ROOT, name="b").optimize(f)
"""


NOWHERE = {
    "closed": "read, nowhere = os.pipe()\nos.close(read)\n",
    "full": "nowhere = os.open('/dev/full', os.O_WRONLY)\n",
    "hung up": "master, nowhere = os.openpty()\nos.close(master)\n",
}
BACK = "\nsys.stdout = sys.stderr = open(os.devnull, 'w')\n"  # a forked process flushes them at its end


def finished(tmp_path):
    return [len(read_run(tmp_path / "runs" / name).rows) for name in ("r", "b")] == [6, 4]


@pytest.mark.parametrize("where", NOWHERE)
def test_a_search_whose_output_cannot_be_written_goes_on_and_says_so_at_most_once(tmp_path, where):
    code, _, err = run(tmp_path, NOWHERE[where] + "os.dup2(nowhere, 1)" + PRINTING + BACK)
    assert code == 0, err
    assert err.count("output cannot be written") == (where != "closed")
    assert finished(tmp_path)


def test_output_that_cannot_be_flushed_at_the_end_keeps_the_exit_code(tmp_path):
    """In an interpreter of its own, which flushes its output when it ends."""
    read, write = os.pipe()
    os.close(read)
    file = tmp_path / "script.py"
    file.write_text(HEAD + PRINTING + "RandomTuner({}, max_steps=1, n_trials=1)")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(file), str(tmp_path / "runs")], stdout=write, stderr=write
    )
    os.close(write)
    assert process.wait(timeout=100) == 2
    assert finished(tmp_path)


@pytest.mark.parametrize(("where", "number"), [("closed", 0), ("full", 4)])
@pytest.mark.parametrize("command", ["show", "best", "report"])
def test_a_full_disk_for_the_output_of_a_command_exits_with_4_and_a_closed_pipe_with_0(
    tmp_path, where, number, command
):
    assert run(tmp_path, PRINTING)[0] == 0
    code = f"{NOWHERE[where]}os.dup2(nowhere, 1)\nfrom lightning_hpo.__main__ import main\n"
    code += f"number = main(['{command}', ROOT + '/r']){BACK}raise SystemExit(number)"
    assert run(tmp_path, code)[0] == number


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252"])
def test_letters_that_the_terminal_lacks_are_written_as_escapes(tmp_path, encoding):
    code = f"sys.stdout.reconfigure(encoding={encoding!r}){PRINTING}"
    code += "RandomTuner({'größe 😀': 'uniform(0, 1)'}, max_steps=1, n_trials=2, root=ROOT, name='u')"
    script = Script(tmp_path, code + ".optimize(lambda *_: 0.5)")
    while script.poll() is None:
        time.sleep(0.01)
    assert script.returncode == 0
    out = script._files[0].read_bytes()
    assert b"the model expects most of" in out
    assert (b"\\xb1" if encoding == "ascii" else "±".encode(encoding)) in out
    assert b"\\U0001f600" in out


@pytest.mark.parametrize("workers", [1, 2])
def test_a_closed_terminal_means_pause_and_the_same_call_continues(tmp_path, workers):
    code = f"""
from tests.support.functions import slow
if __name__ == "__main__":
    RandomTuner(X, max_steps=1, n_trials=9, root=ROOT, name="r", workers={workers}).optimize(slow)
"""
    process = Script(tmp_path, code)
    process.wait_for("trial ")
    process.send_signal(signal.SIGHUP)
    number, _, err = process.end()
    assert number == 129
    assert "paused by SIGHUP" in err.splitlines()[-1]
    assert run(tmp_path, code)[0] == 0
    assert [row.state for row in read_run(tmp_path / "runs" / "r").rows] == ["complete"] * 9


def test_a_hangup_that_is_ignored_stays_so(tmp_path):
    """As under nohup."""
    code = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    code += "RandomTuner(X, max_steps=1, n_trials=3, root=ROOT, name='r').optimize("
    code += "lambda job, params: os.kill(os.getpid(), signal.SIGHUP) or 0.5)"
    assert run(tmp_path, code)[0] == 0


@pytest.mark.parametrize("options", [{"workers": 2}, {"isolate": True}])
@pytest.mark.parametrize("kind", ["RandomTuner", "OptunaTuner"])
def test_workers_of_a_daemonic_process_are_refused_before_anything_runs(tmp_path, kind, options):
    code = f"""
import multiprocessing
def search():
    try:
        {kind}(X, max_steps=1, n_trials=1, root=ROOT, name="r", **{options}).optimize(f)
    except ValueError as error:
        print(error, flush=True)
child = multiprocessing.get_context("fork").Process(target=search, daemon=True)
child.start()
child.join()
"""
    _, out, err = run(tmp_path, code)
    assert "this process is daemonic" in out, err
    assert "give workers=1" in out
    assert not (tmp_path / "runs" / "r" / "study.journal").exists()


def test_a_run_folder_that_is_deleted_meanwhile_exits_with_4(tmp_path):
    code = """
import shutil
class Gone(Net):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 3:
            shutil.rmtree(ROOT + "/r", ignore_errors=True)
PopulationTuner({"lr": "loguniform(1e-3, 1)"}, population_size=2, interval=2, max_steps=8, monitor="val_loss",
                root=ROOT, name="r", trainer=CPU, verbose=False).fit(Gone, datamodule=Data)
"""
    number, _, err = run(tmp_path, code)
    assert number == 4, err
    assert "it was deleted or moved" in err.splitlines()[-1]
