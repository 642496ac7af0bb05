"""Checkpoints of modules that hold objects: saved, continued, copied and read back; nobody else's are executed."""

import argparse
import collections
import dataclasses
import datetime as dt
import decimal
import enum
import fractions
import functools
import hashlib
import hmac
import os
import pathlib
import signal
import types
import typing
import uuid

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_hpo import HyperbandTuner, Objective, PopulationBasedTraining, PopulationTuner, checkpoints
from lightning_hpo.callbacks.transplant import capture
from lightning_hpo.jobs import Task
from lightning_hpo.run_key import Key
from lightning_hpo.schedulers import Job
from lightning_hpo.shared_folder import read_record
from tests.small import Data, Net


class Colour(enum.Enum):
    RED = 1


@dataclasses.dataclass
class Settings:
    depth: int = 2
    path: pathlib.Path = pathlib.Path("a")


class Slotted:
    __slots__ = ("value",)

    def __init__(self, value=3):
        self.value = value


class Point(typing.NamedTuple):
    x: int
    y: int


def scale(x):
    return 2 * x


KINDS = {
    "module": nn.Sequential(nn.Linear(2, 2), nn.ReLU()),
    "loss": nn.CrossEntropyLoss(label_smoothing=0.1),
    "metric": torchmetrics.MeanMetric(),
    "partial": functools.partial(torch.optim.Adam, lr=0.1),
    "function": scale,
    "builtin": len,
    "method": collections.Counter("aab").most_common,
    "class": Settings,
    "path": pathlib.Path("data/x"),
    "numpy array": np.arange(3.0),
    "numpy objects": np.array(["a", None], dtype=object),
    "numpy scalar": np.float32(0.5),
    "numpy dtype": np.dtype("float32"),
    "numpy generator": np.random.default_rng(0),
    "dataclass": Settings(3),
    "enum": Colour.RED,
    "namespace": argparse.Namespace(a=1, b=[2]),
    "simple namespace": types.SimpleNamespace(a=1),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "deque": collections.deque([1, 2], maxlen=3),
    "date": dt.date(2026, 1, 2),
    "datetime": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
    "range": range(3),
    "slice": slice(1, 3),
    "generator": torch.Generator().manual_seed(3),
    "distribution": torch.distributions.Normal(0.0, 1.0),
    "named tuple": Point(1, 2),
    "slots": Slotted(),
    "decimal": decimal.Decimal("0.1"),
    "fraction": fractions.Fraction(1, 3),
    "uuid": uuid.UUID(int=5),
    "complex": 1 + 2j,
    "bytes": b"ab",
    "set": {1, 2},
    "nested": {"a": [Settings(4), {"b": (Colour.RED, np.int64(3))}]},
    "tensor": torch.arange(3),
    "dtype": torch.float16,
}


class Holder(Net):
    """Its hyperparameters hold an object."""

    def __init__(self, lr=0.1, thing=None):
        super().__init__(lr)
        self.save_hyperparameters()


def hyperband(root, **options):
    return HyperbandTuner(
        {"lr": "loguniform(1e-3, 1)"}, monitor="val_loss", max_steps=6, min_steps=2, root=root, name="r",
        verbose=False, **options,
    )  # fmt: skip


def validated(model):
    """Loss of a model on the validation data."""
    model.eval()
    images, labels = next(iter(Data().val_dataloader()))
    with torch.no_grad():
        return float(nn.functional.cross_entropy(model.net(images), labels))


def has_no_failure(result):
    assert [(row.number, row.state) for row in result.rows if row.state == "failed"] == []
    assert max(max(row.values) for row in result.rows) == 6  # promoted, so continued from a checkpoint


class Made:
    """Builds a module that holds one of KINDS; found by its name in another process."""

    def __init__(self, kind):
        self.kind = kind

    def __call__(self, lr):
        return Holder(lr, KINDS[self.kind])


@pytest.mark.parametrize("kind", KINDS)
def test_a_trial_with_an_object_in_its_hyperparameters_is_promoted_and_read_back(tmp_path, kind):
    result = hyperband(tmp_path).fit(Made(kind), datamodule=Data)
    has_no_failure(result)
    assert validated(result.best_model()) == pytest.approx(result.best_score, abs=1e-6)
    plain = Holder.load_from_checkpoint(result.best_checkpoint, weights_only=False)
    assert type(plain.hparams.thing) is type(KINDS[kind])
    assert validated(plain) == pytest.approx(result.best_score, abs=1e-6)


class Extra(Net):
    """Keeps objects in its checkpoint, and wants them back to be what it was."""

    def on_save_checkpoint(self, checkpoint):
        checkpoint["extra"] = {
            "best": np.float64(0.5), "seen": np.arange(3), "at": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
            "settings": Settings(7), "where": pathlib.Path("x"),
        }  # fmt: skip

    def on_load_checkpoint(self, checkpoint):
        self.extra = checkpoint["extra"]
        assert self.extra["settings"] == Settings(7)
        assert self.extra["seen"].tolist() == [0, 1, 2]


def test_what_a_module_adds_to_its_checkpoint_comes_back(tmp_path):
    result = hyperband(tmp_path).fit(Extra, datamodule=Data)
    has_no_failure(result)
    assert result.best_model().extra["settings"] == Settings(7)


