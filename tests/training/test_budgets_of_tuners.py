"""Budgets in epochs and samples under Optuna's pruners, in populations, functions and on the command line."""

import os

import optuna
import pytest
import torch
import yaml
from optuna.pruners import BasePruner
from optuna.storages import InMemoryStorage

from lightning_hpo import (
    HPOCLI,
    HyperbandTuner,
    Objective,
    OptunaTuner,
    PopulationTuner,
)
from lightning_hpo.lineage import lineage, replay
from tests.cli.test_cli import QUIET, Batches, Plain
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net
from tests.training.test_budgets import CPU, LR, SAMPLES, SIZES, Killed, Spy, fresh, values  # noqa: F401  # a fixture

OPTIMIZER = ["--optimizer", "SGD", "--optimizer.lr", "0.1"]


class Asked(BasePruner):
    """Notes the step at which it is asked, and stops every second trial at its second epoch."""

    steps: dict[int, list[int]] = {}

    def prune(self, study, trial):
        self.steps.setdefault(trial.number, []).append(trial.last_step)
        return trial.number % 2 == 1 and trial.last_step == 2


class TestOptuna:
    def test_pruners_are_asked_at_epochs(self, tmp_path):
        Asked.steps.clear()
        options = {"monitor": "val_loss", "root": tmp_path, "name": "f"}
        rows = (
            OptunaTuner(SIZES, max_epochs=3, n_trials=4, pruner=Asked(), trainer=CPU, **options)
            .fit(Spy, datamodule=Data)
            .trials()
        )
        assert Asked.steps == {0: [1, 2, 3], 1: [1, 2], 2: [1, 2, 3], 3: [1, 2]}
        assert [row.state for row in rows] == ["complete", "pruned"] * 2
        for row in rows:
            assert Spy.seen[str(tmp_path / "f" / "trials" / f"{row.number:04d}")] == SAMPLES * row.step

    def test_validations_within_an_epoch(self, tmp_path):
        Asked.steps.clear()
        trainer = {**CPU, "val_check_interval": 10}  # of 25 batches
        rows = (
            OptunaTuner(
                LR, max_epochs=3, n_trials=2, pruner=Asked(), trainer=trainer, monitor="val_loss", root=tmp_path
            )
            .fit(Net, datamodule=Data)
            .trials()
        )
        assert sorted(rows[0].values) == [1, 2, 3]
        assert rows[0].global_steps == {3: 75}
        assert rows[1].state == "pruned"
        assert sorted(rows[1].values) == [1, 2]
        assert rows[1].global_step == 60

    def test_an_objective_of_optunas_own_study(self, tmp_path):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=Asked())
        objective = Objective(Spy, SIZES, data=Data, monitor="val_loss", max_epochs=2, trainer=CPU, root=tmp_path)
        study.optimize(objective, 1)
        assert list(study.trials[0].intermediate_values) == [1, 2]
        assert sum(Spy.seen.values()) == 2 * SAMPLES


class TestPopulation:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_decisions_after_epochs(self, tmp_path, workers):
        options = {"monitor": "val_loss", "root": tmp_path, "name": "f", "trainer": CPU, "workers": workers}
        make = PopulationTuner(LR, population_size=3, max_epochs=6, interval=2, seed=1, **options)
        result = make.fit(Net, datamodule=Data)
        rows = result.trials()
        assert {step for row in rows for step in row.values} == {2, 4, 6}
        assert any(row.parent is not None for row in rows)
        assert [row.seed for row in rows] == [rows[row.home].seed for row in rows]
        for row in rows:
            assert dict(row.global_steps) == {step: 25 * step for step in row.values}
        segments = lineage(result)
        assert {segment.start for segment in segments} <= {0, 50, 100}
        assert all(segment.forked_at in (50, 100) for segment in segments if segment.parent is not None)
        assert replay(result).max_steps == 150
        saved = torch.load(result.best_checkpoint, weights_only=True)
        assert saved["global_step"] == 150

    def test_a_killed_population_equals_the_uninterrupted_one(self, tmp_path):
        def search(name, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {
                "monitor": "val_loss",
                "root": tmp_path,
                "name": name,
                "trainer": {**CPU, "limit_train_batches": 6},
            }
            tuner = PopulationTuner(LR, population_size=3, max_epochs=3, interval=0.5, seed=1, verbose=False, **options)
            return tuner.fit(Killed, datamodule=Data).trials()

        whole = search("whole")
        for after in (5, 11, 20, 3):
            child = in_a_child(lambda after=after: search("killed", after))
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert values(search("killed")) == values(whole)


class TestFunction:
    def test_gets_the_budget_as_a_number(self, tmp_path):
        budgets = set()

        def loss(job, params):
            budgets.add(job.max_steps)
            return params["x"] / job.max_steps

        options = {"root": tmp_path, "storage": InMemoryStorage()}
        tuner = HyperbandTuner({"x": "uniform(0, 1)"}, max_epochs=1, min_epochs=0.25, eta=2, total=7.5, **options)
        rows = tuner.optimize(loss).trials()
        assert budgets == {0.25, 0.5, 1}
        assert 7.5 <= sum(row.step for row in rows) / 4 < 8.5
        assert yaml.safe_load(next(tmp_path.rglob("best.yaml")).read_text())["trainer"]["max_steps"] == 1


class TestCommandLine:
    def test_flags(self, tmp_path, capsys):
        arguments = ["--space.optimizer.lr", "loguniform(1e-3, 1)", "--space.data.batch_size", "choice(40, 80)"]
        tuner = [
            "--tuner.max_epochs",
            "2",
            "--tuner.min_epochs",
            "0.5",
            "--tuner.eta",
            "2",
            "--tuner.monitor",
            "val_loss",
        ]
        place = ["--tuner.root", str(tmp_path), "--tuner.name", "e", *OPTIMIZER]
        found = HPOCLI(
            Plain, Batches, args=["tune", *QUIET, *arguments, "--tuner", "HyperbandTuner", *tuner, *place]
        ).result
        assert {step for row in found.trials() for step in row.values} <= {1, 2, 4}
        best = yaml.safe_load((tmp_path / "e" / "best.yaml").read_text())["trainer"]
        assert (best["max_epochs"], best.get("max_steps", -1)) == (2, -1)

    def test_a_dry_run_from_yaml(self, tmp_path, capsys):
        tuner = {"max_epochs": 4, "n_trials": 3, "monitor": "val_loss", "root": str(tmp_path)}
        config = {
            "space": {"optimizer.lr": "loguniform(1e-3, 1)"},
            "tuner": {"class_path": "lightning_hpo.RandomTuner", "init_args": tuner},
        }
        (tmp_path / "tune.yaml").write_text(yaml.safe_dump(config))
        HPOCLI(Plain, Batches, args=["tune", "-c", str(tmp_path / "tune.yaml"), *QUIET, *OPTIMIZER, "--dry_run"])
        shown = capsys.readouterr().out
        assert "3 trials, 3 jobs, 12 epochs" in shown
        assert "expected: 0 min" in shown
