"""Worker processes: as good as one process, and a crash costs one trial."""

import collections
import functools
import gc
import importlib.util
import multiprocessing
import os
import random
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from lightning_hpo import Hyperband, OptunaTuner, RandomTuner, RayExecutor, Tuner
from lightning_hpo.executors.processes import WorkerProcesses, gpu_shares
from tests.faults.scripts import Script
from tests.faults.test_kill import in_a_child
from tests.support.functions import accident, loss, pruning, torch_is_loaded, where
from tests.support.small import Data, Net

X = {"x": "uniform(0, 1)"}


def of_a_module_that_takes_long_to_import(job, params):
    return 0.0


class Ranked(Net):
    """Each of its processes writes its rank, and what it has trained."""

    def on_train_end(self):
        if self.trainer.world_size > 1:  # not in the check
            weights = sum(float(parameter.detach().double().sum()) for parameter in self.parameters())
            with Path(os.environ["RANKS"]).open("a") as file:
                file.write(f"{self.global_rank} {self.trainer.default_root_dir} {self.global_step} {weights}\n")


class TestWorkers:
    def test_the_same_trials_get_the_same_values_as_in_one_process(self, tmp_path):
        """Hyperband waits for its rungs, so with a random sampler the order of arrival does not matter."""
        make = functools.partial(Tuner, X, Hyperband(9), root=tmp_path, verbose=False)
        one, two = make(name="one").optimize(loss), make(name="two", workers=2).optimize(loss)
        assert [(row.params, row.values, row.state) for row in one.trials()] == [
            (row.params, row.values, row.state) for row in two.trials()
        ]

    def test_workers_run_many_jobs(self, tmp_path):
        result = RandomTuner(X, max_steps=1, n_trials=12, workers=2, root=tmp_path, name="f").optimize(where)
        pids = {row.values[1] for row in result.trials()}
        assert len(pids) == 2
        assert os.getpid() not in pids

    def test_executor_says_where_jobs_run(self, tmp_path):
        make = functools.partial(RandomTuner, X, max_steps=1, n_trials=6, root=tmp_path, verbose=False)
        pids = {row.values[1] for row in make(executor=2).optimize(where).trials()}
        assert len(pids - {os.getpid()}) == 2
        with pytest.raises(ValueError, match="`executor` is 2 and `workers` 3: leave `workers` out"):
            make(executor=2, workers=3)
        with pytest.raises(TypeError, match="`executor` must be a number of worker processes, a RayExecutor or a Subm"):
            make(executor="ray")
        with pytest.raises(ValueError, match="`workers` must be an int >= 1, got 0"):
            RayExecutor(workers=0)
        with pytest.raises(ValueError, match="`resources` must be numbers >= 0, as in {'CPU': 1}, got 'GPU': -1"):
            RayExecutor(workers=1, resources={"GPU": -1})
        if importlib.util.find_spec("ray") is None:
            with pytest.raises(ImportError, match=r"pip install 'lightning-hpo-suite\[ray\]'"):
                make(name="none", executor=RayExecutor(workers=2)).optimize(where)
            assert not (tmp_path / "none").exists()

    def test_a_worker_for_a_plain_function_loads_neither_torch_nor_lightning(self, tmp_path):
        search = RandomTuner(X, max_steps=1, n_trials=1, isolate=True, root=tmp_path, name="f")
        assert search.optimize(torch_is_loaded).best_score == 0.0

    def test_a_crash_fails_its_job_only(self, tmp_path):
        result = RandomTuner(X, max_steps=1, n_trials=9, workers=2, max_failed=9, root=tmp_path, name="f").optimize(
            accident
        )
        reasons = {
            t.number: t.user_attrs["failure"].splitlines()[0] for t in result.study.trials if t.state.name == "FAIL"
        }
        assert reasons == {
            1: "the worker process was killed by signal 9 (SIGKILL)",
            2: "SystemExit: 3",
            3: "the worker process ended with exit code 5",
            4: "the worker process was killed by signal 11 (SIGSEGV)",
            5: "ValueError: no luck",
        }
        assert [row.state for row in result.trials()].count("complete") == 4

    def test_a_pruned_trial_is_pruned_as_in_this_process(self, tmp_path):
        for isolate in (False, True):
            result = OptunaTuner(
                X, max_steps=1, n_trials=3, isolate=isolate, root=tmp_path, name=f"{isolate}", verbose=False
            ).optimize(pruning)
            assert [trial.state.name for trial in result.study.trials] == ["COMPLETE", "PRUNED", "COMPLETE"]

    def test_a_worker_starts_the_other_ranks_of_its_trials(self, tmp_path, monkeypatch):
        monkeypatch.setenv("RANKS", str(tmp_path / "ranks"))
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # two ranks on a CPU do not need two cards
        make = functools.partial(
            Tuner, {"lr": "loguniform(1e-3, 1)"}, Hyperband(6, 2), monitor="val_loss", root=tmp_path, isolate=True
        )
        result = make(devices_per_trial=2, trainer={"accelerator": "cpu"}).fit(Ranked, datamodule=Data)
        assert {row.state for row in result.trials()} == {"complete", "pruned"}
        jobs = collections.defaultdict(list)
        for line in (tmp_path / "ranks").read_text().splitlines():
            rank, *job = line.split(" ")
            jobs[tuple(job)].append(rank)  # trial, step and weights
        assert {*map(frozenset, jobs.values())} == {frozenset("01")}
        assert len(jobs) == sum(len(row.values) for row in result.trials())
        with pytest.raises(ValueError, match="give devices_per_trial=2"):
            make(name="f", trainer={"accelerator": "cpu", "devices": 2}).fit(Ranked, datamodule=Data)
        assert not (tmp_path / "f").exists()

    def test_a_killed_worker_cannot_keep_the_mark_that_asks_for_a_pause(self):
        processes = WorkerProcesses(loss, 2)

        def dies_with_the_lock():
            getattr(processes._pause, "get_lock", threading.Lock)().acquire()  # if there were one
            os.kill(os.getpid(), signal.SIGKILL)

        os.waitpid(in_a_child(dies_with_the_lock), 0)
        pause = threading.Thread(target=processes.pause, daemon=True)
        pause.start()
        pause.join(120)
        assert not pause.is_alive()
        assert processes._pause.value == 1

    def test_a_second_ctrl_c_while_workers_start_leaves_none(self):
        """The first one is only noted; the second one is a KeyboardInterrupt, here before any worker is ready."""
        before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            with pytest.raises(KeyboardInterrupt), WorkerProcesses(of_a_module_that_takes_long_to_import, 2):
                time.sleep(60)
            assert multiprocessing.active_children() == []
        finally:
            signal.signal(signal.SIGINT, before)
            for child in multiprocessing.active_children():
                child.kill()

    def test_a_function_that_cannot_be_pickled_is_named(self, tmp_path):
        with pytest.raises(TypeError, match="can be imported by name"):
            RandomTuner(X, max_steps=1, n_trials=2, workers=2, root=tmp_path, name="f").optimize(
                lambda job, params: 0.0
            )
        with pytest.raises(ValueError, match="`workers` must be an int >= 1, got 0"):
            RandomTuner(X, max_steps=1, n_trials=2, workers=0)

    def test_training_in_workers_equals_training_here(self, tmp_path):
        make = functools.partial(
            Tuner,
            {"lr": "loguniform(1e-3, 1)"},
            Hyperband(18, 2),
            monitor="val_loss",
            root=tmp_path,
            trainer={"accelerator": "cpu"},
            verbose=False,
        )
        one = make(name="one").fit(Net, datamodule=Data)
        two = make(name="two", workers=2).fit(Net, datamodule=Data)
        assert [dict(row.values) for row in one.trials()] == [dict(row.values) for row in two.trials()]
        assert two.best_checkpoint.exists()


