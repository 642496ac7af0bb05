"""Populations after kills, on disks that fill, and in folders that go away."""

import copy
import itertools
import os
import random
import shutil
import signal
import threading

import lightning.pytorch as pl
import optuna
import pytest
from lightning.pytorch.callbacks import EarlyStopping
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.errors import StorageError
from lightning_hpo.study.lineage import lineage
from lightning_hpo.study.member_files import read_record
from lightning_hpo.training.state_transfer import capture
from tests.faults.scripts import mount_works, run
from tests.faults.test_kill import in_a_child
from tests.training.test_population_exact import ACTIONS, SPACE, Data, Net, Plateau, Two, history, tune


class Falls(Plateau):
    config = {"monitor": "val_loss"}


KINDS = {
    "accumulation": (Net, {"accumulate_grad_batches": 4}, 6),
    "two optimizers": (Two, {}, 6),
    "early stopping": (Net, {"callbacks": [EarlyStopping("val_loss", patience=2, min_delta=0.02)]}, 3),
    "plateau": (Falls, {}, 8),
    "both": (Falls, {"callbacks": [EarlyStopping("val_loss", patience=3, min_delta=0.02)]}, 6),
    "a training loss": (Falls, {"callbacks": [EarlyStopping("train_loss", patience=1, min_delta=0.05,
                                                            check_on_train_epoch_end=True)]}, 6),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _no_actions():
    ACTIONS.clear()
    yield
    ACTIONS.clear()


def die_after(batches, delay):
    """Kill this process some time after it has ended so many batches, whosever they are."""
    count = itertools.count(1)

    def die(module):
        if next(count) == batches:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    ACTIONS.append(die)


@pytest.mark.parametrize("kind", KINDS)
def test_killed_at_any_moment_and_continued_equals_uninterrupted(tmp_path, kind):
    model, trainer, interval = KINDS[kind]
    options = {"model": model, "trainer": trainer, "interval": interval}
    whole = tune(tmp_path / "whole", **options)
    chance = random.Random(kind)
    for _ in range(6):
        batches, delay = chance.randint(3, 40), chance.uniform(0, 0.01)

        def search(batches=batches, delay=delay):
            die_after(batches, delay)
            tune(tmp_path / "killed", **options)

        assert os.waitstatus_to_exitcode(os.waitpid(in_a_child(search), 0)[1]) in (-signal.SIGKILL, 0)
    assert history(tune(tmp_path / "killed", **options)) == history(whole)


TUNE = """
from pathlib import Path
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.training.test_population_exact import Data as Rows, Net as Module, tune
tune(Path(ROOT), Module, Rows, trainer={"callbacks": [ModelCheckpoint(save_last=True)] if WITH else []})
"""


@pytest.fixture
def small_disk(tmp_path):
    if not mount_works(tmp_path / "try"):
        pytest.skip("a file system cannot be mounted here")


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize(("size", "own"), [(60_000, False), (75_000, False), (161_000, False), (104_000, True)])
def test_a_population_goes_on_where_its_disk_was_full(tmp_path, size, own):
    """The disk is full for our checkpoints, for the study, or for a checkpoint of the user's."""
    script = TUNE.replace("WITH", str(own))
    assert run(tmp_path, script, root=tmp_path / "whole")[0] == 0
    code, _, err = run(tmp_path, script, disk=size)
    assert code == 4, err
    assert str(tmp_path / "runs" / "run") in err.splitlines()[-1]
    kept = tmp_path / "runs.kept"
    assert "FAIL" not in [trial.state.name for trial in study(kept).trials]
    assert run(tmp_path, script, root=kept)[0] == 0
    assert told(kept) == told(tmp_path / "whole")
    assert not list(kept.rglob(".*.tmp"))


def study(root):
    storage = JournalStorage(JournalFileBackend(str(root / "run" / "study.journal")))
    return optuna.load_study(study_name="run", storage=storage)


def told(root):
    return [(segment.params, segment.values, segment.parent, segment.notes()) for segment in lineage(study(root))]


def test_a_run_folder_that_is_deleted_is_named(tmp_path):
    def delete(module):
        if module.trainer.global_step == 15:
            shutil.rmtree(tmp_path / "run", ignore_errors=True)

    ACTIONS.append(delete)
    with pytest.raises(StorageError, match="it was deleted or moved"):
        tune(tmp_path)
    assert not (tmp_path / "run" / "trials").exists()


def test_what_killed_processes_left_in_a_run_folder_is_swept(tmp_path):
    tune(tmp_path)
    left = [tmp_path / "run" / "trials" / "0001" / name for name in (".last.ckpt.7.tmp", ".metrics.csv.tmp", ".x.tmp")]
    for file in left:
        file.touch()
    tune(tmp_path)
    assert not any(file.exists() for file in left)


def test_a_finished_run_needs_none_of_its_checkpoints(tmp_path):
    result = tune(tmp_path)
    shutil.rmtree(tmp_path / "run" / "trials")
    trained = []
    ACTIONS.append(trained.append)
    assert history(tune(tmp_path)) == history(result)
    assert not trained


def test_checkpoints_of_a_study_that_was_moved_away_are_not_taken_over(tmp_path):
    def stop(module):
        if module.global_step == 15:
            raise KeyboardInterrupt

    whole = tune(tmp_path / "whole", seed=2)
    ACTIONS.append(stop)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path)
    ACTIONS.clear()
    (tmp_path / "run" / "study.journal").unlink()
    with pytest.warns(UserWarning, match="files of other trials are moved aside"):
        result = tune(tmp_path, seed=2)
    assert history(result) == history(whole)
    assert len(list((tmp_path / "run" / "trials").glob("000?.other-*"))) == 3


