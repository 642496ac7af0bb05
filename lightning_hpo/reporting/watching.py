"""A search is watched while it runs: its plan, how it stands at a moment, and the live view."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from lightning_hpo.records import Mode
from lightning_hpo.reporting.console import Console, Verbose, wants_live
from lightning_hpo.reporting.events import Observer
from lightning_hpo.reporting.loggers import EndedTrials, EndTrial
from lightning_hpo.reporting.view import Plan, Watch
from lightning_hpo.schedulers.base import Bracket, Coverage
from lightning_hpo.study.run_folder import RunFolder


class Limits(Protocol):
    """When a search starts no more jobs."""

    @property
    def count(self) -> int | None:
        """Amount of training in all, in counts of the scheduler; or None."""

    def texts(self) -> list[str]:
        """Each limit in words."""


def make_plan(
    title: str,
    brackets: Sequence[Bracket],
    covers: Coverage,
    limits: Limits,
    *,
    workers: int,
    unit: str,
) -> Plan:
    """Return the plan of a search; without an end and without a limit of steps, its size is not known."""
    counted = () if covers == "round" else brackets
    steps, jobs = sum(bracket.steps for bracket in counted), sum(bracket.jobs for bracket in counted)
    total = limits.count
    if total is not None:
        jobs = round(jobs * min(total / steps, 1.0)) if steps else 0
        steps = min(steps or total, total)
    rungs = tuple(tuple((rung.trials, rung.max_steps) for rung in bracket.rungs) for bracket in brackets)
    is_least = covers == "least" and total is None
    to_the_end = all(len({rung.trials for rung in bracket.rungs}) == 1 and not bracket.copies for bracket in counted)
    each = counted[0].rungs[-1].max_steps if counted and to_the_end and total is None else 0
    return Plan(title, steps, jobs, workers, rungs, tuple(limits.texts()), is_least, unit, each)


def observers_of(
    folder: RunFolder, study: str, plan: Plan, console: Console, mode: Mode, *, end_trial: EndTrial | None
) -> list[Observer]:
    """Keep the plan of a run, and return the observers that say how the run stands.

    Args:
        folder: of the run.
        study: id of the study.
        plan: of the search.
        console: prints lines; it will say how long the search still takes.
        mode: whether lower or higher scores are better.
        end_trial: tells the logger of a trial how the trial has ended; None without loggers.

    Returns:
        The first is a :class:`Watch`.
    """
    plan.write(folder.path)
    watch = Watch(plan, console.monitor, mode, folder.trial, folder.best_checkpoint)
    console.seconds_left = watch.left
    ended = [] if end_trial is None else [EndedTrials(end_trial, folder.trial, study)]
    return [watch, console, *ended]


@contextmanager
def shown(observers: Sequence[Observer], console: Console, verbose: Verbose) -> Iterator[None]:
    """Show the live view of the watch among the observers while the block runs, in a terminal or a notebook."""
    watch = next((observer for observer in observers if isinstance(observer, Watch)), None)
    if watch is None or not wants_live(verbose):
        yield
        return
    from lightning_hpo.reporting.notebook import live_view  # noqa: PLC0415  # loads rich, which lines do not need

    console.quiet_jobs = True
    with live_view(watch.view):
        yield
