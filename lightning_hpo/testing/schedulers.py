"""The contract of every scheduler, checked without a Trainer."""

import dataclasses
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_hpo.records import Row, State
from lightning_hpo.schedulers import Job, Scheduler

Evaluate = Callable[[int, int], float]  # (trial number, step) -> value; NaN counts as a failed trial
Stand = Callable[[int, int], tuple[int, bool]]  # (trial number, step asked for) -> step reached, ended by itself or not


def as_asked(_: int, asked: int) -> tuple[int, bool]:
    """Reach exactly the step of the job, and be ready to go on."""
    return asked, False


@dataclass
class Simulation:
    """What happened: the rows at the end, and every job in the order it was handed out.

    Args:
        rows: where it starts.
        jobs: none at first.
        replaces_broken: whether the scheduler lets a trial go on whose value is no number, because it is replaced.
    """

    rows: list[Row] = field(default_factory=list)
    jobs: list[Job] = field(default_factory=list)
    replaces_broken: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps spent, each trial continuing from where it was."""
        return sum(max(row.values, default=0) for row in self.rows)

    def start(self, job: Job) -> int:
        """Begin a job and return its trial's number."""
        number = len(self.rows) if job.trial is None else job.trial
        if job.trial is None:
            params = (job.params or {}) if job.confirms is None else self.rows[job.confirms].params
            self.rows.append(Row(number, params=params, parent=job.parent, confirms=job.confirms))
        if job.replaces is not None:
            before, parent = self.rows[job.replaces], self.rows[number if job.parent is None else job.parent]
            self.rows[number] = replace(self.rows[number], start=before.step, member=before.home, forked_at=parent.step)
            self.rows[job.replaces] = replace(before, state="pruned")
        self.rows[number] = replace(self.rows[number], target=job.max_steps)
        self.jobs.append(replace(job, trial=number))
        return number

    def finish(self, number: int, evaluate: Evaluate, limit: int, stand: Stand = as_asked) -> None:
        """End the running job of a trial.

        Args:
            number: of the trial.
            evaluate: gives the value where the trial stands.
            limit: full budget.
            stand: says where that is.
        """
        row = self.rows[number]
        assert row.target is not None
        step, over = stand(number, row.target)
        value = evaluate(number, step)
        if math.isnan(value) and not (self.replaces_broken and step < limit):
            self.rows[number] = replace(row, target=None, state="failed")
            return
        state: State = "complete" if step >= limit or over else "running"
        ended = f"ended at step {step}" if over else None
        self.rows[number] = replace(row, values={**row.values, step: value}, target=None, state=state, ended=ended)


def simulate(
    scheduler: Scheduler,
    evaluate: Evaluate,
    *,
    workers: int = 1,
    seed: int = 0,
    rows: Sequence[Row] = (),
    stand: Stand = as_asked,
) -> Simulation:
    """Run a scheduler to its end without training.

    Args:
        scheduler: to run.
        evaluate: (trial number, step) -> value; NaN fails the trial.
        workers: jobs at a time; a random job of them ends next.
        seed: of the order in which jobs end.
        rows: where to start, e.g. the rows of an interrupted run.
        stand: (trial number, step asked for) -> where the trial then stands, and whether it has ended by itself.

    Returns:
        Rows and jobs.
    """
    chance = random.Random(seed)
    broken = getattr(scheduler, "replaces_broken", False)
    run = Simulation([replace(row, target=None) for row in rows], replaces_broken=broken)
    working: list[int] = []
    while True:
        while len(working) < workers and (job := scheduler.next(run.rows)) is not None:
            working.append(run.start(job))
        if not working:
            return run
        number = working.pop(chance.randrange(len(working)))
        run.finish(number, evaluate, scheduler.max_steps, stand)


