"""Faults of the one loop and of shared studies: each test fails without its mend."""

import math
import os

import optuna
import pytest
from optuna.storages import InMemoryStorage

from lightning_hpo import OptunaTuner, RandomTuner
from lightning_hpo.errors import StudyMismatchError
from lightning_hpo.executors.worker import _Failure
from lightning_hpo.study.opening import open_study
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.table import TrialTable
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net

X = {"x": "uniform(0, 1)"}


def test_as_many_enqueued_trials_as_there_are_to_be(tmp_path):
    study = optuna.create_study()
    for x in (0.1, 0.2, 0.3):
        study.enqueue_trial({"x": x})
    tuner = OptunaTuner(X, max_steps=1, n_trials=3, study=study, root=tmp_path, name="s", verbose=False)
    assert [row.params["x"] for row in tuner.optimize(lambda job, params: params["x"]).rows] == [0.1, 0.2, 0.3]


def test_an_interrupted_trial_of_a_given_study_goes_on_and_others_are_left_alone(tmp_path):
    study = optuna.create_study()
    other = study.ask()
    killed = [True]

    def function(job, params):
        if killed and job.trial == 2:
            raise KeyboardInterrupt
        return params["x"]

    tuner = OptunaTuner(X, max_steps=1, n_trials=4, study=study, root=tmp_path, name="s", verbose=False)
    with pytest.raises(KeyboardInterrupt):
        tuner.optimize(function)
    killed.clear()
    again = OptunaTuner(X, max_steps=1, n_trials=4, study=study, root=tmp_path, name="s", verbose=False)
    again.optimize(function)
    assert [trial.state.name for trial in study.trials] == ["RUNNING", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert other.number == 0


def test_a_constraint_that_is_no_number_fails_its_trial(tmp_path):
    class Odd(Net):
        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            self.log("too_big", math.nan if self.hparams.lr < 0.3 else -1.0)

    space = {"lr": "uniform(0.1, 0.5)"}
    trainer = {"accelerator": "cpu", "logger": False}
    tuner = OptunaTuner(space, max_steps=2, n_trials=6, monitor="val_loss", constraints=["too_big"], root=tmp_path,
                        trainer=trainer, verbose=False)  # fmt: skip
    rows = tuner.fit(Odd, datamodule=Data).rows
    assert {row.state for row in rows} == {"failed", "complete"}
    assert all((row.state == "failed") == (row.params["lr"] < 0.3) for row in rows)


def test_constraints_are_refused_for_a_function(tmp_path):
    tuner = OptunaTuner(X, max_steps=1, n_trials=1, constraints=["c"], root=tmp_path, verbose=False)
    with pytest.raises(ValueError, match="`constraints` name logged metrics"):
        tuner.optimize(lambda job, params: 0.0)


def test_trials_that_another_program_adds_keep_their_numbers():
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    table = TrialTable(study, storage)
    space = {"x": optuna.distributions.FloatDistribution(0, 1)}
    assert table.add({"x": 0.1}, space) == 0
    study.enqueue_trial({"x": 0.2})
    assert table.add({"x": 0.3}, space) == 2
    assert [row.params for row in table.rows] == [{"x": 0.1}, {}, {"x": 0.3}]


def test_an_error_that_ends_the_search_does_so_from_a_worker_too():
    error = _Failure("the disk is full", RuntimeError, ends_search=True, exit_code=4).error()
    assert (error.ends_search, error.exit_code) == (True, 4)


def test_processes_of_a_shared_study_that_start_at_once(tmp_path):
    def search():
        RandomTuner(X, max_steps=1, n_trials=6, root=tmp_path, name="s", shared=True, verbose=False).optimize(
            lambda job, params: params["x"]
        )

    for _ in range(3):
        children = [in_a_child(search) for _ in range(6)]
        assert [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children] == [0] * 6


@pytest.mark.parametrize("sampler", [optuna.samplers.TPESampler, optuna.samplers.RandomSampler])
def test_a_kill_between_two_parameters_of_a_trial_changes_nothing(tmp_path, sampler, monkeypatch):
    space = {**X, "k": "choice(a, b, c)", "n": "int(1, 9)"}

    def search(name):
        tuner = OptunaTuner(space, max_steps=1, n_trials=14, sampler=sampler(), root=tmp_path, name=name, verbose=False)
        return [row.params for row in tuner.optimize(lambda job, params: params["x"] + params["n"]).rows]

    whole = search("whole")
    suggest, calls = optuna.Trial.suggest_categorical, []

    def dies(self, name, choices):
        calls.append(name)
        if len(calls) in (3, 8, 14):
            raise KeyboardInterrupt
        return suggest(self, name, choices)

    monkeypatch.setattr(optuna.Trial, "suggest_categorical", dies)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            search("parts")
    assert search("parts") == whole


def test_a_shared_study_without_a_trial_is_not_replaced_by_other_settings(tmp_path):
    """Another process may be in its check, or starting its workers."""

    open_study(RunFolder(tmp_path, "t"), None, "min", {"seed": 0}, shared=True)
    with pytest.raises(StudyMismatchError, match="seed"):
        open_study(RunFolder(tmp_path, "t"), None, "min", {"seed": 1, "trains": None, "space": {}}, shared=True)
