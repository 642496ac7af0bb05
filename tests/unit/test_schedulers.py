import math
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.records import Row
from lightning_hpo.schedulers import ASHA, AsyncHyperband, FullBudget, Hyperband, Job, MedianStopping, SuccessiveHalving
from lightning_hpo.testing import SchedulerTestCase, simulate


class TestContract(SchedulerTestCase):
    @pytest.fixture(
        params=[
            FullBudget(10, 20),
            SuccessiveHalving(27),
            SuccessiveHalving(50, 3, 4, mode="max", n_trials=30),
            Hyperband(81),
            Hyperband(50, 2, mode="max"),
            Hyperband(16, eta=2, iterations=2),
            Hyperband(7, 7),
            ASHA(27, n_trials=50),
            ASHA(50, 2, 4, mode="max", n_trials=40),
            ASHA(5, 5, n_trials=3),
            AsyncHyperband(81),
            AsyncHyperband(16, 2, eta=2, mode="max", iterations=2),
            MedianStopping(27, 30, 4, 3),
            MedianStopping(9, 20, mode="max"),
        ],
        ids=repr,
    )
    def scheduler(self, request):
        return request.param


def rungs(scheduler):
    return [[(rung.trials, rung.max_steps) for rung in bracket.rungs] for bracket in scheduler.plan()]


class TestBrackets:
    def test_the_table_of_the_paper(self):
        assert rungs(Hyperband(81)) == [
            [(81, 1), (27, 3), (9, 9), (3, 27), (1, 81)],
            [(34, 3), (11, 9), (3, 27), (1, 81)],
            [(15, 9), (5, 27), (1, 81)],
            [(8, 27), (2, 81)],
            [(5, 81)],
        ]
        plan = Hyperband(81).plan()
        assert sum(bracket.trials for bracket in plan) == 143
        assert sum(bracket.steps for bracket in plan) == 1581
        assert sum(bracket.retrain_steps for bracket in plan) == 1902
        assert [bracket.steps for bracket in plan] == [297, 276, 279, 324, 405]

    @pytest.mark.parametrize(
        ("max_steps", "eta", "brackets"),
        [(243, 3, 6), (1000, 10, 4), (59049, 3, 11), (10**6, 10, 7), (729, 3, 7), (1, 3, 1), (512, 2, 10)],
    )
    def test_exact_powers(self, max_steps, eta, brackets):
        assert len(Hyperband(max_steps, 1, eta).plan()) == brackets

    def test_sums(self):
        sums = {
            r: (sum(b.retrain_steps for b in Hyperband(r).plan()), sum(b.steps for b in Hyperband(r).plan()))
            for r in (27, 243)
        }
        assert sums == {27: (423, 357), 243: (8457, 6831)}

    def test_no_power(self):
        assert [rung.max_steps for rung in Hyperband(50).plan()[0].rungs] == [2, 6, 17, 50]
        assert [bracket.trials for bracket in Hyperband(50).plan()] == [27, 12, 6, 4]
        assert [rung.max_steps for rung in Hyperband(729).plan()[0].rungs] == [1, 3, 9, 27, 81, 243, 729]

    def test_least_budget_above_one(self):
        assert rungs(Hyperband(81, 3))[0] == [(27, 3), (9, 9), (3, 27), (1, 81)]
        assert rungs(Hyperband(5, 5)) == [[(1, 5)]]

    @given(st.integers(1, 10**7), st.integers(1, 10**4), st.integers(2, 12))
    def test_rungs_rise_strictly_and_end_at_the_full_budget(self, max_steps, min_steps, eta):
        min_steps = min(min_steps, max_steps)
        for bracket in Hyperband(max_steps, min_steps, eta).plan():
            steps = [rung.max_steps for rung in bracket.rungs]
            assert steps == sorted(set(steps))
            assert min_steps <= steps[0]
            assert steps[-1] == max_steps
            assert min(rung.trials for rung in bracket.rungs) >= 1


@st.composite
def settings_of_hyperband(draw):
    eta = draw(st.integers(2, 4))
    max_steps = draw(st.integers(1, 60))
    kind = draw(st.sampled_from([Hyperband, SuccessiveHalving]))
    return kind(max_steps, draw(st.integers(1, max_steps)), eta, draw(st.sampled_from(["min", "max"])))


