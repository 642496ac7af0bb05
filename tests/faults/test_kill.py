"""Real processes, real signals: what is acknowledged stays, what was interrupted continues."""

import os
import re
import signal

import pytest

from lightning_hpo import HyperbandTuner
from tests.faults.scripts import Script, run
from tests.support.small import Data, Net
from tests.support.studies import study_of


def last_step(out):
    """Number of the last step that a search has printed."""
    return int(re.findall(r"step (\d+)", out)[-1])


def in_a_child(action):
    """Run in a forked process of its own group; with all imported, a kill hits any moment of a search."""
    child = os.fork()
    if child == 0:
        try:
            os.setpgid(0, 0)
            action()
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child


SEARCH = """
class Slow(Net):
    def on_train_batch_start(self, batch, batch_idx):
        time.sleep(0.02)
        print("step", self.global_step, flush=True)

HyperbandTuner({"lr": "loguniform(1e-3, 1)"}, max_steps=27, min_steps=9, monitor="val_loss", root=ROOT, name="s",
               checkpoint_every=1000, trainer=CPU).fit(Slow, datamodule=Data)
print("finished")
"""


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_a_pause(tmp_path, number, code):
    process = Script(tmp_path, SEARCH, root=tmp_path)
    process.wait_for("step 12")
    process.send_signal(number)
    returned, out, err = process.end()
    assert returned == code
    assert "finished" not in out
    last = err.strip().splitlines()[-1]
    assert re.match(rf"lightning_hpo: paused by {number.name}; .* is kept in .*; run the same command", last)
    before = last_step(out)
    returned, out, err = run(tmp_path, SEARCH, root=tmp_path)
    assert returned == 0, err
    assert "finished" in out
    assert int(re.search(r"step (\d+)", out).group(1)) == before + 1  # no step was lost
    whole = HyperbandTuner(
        {"lr": "loguniform(1e-3, 1)"},
        max_steps=27,
        min_steps=9,
        monitor="val_loss",
        root=tmp_path,
        name="whole",
        trainer={"accelerator": "cpu", "logger": False},
    ).fit(Net, datamodule=Data)
    study = study_of(tmp_path / "s")
    assert [t.values for t in study.trials] == [t.values for t in whole.study.trials]


@pytest.mark.parametrize("hook", ["on_train_batch_end", "on_validation_batch_start"])
def test_a_signal_after_the_last_check_for_one_fails_no_trial(tmp_path, hook):
    """The module's hook runs after those of callbacks."""
    search = f"""
class Hit(Net):
    def {hook}(self, *_):
        if self.global_step == 12 and not os.path.exists(ROOT + "/hit"):
            open(ROOT + "/hit", "w").close()
            os.kill(os.getpid(), signal.SIGTERM)

class Batches(Data):
    def val_dataloader(self):
        return torch.utils.data.DataLoader(super().val_dataloader().dataset, batch_size=50)

result = RandomTuner({{"lr": "loguniform(1e-3, 1)"}}, max_steps=24, n_trials=2, monitor="val_loss", root=ROOT, name="s",
                     trainer={{**CPU, "val_check_interval": 12}}).fit(Hit, datamodule=Batches)
print(*(row.state for row in result.rows))
"""
    assert run(tmp_path, search, root=tmp_path)[0] == 143
    code, out, err = run(tmp_path, search, root=tmp_path)
    assert code == 0, err
    assert out.splitlines()[-1] == "complete complete"


def test_a_second_ctrl_c_ends_the_search_at_once(tmp_path):
    search = """
def interrupted(job, params):
    for press in ("first", "second"):
        os.kill(os.getpid(), signal.SIGINT)
        print("after the", press, flush=True)

RandomTuner(X, max_steps=1, n_trials=2, root=ROOT, name="s").optimize(interrupted)
"""
    code, out, err = run(tmp_path, search)
    assert code == 130, err
    assert "after the first" in out  # the search waits for the call to end
    assert "after the second" not in out


def test_a_requeue_by_slurm_loses_no_step(tmp_path):
    """SIGUSR1 some time before the end of a job: Lightning asks for a requeue; then SIGTERM ends it."""
    (tmp_path / "scontrol").write_text(f"#!/bin/sh\necho $@ >> {tmp_path}/requeued\n")
    (tmp_path / "scontrol").chmod(0o755)
    slurm = {"SLURM_NTASKS": "1", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "search", "SLURM_LOCALID": "0"}
    slurm |= {"SLURM_PROCID": "0", "SLURM_NODEID": "0", "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    process = Script(tmp_path, SEARCH, root=tmp_path, env=slurm)
    process.wait_for("step 5")
    process.send_signal(signal.SIGUSR1)
    process.wait_for("step 12")
    process.send_signal(signal.SIGTERM)
    code, out, err = process.end()
    assert code == 143, err
    assert (tmp_path / "requeued").read_text().strip() == "requeue 7"
    code, again, err = run(tmp_path, SEARCH, root=tmp_path, env=slurm)
    assert code == 0, err
    assert int(re.search(r"step (\d+)", again).group(1)) == last_step(out) + 1
