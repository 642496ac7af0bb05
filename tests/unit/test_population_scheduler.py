"""Population-Based Training as a scheduler: the lineage does not depend on kills, workers, or the order of arrival."""

import dataclasses
import math
import random

import pytest

from lightning_hpo.schedulers.population import PopulationBased, Rules
from lightning_hpo.space import parse_space
from lightning_hpo.testing import SchedulerTestCase
from lightning_hpo.testing.schedulers import Simulation, simulate

SPACE = parse_space({"lr": "loguniform(1e-4, 1)", "dropout": "uniform(0, 0.7)"})
SIZE, INTERVAL, STEPS = 5, 10, 60
RULES = {
    "default": Rules(SPACE, seed=3),
    "best donor": Rules(SPACE, mode="max", donor="best", quantile=0.2, seed=3),
    "everyone explores": Rules(SPACE, explore="all", seed=3),
    "pb2": Rules(SPACE, explore="pb2", seed=3),
}


def population(rules="default", **options):
    return PopulationBased(
        RULES[rules], **{"population_size": SIZE, "interval": INTERVAL, "max_steps": STEPS, **options}
    )


def value(number, step):
    """Pseudo-random values with ties, and NaN in one of twelve."""
    draw = random.Random(f"{number} {step}").randrange(12)
    return math.nan if draw == 0 and step < STEPS else draw / 10


def passed_over(_, asked):
    """Stand at a step behind the one that was asked for, as with two manual optimizers."""
    return asked + asked % 4, False


@pytest.mark.parametrize("rules", RULES)
class TestPopulationBased(SchedulerTestCase):
    @pytest.fixture
    def scheduler(self, rules):
        return population(rules)

    def test_all_failed_ends(self, scheduler):
        """A score that is no number is a failure at the last step only."""
        run = simulate(scheduler, lambda *_: math.nan)
        assert {row.state for row in run.rows} <= {"failed", "pruned"}
        assert sum(row.state == "failed" for row in run.rows) == SIZE

    def test_max_is_min_turned_round(self, scheduler):
        """The mode is that of the rules."""
        low, high = (
            dataclasses.replace(scheduler, rules=dataclasses.replace(scheduler.rules, mode=mode))
            for mode in ("min", "max")
        )
        negative = lambda number, step: -self.value(number, step)  # noqa: E731  # nan stays nan
        assert simulate(low, self.value).jobs == simulate(high, negative).jobs


def lineage(rows):
    """All of the rows that decisions depend on; NaN as text, since it equals nothing."""
    return [
        (row.params, {step: str(score) for step, score in row.values.items()}, row.parent, row.home, row.start)
        for row in rows
    ]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("stand", [lambda _, asked: (asked, False), passed_over], ids=["exact", "passed over"])
def test_four_workers_in_any_order_make_the_lineage_of_one(rules, stand):
    whole = simulate(population(rules), value, stand=stand)
    assert sum(row.parent is not None for row in whole.rows) >= SIZE
    for seed in range(20):
        run = simulate(population(rules), value, workers=4, seed=seed, stand=stand)
        assert lineage(run.rows) == lineage(whole.rows)


@pytest.mark.parametrize("rules", ["default", "everyone explores"])
@pytest.mark.parametrize("workers", [1, 4])
def test_killed_after_every_job_and_continued_is_the_same_population(rules, workers):
    scheduler = population(rules)
    whole = simulate(scheduler, value)
    for kill_at in range(len(whole.jobs)):
        run, chance = Simulation(replaces_broken=True), random.Random(kill_at)
        working, ended = [], 0
        while ended < kill_at:
            while len(working) < workers and (job := scheduler.next(run.rows)) is not None:
                working.append(run.start(job))
            run.finish(working.pop(chance.randrange(len(working))), value, STEPS)
            ended += 1
        again = simulate(scheduler, value, rows=run.rows, workers=workers, seed=kill_at)
        assert lineage(again.rows) == lineage(whole.rows)
        died = len(working)  # jobs that the kill cut off are handed out again, and no other
        assert len(run.jobs) + len(again.jobs) == len(whole.jobs) + died


@pytest.mark.parametrize("rules", RULES)
def test_the_plan_counts_the_jobs_and_the_copies(rules):
    (plan,) = population(rules).plan()
    run = simulate(population(rules), lambda number, step: number / step)
    assert (plan.trials, plan.jobs, plan.steps) == (SIZE, len(run.jobs), SIZE * STEPS)
    most = plan.trials + plan.copies
    assert len(run.rows) == most or (rules == "everyone explores" and len(run.rows) < most)