class Unfinished(Net):
    """Its layer is there only after a checkpoint or a fit has said how large it is; part of it is not saved."""

    strict_loading = False

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.frozen = nn.Linear(2, 2)
        self.register_buffer("size", torch.tensor(3))

    def configure_model(self):
        if not hasattr(self, "more"):
            self.more = nn.Linear(4, 4)

    def state_dict(self, *args, **kwargs):
        return {name: value for name, value in super().state_dict(*args, **kwargs).items() if "frozen" not in name}

    def on_load_checkpoint(self, checkpoint):
        checkpoint["state_dict"]["size"] = torch.tensor(5)


def test_the_best_model_is_loaded_by_the_hooks_that_lightning_calls(tmp_path):
    result = hyperband(tmp_path).fit(Unfinished, datamodule=Data)
    model = result.best_model()
    stored = checkpoints.load(result.best_checkpoint)["state_dict"]
    assert torch.equal(model.more.weight, stored["more.weight"])
    assert int(model.size) == 5


class Notes(pl.Callback):
    """Keeps objects in its state, and compares them when they come back."""

    came_back = 0

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, *_):
        self.seen.append((np.int64(trainer.global_step), Colour.RED))

    def state_dict(self):
        return {"seen": self.seen, "settings": Settings(5)}

    def load_state_dict(self, state_dict):
        assert state_dict["settings"] == Settings(5)
        self.seen = state_dict["seen"]
        Notes.came_back += 1


class Warm:
    """A factor for LambdaLR, with state of its own."""

    def __init__(self):
        self.since = np.float64(1.0)
        self.kind = Colour.RED

    def __call__(self, step):
        return 1.0 / (1.0 + step)


class Stateful(Net):
    """Objects in optimizer, LR schedule and module state."""

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.settings = Settings(1)

    def get_extra_state(self):
        return self.settings

    def set_extra_state(self, state):
        self.settings = state

    def configure_optimizers(self):
        groups = [{"params": list(self.parameters()), "lr": np.float64(self.hparams.lr), "kind": Colour.RED}]
        optimizer = torch.optim.SGD(groups, lr=self.hparams.lr, momentum=0.9)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, Warm())
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def test_objects_in_the_state_of_callbacks_optimizers_schedules_and_modules_come_back(tmp_path):
    Notes.came_back = 0
    result = hyperband(tmp_path, trainer={"callbacks": [Notes()]}).fit(Stateful, datamodule=Data)
    has_no_failure(result)
    assert Notes.came_back > 0
    assert result.best_model().settings == Settings(1)


def population(root, **options):
    return PopulationTuner(
        {"lr": "loguniform(1e-3, 1)"}, monitor="val_loss", population_size=3, interval=2, max_steps=6, quantile=0.4,
        root=root, name="r", verbose=False, trainer={"callbacks": [Notes()]}, **options,
    )  # fmt: skip


PAUSES = []


class PausedOnce(Stateful):
    """Asks for a pause in the middle of the population's second round, once."""

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.save_hyperparameters({"thing": Settings(4)})

    def on_train_batch_start(self, *_):
        if self.global_step == 3 and not PAUSES:
            PAUSES.append(3)
            os.kill(os.getpid(), signal.SIGTERM)


def test_members_of_a_population_copy_objects_and_are_continued_with_them(tmp_path):
    PAUSES.clear()
    Notes.came_back = 0
    with pytest.raises(SystemExit):
        population(tmp_path).fit(PausedOnce, datamodule=Data)
    result = population(tmp_path).fit(PausedOnce, datamodule=Data)
    assert [row.number for row in result.rows if row.state == "failed"] == []
    assert Notes.came_back == 3
    assert any(row.parent is not None for row in result.rows)
    assert result.best_model().settings == Settings(1)


def trainer(max_steps, *callbacks):
    return pl.Trainer(
        max_steps=max_steps, callbacks=list(callbacks), val_check_interval=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, accelerator="cpu",
    )  # fmt: skip


def member(root, number):
    return PopulationBasedTraining(
        root / "pbt", {"lr": "loguniform(1e-3, 1)"}, member=number, population_size=2, quantile=0.5, interval=2
    )


def donor(root, module):
    """A member 1 at work in the same folder, better than anybody; returns the file of its state."""
    fit = trainer(2)
    fit.fit(module, datamodule=Data())
    folder = member(root, 1).folder
    folder.join(0, None)
    folder.report(2, 0.0, lambda: capture(fit, module))
    return root / "pbt" / "member_001" / "state.ckpt"


def test_the_file_of_a_donor_of_the_same_user_may_hold_objects(tmp_path):
    better = Stateful()
    better.settings = Settings(9)
    donor(tmp_path, better)
    copy = Stateful()
    trainer(4, member(tmp_path, 0)).fit(copy, datamodule=Data())
    assert not any("did not copy" in event for event in read_record(tmp_path / "pbt", 0).events)
    assert copy.settings == Settings(9)


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
    assert "last.ckpt is damaged or not of this run" in caplog.text
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
    for file in (tmp_path / "r" / "members").glob("*/*.ckpt"):
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