class TestProperties:
    @settings(max_examples=300)
    @given(settings_of_hyperband(), st.integers(0, 10**6), st.integers(1, 8))
    def test_counts_equal_the_plan(self, scheduler, seed, workers):
        run = simulate(scheduler, lambda n, s: random.Random(f"{seed} {n} {s}").random(), workers=workers, seed=seed)
        plan = scheduler.plan()
        assert len(run.rows) == sum(bracket.trials for bracket in plan)
        assert len(run.jobs) == sum(bracket.jobs for bracket in plan)
        assert run.steps == sum(bracket.steps for bracket in plan)

    @settings(max_examples=300)
    @given(settings_of_hyperband(), st.integers(0, 10**6), st.integers(1, 8))
    def test_arrival_order_of_equal_rungs_does_not_matter(self, scheduler, seed, workers):
        value = lambda n, s: random.Random(f"{seed} {n} {s}").randrange(5)  # noqa: E731  # with ties
        one = simulate(scheduler, value)
        other = simulate(scheduler, value, workers=workers, seed=seed)
        assert [dict(row.values) for row in one.rows] == [dict(row.values) for row in other.rows]

    @settings(max_examples=300)
    @given(settings_of_hyperband(), st.integers(0, 10**6), st.floats(0, 1))
    def test_only_the_best_finite_values_are_promoted(self, scheduler, seed, share):
        def value(number, step):
            chance = random.Random(f"{seed} {number} {step}")
            return math.nan if chance.random() < share else float(chance.randrange(10))

        rows = simulate(scheduler, value).rows
        start = 0
        sign = 1 if scheduler.mode == "min" else -1
        for bracket in scheduler.plan():
            part, start = rows[start : start + bracket.trials], start + bracket.trials
            entrants = part
            for rung, above in zip(bracket.rungs, bracket.rungs[1:], strict=False):
                ranked = sorted(
                    (sign * r.values[rung.max_steps], r.number) for r in entrants if rung.max_steps in r.values
                )
                expected = {number for _, number in ranked[: above.trials]}
                entrants = [row for row in part if row.number in expected]
                got_more = {row.number for row in part if max(row.values, default=0) > rung.max_steps}
                assert got_more <= expected
                assert all(above.max_steps in row.values or row.state == "failed" for row in entrants)

    def test_nan_and_infinite_values_are_never_promoted_even_if_recorded(self):
        scheduler = SuccessiveHalving(9)
        rows = [Row(n, values={1: value}) for n, value in enumerate([math.nan, 3.0, -math.inf, *[4.0] * 6])]
        assert scheduler.next(rows) == Job(3, trial=1)
        assert {*scheduler.retired(rows)} == {0, 2, 5, 6, 7, 8}


class TestBarrier:
    def test_a_rung_waits_but_the_next_bracket_starts(self):
        scheduler = Hyperband(9)
        rows = [Row(n, values={1: float(n)}) for n in range(8)]
        rows.append(Row(8, target=1))
        assert scheduler.next(rows) == Job(3)  # the second bracket begins
        assert SuccessiveHalving(9).next(rows) is None

    def test_a_job_that_died_is_handed_out_again(self):
        rows = [Row(0, values={1: 0.0}), Row(1), Row(2, target=1)]
        assert SuccessiveHalving(3).next(rows) == Job(1, trial=1)

    def test_losers_are_retired_when_their_rung_is_full(self):
        rows = [Row(n, values={1: float(n)}) for n in range(3)]
        assert SuccessiveHalving(3).retired(rows[:2]) == []
        assert SuccessiveHalving(3).retired(rows) == [1, 2]

    def test_ties_go_to_the_lower_number(self):
        rows = [Row(n, values={1: 1.0}) for n in range(3)]
        assert SuccessiveHalving(3).next(rows) == Job(3, trial=0)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Hyperband(3, 9), "max_steps=3 < min_steps=9"),
        (lambda: Hyperband(81, eta=1), "`eta` must be an int >= 2, got 1"),
        (lambda: Hyperband(81, eta=2.5), "got 2.5"),
        (lambda: Hyperband(81.0), "got 81.0"),
        (lambda: Hyperband(0), "`max_steps` must be an int >= 1, got 0"),
        (lambda: Hyperband(9, mode="maximum"), "'maximum'"),
        (lambda: Hyperband(9, iterations=0), "`iterations`"),
        (lambda: FullBudget(9, 0), "`n_trials` must be an int >= 1, got 0"),
        (lambda: FullBudget(True, 1), "got True"),
        (lambda: SuccessiveHalving(27, n_trials=26), "`n_trials` must be an int >= 27, got 26"),
    ],
)
def test_wrong_arguments_are_named(make, text):
    with pytest.raises(ValueError, match=text.replace("(", r"\(")):
        make()


