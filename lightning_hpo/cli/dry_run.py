"""What a search would cost, from its plan and a few timed steps."""

import copy
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_hpo.records import CHECKPOINT, Job, Outcome, Task
from lightning_hpo.schedulers.base import Bracket
from lightning_hpo.schedulers.units import STEPS
from lightning_hpo.training.objective import Objective
from lightning_hpo.training.ranks import ranks_of

_TIMED_STEPS = 10


def price(objective: Objective, plan: Sequence[Bracket], planned_steps: int) -> Iterator[str]:
    """Yield lines about what a search would cost: time of a step and of a job, size of a checkpoint, time of all.

    The time is an estimate from a trial in the middle of the space: one job of 1 and one of 11 optimizer steps, each
    with its validation and checkpoint.

    Args:
        objective: of the search, over a module.
        plan: brackets of the search.
        planned_steps: what is spent of the plan at most, as the scheduler counts: a limit can end the search before.

    Raises:
        ValueError: for every mistake that a search would find before its first training step.
    """
    assert objective.builder is not None
    if (size := ranks_of(objective.builder.distributed_arguments).size) > 1:
        yield f"  not timed, as each trial trains in {size} processes"
        return
    checked_steps = objective.check()
    params = objective.middle()
    in_steps = copy.copy(objective)
    in_steps.unit, in_steps.max_steps = STEPS, checked_steps or objective.max_steps
    per_count = in_steps.max_steps / objective.max_steps
    fold = 0 if objective.options.folds else None
    with tempfile.TemporaryDirectory() as folder:

        def timed(name: str, steps: int) -> tuple[float, Outcome]:
            start = time.perf_counter()
            task = Task(Job(min(steps, in_steps.max_steps), trial=0, fold=fold), params, Path(folder) / name)
            outcome = in_steps.run(task)
            return time.perf_counter() - start, outcome

        timed("warm-up", 1)
        (short, first), (long, last) = timed("short", 1), timed("long", 1 + _TIMED_STEPS)
        size = (Path(folder) / "long" / CHECKPOINT).stat().st_size
    step = max(long - short, 0.0) / max(last.step - first.step, 1)
    jobs, counts = (sum(getattr(bracket, what) for bracket in plan) for what in ("jobs", "steps"))
    steps = per_count * counts
    share = planned_steps / max(counts, 1)
    job = max(short - step, 0.0)
    yield f"  a step takes {1e3 * step:.1f} ms, a job {1e3 * job:.0f} ms besides, a checkpoint {size / 1e6:.1f} MB"
    if last.finished_early:
        yield f"  a trial ends by itself ({last.ended}), so the plan is more than will be spent"
    if plan and share:
        yield f"  expected: {_clock(share * (jobs * job + steps * step))}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"
