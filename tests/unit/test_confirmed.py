"""The confirmation of the best configurations as a decision from rows."""

import math
import random
import statistics
from dataclasses import replace

import pytest

from lightning_hpo.records import Row, best_row, confirmations, searched
from lightning_hpo.reporting.best_so_far import BestSoFar
from lightning_hpo.schedulers import ASHA, Confirmed, FullBudget, Hyperband, Job, MedianStopping
from lightning_hpo.testing import SchedulerTestCase, simulate
from lightning_hpo.testing.schedulers import Simulation


class TestContract(SchedulerTestCase):
    @pytest.fixture
    def scheduler(self):
        return Confirmed(FullBudget(10, 20), 3, 2)


class WithParams(Simulation):
    """New trials have parameters: every fifth those of the one before."""

    def start(self, job):
        number = super().start(job)
        row = self.rows[number]
        if row.confirms is None and not row.params:
            object.__setattr__(row, "params", {"x": number - (number % 5 == 4)})
        return number


def value(row, step):
    noise = random.Random(f"{row.number} {step}").gauss(0, 0.1)
    return abs(row.params["x"] - 7.2) + 1 / step + noise


def run(scheduler, rows=(), jobs=10**6):
    simulation = WithParams(list(rows))
    for _ in range(jobs):
        if (job := scheduler.next(simulation.rows)) is None:
            break
        number = simulation.start(job)
        simulation.finish(number, lambda number, step: value(simulation.rows[number], step), scheduler.max_steps)
    return simulation


INNER = [FullBudget(9, 12), Hyperband(9), ASHA(9, n_trials=20), MedianStopping(9, 15)]


@pytest.mark.parametrize("inner", INNER, ids=repr)
def test_the_best_train_again_and_the_search_sees_nothing_of_it(inner):
    plain, confirmed = run(inner), run(Confirmed(inner, 3, 4))
    count = len(plain.rows)
    assert confirmed.rows[:count] == plain.rows
    again = confirmed.rows[count:]
    assert len(again) == 12
    assert {row.values[9] for row in again} == {row.score for row in again}
    best = {row.confirms for row in again}
    assert len({str(plain.rows[number].params) for number in best}) == 3
    finished = sorted((row.score, row.number) for row in plain.rows if row.state == "complete")
    assert finished[0][1] in best
    means = {number: statistics.fmean(row.score for row in again if row.confirms == number) for number in best}
    table = confirmations(confirmed.rows, "min")
    assert [each.mean for each in table] == sorted(means.values())
    assert table[0].n == 4
    assert table[0].std == statistics.stdev(table[0].scores)
    assert table[0].optimism == table[0].mean - table[0].seen
    assert best_row(confirmed.rows, "min").score == min(table[0].scores)
    assert best_row(confirmed.rows, "min").confirms == table[0].trial


def test_killed_anywhere_and_continued():
    scheduler = Confirmed(Hyperband(9), 2, 3)
    whole = run(scheduler)
    for kill_at in range(len(whole.jobs)):
        cut = run(scheduler, jobs=kill_at)
        if (job := scheduler.next(cut.rows)) is not None:
            number = cut.start(job)  # and dies
            cut.rows[number] = Row(number, cut.rows[number].params, cut.rows[number].values,
                                   confirms=cut.rows[number].confirms)  # fmt: skip
        assert run(scheduler, cut.rows).rows == whole.rows


def test_more_trials_after_a_confirmation():
    """They are those of a longer search; a configuration that is still among the best is not confirmed again."""
    long = run(FullBudget(9, 30))
    first = run(Confirmed(FullBudget(9, 12), 2, 3))
    then = run(Confirmed(FullBudget(9, 30), 2, 3), first.rows)
    own = searched(then.rows)
    assert [row.number for row in own] == list(range(30)) == [row.number for row in long.rows]
    assert {row.state for row in then.rows} == {"complete"}
    counts = {each.trial: each.n for each in confirmations(then.rows, "min")}
    assert set(counts.values()) == {3}
    assert len({str(then.rows[number].params) for number in counts}) == len(counts)


