"""Trials that fail, and results that come together."""

import math
import sys
from concurrent.futures import Future

import pytest
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from lightning_hpo import (
    FullBudget,
    HyperbandTuner,
    OptunaTuner,
    RandomTuner,
    Tuner,
)
from lightning_hpo.errors import SearchFailedError
from lightning_hpo.tuners.parts import Parts
from tests.support.small import Data, Net
from tests.support.studies import study_of
from tests.training.test_tuners import XY, loss


class Fails(Net):
    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 3 and self.trainer.default_root_dir.endswith("0000"):
            raise ArithmeticError("out of luck")


class TestFailures:
    @pytest.mark.filterwarnings(r"ignore:.?\.fit\(ckpt_path=")  # Lightning looks for the file
    def test_the_next_trial_does_not_go_on_from_what_was_saved_at_an_exception(self, tmp_path):
        def search(name, *callbacks):
            trainer = {"accelerator": "cpu", "logger": False, "callbacks": [*callbacks]}
            options = {"monitor": "val_loss", "max_steps": 5, "n_trials": 2, "verbose": False, "trainer": trainer}
            return RandomTuner({"lr": "uniform(0, 1)"}, root=tmp_path, name=name, **options).fit(Fails, datamodule=Data)

        plain, saving = search("plain"), search("saving", OnExceptionCheckpoint(tmp_path))
        assert [row.state for row in saving.rows] == ["failed", "complete"]
        assert saving.rows[1].values == plain.rows[1].values
        assert (tmp_path / "saving" / "trials" / "0000" / "on_exception.ckpt").exists()
        assert not list(tmp_path.glob("*.ckpt"))

    def test_a_trial_that_fails_is_kept_with_its_reason_and_the_search_goes_on(self, tmp_path, capsys):
        def sometimes(job, params):
            match job.trial:
                case 0:
                    raise RuntimeError("out of luck")
                case 1:
                    return math.nan
                case 2:
                    return math.inf
                case 3:
                    return "0.5!"
                case 4:
                    return 10**400
                case 6:
                    sys.exit(0)
                case 7:
                    return torch.tensor(0.25)
            return loss(job, params) + 1

        tuner = RandomTuner(XY, max_steps=1, n_trials=10, root=tmp_path, name="f", max_failed=6)
        result = tuner.optimize(sometimes)
        reasons = {t.number: t.user_attrs["failure"] for t in result.study.trials if t.state.name == "FAIL"}
        assert set(reasons) == {0, 1, 2, 3, 4, 6}
        assert reasons[0].startswith("RuntimeError: out of luck\nTraceback")
        assert reasons[1] == "the score is nan"
        assert reasons[2] == "the score is inf"
        assert "'0.5!'" in reasons[3]
        assert reasons[6].startswith("SystemExit: 0")
        assert result.best_trial == 7
        assert result.best_score == 0.25
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
        assert "failed: RuntimeError: out of luck" in lines[0]
        assert "failed: the score is nan" in lines[1]

    def test_too_many_in_a_row(self, tmp_path):
        with pytest.raises(SearchFailedError, match=r"5 trials in a row failed, the last one with: ZeroDivisionError"):
            RandomTuner(XY, max_steps=1, n_trials=50, root=tmp_path, name="f").optimize(lambda job, params: 1 / 0)

    def test_a_function_that_returns_nothing(self, tmp_path):
        for tuner in (RandomTuner, OptunaTuner):
            with pytest.raises(SearchFailedError, match="the function returned None; it must return a number"):
                tuner(XY, max_steps=1, n_trials=9, root=tmp_path, name=tuner.__name__).optimize(lambda *_: None)

    def test_too_large_a_share(self, tmp_path):
        def every_other(job, params):
            return math.nan if job.trial % 2 else params["x"]

        tuner = RandomTuner(XY, max_steps=1, n_trials=50, root=tmp_path, name="f", max_failed=0.5)
        with pytest.raises(SearchFailedError, match=r"5 of 10 trials failed, the last one with: the score is nan"):
            tuner.optimize(every_other)

    def test_a_rung_in_which_all_fail_ends_its_bracket_not_the_search(self, tmp_path):
        result = HyperbandTuner(XY, max_steps=9, min_steps=1, root=tmp_path, name="f", max_failed=99).optimize(
            lambda job, params: math.nan if job.trial < 9 else loss(job, params)
        )
        assert [row.state for row in result.trials()[:9]] == ["failed"] * 9
        assert len(result.trials()) == 17


class Together:
    """An executor whose jobs all end at the same moment."""

    def __init__(self, work, workers):
        self.workers, self._work, self._waiting = workers, work, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, task):
        self._waiting.append((Future(), task))
        if len(self._waiting) == self.workers:
            for future, one in self._waiting:
                try:
                    future.set_result(self._work(one, lambda: False))
                except Exception as error:
                    future.set_exception(error)
        return self._waiting[-1][0]


def test_results_that_come_together_are_all_recorded_also_if_one_of_them_ends_the_search(tmp_path):
    at_once = Parts(executor=lambda work, options, interrupts: Together(work, 4))

    def unlucky(job, params):
        if job.trial == 1:
            raise RuntimeError("no luck")
        return job.trial

    tuner = Tuner(XY, FullBudget(1, 4), parts=at_once, max_failed=1, root=tmp_path, name="f", verbose=False)
    with pytest.raises(SearchFailedError, match="1 trials in a row failed, the last one with: RuntimeError: no luck"):
        tuner.optimize(unlucky)
    study = study_of(tmp_path / "f")
    assert [trial.values for trial in study.trials] == [[0.0], None, [2.0], [3.0]]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
