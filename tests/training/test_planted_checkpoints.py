"""Checkpoints that somebody else has written or changed: found, named, and nothing in them is executed."""

import concurrent.futures
import hashlib
import hmac
import os
import pathlib
import re
import stat

import pytest
import torch

from lightning_hpo import (
    Objective,
    OptunaTuner,
    RandomTuner,
    checkpoints,
)
from lightning_hpo.checkpoints.key import KEY_FILE, Key
from lightning_hpo.records import Task
from lightning_hpo.schedulers import Job
from lightning_hpo.study.member_files import read_record
from tests.support.small import Data
from tests.training.test_checkpoints import (
    PAUSES,
    Colour,
    Extra,
    PausedOnce,
    Settings,
    Stateful,
    donor,
    folder,
    hyperband,
    member,
    population,
    trainer,
)


class Planted:
    """Makes a folder where it is read in full."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def plant(file, executed, **how):
    """Put another's file in the place of a checkpoint: its content, and an object that executes something."""
    content = torch.load(file, weights_only=False)
    other = file.with_name("other.ckpt")
    checkpoints.save({**content, "payload": Planted(executed)}, other, **how)
    other.replace(file)
    torch.load(file, weights_only=False)
    assert executed.exists()  # it would, in the wrong hands
    executed.rmdir()


def copied_signature(file, executed):
    """A forger's best: the signature of the file that was there, and a hash that is right."""
    signature = file.read_bytes()[-147:-71]
    assert signature.startswith(b"hmac-sha256:")
    plant(file, executed, key=Key.new())
    content = file.read_bytes()[:-147] + signature + b"sha256:"
    file.write_bytes(content + hashlib.sha256(content).hexdigest().encode())


def unsealed(file, executed):
    torch.save({**torch.load(file, weights_only=False), "payload": Planted(executed)}, file)


def other_key(file, executed):
    plant(file, executed, key=Key.new())


FORGERIES = [plant, other_key, copied_signature, unsealed]


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_planted_last_checkpoint_is_set_aside_and_executes_nothing(tmp_path, forge, caplog):
    objective = Objective(Extra, {"lr": "loguniform(1e-3, 1)"}, data=Data, monitor="val_loss", max_steps=9)
    objective.use_key(Key.made_in(tmp_path))
    run = lambda steps: objective.run(Task(Job(steps, trial=0), {"lr": 0.1}, tmp_path / "0000"))  # noqa: E731
    run(3)
    forge(tmp_path / "0000" / "last.ckpt", tmp_path / "executed")
    outcome = run(6)
    assert outcome.step == 6
    assert not (tmp_path / "executed").exists()
    assert re.search(r"last\.ckpt (was refused, nothing in it was executed|is damaged or was not written)", caplog.text)
    assert len(list((tmp_path / "0000").glob("last.ckpt.corrupt-*"))) == 1


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_planted_previous_checkpoint_executes_nothing(tmp_path, forge):
    objective = Objective(Extra, {"lr": "loguniform(1e-3, 1)"}, data=Data, monitor="val_loss", max_steps=9)
    objective.use_key(Key.made_in(tmp_path))
    run = lambda steps: objective.run(Task(Job(steps, trial=0), {"lr": 0.1}, tmp_path / "0000"))  # noqa: E731
    run(3)
    run(6)
    forge(tmp_path / "0000" / "last.previous.ckpt", tmp_path / "executed")
    (tmp_path / "0000" / "last.ckpt").unlink()
    assert run(9).step == 9
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_planted_best_checkpoint_is_refused(tmp_path, forge):
    result = hyperband(tmp_path).fit(Extra, datamodule=Data)
    forge(result.best_checkpoint, tmp_path / "executed")
    with pytest.raises(checkpoints.DamagedCheckpointError, match=r"best\.ckpt (was refused, nothing|is damaged)"):
        result.best_model()
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_planted_donor_is_left_alone_and_named(tmp_path, forge):
    forge(donor(tmp_path, Stateful()), tmp_path / "executed")
    trainer(4, member(tmp_path, 0)).fit(Stateful(), datamodule=Data())
    record = read_record(tmp_path / "pbt", 0)
    assert record.status == "finished"
    assert any("did not copy member 1" in event for event in record.events)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("forge", FORGERIES)
def test_a_planted_checkpoint_of_a_member_executes_nothing(tmp_path, forge):
    PAUSES.clear()
    with pytest.raises(SystemExit):
        population(tmp_path).fit(PausedOnce, datamodule=Data)
    for file in (tmp_path / "r" / "trials").glob("*/*.ckpt"):
        forge(file, tmp_path / "executed")
    population(tmp_path).fit(PausedOnce, datamodule=Data)
    assert not (tmp_path / "executed").exists()


def test_the_trial_goes_on_from_the_checkpoint_before_a_planted_one(tmp_path):
    path, key = tmp_path / "last.ckpt", Key.made_in(tmp_path)
    for step in (1, 2):
        checkpoints.save({"global_step": step, "thing": Colour.RED}, path, key)
    plant(path, tmp_path / "executed")
    found, refused = checkpoints.newest_intact(path, key)
    assert refused == [path]
    assert checkpoints.load(found, key=key) == {"global_step": 1, "thing": Colour.RED}


