"""Real processes, real signals: what is acknowledged stays, what was interrupted continues."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lightning_hpo import HyperbandTuner
from lightning_hpo.runs import RunFolder
from tests.small import Data, Net


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


def start(tmp_path, **options):
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def wait_for(process, text):
    for line in process.stdout:
        if text in line:
            return line
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


def test_a_requeue_by_slurm_loses_no_step(tmp_path):
    """SIGUSR1 some time before the end of a job: Lightning asks for a requeue; then SIGTERM ends it."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "search", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    env = {**os.environ, **slurm}
    with start(tmp_path, env=env) as process:
        wait_for(process, "step 5")
        process.send_signal(signal.SIGUSR1)
        before = int(re.search(r"step (\d+)", wait_for(process, "step 12")).group(1))
        process.send_signal(signal.SIGTERM)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 143, err
        before = max([before, *map(int, re.findall(r"step (\d+)", out))])
    assert (tmp_path / "requeued").read_text().strip() == "requeue 7"
    with start(tmp_path, env=env) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert int(re.search(r"step (\d+)", out).group(1)) == before + 1
