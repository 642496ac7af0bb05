"""The rule that makes a score of a trial's validations, and wrong ones."""

import math

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_hpo import Objective, OptunaTuner, RandomTuner
from lightning_hpo.records import Kept
from lightning_hpo.schedulers.scores import ScoreRule
from tests.support.small import Data, Net

LR = {"lr": "loguniform(1e-2, 1)"}


MISTAKES = {
    "median": ({"score": "median"}, "got 'median'"),
    "mean_0": ({"score": "mean(0)"}, "of at least 1, e.g. 'mean\\(3\\)', got 'mean\\(0\\)'"),
    "number": ({"score": 3}, "`score` must be 'last', 'best', or 'mean\\(k\\)'"),
    "capital": ({"score": "Best"}, "Did you mean 'best'"),
}


class TestMistakes:
    @pytest.mark.parametrize(("options", "words"), MISTAKES.values(), ids=MISTAKES)
    def test_are_refused_with_what_is_accepted(self, options, words):
        with pytest.raises((TypeError, ValueError), match=words):
            RandomTuner(LR, max_steps=9, n_trials=2, monitor="val_loss", **options)
        with pytest.raises((TypeError, ValueError), match=words):
            Objective(Net, LR, data=Data, max_steps=9, monitor="val_loss", **options)

    def test_what_has_no_single_validation_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match="`score` must be 'last' where `monitor` names several"):
            OptunaTuner(LR, max_steps=9, n_trials=2, monitor=("a", "b"), score="best")
        with pytest.raises(ValueError, match="`constraints` are judged at the last validation"):
            OptunaTuner(LR, max_steps=9, n_trials=2, monitor="val_loss", constraints=["size"], score="best")
        with pytest.raises(ValueError, match=r"a function returns one number .* leave it out"):
            RandomTuner(LR, max_steps=9, n_trials=2, score="best", root=tmp_path).optimize(lambda job, params: 1.0)
        with pytest.raises(ValueError, match="`mode` must be given for `monitor` 'val_acc'"):
            Objective(Net, LR, data=Data, max_steps=9, monitor="val_acc", score="best")(
                optuna.trial.FixedTrial({"lr": 1})
            )


class TestRule:
    @given(
        st.sampled_from(["last", "best", "mean(1)", "mean(3)"]),
        st.sampled_from(["min", "max"]),
        st.lists(st.sampled_from([1.0, 2.0, 3.0, math.nan, math.inf, -math.inf]), min_size=1, max_size=8),
        st.integers(0, 8),
    )
    def test_is_that_of_a_list_and_repeating_a_part_changes_nothing(self, text, mode, values, again):
        rule = ScoreRule.read(text)
        kept: Kept = ()
        for step, value in enumerate(values):
            kept = rule.add(kept, step, value, mode)
        repeated = kept
        for step, value in list(enumerate(values))[-again:] if again else []:
            repeated = rule.add(repeated, step, value, mode)
        finite = [value for value in values if math.isfinite(value)]
        choose = min if mode == "min" else max
        last = values[-rule.count :]
        expected = {"last": values[-1], "best": choose(finite, default=values[0]), "mean": sum(last) / len(last)}[
            rule.name
        ]
        assert rule.score(kept) == pytest.approx(expected, nan_ok=True)
        assert str(repeated) == str(kept)
        assert ScoreRule.read(str(rule)) == rule