class TestAsynchronous:
    @pytest.mark.parametrize("workers", [1, 4, 16])
    @pytest.mark.parametrize(
        "scheduler", [ASHA(27, n_trials=60), AsyncHyperband(81), AsyncHyperband(16, 2, eta=2, iterations=2)], ids=repr
    )
    def test_a_plan_is_the_least_that_happens(self, scheduler, workers):
        assert scheduler.plan_covers == "least"
        for seed in range(5):
            run = simulate(
                scheduler, lambda n, s, seed=seed: random.Random(f"{seed} {n} {s}").random(), workers=workers, seed=seed
            )
            plan = scheduler.plan()
            assert len(run.rows) == sum(bracket.trials for bracket in plan)
            assert len(run.jobs) >= sum(bracket.jobs for bracket in plan)
            assert run.steps >= sum(bracket.steps for bracket in plan)

    def test_with_more_to_spend_half_of_the_brackets_are_the_most_aggressive(self):
        once = [bracket.trials for bracket in AsyncHyperband(81).plan()]
        assert once == [81, 34, 15, 8, 5]
        rounds = [81, 34, 81, 15, 81, 8, 81, 5]
        assert [bracket.trials for bracket in AsyncHyperband(81, iterations=2).plan()] == rounds * 2
        endless = AsyncHyperband(81, iterations=None)
        assert [bracket.trials for bracket in endless.plan()] == rounds
        assert endless.plan_covers == "round"
        assert len(AsyncHyperband(2, 2, iterations=3).plan()) == 3
        entries, rows = [], []
        for number in range(sum(rounds) + 81):
            entries.append(endless.next(rows).max_steps)
            rows.append(Row(number, target=entries[-1]))
        expected = [
            step for trials, step in zip(rounds, [1, 3, 1, 9, 1, 27, 1, 81], strict=True) for _ in range(trials)
        ]
        assert entries == expected + [1] * 81

    @pytest.mark.parametrize(
        ("most", "least", "steps"),
        [(50, 1, [1, 3, 9, 27, 50]), (40, 1, [1, 3, 9, 40]), (81, 1, [1, 3, 9, 27, 81]), (5, 4, [5])],
    )
    def test_rungs_count_up_from_the_least_budget(self, most, least, steps):
        for scheduler in (ASHA(most, least), AsyncHyperband(most, least)):
            assert [rung.max_steps for rung in scheduler.plan()[0].rungs] == steps
        assert rungs(AsyncHyperband(50, rungs="down")) == rungs(Hyperband(50))
        with pytest.raises(ValueError, match="`rungs` must be 'up' or 'down', got 'left'"):
            ASHA(most, least, rungs="left")

    @pytest.mark.parametrize(
        ("scheduler", "workers"),
        [(ASHA(27, n_trials=60), 5), (AsyncHyperband(27, iterations=2), 5), (MedianStopping(27, 40, 3), 1)],
        ids=repr,
    )
    @pytest.mark.parametrize("seed", range(4))
    def test_a_retired_trial_is_never_continued(self, scheduler, workers, seed):
        retired = set()

        class Watched:
            max_steps = scheduler.max_steps

            def next(self, rows):
                job = scheduler.next(rows)
                assert job is None or job.trial not in retired
                retired.update(scheduler.retired(rows))
                return job

        def value(number, step):
            chance = random.Random(f"{seed} {number} {step}")
            return math.nan if chance.random() < 0.1 else float(chance.randrange(20))

        run = simulate(Watched(), value, workers=workers, seed=seed)
        assert retired == {row.number for row in run.rows if row.state == "running"}

    def test_without_a_cap_no_worker_waits(self):
        for scheduler in (ASHA(27), AsyncHyperband(27, iterations=None)):
            rows = [Row(n, target=1) for n in range(16)]
            assert scheduler.next(rows).trial is None
            assert scheduler.retired(rows) == []

    def test_promotion_as_soon_as_it_is_among_the_best_third(self):
        rows = [Row(n, values={1: float(n)}) for n in range(2)]
        assert ASHA(9).next(rows) == Job(1)
        assert ASHA(9).next([*rows, Row(2, target=1, values={1: -1.0})]) == Job(3, trial=2)
        assert ASHA(9).next([*rows, Row(2, state="failed")]) == Job(3, trial=0)  # failed counts as judged

    def test_brackets_enter_at_their_rung(self):
        rows = [Row(n, target=1) for n in range(9)]
        assert AsyncHyperband(9, iterations=None).next(rows) == Job(3)

    def test_ten_thousand_rows_are_not_quadratic(self):
        def seconds(count):
            rows = [Row(n, values={1: float(n % 97)}) for n in range(count)]
            began = time.process_time()
            for _ in range(3):
                AsyncHyperband(81, iterations=None).next(rows)
            return (time.process_time() - began) / 3

        assert seconds(10_000) < 100 * seconds(500)  # linear is 20, quadratic 400