@pytest.mark.parametrize("flag", ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "NONE"])
def test_one_changed_byte_anywhere_is_found_also_in_a_signed_file(tmp_path, flag, monkeypatch):
    monkeypatch.setenv(flag, "1")
    path, key = tmp_path / "x.ckpt", Key.new()
    checkpoints.save({"thing": Planted(tmp_path / "executed")}, path, key)
    good = path.read_bytes()
    for place in range(0, len(good) - 64, 3):
        changed = bytearray(good)
        changed[place] ^= 1
        path.write_bytes(changed[:-64] + hashlib.sha256(changed[:-64]).hexdigest().encode())  # the hash is right
        with pytest.raises(checkpoints.DamagedCheckpointError):
            checkpoints.load(path, key=key)
        assert not (tmp_path / "executed").exists()


def test_a_file_is_read_as_it_was_when_its_signature_was_compared(tmp_path, monkeypatch):
    """Another process that changes the file in between does not get its own executed."""
    path, key = tmp_path / "x.ckpt", Key.new()
    checkpoints.save({"thing": Colour.RED}, path, key)
    compare = hmac.compare_digest

    def changed_after(first, second):
        same = compare(first, second)
        checkpoints.save({"thing": Planted(tmp_path / "executed")}, tmp_path / "other.ckpt")
        path.write_bytes((tmp_path / "other.ckpt").read_bytes())
        return same

    monkeypatch.setattr(hmac, "compare_digest", changed_after)
    assert checkpoints.load(path, key=key) == {"thing": Colour.RED}
    assert not (tmp_path / "executed").exists()


def optuna_search(root, n_trials, **options):
    return OptunaTuner(
        {"lr": "loguniform(1e-3, 1)"}, monitor="val_loss", max_steps=6, n_trials=n_trials, root=root, name="r",
        verbose=False, **options,
    ).fit(Extra, datamodule=Data)  # fmt: skip


def test_the_key_is_a_file_of_its_owner_and_nowhere_else(tmp_path, capsys):
    result = optuna_search(tmp_path, 2)
    file = tmp_path / "r" / KEY_FILE
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    key = file.read_bytes()
    assert [path for path in tmp_path.rglob("*") if path.is_file() and key in path.read_bytes()] == [file]
    file.chmod(0o644)
    with pytest.raises(checkpoints.DamagedCheckpointError, match="chmod 600") as caught:
        result.best_model()
    printed = "".join(capsys.readouterr())
    secret = key.decode()
    assert secret not in printed + str(caught.value) + repr(Key.of(tmp_path / "r")) + repr(Key(key))
    file.chmod(0o600)
    assert result.best_model().extra["settings"] == Settings(7)


def link(file):
    other = file.with_name("other")
    file.rename(other)
    file.symlink_to(other)


def pipe(file):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda file: file.chmod(0o640), "its mode is 0640"),
        (lambda file: file.chmod(0o602), "its mode is 0602"),
        (link, "Too many levels of symbolic links"),
        (folder, "it is not a file"),
        (pipe, "it is not a file"),
        (lambda file: file.write_bytes(b""), "it is damaged"),
        (lambda file: file.write_bytes(b"a" * 65), "it is damaged"),
        (pathlib.Path.unlink, "there is no"),
        pytest.param(
            lambda file: os.chown(file, 65534, -1), "it belongs to another user",
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away"),
        ),
    ],
)  # fmt: skip
def test_a_key_that_is_no_secret_of_this_user_is_not_used(tmp_path, change, why):
    Key.made_in(tmp_path)
    change(tmp_path / KEY_FILE)
    key = Key.of(tmp_path)
    assert key.secret is None
    assert why in key.missing


def test_processes_that_start_at_once_get_the_same_key(tmp_path):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        keys = {key.secret for key in pool.map(Key.made_in, [tmp_path] * 8)}
    assert len(keys) == 1
    assert None not in keys
    assert os.listdir(tmp_path) == [KEY_FILE]


def test_a_search_over_a_function_has_no_key(tmp_path):
    RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=1, root=tmp_path, name="r", verbose=False).optimize(
        lambda job, params: params["x"]
    )
    assert not (tmp_path / "r" / KEY_FILE).exists()


def test_a_link_in_the_way_of_a_save_is_not_followed(tmp_path):
    mine, folder = tmp_path / "mine", tmp_path / "folder"
    mine.write_text("mine")
    folder.mkdir()
    for name in (f".last.ckpt.{os.getpid()}.tmp", f".last.ckpt.previous.{os.getpid()}.tmp", "last.ckpt", KEY_FILE):
        (folder / name).symlink_to(mine)
    key = Key.made_in(folder)
    assert key.secret is None
    for step in (1, 2):
        checkpoints.save({"global_step": step}, folder / "last.ckpt", key)
    assert mine.read_text() == "mine"
    assert checkpoints.load(folder / "last.ckpt")["global_step"] == 2
    assert checkpoints.load(folder / "last.previous.ckpt")["global_step"] == 1
