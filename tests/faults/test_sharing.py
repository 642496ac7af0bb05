"""Several processes on one study: who is refused, who waits, who takes over, and whose clock is asked."""

import collections
import io
import os
import signal
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.pruners import MedianPruner
from optuna.samplers import BaseSampler

from lightning_hpo import Hyperband, HyperbandTuner, OptunaTuner, PopulationTuner, RandomTuner, Tuner
from lightning_hpo.errors import StudyInUseError
from lightning_hpo.study.locks import Lock
from lightning_hpo.study.opening import PLACE
from lightning_hpo.study.run_folder import RunFolder
from tests.faults.scripts import Script
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net
from tests.support.studies import study_of

X = {"x": "uniform(0, 1)"}


def slow(job, params):
    time.sleep(0.02)
    return params["x"]


def tuner(root, **options):
    arguments = {"max_steps": 9, "min_steps": 1, "root": root, "name": "s", "shared": True, "verbose": False}
    return HyperbandTuner(X, **{**arguments, **options})


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def trials(root):
    return study_of(root / "s").get_trials(deepcopy=False)


def test_each_trial_is_run_once_and_every_process_sees_the_end(tmp_path):
    """With a random sampler and a scheduler that waits for its rungs, it does not matter who runs a trial."""
    log = tmp_path / "log"
    arguments = {"root": tmp_path, "name": "s", "shared": True, "verbose": False}
    synchronous = lambda **options: Tuner(X, Hyperband(9), **{**arguments, **options})  # noqa: E731

    def noted(job, params):
        with log.open("a") as file:
            file.write(f"{job.trial} {job.max_steps}\n")
        return slow(job, params)

    children = [in_a_child(lambda: synchronous().optimize(noted)) for _ in range(4)]
    assert [ended(child) for child in children] == [0, 0, 0, 0]
    jobs = log.read_text().split("\n")[:-1]
    assert max(collections.Counter(jobs).values()) == 1
    one = synchronous(name="one", shared=False).optimize(slow)
    assert [(t.params, t.intermediate_values, t.state) for t in trials(tmp_path)] == [
        (t.params, t.intermediate_values, t.state) for t in one.study.trials
    ]


def test_shared_and_unshared_searches_exclude_each_other(tmp_path):
    def busy(job, params):
        (tmp_path / "at work").touch()
        time.sleep(30)

    for first in (True, False):
        child = in_a_child(lambda first=first: tuner(tmp_path, shared=first).optimize(busy))
        while not (tmp_path / "at work").exists():
            time.sleep(0.01)
        with pytest.raises(StudyInUseError, match=f"in use by process {child} on host .* `shared=True`"):
            tuner(tmp_path, shared=not first).optimize(slow)
        os.kill(child, signal.SIGKILL)
        ended(child)
        (tmp_path / "at work").unlink()


def test_the_trial_of_a_dead_process_is_taken_over_from_its_checkpoint(tmp_path):
    """The other process has nothing else to do: it waits, sees the death, and continues at the checkpoint."""
    log = tmp_path / "steps"
    space = {"lr": "loguniform(1e-3, 1)", "step_log": f"choice('{log}')"}

    class Waits(Net):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 30 and os.environ.get("WAIT"):
                (tmp_path / "waits").touch()
                time.sleep(60)

    def search(name):
        return RandomTuner(
            space, max_steps=50, n_trials=1, monitor="val_loss", root=tmp_path, name=name, shared=True,
            trainer={"accelerator": "cpu", "logger": False}, verbose=False,
        ).fit(Waits, datamodule=Data)  # fmt: skip

    whole = search("whole")
    log.unlink()
    os.environ["WAIT"] = "1"
    try:
        first = in_a_child(lambda: search("s"))
        while not (tmp_path / "waits").exists():
            time.sleep(0.01)
    finally:
        del os.environ["WAIT"]
    second = in_a_child(lambda: search("s"))
    time.sleep(1.5)
    assert os.waitpid(second, os.WNOHANG) == (0, 0)
    os.kill(first, signal.SIGKILL)
    ended(first)
    assert ended(second) == 0
    assert [t.values for t in trials(tmp_path)] == [t.values for t in whole.study.trials]
    steps = [int(line.rsplit(" ", 1)[1]) for line in log.read_text().splitlines() if "/trials/" in line]
    assert steps == [*range(30), *range(25, 50)]


