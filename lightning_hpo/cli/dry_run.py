"""What a search would cost, from its plan and a few timed steps."""

import copy
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning_hpo.records import CHECKPOINT, Job, Mode, Outcome, Row, Task
from lightning_hpo.reporting.console import Console
from lightning_hpo.schedulers.base import Bracket
from lightning_hpo.schedulers.units import STEPS, Unit
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.objective import Objective
from lightning_hpo.training.ranks import ranks_of

_TIMED_STEPS = 10


class Priced(Protocol):
    """A tuner, as far as its price is asked for."""

    @property
    def mode(self) -> Mode:
        """Whether lower or higher scores are better."""

    @property
    def unit(self) -> Unit:
        """What its scheduler counts."""

    def objective(self, model: Any) -> Objective:
        """Return what runs for each job."""

    def plan(self) -> Sequence[Bracket]:
        """Brackets of the search."""

    def planned_steps(self) -> int:
        """Optimizer steps that are expected at most."""

    def say_plan(self, console: Console, title: str, rows: Sequence[Row]) -> None:
        """Print what is about to happen."""


def say_price(tuner: Priced, builder: Builder) -> None:
    """Print the plan of a search, and what it would cost: optimizer steps, time, disk.

    The time is an estimate from a trial in the middle of the space: one job of 1 and one of 11 optimizer steps, each
    with its validation and checkpoint.

    Raises:
        ValueError: for every mistake that a search would find before its first training step.
    """
    objective = tuner.objective(builder)
    console = Console(objective.monitor, tuner.mode, verbose=True, unit=tuner.unit)
    tuner.say_plan(console, f"plan of {type(tuner).__name__}; nothing is written", ())
    if (size := ranks_of(builder.distributed_arguments).size) > 1:
        console.line(f"  not timed, as each trial trains in {size} processes")
        return
    objective.check()
    params = objective.middle()
    per_count = 1.0 if objective.checked_steps is None else objective.checked_steps / objective.max_steps
    in_steps = copy.copy(objective)
    in_steps.unit, in_steps.max_steps = STEPS, objective.checked_steps or objective.max_steps
    fold = 0 if objective.folds else None
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
    plan = tuner.plan()
    jobs, counts = (sum(getattr(bracket, what) for bracket in plan) for what in ("jobs", "steps"))
    steps = per_count * counts
    share = tuner.planned_steps() / max(counts, 1)  # a limit can end the search before its plan does
    job = max(short - step, 0.0)
    console.line(
        f"  a step takes {1e3 * step:.1f} ms, a job {1e3 * job:.0f} ms besides, a checkpoint {size / 1e6:.1f} MB"
    )
    if last.finished_early:
        console.line(f"  a trial ends by itself ({last.ended}), so the plan is more than will be spent")
    if plan and share:
        console.line(f"  expected: {_clock(share * (jobs * job + steps * step))}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"