class SchedulerTestCase:
    """Inherit, and define a pytest fixture ``scheduler``. If it has a ``mode``, both modes are tested."""

    def value(self, number: int, step: int) -> float:
        """Pseudo-random values with ties and failures."""
        draw = random.Random(f"{number} {step}").randrange(40)
        return math.nan if draw == 0 else draw / 10

    def test_it_ends(self, scheduler: Any) -> None:
        """With one worker and with several, and nothing is left to do."""
        for workers in (1, 4):
            run = simulate(scheduler, self.value, workers=workers)
            assert scheduler.next(run.rows) is None

    def test_next_changes_nothing(self, scheduler: Any) -> None:
        """Asking twice gives the same job, from equal rows in other objects too."""
        run = simulate(scheduler, self.value)
        for length in range(0, len(run.rows), 7):
            rows = run.rows[:length]
            assert scheduler.next(rows) == scheduler.next(rows)
            assert scheduler.next(rows) == scheduler.next([dataclasses.replace(row) for row in rows])

    def test_budgets_grow_up_to_the_limit(self, scheduler: Any) -> None:
        """Every job asks for more than the trial has, and for no more than ``max_steps``."""
        reached: dict[int | None, int] = {}
        for job in simulate(scheduler, self.value, workers=3).jobs:
            assert reached.get(job.trial, 0) < job.max_steps <= scheduler.max_steps
            reached[job.trial] = job.max_steps

    def test_failed_trials_get_no_job(self, scheduler: Any) -> None:
        """A trial that failed is over."""
        run = simulate(scheduler, lambda number, _: math.nan if number % 3 == 0 else float(number))
        for row in run.rows:
            assert row.number % 3 or sum(job.trial == row.number for job in run.jobs) == 1

    def test_all_failed_ends(self, scheduler: Any) -> None:
        """A search in which every trial fails ends."""
        run = simulate(scheduler, lambda *_: math.nan)
        assert {row.state for row in run.rows} == {"failed"}

    def test_max_is_min_turned_round(self, scheduler: Any) -> None:
        """``mode="max"`` on -y makes the decisions of ``mode="min"`` on y."""
        if not hasattr(scheduler, "mode"):
            return
        low, high = (dataclasses.replace(scheduler, mode=mode) for mode in ("min", "max"))
        negative = lambda number, step: -self.value(number, step)  # noqa: E731  # nan stays nan
        assert simulate(low, self.value).jobs == simulate(high, negative).jobs

    def test_interrupted_is_uninterrupted(self, scheduler: Any) -> None:
        """Killed after any number of jobs and continued, one worker makes the same decisions."""
        for stand in (as_asked, self.stand):
            whole = simulate(scheduler, self.value, stand=stand)
            for kill_at in range(0, len(whole.jobs), max(len(whole.jobs) // 25, 1)):
                run = Simulation(replaces_broken=getattr(scheduler, "replaces_broken", False))
                for _ in range(kill_at):
                    job = scheduler.next(run.rows)
                    run.finish(run.start(job), self.value, scheduler.max_steps, stand)
                job = scheduler.next(run.rows)
                if job is not None:
                    run.start(job)  # and dies
                again = simulate(scheduler, self.value, rows=run.rows, stand=stand)
                assert again.rows == whole.rows

    def stand(self, number: int, asked: int) -> tuple[int, bool]:
        """Every third trial ends by itself at a step of its own; others may be up to two steps beyond their job's."""
        end = 1 + random.Random(f"end {number}").randrange(6)
        if number % 3 == 0 and asked >= end:
            return end, True
        return asked + (0 if number % 2 else random.Random(f"{number} {asked}").randrange(3)), False

    def test_a_trial_that_ends_by_itself_or_stands_beyond_its_budget(self, scheduler: Any) -> None:
        """The search ends; a finished trial gets no job, any other only for more steps than it has."""
        for workers in (1, 4):
            run = simulate(scheduler, self.value, workers=workers, stand=self.stand)
            assert scheduler.next(run.rows) is None
            reached: dict[int | None, tuple[int, bool]] = {}
            for job in run.jobs:
                step, over = reached.get(job.trial, (0, False))
                assert not over
                assert step < job.max_steps <= scheduler.max_steps
                reached[job.trial] = self.stand(int(job.trial or 0), job.max_steps)

    def test_a_finished_trial_needs_no_job_to_be_compared(self, scheduler: Any) -> None:
        """Trials that all end at their first step get one job each."""
        run = simulate(scheduler, self.value, stand=lambda *_: (1, True))
        assert len(run.jobs) == len(run.rows)
        assert run.steps == sum(row.state == "complete" for row in run.rows)
