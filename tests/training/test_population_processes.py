"""Members in processes of their own: two on one folder, DDP, and started by flags."""

import os
import random
import signal
import time
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch

from lightning_hpo import checkpoints
from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.study.lineage import lineage, schedule_of
from lightning_hpo.study.member_files import read_record
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO
from tests.faults.scripts import run
from tests.faults.test_kill import in_a_child
from tests.training.test_population_callback import SPACE, Data, Net, assert_equal, good_donor, trainer


def start(root, number, size, **options):
    """Start a member in a forked process and return its id."""

    def train():
        pbt = PopulationBasedTraining(
            root / "pbt", SPACE, member=number, population_size=size, interval=20, timeout=3.0, **options
        )
        torch.manual_seed(number)
        trainer(root, pbt, max_steps=100).fit(Net(schedule="LambdaLR"), datamodule=Data())

    return in_a_child(train)


def exit_code(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("synchronous", [False, True])
def test_two_processes_on_one_folder(tmp_path, synchronous):
    members = [start(tmp_path, number, 2, synchronous=synchronous) for number in range(2)]
    assert [exit_code(pid) for pid in members] == [0, 0]
    segments = lineage(tmp_path / "pbt")
    assert [read_record(tmp_path / "pbt", number).status for number in range(2)] == ["finished"] * 2
    for number in range(2):
        steps = sorted(step for segment in segments if segment.member == number for step in segment.values)
        assert steps == [20, 40, 60, 80, 100]
    if synchronous:
        forks = [segment for segment in segments if segment.parent is not None]
        assert sorted(segment.start for segment in forks) == [20, 40, 60, 80]  # one of two loses at each decision
        assert all(segment.forked_at == segment.start for segment in forks)


def test_a_member_killed_for_good_leaves_the_others_running(tmp_path):
    members = [start(tmp_path, number, 3, synchronous=True) for number in range(3)]
    while (record := read_record(tmp_path / "pbt", 1)) is None or record.step < 20:
        time.sleep(0.01)
    os.kill(members[1], signal.SIGKILL)
    assert exit_code(members[1]) == -signal.SIGKILL
    for number in (0, 2):
        assert exit_code(members[number]) == 0
        mine = read_record(tmp_path / "pbt", number)
        assert mine.status == "finished"
        assert mine.step == 100
        assert any("member 1 gave no sign of life" in event for event in mine.events)


DDP = """
import sys, torch
torch.set_num_threads(1)
from tests.training.test_population_callback import *

class Ranked(Net):
    def on_train_batch_start(self, batch, batch_idx):
        # runs after the callbacks: a copy that was due has been made
        weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters()])
        other = [torch.zeros_like(weights) for _ in range(2)]
        torch.distributed.all_gather(other, weights)
        settings = [None, None]
        mine = [(group["lr"], group["weight_decay"]) for group in self.trainer.optimizers[0].param_groups]
        torch.distributed.all_gather_object(settings, [*mine, self.net[3].p])
        assert torch.equal(*other), self.global_step
        assert settings[0] == settings[1], settings
        if self.global_rank == 0 and self.global_step == 20:
            torch.save(weights, sys.argv[1] + "/copied.pt")

def main(root):
    pbt = PopulationBasedTraining(f"{root}/pbt", SPACE, member=0, population_size=2, interval=20)
    pl.Trainer(
        max_steps=60, callbacks=[pbt], accelerator="cpu", devices=2, strategy="ddp", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        check_val_every_n_epoch=None, val_check_interval=20, num_sanity_val_steps=0, default_root_dir=root,
    ).fit(Ranked(), datamodule=Data())

if __name__ == "__main__":
    main(sys.argv[1])
"""


def test_ddp_copies_the_same_to_every_rank(tmp_path):
    state = good_donor(tmp_path)
    script = tmp_path / "ddp.py"
    script.write_text(DDP)
    code, _, err = run(tmp_path, script, tmp_path)
    assert code == 0, err[-3000:]
    segments = [segment for segment in lineage(tmp_path / "pbt") if segment.member == 0]
    assert segments[1].parent == 1
    copied = torch.load(tmp_path / "copied.pt", weights_only=True)
    names = [name for name in state["module"] if "running" not in name and "num_batches" not in name]
    assert torch.equal(copied, torch.cat([state["module"][name].flatten() for name in names]))


CLI = """
import torch
torch.set_num_threads(1)
from lightning.pytorch.cli import LightningCLI
from lightning_hpo.callbacks.population import PopulationBasedTraining
from tests.training.test_population_callback import Net, Data

LightningCLI(Net, Data, save_config_callback=None)
"""


def test_usable_by_flags(tmp_path):
    script = tmp_path / "train.py"
    script.write_text(CLI)
    flags = {
        "callbacks+": "PopulationBasedTraining",
        "callbacks.folder": f"{tmp_path}/pbt",
        "callbacks.space": '{"lr": "loguniform(1e-3, 1)", "dropout": "uniform(0.05, 0.5)"}',
        "callbacks.member": "1",
        "callbacks.population_size": "2",
        "callbacks.interval": "10",
        "callbacks.explore": "pb2",
        "max_steps": "20",
        "val_check_interval": "10",
        "accelerator": "cpu",
        "logger": "false",
        "enable_checkpointing": "false",
        "default_root_dir": str(tmp_path),
    }
    arguments = [f"--trainer.{name}={value}" for name, value in flags.items()]
    code, _, err = run(tmp_path, script, "fit", *arguments)
    assert code == 0, err[-3000:]
    record = read_record(tmp_path / "pbt", 1)
    assert record.status == "finished"
    assert sorted(record.segments[0].params) == ["dropout", "lr"]


def test_the_example_runs_and_continues(tmp_path):
    example = Path(__file__).parents[2] / "examples" / "population.py"
    ended = [run(tmp_path, example, "--max-steps", "50", "--root", tmp_path) for _ in range(2)]
    assert [code for code, _, _ in ended] == [0, 0], ended
    texts = [out for _, out, _ in ended]
    assert "learning rate of the winner" in texts[0]
    assert texts[0].splitlines()[-2:] == texts[1].splitlines()[-2:]


class Watched(Net):
    """Fails unless its weights before a step are those it left, those of its checkpoint, or those it was to copy."""

    left = copied = None

    def on_load_checkpoint(self, checkpoint):
        self.left = {name: value.clone() for name, value in checkpoint["state_dict"].items()}

    def on_train_batch_start(self, batch, batch_idx):  # after the callbacks: a copy that was due has been made
        expected = self.left if self.copied is None else self.copied
        if expected is not None:
            assert_equal(self.state_dict(), expected)
        self.copied = None

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.left = {name: value.clone() for name, value in self.state_dict().items()}


class Watch(pl.Callback):
    """In front of the member: starts with the others, tells the module what is about to be copied, saves on the way."""

    def __init__(self, pbt, file, all_have_joined):
        self.pbt, self.file, self.all_have_joined = pbt, file, all_have_joined

    def on_train_start(self, trainer, pl_module):
        while not self.all_have_joined():
            time.sleep(0.002)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        following = self.pbt._pending
        pl_module.copied = None if following is None or following.state is None else following.state["module"]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        time.sleep(0.01)  # a member that the machine favours does not run away
        if trainer.global_step % 7 == 0:
            trainer.save_checkpoint(self.file)


def continue_member(root, number, size, kill):
    """Start a member in a process of its own after so many kills, from its newest checkpoint if there is one."""

    def train():
        pbt = PopulationBasedTraining(
            root / "pbt", SPACE, member=number, population_size=size, interval=20, timeout=30.0, quantile=0.4
        )
        torch.manual_seed(number)
        file = root / f"{number}" / "last.ckpt"
        source, _ = checkpoints.newest_intact(file)
        watch = Watch(pbt, file, lambda: min(starts(root, size)) > kill)
        fit = trainer(root, watch, pbt, max_steps=200, plugins=[SealedCheckpointIO()])
        fit.fit(Watched(schedule="LambdaLR"), datamodule=Data(), ckpt_path=source, weights_only=True)

    return in_a_child(train)


def steps_of(root, size):
    records = [read_record(root / "pbt", number) for number in range(size)]
    return [0 if record is None else record.step for record in records]


def starts(root, size):
    """How often each member has joined so far: at first, and whenever it went on from a checkpoint."""
    records = [read_record(root / "pbt", number) for number in range(size)]
    return [
        1 + sum("continued from a checkpoint" in event for event in record.events) if record else 0
        for record in records
    ]


@pytest.mark.filterwarnings("ignore:You.re resuming from a checkpoint that ended before the epoch")
def test_a_whole_population_of_processes_is_killed_and_continued(tmp_path):
    size, kills, generator, was_done = 3, 4, random.Random(0), set()
    for kill in range(kills):
        members = [continue_member(tmp_path, number, size, kill) for number in range(size)]
        reached = 30 + 35 * kill
        files = [
            tmp_path / f"{number}" / "last.ckpt" for number in range(size)
        ]  # what each goes on from after the kill
        while (
            max(steps_of(tmp_path, size)) < reached
            or not all(file.exists() for file in files)
            or min(starts(tmp_path, size)) <= kill  # one that is slow to start has not joined yet
        ):
            time.sleep(0.002)
        time.sleep(generator.uniform(0, 0.1))
        for pid in members:
            os.kill(pid, signal.SIGKILL)
        codes = [exit_code(pid) for pid in members]
        assert set(codes) <= {-signal.SIGKILL, 0}  # a fast one may have finished
        was_done |= {number for number, code in enumerate(codes) if code == 0}
    members = [continue_member(tmp_path, number, size, kills) for number in range(size)]
    assert [exit_code(pid) for pid in members] == [0] * size
    segments = lineage(tmp_path / "pbt")
    by_number = {segment.number: segment for segment in segments}
    assert len(by_number) == len(segments)
    assert {segment.member for segment in segments} == set(range(size))
    assert starts(tmp_path, size) == [1 + kills] * size
    for number in range(size):
        record = read_record(tmp_path / "pbt", number)
        assert (record.status, record.step) == ("finished", 200)
        *earlier, end = [segment for segment in segments if segment.member == number and 200 in segment.values]
        assert not earlier or number in was_done  # that one reached the end once more, from its last checkpoint
        assert schedule_of(end, segments)[0].start == 0  # its way up the parents is whole
    for segment in segments:
        if segment.parent is not None:  # trained as far as it was copied, unless it was copied before its first score
            parent = by_number[segment.parent]
            assert segment.forked_at in parent.values or segment.forked_at == parent.start
    copies = [
        segment
        for segment in segments
        if segment.parent is not None and by_number[segment.parent].member != segment.member
    ]
    assert len(copies) >= 4
