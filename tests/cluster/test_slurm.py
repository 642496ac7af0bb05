"""The script of an array job, under an ``sbatch`` of the test's own that sends the real signals."""

import os
import re
import signal
import subprocess
import sys
import time

from tests.support.studies import study_of

SEARCH = """
import os, time
from pathlib import Path
from lightning_hpo import RandomTuner
from tests.support.small import Data, Net

class Waits(Net):
    def on_train_batch_start(self, batch, batch_idx):
        element = os.environ["SLURM_ARRAY_TASK_ID"]
        if self.global_step == 2 and not Path("at." + element).exists():
            Path("at." + element).touch()
            while not Path("go." + element).exists():
                time.sleep(0.01)

if __name__ == "__main__":
    RandomTuner(
        {"lr": "loguniform(1e-3, 1)", "step_log": f"choice('{Path('steps').resolve()}')"}, max_steps=8, n_trials=6,
        monitor="val_loss", name="s", shared=True, trainer={"accelerator": "cpu"}, verbose=False,
    ).fit(Waits, datamodule=Data)
"""


def test_preempted_elements_are_queued_again_and_the_study_is_made_once(tmp_path):
    """Lightning sees SLURM, whose variables are set, and would take SIGUSR1 for itself."""
    (tmp_path / "train.py").write_text(SEARCH)
    (tmp_path / "scontrol").write_text(f'#!/bin/sh\n[ "$1" = requeue ] && touch {tmp_path}/again.${{2#*_}}\n')
    (tmp_path / "scontrol").chmod(0o755)
    command = subprocess.run(
        [sys.executable, "-m", "lightning_hpo", "slurm", "train.py", "--workers", "3", "--sbatch=--time=1:00:00"],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert command.stderr == ""
    printed = command.stdout
    assert "#SBATCH --time=1:00:00\n" in printed
    (tmp_path / "job.sh").write_text(printed)

    def start(element):
        slurm = {"ARRAY_JOB_ID": 7, "ARRAY_TASK_ID": element, "JOB_ID": 8 + element, "JOB_NAME": "train", "NTASKS": 1}
        slurm |= {"PROCID": 0, "LOCALID": 0, "NODEID": 0, "SUBMIT_DIR": tmp_path}
        path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
        env = {**os.environ, "PATH": path, **{f"SLURM_{name}": str(value) for name, value in slurm.items()}}
        return subprocess.Popen(["bash", "job.sh"], cwd=tmp_path, env=env, start_new_session=True)

    last = int(re.search(r"#SBATCH --array=0-(\d+)", printed)[1])
    elements = [start(element) for element in range(last + 1)]
    for element in range(3):
        while not (tmp_path / f"at.{element}").exists():
            assert elements[element].poll() is None
            time.sleep(0.02)
    for element, ending in ((0, signal.SIGUSR1), (1, signal.SIGTERM)):
        os.killpg(elements[element].pid, ending)
        (tmp_path / f"go.{element}").touch()
        assert elements[element].wait() != 0
        assert (tmp_path / f"again.{element}").exists()
        elements[element] = start(element)
    (tmp_path / "go.2").touch()
    assert [element.wait() for element in elements] == [0, 0, 0]
    assert [trial.state.name for trial in study_of(tmp_path / "runs" / "s").trials] == ["COMPLETE"] * 6
    steps = [line for line in (tmp_path / "steps").read_text().splitlines() if "/trials/" in line]
    assert len(steps) == len(set(steps)) == 6 * 8  # a pause costs no step
    assert not [*tmp_path.rglob("hpc_ckpt*")]
