"""A real Ray cluster of three nodes on this machine: what is trained there is what one process trains."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from lightning_hpo import BayesianTuner, FullBudget, Hyperband, PopulationTuner, RayExecutor, Tuner
from lightning_hpo.reporting.events import JobEnded
from lightning_hpo.tuners.parts import Parts
from tests.support.small import Data, Net

ray = pytest.importorskip("ray")
CPU = {"accelerator": "cpu", "enable_progress_bar": False}
LR = {"lr": "loguniform(1e-3, 1)"}


@pytest.fixture(scope="module")
def cluster():
    """A node that decides and two that train."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield made
    made.shutdown()


def wait_for(file):
    while not file.exists() or not file.read_text():
        time.sleep(0.05)
    return file.read_text()


class Accidents(Net):
    """Trial 3 kills its process once; the first of the other trials at its second step waits to lose its node."""

    def on_train_batch_start(self, batch, batch_idx):
        folder = Path(self.hparams.step_log).parent
        if self.global_step != 2:
            return
        if Path(self.trainer.default_root_dir).name == "0003":
            if not (folder / "killed").exists():
                (folder / "killed").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        elif not (folder / "waits").exists():
            fresh = folder / "waits.new"
            fresh.write_text(ray.get_runtime_context().get_node_id())
            fresh.rename(folder / "waits")
            time.sleep(600)


def test_a_lost_actor_and_a_lost_node_cost_nothing(cluster, tmp_path):
    space = {**LR, "step_log": f"choice('{tmp_path / 'steps'}')"}
    options = {"monitor": "val_loss", "root": tmp_path, "trainer": CPU, "verbose": False, "checkpoint_every": 1}
    nodes = {node.node_id: node for node in cluster.worker_nodes}
    lose = threading.Thread(target=lambda: cluster.remove_node(nodes[wait_for(tmp_path / "waits")], False), daemon=True)
    lose.start()
    far = RayExecutor(workers=2, address=cluster.address)
    lost = Tuner(space, Hyperband(9, 2), name="ray", executor=far, max_retries=1, **options).fit(
        Accidents, datamodule=Data
    )
    lose.join()
    cluster.add_node(num_cpus=1)
    assert (tmp_path / "killed").exists()
    steps = (tmp_path / "steps").read_text().splitlines()
    assert len(steps) - len(set(steps)) <= 2  # each accident at most once between a step and its checkpoint
    here = Tuner(space, Hyperband(9, 2), name="here", **options).fit(Accidents, datamodule=Data)
    assert [(row.params, row.values, row.state) for row in lost.trials()] == [
        (row.params, row.values, row.state) for row in here.trials()
    ]
    assert lost.best_checkpoint.exists()


def test_a_population_has_the_lineage_of_one_process(cluster, tmp_path):
    options = {"population_size": 3, "interval": 5, "max_steps": 15, "monitor": "val_loss", "root": tmp_path}
    options |= {"trainer": CPU, "verbose": False, "synchronous": True}
    far = RayExecutor(workers=2, address=cluster.address)
    there = PopulationTuner(LR, name="ray", executor=far, **options).fit(Net, datamodule=Data)
    here = PopulationTuner(LR, name="here", **options).fit(Net, datamodule=Data)
    lineage = [(row.params, row.parent, row.member, dict(row.values)) for row in here.trials()]
    assert [(row.params, row.parent, row.member, dict(row.values)) for row in there.trials()] == lineage
    assert any(parent is not None for _, parent, _, _ in lineage)


def test_a_bayesian_search_of_a_function(cluster, tmp_path):
    far = RayExecutor(workers=2, address=cluster.address)
    result = BayesianTuner(
        {"x": "uniform(0, 1)"}, max_steps=1, n_trials=12, root=tmp_path, executor=far, verbose=False
    ).optimize(lambda job, params: (params["x"] - 0.3) ** 2)
    assert [row.state for row in result.trials()] == ["complete"] * 12