def test_a_member_goes_on_or_starts_a_trial_from_its_donor_as_the_rules_decide():
    scheduler, rules = population(), RULES["default"]
    run = Simulation()
    for number in range(SIZE):
        job = scheduler.next(run.rows)
        assert (job.max_steps, job.trial, job.parent, job.params) == (INTERVAL, None, None, rules.initial(number))
        run.finish(run.start(job), lambda number, _: float(number), STEPS)
    jobs = []
    for _ in range(SIZE):
        jobs.append(scheduler.next(run.rows))
        run.start(jobs[-1])
    assert scheduler.next(run.rows) is None  # all are at work
    assert [(job.trial, job.replaces) for job in jobs] == [(None, 3), (None, 4), (0, None), (1, None), (2, None)]
    assert {job.max_steps for job in jobs} == {2 * INTERVAL}
    assert {job.parent for job in jobs[:2]} <= {0, 1}
    assert all(job.params != run.rows[job.parent].params for job in jobs[:2])


def test_a_round_waits_for_every_member_that_lives():
    scheduler = population()
    run = Simulation()
    for _ in range(SIZE):
        run.start(scheduler.next(run.rows))
    for number in range(SIZE - 1):
        run.finish(number, value, STEPS)
        assert scheduler.next(run.rows) is None
    run.rows[SIZE - 1] = dataclasses.replace(run.rows[SIZE - 1], state="failed", target=None)
    assert scheduler.next(run.rows) is not None


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("stand", [lambda _, asked: (asked, False), passed_over], ids=["exact", "passed over"])
def test_an_asynchronous_population_waits_for_nobody_and_a_kill_loses_and_repeats_nothing(rules, stand):
    scheduler = dataclasses.replace(population(rules), synchronous=False)
    for seed in range(20):
        run, chance, working = Simulation(replaces_broken=True), random.Random(seed), []
        kill_at = chance.randrange(SIZE * STEPS // INTERVAL)
        for _ in range(kill_at):
            while (job := scheduler.next(run.rows)) is not None:
                working.append(run.start(job))
            assert len(working) == sum(row.state == "running" for row in run.rows)  # each living member is at work
            run.finish(working.pop(chance.randrange(len(working))), value, STEPS, stand)
        again = simulate(scheduler, value, rows=run.rows, workers=SIZE, seed=seed, stand=stand)
        assert len(run.jobs) + len(again.jobs) == SIZE * STEPS // INTERVAL + len(working)
        for row, later in zip(run.rows, again.rows, strict=False):
            assert lineage([row])[0][::2] == lineage([later])[0][::2]
            assert later.values.items() >= row.values.items()
        for member in range(SIZE):
            steps = [step for row in again.rows if row.home == member for step in row.values]
            assert [step // INTERVAL for step in steps] == list(range(1, STEPS // INTERVAL + 1))
        for row in again.rows:
            assert row.parent is None or row.forked_at in again.rows[row.parent].values


def test_a_member_that_failed_is_out_and_the_others_go_on():
    scheduler = population()
    run = Simulation(replaces_broken=True)
    while (job := scheduler.next(run.rows)) is not None:
        number = run.start(job)
        if run.rows[number].home == 2 and job.max_steps == 30:
            run.rows[number] = dataclasses.replace(run.rows[number], state="failed", target=None)
        else:
            run.finish(number, value, STEPS)
    reached = {member: max(row.step for row in run.rows if row.home == member) for member in range(SIZE)}
    assert reached == {0: STEPS, 1: STEPS, 2: 20, 3: STEPS, 4: STEPS}
    assert not [
        row for row in run.rows if row.parent is not None and row.start >= 30 and run.rows[row.parent].home == 2
    ]


def test_a_member_that_was_asked_to_stop_or_has_no_number_copies():
    scheduler = population()
    run = Simulation(replaces_broken=True)
    for number in range(SIZE):
        run.start(scheduler.next(run.rows))
        run.finish(number, lambda number, _: math.nan if number == 0 else float(number), STEPS)
    run.rows[2] = dataclasses.replace(run.rows[2], stopped=(INTERVAL,))
    replaced = set()
    while (job := scheduler.next(run.rows)) is not None:
        run.start(job)
        replaced |= {job.replaces} - {None}
    assert replaced >= {0, 2}


@pytest.mark.parametrize(
    ("option", "message"),
    [({"population_size": 1}, "population_size"), ({"interval": 0}, "interval"), ({"max_steps": 65}, "e.g. 60")],
)
def test_wrong_arguments_are_named(option, message):
    with pytest.raises(ValueError, match=message):
        population(**option)
