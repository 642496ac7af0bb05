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
import os
import pathlib
import signal
import types
import typing
import uuid
import zipfile

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torchmetrics
from torch import nn

from lightning_hpo import (
    HyperbandTuner,
    PopulationBasedTraining,
    PopulationTuner,
    checkpoints,
)
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.study.member_files import read_record
from lightning_hpo.training.state_transfer import capture
from tests.faults.scripts import run as run_script
from tests.support.small import Data, Net


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


@pytest.mark.filterwarnings("ignore:Attribute 'thing' is an instance of `nn.Module`")
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
        if self.extra["settings"] != Settings(7) or self.extra["seen"].tolist() != [0, 1, 2]:
            raise ValueError(self.extra)  # no assert: pytest rewrites it, and the study would see other code


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


class PausedExtra(Extra):
    """Asks for a pause when the first trial is promoted, once."""

    def on_train_batch_start(self, *_):
        if self.global_step == 3 and not PAUSES:
            PAUSES.append(3)
            os.kill(os.getpid(), signal.SIGTERM)


def test_another_process_knows_what_the_run_has_written(tmp_path):
    script = (
        "from pathlib import Path\nfrom tests.training import test_checkpoints as t\nt.PAUSES.clear()\n"
        "t.hyperband(Path(ROOT)).fit(t.PausedExtra, datamodule=t.Data)"
    )
    assert run_script(tmp_path, script, root=tmp_path)[0] == 128 + signal.SIGTERM
    PAUSES.append(3)
    result = hyperband(tmp_path).fit(PausedExtra, datamodule=Data)
    has_no_failure(result)
    assert result.best_model().extra["settings"] == Settings(7)


def test_worker_processes_sign_with_the_key_of_the_run(tmp_path):
    result = hyperband(tmp_path, workers=2).fit(Extra, datamodule=Data)
    has_no_failure(result)
    assert result.best_model().extra["settings"] == Settings(7)


def folder(file):
    file.unlink()
    file.mkdir()


def test_a_checkpoint_of_plain_values_is_continued_without_a_signature(tmp_path):
    """As an earlier version wrote it, or a run whose key was not copied with it."""
    path = tmp_path / "last.ckpt"
    checkpoints.save({"global_step": 3, "hyper_parameters": {"lr": 0.1}}, path)
    assert path.read_bytes()[-71:-64] == b"sha256:"
    assert checkpoints.newest_intact(path, Key.new()) == (path, [])
    assert checkpoints.load(path, key=Key.new())["global_step"] == 3


def test_an_earlier_version_finds_a_signed_checkpoint_whole(tmp_path):
    """It compares the last 64 letters with the hash of everything before them."""
    path = tmp_path / "last.ckpt"
    checkpoints.save({"global_step": 3}, path, Key.new())
    content = path.read_bytes()
    assert content[-64:] == hashlib.sha256(content[:-64]).hexdigest().encode()
    assert zipfile.ZipFile(path).testzip() is None
    assert torch.load(path, weights_only=True) == {"global_step": 3}
