"""Trials that end by themselves or stand beyond their budget, as schedulers see them."""

import random
from collections import Counter

import pytest

from lightning_hpo.records import Row
from lightning_hpo.schedulers import ASHA, AsyncHyperband, FullBudget, Hyperband, Job, MedianStopping, SuccessiveHalving
from lightning_hpo.testing import simulate


def finished(number, values, why="EarlyStopping"):
    return Row(number, values=values, state="complete", ended=f"{why} at step {max(values)}")


class TestValueAtARung:
    def test_the_first_value_at_or_after_it(self):
        row = Row(0, values={2: 0.5, 4: 0.4, 10: 0.3})
        assert [row.at(rung) for rung in (1, 2, 3, 9, 11)] == [0.5, 0.5, 0.4, 0.3, None]
        assert row.at(1, following=3) == 0.5
        assert row.at(5, following=9) is None

    def test_a_finished_trial_counts_at_every_higher_rung(self):
        row = finished(0, {3: 0.5, 5: 0.4})
        assert [row.at(rung) for rung in (1, 3, 4, 9, 81)] == [0.5, 0.5, 0.4, 0.4, 0.4]
        assert Row(0, values={3: 0.5, 5: 0.4}).at(9) is None

    def test_a_trial_is_idle_once_it_has_a_value_at_its_target_or_beyond(self):
        assert Row(0, values={6: 0.1}, target=5).idle
        assert not Row(0, values={4: 0.1}, target=5).idle


class TestSchedulers:
    @pytest.mark.parametrize("scheduler", [SuccessiveHalving(9), ASHA(9, n_trials=9)], ids=repr)
    def test_a_finished_trial_takes_its_place_among_the_promoted_without_a_job(self, scheduler):
        rows = [Row(n, values={1: float(n)}) for n in range(1, 9)]
        rows = [finished(0, {1: 0.0}), *rows]
        first = scheduler.next(rows)
        assert first == Job(3, trial=1)
        rows[1] = Row(1, values={1: 1.0, 3: 1.0})
        assert scheduler.next(rows) == Job(3, trial=2)
        rows[2] = Row(2, values={1: 2.0, 3: 0.5})
        assert scheduler.next(rows) is None  # the finished one is the best of three at the second rung
        assert {1, 2} <= {*scheduler.retired(rows)}

    def test_a_finished_trial_that_is_worse_goes_nowhere(self):
        rows = [finished(n, {2: 5.0 + n}) if n % 2 else Row(n, values={1: float(n)}) for n in range(9)]
        jobs = []
        while (job := SuccessiveHalving(9).next(rows)) is not None:
            jobs.append(job)
            row = rows[job.trial]
            rows[job.trial] = Row(row.number, values={**row.values, job.max_steps: float(row.number)})
        assert jobs == [Job(3, trial=0), Job(3, trial=2), Job(3, trial=4), Job(9, trial=0)]

    @pytest.mark.parametrize("scheduler", [SuccessiveHalving(27), Hyperband(27), Hyperband(16, eta=2)], ids=repr)
    @pytest.mark.parametrize("seed", range(5))
    def test_every_place_of_the_plan_is_filled_by_a_job_or_by_a_finished_trial(self, scheduler, seed):
        end = {n: random.Random(f"{seed} {n}").randrange(1, 12) for n in range(200)}
        stand = lambda n, asked: (min(asked, end[n]), asked > end[n])  # noqa: E731
        value = lambda n, s: random.Random(f"{seed} {n} {s}").random()  # noqa: E731
        rows, others = (simulate(scheduler, value, stand=stand, workers=workers, seed=seed).rows for workers in (1, 4))
        assert [dict(row.values) for row in rows] == [dict(row.values) for row in others]
        places, start = Counter(), 0
        for bracket in scheduler.plan():
            entrants = rows[start : start + bracket.trials]
            start += bracket.trials
            for rung in bracket.rungs:
                entrants = entrants[: rung.trials]
                places.update(row.number for row in entrants)
                entrants = sorted(entrants, key=lambda row, at=rung.max_steps: (row.at(at), row.number))
        assert any(places[row.number] > len(row.values) for row in rows)
        for row in rows:
            assert places[row.number] == len(row.values) or row.ended is not None

    @pytest.mark.parametrize(
        "scheduler",
        [
            FullBudget(10, 5),
            SuccessiveHalving(27),
            AsyncHyperband(27),
            ASHA(27, n_trials=40),
            MedianStopping(27, 20, 4),
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("optimizers", [2, 4, 100])
    def test_trainers_that_count_several_optimizers_stand_beyond_a_rung(self, scheduler, optimizers):
        stand = lambda n, asked: (-(-asked // optimizers) * optimizers, False)  # noqa: E731
        run = simulate(scheduler, lambda n, s: random.Random(f"{n} {s}").random(), stand=stand, workers=3)
        assert all(step % optimizers == 0 for row in run.rows for step in row.values)
        assert any(max(row.values) >= scheduler.max_steps for row in run.rows)
        assert all(len(row.values) == sum(job.trial == row.number for job in run.jobs) for row in run.rows)

    def test_medians_count_finished_trials_and_values_beyond_an_evaluation(self):
        rows = [finished(n, {3: 1.0}) for n in range(5)]
        assert MedianStopping(20, 10, 5).retired([*rows, Row(5, values={5: 2.0})]) == [5]
        rows = [Row(n, values={6: 1.0}) for n in range(5)]
        assert MedianStopping(20, 10, 5).retired([*rows, Row(5, values={5: 2.0})]) == [5]
        rows = [Row(n, values={21: 1.0}, state="complete") for n in range(5)]
        assert MedianStopping(20, 10, 20).retired([*rows, Row(5, values={20: 2.0})]) == [5]
