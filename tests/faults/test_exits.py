"""How a script ends that lets the tuner's exceptions through: its code, and its last line."""

import os
import re
import sqlite3
import subprocess
import sys

import pytest

from lightning_hpo import (
    ASHATuner,
    BayesianTuner,
    HyperbandTuner,
    OptunaTuner,
    PopulationBasedTraining,
    PopulationTuner,
    RandomTuner,
)
from lightning_hpo.__main__ import main
from lightning_hpo.errors import exit_code
from tests.faults.scripts import HEAD, Script, run

LAST = re.compile(r"lightning_hpo: [^\n]+; (what was recorded and saved is kept in [^\n;]+|nothing was started); .+\.")
SPACE = {"x": "uniform(0, 1)"}
TUNER = "RandomTuner({}, max_steps=1, n_trials={}, root=ROOT, name='r', verbose=False)"


def check(outcome, code, *words):
    rc, _, err = outcome
    last = err.strip().splitlines()[-1]
    assert rc == code, err
    assert LAST.fullmatch(last), last
    for word in words:
        assert word in last
    return err


@pytest.fixture
def runs(tmp_path):
    """A finished study of eight trials, and the call that made it."""
    code = TUNER.format("X", 8) + ".optimize(f)"
    assert run(tmp_path, code)[0] == 0
    return code


def test_a_failed_search_exits_with_3(tmp_path):
    failing = TUNER.format("X", 50) + ".optimize(lambda job, params: 1 / 0)"
    err = check(run(tmp_path, failing), 3, "5 trials in a row failed, the last one with: ZeroDivisionError", "show")
    assert "SearchFailedError" in err  # an ordinary traceback, for people
    code = "RandomTuner(X, max_steps=1, n_trials=2, root=ROOT, name='n', verbose=False)"
    check(run(tmp_path, code + ".optimize(lambda job, params: float('nan'))"), 3, "no trial succeeded")


def test_the_interpreter_itself_ends_with_the_code(tmp_path):
    """What the other tests imitate in forked processes."""
    script = tmp_path / "script.py"
    script.write_text(HEAD + TUNER.format("X", 50) + ".optimize(lambda job, params: 1 / 0)")
    command = [sys.executable, "-W", "ignore", str(script), str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    check((done.returncode, done.stdout, done.stderr), 3, "5 trials in a row failed")


def test_a_wrong_call_and_another_study_exit_with_2(tmp_path, runs):
    before = (tmp_path / "runs" / "r" / "study.journal").read_bytes()
    changed = runs.replace("(X,", "({'x': 'uniform(0, 2)'},")
    check(run(tmp_path, changed), 2, 'was "x": "uniform(0.0, 1.0)"', 'now "x": "uniform(0.0, 2.0)"')
    assert (tmp_path / "runs" / "r" / "study.journal").read_bytes() == before
    check(run(tmp_path, runs.replace("name='r'", "name='../r'")), 2, "`name` must be", "nothing was started")
    check(run(tmp_path, runs.replace("root=ROOT", "root='/'")), 2, "`root` must be a folder of its own for runs")
    fit = "RandomTuner({'lrr': 'uniform(0, 1)'}, max_steps=1, n_trials=1, root=ROOT, monitor='val_loss').fit(Net)"
    check(run(tmp_path, fit), 2, "Net has no argument 'lrr'")
    fit = (
        "RandomTuner({'lr': 'uniform(0, 1)'}, max_steps=1, n_trials=1, root=ROOT, name='n', monitor='no', trainer=CPU)"
    )
    check(run(tmp_path, fit + ".fit(Net, datamodule=Data)"), 2, "`monitor` 'no' is not logged", "nothing was started")
    assert not (tmp_path / "runs" / "n").exists()  # the check has failed, and nothing was begun
    check(run(tmp_path, TUNER.format("{}", 8)), 2, "`space` is empty", "nothing was started")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: RandomTuner({}, max_steps=1, n_trials=1), "`space` is empty"),
        (lambda: RandomTuner(SPACE, max_steps=0, n_trials=1), "`max_steps`"),
        (lambda: RandomTuner(SPACE, max_steps=1, n_trials=1, workers=0), "`workers` must be an int >= 1, got 0"),
        (lambda: HyperbandTuner(SPACE, max_steps=9, eta=1), "`eta`"),
        (lambda: ASHATuner(SPACE, max_steps=9, min_steps=10), "`min_steps`"),
        (lambda: BayesianTuner(SPACE, max_steps=9, n_trials=1, stop_below=2), "`stop_below` must be between 0 and 1"),
        (lambda: OptunaTuner(SPACE, max_steps=9, n_trials=1, pruner="median"), "`pruner` must be an Optuna pruner"),
        (lambda: PopulationTuner(SPACE, max_steps=9, interval=4), "`max_steps` must be a multiple of `interval`"),
        (lambda: PopulationBasedTraining("p", SPACE, member=8, population_size=8), "`member` must be an int"),
    ],
)
def test_a_wrong_argument_of_a_constructor_exits_with_2_and_its_last_line(make, words):
    with pytest.raises((ValueError, TypeError)) as caught:
        make()
    (line,) = caught.value.__notes__
    assert LAST.fullmatch(line), line
    assert words in line
    assert exit_code(caught.value) == 2