class WaitsForDeath:
    """An observer that kills the actor of each job between that job and the next; its pid is the score."""

    def on(self, event):
        if isinstance(event, JobEnded):
            pid = int(event.row.values[1])
            os.kill(pid, signal.SIGKILL)
            while Path(f"/proc/{pid}").exists() and "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                time.sleep(0.01)


def test_an_actor_that_dies_between_two_jobs_costs_nothing(cluster, tmp_path):
    """Without max_retries: a job that has not begun is no retry."""
    far = RayExecutor(workers=1, address=cluster.address)
    parts = Parts(observers=lambda run: [WaitsForDeath()])
    result = Tuner(
        {"x": "uniform(0, 1)"}, FullBudget(1, 4), parts=parts, root=tmp_path, name="s", executor=far, verbose=False
    ).optimize(lambda job, params: float(os.getpid()))
    assert [row.state for row in result.trials()] == ["complete"] * 4
    assert len({row.values[1] for row in result.trials()}) == 4
    assert not [*(tmp_path / "s").glob(".ray.*")]


SCRIPT = """
import json, os, sys
from pathlib import Path
from lightning_hpo import Hyperband, RayExecutor, Tuner
from tests.support.small import Data, Net

root, log, address = sys.argv[1:]

class Mine(Net):
    def setup(self, stage):
        with open(log + ".pids", "a") as pids:
            print(os.getpid(), file=pids)

result = Tuner({"lr": "loguniform(1e-3, 1)", "step_log": f"choice('{log}')"}, Hyperband(9, 2), monitor="val_loss",
    root=root, name="s", executor=RayExecutor(2, address), trainer={"accelerator": "cpu"}, verbose=False,
    checkpoint_every=1).fit(Mine, datamodule=Data)
carried = sorted(path.name for path in Path(root).glob("s/trials/0000/*.ckpt"))
print(json.dumps([[[row.params["lr"], [*row.values.items()]] for row in result.trials()], carried,
    result.best_model().hparams.lr == result.best_params["lr"]]))
"""


def start(folder, root, address, before=()):
    script = folder / "script.py"
    script.write_text(SCRIPT)
    command = [*before, sys.executable, str(script), str(root), str(folder / "steps"), address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def values_of(script):
    output, _ = script.communicate()
    assert script.returncode == 0
    return json.loads(output.splitlines()[-1])


def expected(folder):
    here = Tuner(LR, Hyperband(9, 2), monitor="val_loss", root=folder, name="here", trainer=CPU, verbose=False)
    return [
        [row.params["lr"], [[*pair] for pair in row.values.items()]] for row in here.fit(Net, datamodule=Data).trials()
    ]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_the_same_command_goes_on_where_a_driver_was_killed_or_paused(cluster, tmp_path, how):
    first = start(tmp_path, tmp_path / "runs", cluster.address)
    while not (tmp_path / "steps").exists() or (tmp_path / "steps").read_text().count("\n") < 8:
        time.sleep(0.05)
    first.send_signal(how)
    first.communicate()
    assert first.returncode == (143 if how == signal.SIGTERM else -how)
    rows, _, same = values_of(start(tmp_path, tmp_path / "runs", cluster.address))
    assert rows == expected(tmp_path)
    assert same
    for pid in {*(tmp_path / "steps.pids").read_text().split()}:
        while Path(f"/proc/{pid}").exists():  # until all actors, those of the killed driver too, have ended
            time.sleep(0.05)


def test_files_are_carried_where_the_actors_do_not_see_the_run_folder(cluster, tmp_path):
    """The driver has a mount of its own; the class is one of the script's."""
    private = tmp_path / "private"
    private.mkdir()
    before = ["unshare", "-rm", "sh", "-c", f'mount -t tmpfs none {private} && exec "$@"', "sh"]
    if subprocess.run([*before, "true"], check=False).returncode:
        pytest.skip("mounts of its own are not allowed here")
    rows, carried, same = values_of(start(tmp_path, private, cluster.address, before))
    assert rows == expected(tmp_path)
    assert same
    assert "last.ckpt" in carried or not carried  # kept only while the trial may be continued
    assert not list(private.iterdir())