def test_nothing_begins_while_the_search_is_at_work_or_a_confirmation_is_open():
    scheduler = Confirmed(FullBudget(9, 2), 1, 2)
    rows = [Row(0, {"x": 1}, {9: 1.0}, state="complete"), Row(1, {"x": 2}, target=9)]
    assert scheduler.next(rows) is None
    rows[1] = Row(1, {"x": 2}, {9: 2.0}, state="complete")
    assert scheduler.next(rows) == Job(9, confirms=0)
    rows.append(Row(2, {"x": 1}, target=9, confirms=0))
    assert Confirmed(FullBudget(9, 9), 1, 2).next(rows) == Job(9, confirms=0)  # before more trials
    rows.append(Row(3, {"x": 1}, target=9, confirms=0))
    assert Confirmed(FullBudget(9, 9), 1, 2).next(rows) is None


def confirmed_rows(*scores):
    rows = [Row(index, {"x": index}, {9: 1.0 + index}, state="complete") for index in range(len(scores))]
    for index, own in enumerate(scores):
        for score in own:
            state = "failed" if math.isnan(score) else "complete"
            values = {} if math.isnan(score) else {9: score}
            rows.append(Row(len(rows), {"x": index}, values, state=state, confirms=index))
    return rows


def test_ties_failures_and_modes():
    apart = confirmations(confirmed_rows([1.0, 1.2], [3.0, 3.2]), "min")
    assert [(each.trial, each.tied, each.optimism) for each in apart] == [(0, False, pytest.approx(0.1)),
                                                                         (1, False, pytest.approx(1.1))]  # fmt: skip
    near = confirmations(confirmed_rows([1.0, 2.0], [1.4, 2.4], [9.0, 9.1]), "min")
    assert [each.tied for each in near] == [True, True, False]
    upward = confirmations(confirmed_rows([1.0, 1.2], [3.0, 3.2]), "max")
    assert [(each.trial, each.optimism) for each in upward] == [(1, pytest.approx(-1.1)), (0, pytest.approx(-0.1))]
    failed = confirmations(confirmed_rows([1.0, math.nan], [3.0, 3.2], [math.nan, math.nan]), "min")
    assert [(each.trial, each.n, each.failed) for each in failed] == [(1, 2, 0), (0, 1, 1), (2, 0, 2)]
    assert not confirmations([Row(0)], "min")


@pytest.mark.parametrize(("configurations", "seeds"), [(0, 2), (3, 1), (2.0, 3)])
def test_wrong_counts(configurations, seeds):
    with pytest.raises((ValueError, TypeError), match=r"configurations|seeds"):
        Confirmed(FullBudget(9, 9), configurations, seeds)


def test_it_ends_with_workers():
    for inner in INNER:
        rows = simulate(Confirmed(inner, 2, 3), lambda number, step: float(number % 7), workers=4).rows
        assert sum(row.confirms is not None for row in rows) == 3  # all have equal parameters here


@pytest.mark.parametrize("mode", ["min", "max"])
@pytest.mark.parametrize("confirms", [False, True])
def test_the_best_so_far_is_the_best_of_all_rows(mode, confirms):
    """Rows are added, go on, fail, end and become infeasible in any order; scores are often equal."""
    generator, rows, so_far = random.Random(0), [], BestSoFar(mode)
    for turn in range(400):
        for _ in range(generator.randrange(3)):
            if not rows or generator.random() < 0.3:
                again = generator.randrange(len(rows)) if confirms and rows and turn > 200 else None
                rows.append(Row(len(rows), confirms=again))
            else:
                row = rows[generator.randrange(len(rows))]
                values = {**row.values, row.step + 1: generator.choice([1.0, 2.0, 3.0, math.nan])}
                state = generator.choice(["running", "running", "complete", "failed", "pruned"])
                rows[row.number] = replace(row, values=values, state=state, feasible=generator.random() < 0.8)
        before = so_far.update(rows)[0]
        assert before == best_row(rows, mode)
        assert so_far.update(rows) == (before, [])
