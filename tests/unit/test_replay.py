"""Which trial of a study a replay follows."""

import optuna
import pytest

from lightning_hpo.study.lineage import Phase, Segment, replay, schedule_of


class Flat:
    """A result of a population, as far as replay needs it."""

    def __init__(self, study, best_trial):
        self.study, self.best_trial = study, best_trial


class TestReplay:
    def study(self):
        study = optuna.create_study()
        distributions = {"lr": optuna.distributions.FloatDistribution(0, 1)}
        for lr, values, state in [(0.1, {80: 1.6}, "PRUNED"), (0.2, {100: 3.0, 300: 2.6}, "COMPLETE"),
                                  (0.3, {100: 3.0, 300: 2.54}, "COMPLETE")]:  # fmt: skip
            study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState[state], value=values[max(values)], params={"lr": lr},
                    distributions=distributions, intermediate_values=values,
                )
            )  # fmt: skip
        return study

    def test_is_the_way_of_the_results_own_trial(self):
        study = self.study()
        with pytest.warns(UserWarning, match="trial 0 had ended with a better value, 1.6 at step 80"):
            assert replay(Flat(study, 1)).params == {"lr": 0.2}

    def test_of_a_study_is_the_furthest_and_of_those_the_best(self):
        with pytest.warns(UserWarning, match="trial 2 with 2.54 at step 300"):
            found = replay(self.study())
        assert (found.params, found.max_steps) == ({"lr": 0.3}, 300)


def test_the_phase_of_a_parent_ends_where_the_copy_was_taken():
    """Members that do not wait for each other copy weights that have seen more steps, or fewer, than they have."""
    parent = Segment(0, 0, 0, {"lr": 0.1}, {10: 3.0, 30: 1.0, 40: 2.0})
    child = Segment(1, 1, 20, {"lr": 0.2}, {30: 0.5}, parent=0, forked_at=30)
    assert schedule_of(child, [parent, child]) == [Phase(0, 30, {"lr": 0.1}), Phase(30, 10, {"lr": 0.2})]
