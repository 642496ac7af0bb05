"""A population is the same in suspended fits, from checkpoints and in worker processes, and after kills."""

import os
import signal
import threading
import time
from dataclasses import replace

import pytest

from lightning_hpo.executors.in_process import InProcess
from lightning_hpo.executors.interleaved import Interleaved
from lightning_hpo.tuners.population import PopulationTuner
from tests.faults.test_kill import in_a_child
from tests.faults.test_population_faults import KINDS
from tests.training.test_population_callback import Data as Digits
from tests.training.test_population_exact import INTERVAL, SIZE, STEPS, Data, Net, Uneven, history, steps_of
from tests.training.test_population_tuner import Small

BATCHES = {"lr": "loguniform(1e-3, 1e-1)", "data.batch_size": "choice(8, 16, 40)"}
SPACE = {"lr": "loguniform(1e-3, 1e-1)"}


def from_checkpoints(work, options, interrupts):
    """Leave each fit after its job, as worker processes do: all that goes on goes on from a checkpoint."""
    return InProcess(work, interrupts.pause_wanted)


def dying(work, options, interrupts):
    DyingExecutor.calls += 1
    return DyingExecutor(work.train, interrupts.pause_wanted)


class DyingExecutor(Interleaved):
    """Is interrupted after each job, whose outcome is recorded by every second call only."""

    calls = 0
    done = 0

    def submit(self, task):
        if self.done:
            raise KeyboardInterrupt
        self.done += 1
        future = super().submit(task)
        if DyingExecutor.calls % 2:
            raise KeyboardInterrupt
        return future


def tune(root, executor=None, *, model=Net, data=Data, space=SPACE, trainer=None, **options):
    arguments = {"population_size": SIZE, "interval": INTERVAL, "max_steps": STEPS, "monitor": "val_loss", "seed": 1}
    given = {"accelerator": "cpu", "logger": False, **(trainer or {})}
    tuner = PopulationTuner(space, root=root, name="run", trainer=given, verbose=False, **{**arguments, **options})
    if executor is not None:
        tuner.setup = replace(tuner.setup, parts=replace(tuner.setup.parts, executor=executor))
    return tuner.fit(model, datamodule=data)


@pytest.mark.parametrize("kind", KINDS)
def test_copies_through_checkpoints_are_the_copies_in_memory(tmp_path, kind):
    model, trainer, interval = KINDS[kind]
    options = {"model": model, "trainer": trainer, "interval": interval}
    whole = tune(tmp_path / "whole", **options)
    assert any(row.parent is not None for row in whole.rows)
    assert history(tune(tmp_path / "again", from_checkpoints, **options)) == history(whole)


@pytest.mark.parametrize("options", [
    {"space": BATCHES, "trainer": {"accumulate_grad_batches": 2}, "explore": "all"},
    {"space": BATCHES, "data": Uneven, "interval": 5, "max_steps": 30},  # some rounds end with an epoch
    {"interval": 8, "explore": "all"},  # all rounds end with an epoch
], ids=["batch size", "some epochs", "epochs"])  # fmt: skip
def test_data_that_change_with_a_copy_are_the_same_from_checkpoints(tmp_path, options):
    whole = tune(tmp_path / "whole", **options)
    assert any(row.parent is not None for row in whole.rows)
    assert history(tune(tmp_path / "again", from_checkpoints, **options)) == history(whole)


@pytest.mark.parametrize(("interval", "synchronous"), [(6, True), (8, True), (6, False)])
def test_interrupted_after_every_job_and_continued_is_the_same_population(tmp_path, interval, synchronous):
    options = {"interval": interval, "synchronous": synchronous}
    whole = tune(tmp_path / "whole", **options)
    assert any(row.parent is not None for row in whole.rows)
    DyingExecutor.calls = 0
    while True:
        try:
            result = tune(tmp_path / "killed", dying, **options)
            break
        except KeyboardInterrupt:
            assert DyingExecutor.calls < 100
    assert DyingExecutor.calls >= SIZE * STEPS / interval
    assert history(result) == history(whole)
    assert not list((tmp_path / "killed").rglob("parent*.ckpt"))


class Slow(Small):
    """Long enough in each job that several are at work at a time."""

    def training_step(self, batch, batch_idx):
        time.sleep(0.01)
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("synchronous", [True, None])
def test_worker_processes_that_are_killed_and_continued_lose_nothing(tmp_path, synchronous):
    """If they are synchronous, they make the lineage of one worker too."""
    options = {"model": Slow, "data": Digits, "population_size": 4, "space": {**SPACE, "dropout": "uniform(0.05, 0.5)"}}
    whole = tune(tmp_path / "whole", **options) if synchronous else None
    options["synchronous"] = synchronous

    def search():
        def die_when_members_have_copied():
            while len(list((tmp_path / "killed" / "run").glob("trials/*/last.previous.ckpt"))) < 3:
                time.sleep(0.005)
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=die_when_members_have_copied, daemon=True).start()
        tune(tmp_path / "killed", workers=4, **options)

    assert os.waitstatus_to_exitcode(os.waitpid(in_a_child(search), 0)[1]) == -signal.SIGKILL
    result = tune(tmp_path / "killed", workers=4, **options)
    assert whole is None or history(result) == history(whole)
    assert all(row.forked_at in result.rows[row.parent].values for row in result.rows if row.parent is not None)
    assert steps_of(result) == {member: [6, 12, 18, 24] for member in range(4)}
    assert not list((tmp_path / "killed").rglob("parent*.ckpt"))
    assert len(list((tmp_path / "killed").rglob("last.ckpt"))) == 1
