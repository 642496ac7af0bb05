"""Full disks, folders that cannot be written, damaged files: what is good stays, what is damaged is never used."""

import os
import random
import time
from typing import Any

import pytest

from lightning_hpo import RandomTuner, checkpoints
from lightning_hpo.errors import StorageError
from tests.faults.scripts import mount_works, run
from tests.support.small import Data, Net
from tests.support.studies import study_of
from tests.training.test_tuners import recorded

X = {"x": "uniform(0, 1)"}
CPU = {"accelerator": "cpu", "logger": False}
FIT = """
RandomTuner({"lr": "loguniform(1e-3, 1)", "hidden": "choice(16, 64)"}, max_steps=60, n_trials=4, monitor="val_loss",
            root=ROOT, name="r", trainer={"accelerator": "cpu"}, verbose=False).fit(Net, datamodule=Data)
"""
FUNCTION = """
RandomTuner(X, max_steps=1, n_trials=5000, root=ROOT, name="r", verbose=False).optimize(
    lambda job, params: print("acknowledged", job.trial, flush=True) or params["x"])
"""


@pytest.fixture
def small_disk(tmp_path):
    if not mount_works(tmp_path / "try"):
        pytest.skip("a file system cannot be mounted here")


def values(root):
    return [trial.values for trial in study_of(root / "r").trials]


@pytest.mark.usefixtures("small_disk")
def test_a_disk_full_of_results_exits_with_4_and_keeps_what_was_acknowledged(tmp_path):
    code, out, err = run(tmp_path, FUNCTION, disk=250_000)
    assert code == 4, err
    last = err.splitlines()[-1]
    assert str(tmp_path / "runs" / "r") in last
    assert "ENOSPC" in last
    acknowledged, kept = out.count("acknowledged"), tmp_path / "runs.kept"
    states = [trial.state.name for trial in study_of(kept / "r").trials]
    assert acknowledged > 20
    assert acknowledged - 1 <= states.count("COMPLETE") <= acknowledged
    assert set(states[:-1]) == {"COMPLETE"}
    code, _, err = run(tmp_path, FUNCTION.replace("5000", str(len(states) + 1)), root=kept)
    assert code == 0, err


def test_a_disk_that_is_too_full_for_a_checkpoint_costs_no_trial(tmp_path):
    """RLIMIT_FSIZE is below the size of a checkpoint and above that of the study."""
    limit = "import resource\nsignal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\n"
    large = FIT.replace("choice(16, 64)", "choice(16, 1024)")
    assert run(tmp_path, large, root=tmp_path / "whole")[0] == 0
    code, _, err = run(tmp_path, limit + large, root=tmp_path / "full")
    assert code == 0, err
    assert "no checkpoint was saved, the trial goes on without" in err
    assert "the report could not be written" in err
    assert not [path for path in (tmp_path / "full").rglob("*") if path.name.endswith(".tmp")]
    assert values(tmp_path / "whole") == values(tmp_path / "full")


@pytest.mark.usefixtures("small_disk")
def test_a_full_disk_keeps_the_old_checkpoint_and_what_comes_after_is_as_if_nothing_had_been(tmp_path):
    assert run(tmp_path, FIT, root=tmp_path / "whole")[0] == 0
    code, _, err = run(tmp_path, FIT, disk=330_000)
    assert code in (0, 4), err
    assert "no checkpoint was saved" in err
    kept = tmp_path / "runs.kept"
    for file in kept.rglob("*.ckpt"):
        checkpoints.verify(file)
    assert not list(kept.rglob(".*.tmp"))
    assert run(tmp_path, FIT, root=kept)[0] == 0
    assert values(tmp_path / "whole") == values(kept)


@pytest.mark.usefixtures("small_disk")
def test_a_read_only_folder_exits_with_4_before_the_first_step(tmp_path):
    printing = "type('N', (Net,), {'training_step': lambda *_: print('!')}),"
    code, out, err = run(tmp_path, FIT.replace("Net,", printing), disk=1_000_000, read_only=True)
    assert code == 4, err
    assert "the run folder cannot be written: Read-only file system" in err.splitlines()[-1]
    assert out == ""