SCRIPT = """
import sys, time
from lightning_hpo import RandomTuner

def work(job, params):
    print("at work", flush=True)
    time.sleep(0.3)
    return params["x"]

if __name__ == "__main__":
    result = RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=12, workers=2, root=sys.argv[1], name="s",
                         verbose=False).optimize(work)
    rows = result.trials()
    print("trials", [row.state for row in rows].count("complete"), len({row.params["x"] for row in rows}))
"""


def descendants(pid):
    found = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in found.splitlines())
    return [child for child, parent in parents.items() if parent == pid]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


@pytest.fixture
def start(tmp_path):
    """Starts a script in a process of its own."""

    def started(code=SCRIPT):
        (tmp_path / "script.py").write_text(code)
        return Script(tmp_path, tmp_path / "script.py", tmp_path)

    return started


def test_kill_9_of_the_parent_leaves_no_orphan_and_loses_nothing(start):
    chance = random.Random(0)
    for _ in range(2):
        process = start()
        process.wait_for("at work")
        time.sleep(chance.uniform(0.1, 0.7))
        children = descendants(process.pid)
        process.kill()
        deadline = time.monotonic() + 120
        while any(map(alive, children)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert children
        assert not any(map(alive, children))
    assert start().end()[1].splitlines()[-1] == "trials 12 12"


def test_a_signal_to_the_whole_group_is_a_pause(start):
    process = start()
    process.wait_for("at work")
    os.killpg(process.pid, signal.SIGINT)
    code, _, err = process.end()
    assert code == 130
    assert "paused by SIGINT" in err.splitlines()[-1]
    assert start().end()[1].splitlines()[-1] == "trials 12 12"


def test_a_signal_to_the_whole_group_while_workers_start_is_a_pause(tmp_path, start):
    code = f"""
import pathlib, sys, time
here = pathlib.Path({str(tmp_path)!r})
if __name__ != "__main__":  # in a worker
    (here / "starting").touch()
    while not (here / "signalled").exists():
        time.sleep(0.05)
from lightning_hpo import RandomTuner
def score(job, params):
    return params["x"]
if __name__ == "__main__":
    tuner = RandomTuner({{"x": "uniform(0, 1)"}}, max_steps=1, n_trials=4, workers=2, root=here, name="r")
    print("trials", len(tuner.optimize(score).trials()))
"""
    process = start(code)
    while not (tmp_path / "starting").exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    (tmp_path / "signalled").touch()
    left, _, err = process.end()
    assert left == 130, err
    assert "paused by SIGINT" in err.splitlines()[-1]
    assert "trials 4" in start(code).end()[1]


@pytest.mark.parametrize(
    ("job", "collection", "after"), [(1, 3, [0, 3, 6, 9, 11]), (3, 3, list(range(12))), (0.1, 3, [0, 11])]
)
def test_jobs_shorter_than_a_collection_are_collected_together(tmp_path, monkeypatch, job, collection, after):
    """On a clock of the test: a job takes ``job`` seconds, a garbage collection ``collection``."""
    now, trials, collected = [0.0], [], []

    def f(job_of_trial, params):
        trials.append(job_of_trial.trial)
        now[0] += job
        return params["x"]

    def collecting(phase, info):
        if phase == "start" and trials:
            now[0] += collection
            collected.append(trials[-1])

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    gc.callbacks.append(collecting)
    gc.disable()  # only what the tuner collects
    try:
        RandomTuner(X, max_steps=1, n_trials=12, root=tmp_path, verbose=False).optimize(f)
    finally:
        gc.enable()
        gc.callbacks.remove(collecting)
    assert collected == after


def test_gpus_are_divided_among_workers():
    assert gpu_shares([], 2, 1) == [None, None]
    assert gpu_shares(["0", "1"], 2, 1) == ["0", "1"]
    assert gpu_shares(["0", "1"], 3, 1) == ["0", "1", "0"]
    assert gpu_shares(["a", "b", "c", "d", "e"], 3, 2) == ["a,b", "c,d", "a,b"]
    with pytest.raises(ValueError, match="`devices_per_trial` is 2, but only 1 GPUs"):
        gpu_shares(["0"], 1, 2)
