"""Trials that Optuna prunes: by an Objective in plain Optuna, and by OptunaTuner through interruptions."""

import warnings

import optuna
import pytest
from optuna.pruners import BasePruner, ThresholdPruner

from lightning_hpo import Objective, OptunaTuner
from lightning_hpo.training.objective import ObjectiveOptions
from lightning_hpo.tuners.search import Search
from tests.contract.test_ledger import CPU, SPACE, Data, Net, options


class Watching(BasePruner):
    """Notes at which step it is asked, and ends trials at 16 whose value there is above 1.3."""

    def __init__(self):
        self.asked = []

    def prune(self, study, trial):
        self.asked.append((trial.number, trial.last_step))
        return trial.last_step >= 16 and trial.intermediate_values[trial.last_step] > 1.3


class TestPlainOptuna:
    def objective(self, **more):
        return Objective(Net, SPACE, data=Data, monitor="val_loss", max_steps=32, trainer=CPU, **more)

    def test_reports_every_validation_and_honours_the_pruner(self):
        study = optuna.create_study(pruner=Watching(), sampler=optuna.samplers.RandomSampler(seed=0))
        study.optimize(self.objective(), n_trials=6)
        for trial in study.trials:
            pruned = trial.intermediate_values[16] > 1.3
            assert list(trial.intermediate_values) == ([8, 16] if pruned else [8, 16, 24, 32])
            assert trial.state.name == ("PRUNED" if pruned else "COMPLETE")
            assert trial.value == trial.intermediate_values[trial.last_step]
        assert {trial.state.name for trial in study.trials} == {"PRUNED", "COMPLETE"}
        assert study.pruner.asked == [(t.number, step) for t in study.trials for step in t.intermediate_values]

    def test_a_trial_that_ends_by_itself_is_complete_and_says_so(self):
        study = optuna.create_study(pruner=ThresholdPruner(upper=99))
        objective = Objective(Net, SPACE, data=Data, monitor="val_loss", max_steps=32, trainer={**CPU, "max_epochs": 2})
        study.optimize(objective, n_trials=1)
        assert list(study.trials[0].intermediate_values) == [8, 16]
        assert study.trials[0].user_attrs["ended"] == "max_epochs=2 reached at step 16"

    def test_several_objectives_are_not_reported(self):
        objective = self.objective(options=ObjectiveOptions(also=("val_loss",)))
        study = optuna.create_study(directions=["minimize", "minimize"])
        study.optimize(objective, n_trials=1)
        assert len(study.trials[0].values) == 2
        assert not study.trials[0].intermediate_values

    def test_a_fixed_trial_trains(self):
        assert 0.3 < self.objective()(optuna.trial.FixedTrial({"x": 0.3, "width": 2})) < 1.3


class TestContinuedTrial:
    @pytest.mark.parametrize("at", [3, 12, 17, 27])
    def test_is_reported_and_pruned_like_an_uninterrupted_one(self, tmp_path, at):
        def search(name, module, pruner):
            tuner = OptunaTuner(
                SPACE, max_steps=32, n_trials=3, pruner=pruner, sampler=optuna.samplers.RandomSampler(),
                checkpoint_every=5, **options(tmp_path, name=name),
            )  # fmt: skip
            return tuner.fit(module, datamodule=Data)

        whole = search("whole", Net, Watching())
        assert {row.state for row in whole.rows} == {"complete", "pruned"}
        left = [at]

        class Net2(Net):
            def on_train_batch_start(self, batch, batch_idx):
                if left and self.global_step == left[0]:
                    left.pop()
                    raise KeyboardInterrupt

        Net2.__name__ = Net2.__qualname__ = "Net"
        pruner = Watching()
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message=".*already reported.*")
            with pytest.raises((KeyboardInterrupt, SystemExit)):
                search("parts", Net2, pruner)
            parts = search("parts", Net2, pruner)
        recorded = [
            [(t.params, t.intermediate_values, t.state, t.value) for t in result.study.trials]
            for result in (whole, parts)
        ]
        assert recorded[0] == recorded[1]
        steps = [step for number, step in pruner.asked if number == 0]
        assert steps == sorted(steps)

    def test_killed_between_the_decision_and_its_record(self, tmp_path, monkeypatch):
        """The job has ended and is saved, the study does not know yet that the trial is pruned."""
        make = lambda name: OptunaTuner(  # noqa: E731
            SPACE, max_steps=32, n_trials=3, pruner=Watching(), sampler=optuna.samplers.RandomSampler(),
            **options(tmp_path, name=name),
        )  # fmt: skip
        whole = make("whole").fit(Net, datamodule=Data)
        end = Search._end
        kills = []

        def dies(self, task, future):
            if len(kills) < 3 and task.job.trial == len(kills):
                kills.append(task.job.trial)
                raise KeyboardInterrupt
            return end(self, task, future)

        monkeypatch.setattr(Search, "_end", dies)
        for _ in range(3):
            with pytest.raises(KeyboardInterrupt):
                make("parts").fit(Net, datamodule=Data)
        parts = make("parts").fit(Net, datamodule=Data)
        recorded = [[(t.intermediate_values, t.state, t.value) for t in r.study.trials] for r in (whole, parts)]
        assert recorded[0] == recorded[1]
        assert {row.state for row in whole.rows} == {"complete", "pruned"}
