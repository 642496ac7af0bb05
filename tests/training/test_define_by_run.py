"""A function of a trial as the space, in every tuner that asks a sampler."""

import pytest

from lightning_hpo import (
    ASHATuner,
    BayesianTuner,
    HyperbandTuner,
    KernelDensitySampler,
    MultiFidelitySampler,
    PopulationTuner,
    RandomTuner,
)


def define(trial):
    x = trial.suggest_float("x", -1, 1)
    return {"x": x, "y": trial.suggest_float("y", 0, 1)} if x > 0 else {"x": x}


class Killed(KeyboardInterrupt):
    pass


def search(root, tuner, options, calls=10**6):
    """Search, and stop after so many calls."""
    left = iter(range(calls))

    def score(job, params):
        if next(left, None) is None:
            raise Killed
        return params["x"] ** 2 + (params.get("y", 0.5) - 0.2) ** 2 + 1 / job.max_steps

    return tuner(define, root=root, name="r", verbose=False, **options).optimize(score)


@pytest.mark.parametrize(
    ("tuner", "options"),
    [
        (HyperbandTuner, {"max_steps": 9, "min_steps": 1}),
        (ASHATuner, {"max_steps": 9, "min_steps": 1, "sampler": MultiFidelitySampler(max_steps=9)}),
        (BayesianTuner, {"max_steps": 1, "n_trials": 18}),
        (RandomTuner, {"max_steps": 1, "n_trials": 18, "sampler": KernelDensitySampler(0)}),
    ],
)
def test_a_killed_search_equals_one_that_is_not(tmp_path, tuner, options):
    whole = search(tmp_path / "whole", tuner, options).rows
    assert {frozenset(row.params) for row in whole} == {frozenset("x"), frozenset("xy")}
    most = max(max(row.values) for row in whole)
    assert sum(most in row.values for row in whole) >= min(len(whole), 3)  # some were promoted
    for calls in (5, 7, 4):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "cut", tuner, options, calls)
    cut = search(tmp_path / "cut", tuner, options).rows
    assert [(row.params, row.values, row.state) for row in cut] == [
        (row.params, row.values, row.state) for row in whole
    ]


def test_a_population_needs_names(tmp_path):
    with pytest.raises(TypeError, match="`space` must map names to distributions"):
        PopulationTuner(define, max_steps=4, interval=2, population_size=2, monitor="val_loss", root=tmp_path, name="r")
