import os
import random
import resource
import signal
import time
import zipfile

import pytest
import torch

from lightning_hpo import checkpoints


def state(value=1.0, size=100):
    return {"weights": torch.full((size, 10), value), "step": 7, "names": ["a", None], "nested": {"lr": 0.1}}


def test_saves_what_it_loads(tmp_path):
    path = tmp_path / "new folder" / "last.ckpt"
    checkpoints.save(state(), path)
    loaded = checkpoints.load(path)
    assert torch.equal(loaded["weights"], state()["weights"])
    assert {**loaded, "weights": 0} == {**state(), "weights": 0}


def test_torch_and_zip_read_it_without_us(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(state(), path)
    assert torch.equal(torch.load(path, weights_only=True)["weights"], state()["weights"])
    assert torch.equal(torch.load(path, weights_only=True, mmap=True)["weights"], state()["weights"])
    assert zipfile.ZipFile(path).testzip() is None


def test_300_of_300_bit_flips_are_found(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(state(size=1000), path)
    good = path.read_bytes()
    chance = random.Random(0)
    for _ in range(300):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        with pytest.raises(checkpoints.DamagedCheckpointError, match=r"last\.ckpt is damaged"):
            checkpoints.load(path)


@pytest.mark.parametrize("share", [0, 0.3, 0.99, 0.9999])
def test_truncated(tmp_path, share):
    path = tmp_path / "last.ckpt"
    checkpoints.save(state(), path)
    good = path.read_bytes()
    path.write_bytes(good[: int(len(good) * share)])
    with pytest.raises(checkpoints.DamagedCheckpointError):
        checkpoints.load(path)


@pytest.mark.parametrize("clear", [checkpoints.remove_later, checkpoints.remove_leftovers])
def test_a_folder_of_shards_that_a_kill_left_is_removed(tmp_path, clear):
    shards = tmp_path / ".last.ckpt.shards.tmp"
    shards.mkdir()
    (shards / "part").touch()
    clear(*((tmp_path, 9) if clear is checkpoints.remove_later else (tmp_path / "last.ckpt",)))
    assert not shards.exists()


def test_a_damaged_file_falls_back_to_the_one_before(tmp_path):
    path = tmp_path / "last.ckpt"
    assert checkpoints.newest_intact(path) == (None, [])
    checkpoints.save(state(1.0), path)
    checkpoints.save(state(2.0), path)
    assert checkpoints.newest_intact(path) == (path, [])
    path.write_bytes(path.read_bytes()[:-1])
    found, damaged = checkpoints.newest_intact(path)
    assert checkpoints.load(found)["weights"][0, 0] == 1.0
    assert damaged == [path]
    aside = checkpoints.set_aside(path)
    assert aside.name.startswith("last.ckpt.corrupt-")
    checkpoints.save(state(3.0), path)
    assert checkpoints.load(checkpoints.previous_of(path))["weights"][0, 0] == 1.0


class Evil:
    def __reduce__(self):
        return (os.mkdir, (os.environ["EVIL"],))


@pytest.mark.parametrize("variable", ["0", "1"])
def test_a_pickle_is_never_executed(tmp_path, monkeypatch, variable):
    monkeypatch.setenv("EVIL", str(tmp_path / "executed"))
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", variable)
    path = tmp_path / "last.ckpt"
    checkpoints.save({"payload": Evil()}, path)  # sealed, so only weights_only stands in its way
    with pytest.raises(checkpoints.DamagedCheckpointError, match="was refused, nothing in it was executed"):
        checkpoints.load(path)
    assert not (tmp_path / "executed").exists()


def test_a_full_disk_leaves_the_old_file(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(state(), path)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        try:
            checkpoints.save(state(2.0, size=100_000), path)
        except OSError:
            os._exit(0)
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    assert checkpoints.load(path)["weights"][0, 0] == 1.0
    assert os.listdir(tmp_path) == ["last.ckpt"]


def test_killed_saves_are_never_torn(tmp_path):
    path = tmp_path / "last.ckpt"
    checkpoints.save(state(0.0, size=100_000), path)
    chance = random.Random(1)
    for _ in range(40):
        child = os.fork()
        if child == 0:
            for value in range(1, 1000):
                checkpoints.save(state(float(value), size=100_000), path)
            os._exit(0)
        time.sleep(chance.uniform(0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        assert checkpoints.newest_intact(path) == (path, [])
    checkpoints.remove_leftovers(path)
    assert set(os.listdir(tmp_path)) <= {"last.ckpt", "last.previous.ckpt"}
    checkpoints.remove(path)
    assert os.listdir(tmp_path) == []