@pytest.mark.parametrize("shift", [3600, -3600])
def test_a_wrong_clock_changes_nothing(tmp_path, shift):
    """One process's wall clock is an hour off, and jumps back."""
    wrong = f"""
import datetime
true = time.time
time.time = lambda: true() + {shift} - 500 * (int(true() * 10) % 2)
"""
    code = "HyperbandTuner(X, max_steps=9, min_steps=1, root=ROOT, name='s', shared=True, verbose=False)"
    code += (
        ".optimize(lambda job, params: print(job.trial, job.max_steps, flush=True) or time.sleep(0.1) or params['x'])"
    )
    one, other = Script(tmp_path, wrong + code), Script(tmp_path, code)
    (first, printed, _), (second, more, _) = one.end(), other.end()
    assert (first, second) == (0, 0)
    printed += more
    jobs = collections.Counter(line for line in printed.splitlines() if line)
    assert max(jobs.values()) == 1
    assert len(trials(tmp_path / "runs")) == 17


def test_a_lock_dies_with_its_process_and_not_with_its_children(tmp_path):
    """A forked child, as a DataLoader's worker is, must not keep the study of a dead parent locked."""

    def holds():
        Lock(tmp_path / "lock").take()
        if os.fork() == 0:
            (tmp_path / "child").write_text(str(os.getpid()))
            time.sleep(60)
            os._exit(0)
        while not (tmp_path / "child").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGKILL)

    assert ended(in_a_child(holds)) == -signal.SIGKILL
    try:
        assert Lock(tmp_path / "lock").take()
    finally:
        os.kill(int((tmp_path / "child").read_text()), signal.SIGKILL)


def test_a_signal_pauses_one_process_and_the_others_go_on(tmp_path):
    code = "HyperbandTuner(X, max_steps=9, min_steps=1, root=ROOT, name='s', shared=True, verbose=False)"
    code += ".optimize(lambda job, params: print('at work', flush=True) or time.sleep(0.1) or params['x'])"
    one, other = Script(tmp_path, code), Script(tmp_path, code)
    one.wait_for("at work")
    one.send_signal(signal.SIGTERM)
    number, _, err = one.end()
    assert number == 143
    assert "paused by SIGTERM" in err.splitlines()[-1]
    number, _, err = other.end()
    assert number == 0, err
    assert len(trials(tmp_path / "runs")) == 17


def test_a_population_that_cannot_share_says_so(tmp_path):
    with pytest.raises(ValueError, match="`shared`"):
        PopulationTuner(X, root=tmp_path, shared=True, max_steps=200)


def test_processes_share_a_study_that_optuna_asks(tmp_path):
    """Its sampler and pruner see the trials of all processes; a killed one's trial is taken over."""

    class Dies(Net):
        def on_train_batch_start(self, batch, batch_idx):
            if self.global_step == 5 and os.environ.get("DIES"):
                os.kill(os.getpid(), signal.SIGKILL)

    def search(name="s", **options):
        return OptunaTuner(
            {"lr": "loguniform(1e-3, 1)"}, max_steps=8, n_trials=9, monitor="val_loss", root=tmp_path, name=name,
            shared=True, pruner=MedianPruner(n_startup_trials=2), verbose=False,
            trainer={"accelerator": "cpu", "logger": False, "val_check_interval": 2, "check_val_every_n_epoch": None},
        ).fit(Dies, datamodule=Data)  # fmt: skip

    def dying_search():
        os.environ["DIES"] = "1"
        search()

    assert ended(in_a_child(dying_search)) == -signal.SIGKILL
    (left,) = trials(tmp_path)
    assert left.state.name == "RUNNING"
    children = [in_a_child(search) for _ in range(2)]
    assert [ended(child) for child in children] == [0, 0]
    found = trials(tmp_path)
    assert len(found) == 9
    assert {trial.state.name for trial in found} <= {"COMPLETE", "PRUNED"}
    assert len({trial.params["lr"] for trial in found}) == 9
    assert all(list(trial.intermediate_values) == [2, 4, 6, 8][: len(trial.intermediate_values)] for trial in found)