def fit(tmp_path, **options):
    return RandomTuner(
        {"lr": "loguniform(1e-3, 1)"},
        max_steps=60,
        n_trials=2,
        monitor="val_loss",
        root=tmp_path,
        trainer=CPU,
        verbose=False,
        **options,
    ).fit(Net, datamodule=Data)


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "garbage"])
def test_a_damaged_checkpoint_is_moved_aside_and_the_one_before_is_used(tmp_path, damage, caplog):
    """A trial is interrupted after two checkpoints; the newer one is damaged; the search continues."""
    whole = fit(tmp_path, name="whole")

    def net(lr):
        module: Any = Net(lr)
        step = module.training_step

        def training_step(batch, batch_idx):
            if module.global_step == 55:
                raise KeyboardInterrupt
            return step(batch, batch_idx)

        module.training_step = training_step
        return module

    net.__name__ = "Net"
    with pytest.raises(KeyboardInterrupt):
        RandomTuner(
            {"lr": "loguniform(1e-3, 1)"}, max_steps=60, n_trials=2, monitor="val_loss", root=tmp_path, name="d",
            trainer=CPU, verbose=False,
        ).fit(net, datamodule=Data)  # fmt: skip
    file = tmp_path / "d" / "trials" / "0000" / "last.ckpt"
    good = file.read_bytes()
    chance = random.Random(damage)
    flipped = bytearray(good)
    flipped[chance.randrange(len(good))] ^= 1 << chance.randrange(8)
    damaged = {"flip": bytes(flipped), "cut": good[: len(good) // 2], "empty": b"", "garbage": os.urandom(len(good))}[
        damage
    ]
    file.write_bytes(damaged)
    with pytest.warns(UserWarning, match="has changed: the code of Net is new"):
        result = fit(tmp_path, name="d", allow_changed=True)
    assert recorded(result) == recorded(whole)
    (aside,) = file.parent.glob("last.ckpt.corrupt-*")
    assert aside.read_bytes() == damaged
    assert f"is damaged and was moved to {aside.name}" in caplog.text


def test_no_save_is_torn_with_the_temporary_folder_on_another_file_system(tmp_path, monkeypatch):
    other = [path for path in ("/dev/shm", "/var/tmp") if os.path.isdir(path)]
    other = [path for path in other if os.stat(path).st_dev != os.stat(tmp_path).st_dev]
    monkeypatch.setenv("TMPDIR", (other or [str(tmp_path)])[0])
    assert killed_saves(tmp_path / "last.ckpt", kills=20) == (0, 0)


def killed_saves(path, *, kills, seed=0, megabytes=10):
    """Kill saves at random moments; how often the file was torn then, and how many files were left over at the end."""
    import torch

    state = {"weights": torch.zeros(megabytes * 2**18)}
    checkpoints.save(state, path)
    chance, torn = random.Random(seed), 0
    for _ in range(kills):
        child = os.fork()
        if child == 0:
            try:
                for value in range(1, 1000):
                    state["weights"].fill_(value)
                    checkpoints.save(state, path)
            finally:
                os._exit(0)
        time.sleep(chance.uniform(0, 0.15))
        os.kill(child, 9)
        os.waitpid(child, 0)
        torn += checkpoints.newest_intact(path)[0] != path
    checkpoints.remove_leftovers(path)
    return torn, len({*os.listdir(path.parent)} - {path.name, checkpoints.previous_of(path).name})


def test_a_name_that_steps_out_of_the_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`root` must be a folder of its own for runs"):
        RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=1, root=os.path.expanduser("~")).optimize(
            lambda *_: 0.0
        )
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="the run folder cannot be written"):
        RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=1, root=tmp_path / "file").optimize(lambda *_: 0.0)
