"""Real processes, real signals: what is acknowledged stays, what was interrupted continues."""

import collections
import os
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from lightning_hpo import HyperbandTuner, RandomTuner
from lightning_hpo.runs import RunFolder
from tests.small import Data, Net, digits
from tests.test_tuners import recorded

K = 25
TRIALS, STEPS = 16, 240
LINE = 60  # about the length of a line in the log of steps


def search(root, name, step_log=None):
    space = {"lr": "loguniform(1e-3, 1)", "hidden": "logint(4, 32)"}
    tuner = RandomTuner(
        space,
        max_steps=STEPS,
        n_trials=TRIALS,
        monitor="val_loss",
        root=root,
        name=name,
        checkpoint_every=K,
        trainer={"accelerator": "cpu", "logger": False},
        verbose=False,
    )
    return tuner.fit(logged(step_log) if step_log else Net, datamodule=Data)


def logged(step_log):
    def net(lr, hidden):
        return Net(lr, hidden, step_log=str(step_log))

    net.__name__ = "Net"
    return net


def in_a_child(action):
    """Run in a forked process of its own group; with all imported, a kill hits any moment of a search."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            action()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


def test_kill_9_twenty_times_at_random_moments(tmp_path):
    digits()
    whole = search(tmp_path, "whole")
    log = tmp_path / "steps.log"
    log.touch()
    chance = random.Random(0)
    kills = 20
    for kill in range(kills):
        child = in_a_child(lambda: search(tmp_path, "killed", log))
        if kill % 5 == 0:  # while it starts
            time.sleep(chance.uniform(0, 0.05))
        else:  # anywhere in the next trial: a step, a validation, a save, a write to the study
            goal = log.stat().st_size + chance.uniform(0, 200) * LINE
            while log.stat().st_size < goal:
                assert os.waitpid(child, os.WNOHANG) == (0, 0), "the search ended by itself"
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.01))
        os.kill(child, signal.SIGKILL)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    result = search(tmp_path, "killed", log)
    assert recorded(result) == recorded(whole)
    states = collections.Counter(trial.state.name for trial in result.study.trials)
    assert states == {"COMPLETE": TRIALS}
    assert len({str(row.params) for row in result.trials()}) == TRIALS
    lines = log.read_text().splitlines()
    repeated = len(lines) - len(set(lines))
    assert len(set(lines)) == TRIALS * STEPS
    assert repeated <= K * kills
    assert not list(tmp_path.glob("killed/trials/*/.*.tmp"))


SCRIPT = """
import sys, time, warnings
warnings.simplefilter("ignore")
from tests.small import Data, Net
from lightning_hpo import HyperbandTuner
import lightning.pytorch as pl

class Slow(Net):
    def on_train_batch_start(self, batch, batch_idx):
        time.sleep(0.02)
        print("step", self.global_step, flush=True)

HyperbandTuner({"lr": "loguniform(1e-3, 1)"}, max_steps=27, min_steps=9, monitor="val_loss", root=sys.argv[1], name="s",
               checkpoint_every=1000, trainer={"accelerator": "cpu", "logger": False}).fit(Slow, datamodule=Data)
print("finished")
"""


def start(tmp_path):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return
    pytest.fail(process.stderr.read())


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_pause(tmp_path, number, code):
    with start(tmp_path) as process:
        wait_for(process, "step 12")
        process.send_signal(number)
        sent = time.monotonic()
        out, err = process.communicate(timeout=60)
        assert time.monotonic() - sent < 5
    assert process.returncode == code
    last = err.strip().splitlines()[-1]
    assert re.match(rf"lightning_hpo: paused by {number.name}; .* is kept in .*; run the same command", last)
    before = max(int(step) for step in re.findall(r"step (\d+)", "step 12\n" + out))
    with start(tmp_path) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "finished" in out
    assert int(re.search(r"step (\d+)", out).group(1)) == before + 1  # no step was lost
    whole = HyperbandTuner(
        {"lr": "loguniform(1e-3, 1)"},
        max_steps=27,
        min_steps=9,
        monitor="val_loss",
        root=tmp_path,
        name="whole",
        trainer={"accelerator": "cpu", "logger": False},
    ).fit(Net, datamodule=Data)
    import optuna

    study = optuna.load_study(study_name="s", storage=f"sqlite:///{RunFolder(tmp_path, 's').study_file}")
    assert [t.values for t in study.trials] == [t.values for t in whole.study.trials]


def test_a_second_ctrl_c_means_now(tmp_path):
    script = (
        "import sys, time\nfrom lightning_hpo import RandomTuner\n"
        "RandomTuner({'x': 'uniform(0, 1)'}, max_steps=1, n_trials=2, root=sys.argv[1], name='s')"
        ".optimize(lambda job, params: print('at work', flush=True) or time.sleep(60))"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        wait_for(process, "at work")
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        assert process.poll() is None  # it waits for the call to end
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) != 0
