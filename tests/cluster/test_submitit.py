"""Jobs in processes that submitit starts on this machine, as it starts those of SLURM."""

import json
import os
import signal
import time

import pytest

from lightning_hpo import Hyperband, RandomTuner, SubmititExecutor, Tuner
from tests.faults.scripts import Script
from tests.support.functions import loss
from tests.support.studies import study_of

pytest.importorskip("submitit")
X = {"x": "uniform(0, 1)"}


def ends(folder):
    """A function of this test: trial 0 is preempted once, trial 1 fails."""

    def train(job, params):
        if job.trial == 0 and not (folder / "preempted").exists():
            (folder / "preempted").touch()
            os.kill(os.getpid(), signal.SIGUSR2)
        if job.trial == 1:
            raise ValueError("no luck")
        return params["x"]

    return train


def test_a_preempted_job_is_queued_again_and_an_error_is_that_of_its_trial(tmp_path):
    queue = SubmititExecutor(workers=2, parameters={"timeout_min": 60}, cluster="local")
    options = {"max_steps": 1, "n_trials": 2, "root": tmp_path, "verbose": False}
    there = RandomTuner(X, name="there", executor=queue, **options).optimize(ends(tmp_path))
    here = RandomTuner(X, name="here", **options).optimize(ends(tmp_path))
    assert [(row.params, row.values, row.state) for row in there.rows] == [
        (row.params, row.values, row.state) for row in here.rows
    ]
    assert (tmp_path / "preempted").exists()
    assert there.study.trials[1].user_attrs["failure"].startswith("ValueError: no luck")
    assert not [*tmp_path.rglob("*.mark"), *tmp_path.rglob("*.pkl")]


HYPERBAND = """
import json, os, pickle, signal, sys, time
from pathlib import Path
from lightning_hpo import Hyperband, SubmititExecutor, Tuner

folder = Path(sys.argv[1])

class Named:
    pass

def train(job, params):
    pickle.dumps(Named())  # it has its name, although it was sent by value
    if job.trial == 1 and not (folder / "killed").exists():
        (folder / "killed").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if job.trial == 2 and not (folder / "waits").exists():
        (folder / "waits").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    with (folder / "jobs").open("a") as file:
        print(job.trial, job.max_steps, file=file)
    return (params["x"] - 0.3) ** 2 + 1 / job.max_steps

result = Tuner({"x": "uniform(0, 1)"}, Hyperband(9, 2), root=folder, name="s", verbose=False, max_retries=1,
    executor=SubmititExecutor(2, {"timeout_min": 60}, "local")).optimize(train)
print(json.dumps([[row.params["x"], [*row.values.items()], row.state] for row in result.rows]))
"""


def waiting(folder, code):
    """Start a script, and return it when one of its jobs waits for the file ``go``."""
    (folder / "script.py").write_text(code)
    script = Script(folder, folder / "script.py", folder)
    while not (folder / "waits").exists():
        assert script.poll() is None
        time.sleep(0.02)
    return script


def test_a_killed_job_and_a_killed_driver_cost_nothing(tmp_path):
    first = waiting(tmp_path, HYPERBAND)
    first.kill()
    (tmp_path / "go").touch()  # the job that has lost its driver goes on
    code, out, err = Script(tmp_path, tmp_path / "script.py", tmp_path).end()
    assert code == 0, err
    here = Tuner(X, Hyperband(9, 2), root=tmp_path, name="here", verbose=False).optimize(loss)
    rows = json.loads(out.splitlines()[-1])
    assert rows == [[row.params["x"], [[*pair] for pair in row.values.items()], row.state] for row in here.rows]
    assert (tmp_path / "killed").exists()
    jobs = (tmp_path / "jobs").read_text().splitlines()
    assert {*jobs} == {f"{number} {step}" for number, (_, values, _) in enumerate(rows) for step, _ in values}
    assert len(jobs) - len({*jobs}) <= 2  # those that had lost their driver


PAUSED = """
import sys, time
from pathlib import Path
from lightning_hpo import RandomTuner, SubmititExecutor
from tests.support.small import Data, Net

folder = Path(sys.argv[1])

class Waits(Net):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 2:
            (folder / "waits").touch()
            while not (folder / "go").exists():
                time.sleep(0.01)
        if self.global_step >= 2 and not (folder / "again").exists():
            time.sleep(1.1)  # longer than between two looks at the mark

if __name__ == "__main__":
    RandomTuner({"lr": "loguniform(1e-3, 1)", "step_log": f"choice('{folder / 'steps'}')"}, max_steps=8, n_trials=1,
        monitor="val_loss", root=folder, name="s", trainer={"accelerator": "cpu"}, verbose=False,
        executor=SubmititExecutor(1, {"timeout_min": 60}, "local")).fit(Waits, datamodule=Data)
"""


def test_a_pause_reaches_the_job_and_the_same_command_goes_on(tmp_path):
    """The class is one of the script's, and travels by value."""
    first = waiting(tmp_path, PAUSED)
    first.send_signal(signal.SIGTERM)
    while [*(tmp_path / "s" / ".submitit").glob("*.mark")]:
        assert first.poll() is None
        time.sleep(0.02)
    (tmp_path / "go").touch()
    code, _, err = first.end()
    assert code == 143, err
    assert len(steps_of(tmp_path)) < 8
    (tmp_path / "again").touch()
    code, _, err = Script(tmp_path, tmp_path / "script.py", tmp_path).end()
    assert code == 0, err
    steps = steps_of(tmp_path)
    assert len(steps) == len({*steps}) == 8
    assert [trial.state.name for trial in study_of(tmp_path / "s").trials] == ["COMPLETE"]


def steps_of(folder):
    """Steps of trials; the check before the first trial takes one too."""
    return [line for line in (folder / "steps").read_text().splitlines() if "/trials/" in line]


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="`workers` must be an int >= 1, got 0"):
        SubmititExecutor(workers=0)
    with pytest.raises(TypeError, match="`parameters` must be a dictionary"):
        SubmititExecutor(1, ["gpu"])
    with pytest.raises(ValueError, match="`parameters` has 'slurm_nodes': 2, but a job is one process"):
        SubmititExecutor(1, {"slurm_nodes": 2})
    for executor, message in (
        (SubmititExecutor(1, {"timeout": 9}, "local"), "submitit does not take .*timeout"),
        (SubmititExecutor(1, cluster="lokal"), "submitit does not take .*lokal.*cluster='local' runs"),
    ):
        with pytest.raises(ValueError, match=message):
            RandomTuner(X, max_steps=1, n_trials=1, root=tmp_path, executor=executor).optimize(loss)
    with pytest.raises(ValueError, match="`shared` lets several processes decide, but one process leads the jobs of a"):
        RandomTuner(X, max_steps=1, n_trials=1, root=tmp_path, executor=SubmititExecutor(1), shared=True).optimize(loss)
    with pytest.raises(ValueError, match="`trial_timeout` is 9 s, but .* give it parameters={'timeout_min': 1}"):
        RandomTuner(X, max_steps=1, n_trials=1, root=tmp_path, executor=SubmititExecutor(1), trial_timeout=9).optimize(
            loss
        )
    assert not [*tmp_path.iterdir()]
