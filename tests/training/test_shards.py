"""Checkpoints of strategies that write a folder of shards: a single file, sealed as any other."""

import json

import pytest

from lightning_hpo import checkpoints
from lightning_hpo.checkpoints.key import NO_KEY, Key
from lightning_hpo.errors import DamagedCheckpointError
from tests.faults.scripts import run
from tests.training.test_ranks import wait_for_no_process_with

SCRIPT = """
import json, sys
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import FSDPStrategy, ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from lightning_hpo import FullBudget, Hyperband, Tuner
from tests.support.small import Data, Net

torch.set_num_threads(1)
root, kind, devices = sys.argv[1:]

class Synced(Net):
    def log(self, name, value):
        super().log(name, value, sync_dist=True)

class Sharded(Synced):
    def configure_model(self):
        if self._trainer is not None and self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

strategies = {
    "fsdp": "fsdp",
    "fsdp_sharded": FSDPStrategy(state_dict_type="sharded"),
    "fsdp2": ModelParallelStrategy(int(devices), 1, save_distributed_checkpoint=False),
    "fsdp2_sharded": ModelParallelStrategy(int(devices), 1),
}

if __name__ == "__main__":
    accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    trainer = {"strategy": strategies[kind], "accelerator": accelerator, "devices": int(devices)}
    options = dict(monitor="val_loss", root=root, trainer=trainer, checkpoint_every=2, verbose=False)
    model = Sharded if kind.startswith("fsdp2") else Synced
    space = {"lr": "loguniform(1e-3, 1)"}
    cut = Tuner(space, Hyperband(9, 3), name="cut", **options).fit(model, datamodule=Data)
    whole = Tuner(space, FullBudget(9, 3), name="whole", **options).fit(model, datamodule=Data)
    ends = {row.params["lr"]: row.values[9] for row in whole.rows}
    both = [[row.values[9], ends[row.params["lr"]]] for row in cut.rows if 3 in row.values and 9 in row.values]
    plain = Trainer(accelerator="cpu", devices=1, logger=False, enable_progress_bar=False, enable_checkpointing=False)
    if not torch.distributed.get_rank():
        torch.distributed.destroy_process_group()
        scored = plain.validate(cut.best_model().cpu(), datamodule=Data(), verbose=False)[0]["val_loss"]
        print(json.dumps({"both": both, "best": [scored, cut.best_score]}))
"""


def trained(folder, kind, devices, run=run):
    """Folder of a search that was cut at its rungs; its scores are those of an uncut one, and of the best weights."""
    (folder / "script.py").write_text(SCRIPT)
    code, out, err = run(folder, folder / "script.py", folder / "runs", kind, devices)
    assert code == 0, err
    found = json.loads(out.splitlines()[-1])
    assert found["both"]
    assert all(cut == whole for cut, whole in found["both"])
    assert found["best"][0] == pytest.approx(found["best"][1], rel=1e-4)
    assert not [*folder.rglob("*.shards*")]
    wait_for_no_process_with(str(folder / "script.py"))
    return folder / "runs" / "cut"


def test_shards_are_one_sealed_file_that_two_ranks_restore(tmp_path):
    run = trained(tmp_path, "fsdp2_sharded", 2)
    best, key = run / "best.ckpt", Key.of(run)
    checkpoints.verify(best)
    with pytest.raises(DamagedCheckpointError, match="nothing in it was executed"):
        checkpoints.load(best, key=NO_KEY)
    shards = checkpoints.load(best, key=key)["lightning_hpo_shards"].files
    assert {".metadata", "__0_0.distcp", "__1_0.distcp"} == {*shards}
    content = bytearray(best.read_bytes())
    content[len(content) // 2] ^= 1
    best.write_bytes(content)
    with pytest.raises(DamagedCheckpointError, match="differs"):
        checkpoints.verify(best)


FULL = """
import resource, signal, sys
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from lightning_hpo import FullBudget, Tuner
from tests.support.small import Data, Net

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

class Sharded(Net):
    def __init__(self, lr):
        super().__init__(lr, hidden=1024)

    def configure_model(self):
        if self._trainer is not None and self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def on_train_start(self):
        if "trials" in self.trainer.default_root_dir:  # not in the check; below a shard, above all else
            resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    def log(self, name, value):
        super().log(name, value, sync_dist=True)

if __name__ == "__main__":
    trainer = {"strategy": ModelParallelStrategy(2, 1), "accelerator": "cpu", "devices": 2}
    Tuner({"lr": "loguniform(1e-3, 1)"}, FullBudget(4, 1), monitor="val_loss", root=sys.argv[1], name="r",
        trainer=trainer, checkpoint_every=2, verbose=False).fit(Sharded, datamodule=Data)
"""


def test_shards_that_do_not_fit_on_the_disk_cost_no_trial(tmp_path):
    (tmp_path / "script.py").write_text(FULL)
    code, _, err = run(tmp_path, tmp_path / "script.py", tmp_path / "runs")
    assert code == 0, err
    assert "step 2: no checkpoint was saved, the trial goes on without" in err
    assert "MB are free on the disk" in err
    assert not [*(tmp_path / "runs").rglob("*.shards*")]
    wait_for_no_process_with(str(tmp_path / "script.py"))
