"""Trials that hang, diverge, run out of memory or take their process down: each ends alone, with its reason."""

import collections
import os
import re
import subprocess
import sys
import time

import lightning.pytorch as pl
import pytest
import torch

from lightning_hpo import RandomTuner
from lightning_hpo.errors import DivergedError
from lightning_hpo.training.run_to_step import LossWatch
from tests.faults.scripts import run
from tests.support.small import Data, Net

CPU = {"accelerator": "cpu", "logger": False}
LR = {"lr": "loguniform(1e-3, 1)"}


def number_of(module):
    name = os.path.basename(module.trainer.default_root_dir)
    return int(name) if name.isdigit() else None  # the check before the search


class Hanging(Net):
    """Trial 1 hangs in step 10, with a child process that would hang for ever; trial 2 in a validation."""

    def on_train_batch_start(self, batch, batch_idx):
        if number_of(self) == 1 and self.global_step == 10:
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
            with open(os.environ["CHILDREN"], "w") as file:
                file.write(str(child.pid))
            time.sleep(1000)

    def on_validation_batch_start(self, batch, batch_idx, dataloader_idx=0):
        if number_of(self) == 2 and not self.trainer.sanity_checking:
            time.sleep(1000)


class Lethal(Net):
    """Trial 1 takes its process down in step 30, once if a file says so."""

    def on_train_batch_start(self, batch, batch_idx):
        once = os.environ.get("ONCE")
        if number_of(self) == 1 and self.global_step == 30 and not (once and os.path.exists(once)):
            if once:
                open(once, "w").close()
            os.kill(os.getpid(), 9)


class Diverging(Net):
    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * float("nan") if number_of(self) == 1 and self.global_step == 6 else loss


def reasons(result):
    return {t.number: t.user_attrs["failure"] for t in result.study.trials if t.state.name == "FAIL"}


def test_a_hanging_trial_is_ended_with_all_it_has_started_and_the_search_goes_on(tmp_path, monkeypatch):
    monkeypatch.setenv("CHILDREN", str(tmp_path / "children"))
    result = RandomTuner(
        LR, max_steps=30, n_trials=5, monitor="val_loss", root=tmp_path, workers=2, trial_timeout=3, trainer=CPU
    ).fit(Hanging, datamodule=Data)
    assert reasons(result) == {1: "no progress for 3 s", 2: "no progress for 3 s"}
    assert collections.Counter(row.state for row in result.trials()) == {"complete": 3, "failed": 2}
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "children").read_text()), 0)


HANG = """
class Hanging(Net):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 30:
            def the_place_where_it_hangs():
                time.sleep(1000)
            the_place_where_it_hangs()

result = RandomTuner({"lr": "loguniform(1e-3, 1)"}, max_steps=40, n_trials=1, monitor="val_loss", root=ROOT, name="r",
                     trainer=CPU, trial_timeout=2, verbose=False,
                     ).fit(Hanging, datamodule=Data)
"""


def test_in_this_process_the_stacks_are_printed_and_it_exits(tmp_path):
    code, _, err = run(tmp_path, HANG)
    assert code == 1
    assert "the_place_where_it_hangs" in err
    last = err.strip().splitlines()[-1]
    assert re.fullmatch(
        r"lightning_hpo: no progress for 2 s in trial 0.*; .* is kept in .*/runs/r; run the same command.*", last
    )
    assert (tmp_path / "runs" / "r" / "trials" / "0000" / "last.ckpt").exists()


def test_optuna_tuner_watches_too(tmp_path):
    code, _, err = run(
        tmp_path,
        "OptunaTuner(X, max_steps=1, n_trials=1, root=ROOT, name='r', trial_timeout=1, verbose=False)"
        ".optimize(lambda job, params: time.sleep(1000))",
    )
    assert code == 1
    assert "no progress for 1 s in trial 0" in err.splitlines()[-1]


def test_a_worker_that_is_killed_fails_its_trial_or_is_retried_from_its_checkpoint(tmp_path, monkeypatch):
    options = {"max_steps": 40, "n_trials": 3, "monitor": "val_loss", "root": tmp_path, "trainer": CPU}
    result = RandomTuner(LR, name="fails", isolate=True, **options).fit(Lethal, datamodule=Data)
    assert reasons(result) == {1: "the worker process was killed by signal 9 (SIGKILL)"}
    monkeypatch.setenv("ONCE", str(tmp_path / "once"))
    again = RandomTuner(LR, name="retried", isolate=True, max_retries=1, **options).fit(Lethal, datamodule=Data)
    whole = RandomTuner(LR, name="whole", **options).fit(Net, datamodule=Data)
    assert [row.values for row in again.trials()] == [row.values for row in whole.trials()]


def test_a_trial_that_diverges_stops_at_the_step(tmp_path):
    steps = tmp_path / "steps"
    result = RandomTuner(
        {**LR, "step_log": f"choice('{steps}')"},
        max_steps=40,
        n_trials=3,
        monitor="val_loss",
        root=tmp_path,
        stop_on_nan=True,
        trainer=CPU,
    ).fit(Diverging, datamodule=Data)
    assert reasons(result) == {1: "diverged at step 7: the training loss is nan"}
    assert [len(row.values) for row in result.trials()] == [1, 0, 1]
    assert len([line for line in steps.read_text().splitlines() if "/0001 " in line]) == 7


def test_losses_on_another_device_are_read_together():
    """A tensor that says it is on a GPU, whose values cost a wait: no loss is looked at in the step."""

    class Loss(torch.Tensor):
        device = torch.device("cuda")

    losses = LossWatch()
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for value in [0.5, float("inf"), 0.1]:
        losses.note(trainer, {"loss": torch.tensor(value).as_subclass(Loss)})
    with pytest.raises(DivergedError, match="diverged at step 0: the training loss is inf"):
        losses.check(trainer)


MEMORY = """
import re, resource
def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1))
def mapped():
    return int(re.search(r"VmSize:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) * 1024

class Hungry(Net):
    def on_train_start(self):
        print("resident", resident(), flush=True)
        if self.trainer.default_root_dir.endswith("0001"):
            resource.setrlimit(resource.RLIMIT_AS, (mapped() + 600 * 2**20, resource.RLIM_INFINITY))
            self.held = []
            try:
                while True:
                    self.held.append(bytearray(50 * 2**20))
            finally:
                resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

result = RandomTuner({"lr": "loguniform(1e-3, 1)"}, max_steps=5, n_trials=3, monitor="val_loss", root=ROOT, name="r",
                     trainer=CPU, verbose=False).fit(Hungry, datamodule=Data)
print([row.state for row in result.trials()], result.study.trials[1].user_attrs["failure"].splitlines()[0])
"""


def test_a_trial_out_of_memory_fails_and_gives_it_back(tmp_path):
    code, out, err = run(tmp_path, MEMORY)
    assert code == 0, err
    assert "['complete', 'failed', 'complete'] MemoryError" in out
    before, _, after = (int(value) for value in re.findall(r"resident (\d+)", out))
    assert after <= 1.2 * before