class Killed(pl.Callback):
    """Kills its process where a member has saved and not yet reported, in one of its rounds."""

    def __init__(self, step):
        self.step = step

    def on_validation_start(self, trainer, pl_module):
        if trainer.default_root_dir.endswith("001") and trainer.global_step == self.step and os.getpid() != MAIN:
            os.kill(os.getpid(), signal.SIGKILL)


MAIN = os.getpid()


@pytest.mark.parametrize("step", [6, 12, 24])
def test_kills_between_a_checkpoint_and_its_score_leave_one_to_go_on_from(tmp_path, step):
    """Each kill comes at the same place."""
    options = {"trainer": {"callbacks": [Killed(step)]}}
    whole = tune(tmp_path / "whole", **options)
    for _ in range(3):
        child = in_a_child(lambda: tune(tmp_path / "killed", **options))
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    assert history(tune(tmp_path / "killed", **options)) == history(whole)


@pytest.mark.parametrize("number", range(3))
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_stays(tmp_path, number):
    def stop(module):
        if module.global_step == 15:
            raise KeyboardInterrupt

    ACTIONS.append(stop)
    for _ in range(2):
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            tune(tmp_path)
        file = tmp_path / "run" / "trials" / f"{number:04d}" / "last.ckpt"
        if file.exists():
            file.write_bytes(file.read_bytes()[:-100])
    ACTIONS.clear()
    result = tune(tmp_path)
    assert {segment.member for segment in lineage(result) if 24 in segment.values} == {0, 1, 2}
    assert list(file.parent.glob("last.ckpt.corrupt-*"))


def member(root, number=0, size=2, **options):
    return PopulationBasedTraining(root / "pbt", SPACE, member=number, population_size=size, interval=8, **options)


def train(pbt, *callbacks, max_steps=24, **options):
    trainer = pl.Trainer(
        max_steps=max_steps, callbacks=[pbt, *callbacks], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, **options
    )  # fmt: skip
    trainer.fit(Net(), datamodule=Data())
    return trainer


def donor(root, score=0.0, size=2):
    """A member 1 that is at work, with weights of its own."""
    states = []

    class Take(pl.Callback):
        def on_validation_end(self, trainer, pl_module):
            states.append(copy.deepcopy(capture(trainer, pl_module)))

    train(member(root / "other"), Take(), max_steps=8)
    other = member(root, 1, size).folder
    other.join(0, None)
    other.report(8, score, lambda: states[0])


