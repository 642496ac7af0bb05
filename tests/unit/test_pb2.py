"""Population-Based Bandits: what the model learns from intervals, and that nothing else of a population changes."""

import math
import os
import signal

import numpy as np
import pytest
from jsonargparse import ArgumentParser

from lightning_hpo.schedulers.explore import ExploreContext, Interval
from lightning_hpo.schedulers.pb2 import PB2
from lightning_hpo.schedulers.population import MemberScore, Rules
from lightning_hpo.space import parse_space, to_unit
from lightning_hpo.study.lineage import Segment, intervals, lineage
from lightning_hpo.study.member_files import read_record
from lightning_hpo.tuners.population import PopulationTuner
from tests.faults.test_kill import in_a_child
from tests.training.test_population_callback import Data, Net, good_donor, member, trainer
from tests.training.test_population_tuner import STEPS, die_after, history, tune

MIXED = parse_space(
    {
        "lr": "loguniform(1e-4, 1)",
        "dropout": "uniform(0, 0.7)",
        "size": "choice(16, 32, 64, 128)",
        "act": "choice(relu, gelu, tanh)",
        "layers": "int(1, 4)",
    }
)
LINE = parse_space({"lr": "loguniform(1e-4, 1)"})


def told(space, best, *, steps=(10, 20, 30), members=8, seed=0, mode="min"):
    """Intervals in which the score changes by less the farther the first hyperparameter is from ``best(step)``."""
    name, generator = next(iter(space)), np.random.default_rng(seed)
    rules, sign, found = Rules(space, seed=seed), 1.0 if mode == "min" else -1.0, []
    for step in steps:
        for number in range(members):
            params = rules.initial(1000 * step + number)
            distance = abs(to_unit(space[name], params[name]) - best(step))
            before = 1.0 + generator.normal(0.0, 0.1)
            found.append(Interval(params, step, before, before + sign * (distance - 1.0) / step))
    return found


def proposals(space, seen, step, *, count=8, mode="min"):
    rules = Rules(space, mode)
    context = ExploreContext(step, mode, 1.0, seen, [])
    return [PB2().advise(rules.initial(9), space, np.random.default_rng([7, i]), context) for i in range(count)]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_it_goes_where_scores_got_better(mode):
    for best in (0.2, 0.8):
        chosen = proposals(LINE, told(LINE, lambda step, best=best: best, mode=mode), 30, mode=mode)
        assert np.mean([abs(to_unit(LINE["lr"], params["lr"]) - best) for params in chosen]) < 0.1  # at random: 0.34


def test_it_follows_an_optimum_that_moves():
    moved = told(LINE, lambda step: 0.9 - 0.02 * step, steps=(10, 20, 30, 40))  # at 0.1 by now
    chosen = [to_unit(LINE["lr"], params["lr"]) for params in proposals(LINE, moved, 40)]
    assert np.mean(chosen) < 0.3


def test_an_interval_that_diverged_is_kept_away_from():
    seen = told(LINE, lambda step: 0.8, steps=(10, 20))
    broken = [
        Interval(interval.params, interval.step, interval.before, math.nan)
        for interval in seen
        if interval.params["lr"] > 0.01
    ]
    kept = [interval for interval in seen if interval.params["lr"] <= 0.01]
    assert all(params["lr"] < 0.03 for params in proposals(LINE, kept + broken, 20))


def test_it_stays_inside_the_space_and_returns_plain_values():
    for seed in range(5):
        for params in proposals(MIXED, told(MIXED, lambda step: 0.5, seed=seed), 30, count=4):
            for name, distribution in MIXED.items():
                assert distribution._contains(distribution.to_internal_repr(params[name]))
                assert type(params[name]) in (int, float, str)


def test_losers_of_one_step_get_different_points_and_decisions_are_keyed():
    rules = Rules(MIXED, explore="pb2", quantile=0.5)
    table = {number: MemberScore(0.1 * number, rules.initial(number)) for number in range(8)}
    seen = told(MIXED, lambda step: 0.5)
    forks = [rules.decide(number, 30, table, seen) for number in range(8)]
    assert [fork is None for fork in forks] == [True] * 4 + [False] * 4
    rates = [to_unit(MIXED["lr"], fork.params["lr"]) for fork in forks[4:]]
    assert len(set(rates)) == 4
    assert forks == [rules.decide(number, 30, dict(reversed(table.items())), seen) for number in range(8)]
    alone = [Rules(LINE, explore="pb2", quantile=0.5).decide(number, 30, table, []) for number in range(8)]
    assert all(fork is not None for fork in alone[4:])  # nothing seen yet: drawn from the space


def test_intervals_of_a_lineage_by_hand():
    first = Segment(0, 0, 0, {"lr": 0.1}, {10: 0.9, 20: 0.5})
    second = Segment(1, 1, 0, {"lr": 0.2}, {10: 1.5})
    child = Segment(2, 1, 10, {"lr": 0.3}, {20: 0.7}, parent=0, forked_at=10)
    found = [
        (interval.params["lr"], interval.step, interval.before, interval.after)
        for interval in intervals([first, second, child])
    ]
    assert found == [(0.1, 10, None, 0.9), (0.2, 10, None, 1.5), (0.1, 20, 0.9, 0.5), (0.3, 20, 0.9, 0.7)]
    assert len(intervals([first, second, child], until=10)) == 2


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="`optimism`"):
        PB2(-1.0)
    with pytest.raises(ValueError, match="Did you mean 'pb2'"):
        Rules(LINE, explore="pb3")


def test_a_member_of_a_folder_asks_it(tmp_path):
    good_donor(tmp_path)
    trainer(tmp_path, member(tmp_path, explore="pb2")).fit(Net(), datamodule=Data())
    segments = [segment for segment in lineage(tmp_path / "pbt") if segment.member == 0]
    assert segments[1].parent == 1
    assert read_record(tmp_path / "pbt", 0).status == "finished"


def test_a_killed_population_equals_the_uninterrupted_one(tmp_path):
    whole = tune(tmp_path / "a", explore="pb2")
    assert sum(row.parent is not None for row in whole.rows) >= 4

    def run():
        die_after(160, 0.0)
        tune(tmp_path / "b", explore="pb2")

    assert os.waitstatus_to_exitcode(os.waitpid(in_a_child(run), 0)[1]) == -signal.SIGKILL
    assert history(tune(tmp_path / "b", explore="pb2")) == history(whole)
    assert max(max(row.values) for row in whole.rows) == STEPS


def test_its_optimism_is_set_by_flags():
    parser = ArgumentParser()
    parser.add_subclass_arguments(PopulationTuner, "tuner")
    flags = ["--tuner=lightning_hpo.PopulationTuner", '--tuner.space={"lr": "loguniform(1e-3, 1)"}']
    flags += ["--tuner.max_steps=400", "--tuner.explore=lightning_hpo.schedulers.pb2.PB2", "--tuner.explore.optimism=2"]
    tuner = parser.instantiate(parser.parse_args(flags)).tuner
    assert tuner.rules.explore == PB2(2.0)