class Counting(BaseSampler):
    """Keeps a note in the study of how often it was asked, and suggests that."""

    def infer_relative_search_space(self, study, trial):
        return {}

    def sample_relative(self, study, trial, search_space):
        return {}

    def sample_independent(self, study, trial, param_name, param_distribution):
        asked = study._storage.get_study_system_attrs(study._study_id).get("asked", 0)
        study._storage.set_study_system_attr(study._study_id, "asked", asked + 1)
        return asked / 10


def test_what_a_sampler_notes_about_the_study_reaches_the_other_processes(tmp_path):
    def search(function, **limits):
        return RandomTuner(
            X,
            max_steps=1,
            n_trials=5,
            root=tmp_path,
            name="s",
            shared=True,
            sampler=Counting(),
            verbose=False,
            **limits,
        ).optimize(function)

    def while_another_works(job, params):
        if job.trial == 1:  # what another process would do: two trials, and then it leaves
            search(while_another_works, total_steps=3)
        return 0.5

    rows = search(while_another_works).trials()
    assert [row.params["x"] for row in rows] == [0.0, 0.1, 0.2, 0.3, 0.4]


def test_a_terminal_that_takes_no_more_lines_keeps_no_other_process_waiting(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def write(self, text):
            turn = Lock(tmp_path / "s" / "turn")
            free.append(turn.take())
            turn.free()
            return super().write(text)

    free, terminal = [], Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    tuner(tmp_path, verbose=True).optimize(lambda job, params: params["x"])
    assert terminal.getvalue().count("\ntrial ") > 17
    assert all(free)


def test_processes_that_start_at_once_may_tidy_each_others_probes_away(tmp_path, monkeypatch):
    other, touch = RunFolder(tmp_path, "r"), Path.touch

    def overtaken(path, *arguments, **options):
        touch(path, *arguments, **options)
        other.remove_leftovers(alone=False)

    monkeypatch.setattr(Path, "touch", overtaken)
    assert RunFolder(tmp_path, "r").path == other.path


@pytest.mark.parametrize("seen", [True, False])
def test_one_storage_with_two_roots_is_refused(tmp_path, seen):
    """At the start; or, if the other root cannot be seen, when both have worked on one trial.

    The locks are in the root, so the second process takes the first one's trial for a dead one's.
    """
    storage = f"sqlite:///{tmp_path}/study.db"

    def search(root, function):
        return RandomTuner(
            X, max_steps=1, n_trials=3, root=tmp_path / root, name="s", storage=storage, verbose=False
        ).optimize(function)

    def while_another_works(job, params):
        if job.trial == 1 and seen:
            with pytest.raises(StudyInUseError, match="in use in .*/one/s, .* uses its storage from another `root`"):
                search("other", while_another_works)
        elif job.trial == 1:
            optuna.load_study(study_name="s", storage=storage).set_user_attr(PLACE, "/on/another/host")
            with pytest.warns(UserWarning, match="has changed: the code of"):
                search("other", lambda job, params: 0.5)
        return 0.5

    if seen:
        search("one", while_another_works)
    else:
        with pytest.raises(StudyInUseError, match="another process, which uses its storage from another `root`"):
            search("one", while_another_works)
    study = optuna.load_study(study_name="s", storage=storage)
    assert [trial.value for trial in study.trials] == [0.5, 0.5, 0.5]