def test_a_shared_folder_that_is_deleted_is_named(tmp_path):
    ACTIONS.append(lambda module: module.global_step == 12 and shutil.rmtree(tmp_path / "pbt"))
    with pytest.raises(StorageError, match="the folder of the population is gone") as raised:
        train(member(tmp_path))
    assert raised.value.exit_code == 4
    assert not (tmp_path / "pbt").exists()


def test_a_script_whose_shared_folder_is_deleted_exits_with_4(tmp_path):
    script = """
import shutil
from pathlib import Path
from tests.training.test_population_exact import ACTIONS
from tests.faults.test_population_faults import member, train
ACTIONS.append(lambda module: module.global_step == 12 and shutil.rmtree(Path(ROOT) / "pbt"))
train(member(Path(ROOT)))
"""
    code, _, err = run(tmp_path, script)
    assert code == 4, err
    assert "the folder of the population is gone" in err.splitlines()[-1]


FULL = """
from pathlib import Path
from tests.faults.test_population_faults import donor, member, train
donor(Path(ROOT), score=9.0)
filler = Path(ROOT) / "filler"
try:
    filler.write_bytes(bytes(2_000_000))
except OSError:
    pass
train(member(Path(ROOT)))
"""


@pytest.mark.usefixtures("small_disk")
def test_a_member_of_a_shared_folder_goes_on_where_the_disk_was_full(tmp_path):
    code, _, err = run(tmp_path, FULL, disk=400_000)
    assert code == 4, err
    assert "the folder of the population cannot be used: No space left on device (ENOSPC)" in err.splitlines()[-1]
    (tmp_path / "runs.kept" / "filler").unlink()
    train(member(tmp_path / "runs.kept"))
    record = read_record(tmp_path / "runs.kept" / "pbt", 0)
    assert (record.status, record.step) == ("finished", 24)


def test_what_killed_members_left_in_a_shared_folder_is_swept(tmp_path):
    train(member(tmp_path))
    other = tmp_path / "pbt" / "member_001" / ".record.json.7.tmp"  # its member may be writing it
    left = [tmp_path / "pbt" / ".population.json.7.tmp", tmp_path / "pbt" / "member_000" / ".state.ckpt.7.tmp"]
    other.parent.mkdir()
    for file in (other, *left):
        file.touch()
    train(member(tmp_path))
    assert not any(file.exists() for file in left)
    assert other.exists()


@pytest.mark.parametrize("where", ["before", "after"])
def test_a_member_of_a_shared_folder_that_early_stopping_stops_copies(tmp_path, where):
    """The second best of three, which would not copy otherwise."""
    donor(tmp_path, size=3)
    third = member(tmp_path, 2, 3).folder
    third.join(0, None)
    third.report(8, 9.0, dict)
    pbt, stopping = member(tmp_path, size=3), EarlyStopping("val_loss", patience=1, min_delta=9.0)
    callbacks = (pbt, stopping) if where == "after" else (stopping, pbt)
    trainer = train(callbacks[0], *callbacks[1:])
    record = read_record(tmp_path / "pbt", 0)
    assert [(segment.start, segment.parent) for segment in record.segments] == [(0, None), (16, 1)]
    assert record.stopped == 16
    assert (record.status, trainer.global_step) == ("finished", 24)


def test_a_member_of_a_shared_folder_without_a_donor_stops_where_early_stopping_asked(tmp_path):
    trainer = train(member(tmp_path), EarlyStopping("val_loss", patience=1, min_delta=9.0))
    record = read_record(tmp_path / "pbt", 0)
    assert (record.status, record.step, trainer.global_step) == ("finished", 16, 16)
    assert "step 16: asked to stop" in record.events


def test_a_decision_of_a_shared_folder_falls_at_the_first_validation_after_an_interval(tmp_path):
    train(member(tmp_path), max_steps=40, val_check_interval=5, check_val_every_n_epoch=None)
    assert sorted(step for segment in lineage(tmp_path / "pbt") for step in segment.values) == [10, 20, 30, 40]
