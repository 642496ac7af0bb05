"""Which trial of a study a replay follows."""

import optuna
import pytest

from lightning_hpo.study.lineage import replay


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
