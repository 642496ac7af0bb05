"""A tuner inside a script that trains under `strategy="ddp"`: two gloo processes on CPU."""

import json
import signal
import socket
import subprocess
import time

import optuna
import pytest

from lightning_hpo import PopulationTuner, RandomTuner
from lightning_hpo.executors.distributed import message_of, task_of
from lightning_hpo.records import Job, Task
from lightning_hpo.study.rows import read_rows
from tests.faults.scripts import Script
from tests.support.small import Data, Net
from tests.support.studies import study_of
from tests.training.test_tuners import CPU

SCRIPT = """
import json, os, sys
import torch
torch.set_num_threads(1)
from lightning_hpo import HyperbandTuner, OptunaTuner, PopulationTuner
from tests.support.small import Data, Net

root, name, n_trials = sys.argv[1], sys.argv[2], int(sys.argv[3])
rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))

def write(**line):
    with open(f"{root}/rank{rank}.jsonl", "a") as file:
        file.write(json.dumps(line) + "\\n")

class Seen(Net):
    def __init__(self, lr, hidden=16):
        super().__init__(lr, hidden)

    def on_train_end(self):
        weights = sum(float(parameter.double().sum()) for parameter in self.parameters())
        where = os.path.basename(self.trainer.default_root_dir)
        write(trial=where, step=self.global_step, lr=self.hparams.lr, hidden=self.hparams.hidden, weights=weights)

if __name__ == "__main__":
    space = {"lr": "loguniform(1e-3, 1)", "hidden": "int(4, 16)"}
    population = dict(population_size=3, interval=3, max_steps=9)
    trainer = {"strategy": "ddp", "accelerator": "cpu", "devices": 2}
    options = dict(monitor="val_loss", root=root, name=name, trainer=trainer)
    if name != "population":
        trainer |= {"val_check_interval": 3, "check_val_every_n_epoch": None}
        options |= {"checkpoint_every": 3}
    if name == "population":
        tuner, data = PopulationTuner({"lr": "loguniform(1e-3, 1)"}, **population, **options), {"datamodule": Data}
    elif name == "hyperband":
        tuner, data = HyperbandTuner(space, max_steps=9, min_steps=3, **options), {"datamodule": Data}
    else:
        tuner = OptunaTuner(space, max_steps=9, n_trials=n_trials,
            pruner=__import__("optuna").pruners.MedianPruner(n_startup_trials=2), **options)
        data = {"train_dataloaders": Data().train_dataloader(), "val_dataloaders": Data().val_dataloader()}
    result = tuner.fit(Seen, **data)
    write(best=result.best_params, score=result.best_score, trial=result.best_trial,
        rows=len(result.rows), study=len(result.study.trials))
"""


@pytest.fixture
def script(tmp_path):
    """Starts it in a process that has imported everything; Lightning starts that of the other rank anew."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def start(*arguments, **environment):
        return Script(tmp_path, tmp_path / "script.py", tmp_path, *arguments, env=environment)

    return start


def seen(folder, rank):
    """Lines of the trials and the answer; the check before training writes into a folder of its own."""
    lines = [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]
    return [line for line in lines if not str(line["trial"]).startswith("tmp")]


def processes_with(text):
    found = subprocess.run(["ps", "-ewwo", "pid,stat,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if text in line and line.split()[1][0] != "Z"]


def wait_for_no_process_with(text):
    deadline = time.monotonic() + 120  # a busy machine
    while processes_with(text) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not processes_with(text)


def test_killed_continued_and_equal_on_both_ranks(tmp_path, script):
    """Hyperband: promoted trials are restored on both ranks; a kill of rank 0 leaves no orphan."""
    first = script("hyperband", 0)
    first.wait_for("trial    2")
    first.kill()
    wait_for_no_process_with(str(tmp_path / "script.py"))
    code, out, err = script("hyperband", 0).end()
    assert code == 0, err
    wait_for_no_process_with(str(tmp_path / "script.py"))  # the other rank reads the answer
    assert out.count("continues: ") == 1  # one rank prints
    one, two = seen(tmp_path, 0), seen(tmp_path, 1)
    in_both = [line for line in one if line in two]
    assert len(one) - 1 >= 6
    assert len(in_both) >= len(one) - 1  # the kill may have come between the two
    assert one[-1] == two[-1]
    assert one[-1]["rows"] == one[-1]["study"] == 5
    assert {line["step"] for line in one[:-1]} == {3, 9}
    trials = study_of(tmp_path / "hyperband").trials
    assert {trial.state.name for trial in trials} == {"COMPLETE", "PRUNED"}
    for trial in trials:
        lines = [line for line in one if line["trial"] == f"{trial.number:04d}"]
        assert {(line["lr"], line["hidden"]) for line in lines} == {(trial.params["lr"], trial.params["hidden"])}


def test_started_from_outside_paused_and_pruned(tmp_path, script):
    """Both processes are started by hand, as torchrun does; Optuna's pruner stops both at the same step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def both(n_trials):
        world = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        world |= {"TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": "0", "GROUP_WORLD_SIZE": "1"}
        return [script("optuna", n_trials, RANK=str(rank), LOCAL_RANK=str(rank), **world) for rank in (1, 0)]

    follower, leader = both(6)
    leader.wait_for("trial    1")
    leader.send_signal(signal.SIGINT)
    code, _, err = leader.end()
    assert code == 130, err
    assert "paused by SIGINT" in err
    code, out, _ = follower.end()
    assert code == 0
    assert not out
    follower, leader = both(6)
    code, _, err = leader.end()
    assert code == 0, err
    assert follower.end()[0] == 0
    one, two = seen(tmp_path, 0), seen(tmp_path, 1)
    assert one == two
    trials = study_of(tmp_path / "optuna").trials
    assert len(trials) == 6
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "PRUNED"}
    for line in one[:-1]:
        trial = trials[int(line["trial"])]
        assert (line["lr"], line["hidden"]) == (trial.params["lr"], trial.params["hidden"])