def test_a_study_in_use_exits_with_2(tmp_path):
    code = "SECONDS = {}\n" + TUNER.replace("{}", "X", 1).replace("{}", "2")
    code += ".optimize(lambda job, params: print('at work', flush=True) or time.sleep(SECONDS) or 0.5)"
    first = Script(tmp_path, code.format(60))
    try:
        first.wait_for("at work")
        check(run(tmp_path, code.format(60)), 2, f"in use by process {first.pid} on host {os.uname().nodename}")
    finally:
        first.kill()
    assert run(tmp_path, code.format(0))[0] == 0  # freed by the death


def test_a_storage_in_use_from_another_root_exits_with_2(tmp_path):
    url = f"sqlite:///{tmp_path}/s.db"
    code = TUNER.replace("{}", "X", 1).replace("{}", "2").replace("root=ROOT", f"root=ROOT, storage='{url}'")
    code += ".optimize(lambda job, params: print('at work', flush=True) or time.sleep(SECONDS) or 0.5)"
    first = Script(tmp_path, "SECONDS = 60\n" + code)
    try:
        first.wait_for("at work")
        check(run(tmp_path, "SECONDS = 0\n" + code, root=tmp_path / "other"), 2, f"in use in {tmp_path / 'runs' / 'r'}")
    finally:
        first.kill()
    assert run(tmp_path, "SECONDS = 0\n" + code, root=tmp_path / "other")[0] == 0


@pytest.mark.parametrize("damage", ["empty", "garbage", "flipped"])
def test_a_damaged_study_exits_with_4_and_is_not_changed(tmp_path, runs, damage):
    file = tmp_path / "runs" / "r" / "study.journal"
    good = file.read_bytes()
    damaged = {
        "empty": b"",
        "garbage": b"x" * len(good),
        "flipped": good[:2048] + bytes(byte ^ 255 for byte in good[2048:4096]) + good[4096:],
    }[damage]
    file.write_bytes(damaged)
    check(run(tmp_path, runs), 4, "study")
    assert file.read_bytes() == damaged
    assert main(["show", str(file.parent)]) == 4


def test_a_study_that_optuna_cannot_read_exits_with_4(tmp_path, runs):
    with (tmp_path / "runs" / "r" / "study.journal").open("a") as journal:
        journal.write(f'{{"op_code":2,"worker_id":"","study_id":0,"user_attr":{{"a":{"[" * 100_000}}}}}\n')
    check(run(tmp_path, runs), 4, "study.journal is damaged in line")
    in_sqlite = runs.replace("root=ROOT", f"root=ROOT, storage='sqlite:///{tmp_path}/s.db'").replace("'r'", "'s'")
    assert run(tmp_path, in_sqlite)[0] == 0
    with sqlite3.connect(tmp_path / "s.db") as database:
        database.execute("UPDATE study_user_attributes SET value_json = ?", ("[" * 100_000,))
    check(run(tmp_path, in_sqlite), 4, "cannot be read: RecursionError")


def test_an_unforeseen_error_exits_with_1(tmp_path):
    code = "from lightning_hpo import FullBudget, Tuner\nfrom lightning_hpo.tuners.parts import Parts\n"
    code += "def odd(run):\n    raise RuntimeError('oh')\n"
    code += "tuner = Tuner(X, FullBudget(1, 1), parts=Parts(observers=odd), root=ROOT, name='r', verbose=False)\n"
    code += "tuner.optimize(f)"
    check(run(tmp_path, code), 1, "RuntimeError: oh")


def test_a_script_that_catches_the_error_goes_on(tmp_path):
    code = "try:\n    " + TUNER.format("X", 9) + ".optimize(lambda job, params: 1 / 0)\n"
    code += "except RuntimeError as error:\n    print('caught', error)\nraise LookupError('mine')"
    rc, out, err = run(tmp_path, code)
    assert rc == 1  # Python's own, with Python's own last line
    assert "caught 5 trials in a row failed" in out
    assert err.splitlines()[-1] == "LookupError: mine"


def test_an_error_does_not_end_an_interactive_session(tmp_path):
    """As ``python -i`` sees it: the hook is called, and must not end the session."""
    failing = TUNER.format("X", 9) + ".optimize(lambda job, params: 1 / 0)"
    code = "sys.ps1 = '>>> '\ntry:\n    " + failing + "\nexcept Exception:\n    sys.excepthook(*sys.exc_info())\n"
    number, out, err = run(tmp_path, code + "print('still', 'here')")
    assert number == 0
    assert "SearchFailedError" in err
    assert "still here" in out