def test_members_of_a_population_train_on_two_ranks(tmp_path, script):
    """Killed and continued in this process, it has the lineage of a worker process that starts the other rank."""
    first = script("population", 0)
    first.wait_for("trial    4")
    first.kill()
    wait_for_no_process_with(str(tmp_path / "script.py"))
    code, _, err = script("population", 0).end()
    assert code == 0, err
    wait_for_no_process_with(str(tmp_path / "script.py"))
    one, two = seen(tmp_path, 0), seen(tmp_path, 1)
    assert one[-1] == two[-1]
    assert [line for line in one[:-1] if line in two]  # members that came to their end, with the weights of both ranks
    there = PopulationTuner(
        {"lr": "loguniform(1e-3, 1)"}, population_size=3, interval=3, max_steps=9, monitor="val_loss", root=tmp_path,
        trainer={"accelerator": "cpu"}, devices_per_trial=2, isolate=True, verbose=False, name="worker",
    ).fit(Net, datamodule=Data)  # fmt: skip
    rows = read_rows(study_of(tmp_path / "population"))
    lineage = [(row.params, row.parent, row.member, row.values) for row in rows]
    assert [(row.params, row.parent, row.member, row.values) for row in there.rows] == lineage
    assert any(parent is not None for _, parent, _, _ in lineage)


def test_other_ranks_get_the_whole_job(tmp_path):
    job = Job(30, 4, 1, {"x": 0.5}, confirms=2, seed=7, fold=2)
    task = Task(job, {"x": 0.5}, tmp_path / "0004", tmp_path / "parent.ckpt", member=3)
    assert task_of(json.loads(json.dumps(message_of(task)))) == task


def test_what_ranks_cannot_do_is_refused(tmp_path):
    spawned = {**CPU, "strategy": "ddp_spawn", "devices": 2}
    with pytest.raises(ValueError, match="'ddp_spawn', which trains in processes that the tuner cannot see"):
        RandomTuner({"lr": "uniform(0, 1)"}, max_steps=2, n_trials=1, monitor="val_loss", root=tmp_path,
                    trainer=spawned).fit(Net, datamodule=Data)  # fmt: skip
    two = {**CPU, "strategy": "ddp", "devices": 2}
    options = {"monitor": "val_loss", "root": tmp_path, "trainer": two}
    with pytest.raises(ValueError, match="`workers` is 2"):
        RandomTuner({"lr": "uniform(0, 1)"}, max_steps=2, n_trials=1, workers=2, **options).fit(Net, datamodule=Data)
    with pytest.raises(ValueError, match="in the memory of one process"):
        RandomTuner({"lr": "uniform(0, 1)"}, max_steps=2, n_trials=1, storage=optuna.storages.InMemoryStorage(),
                    **options).fit(Net, datamodule=Data)  # fmt: skip
