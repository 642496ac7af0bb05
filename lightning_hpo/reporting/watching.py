"""A search is watched while it runs: its plan, how it stands at a moment, and the live view."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from lightning_hpo.records import Mode
from lightning_hpo.reporting.console import Console, Verbose, wants_live
from lightning_hpo.reporting.view import Plan, Watch
from lightning_hpo.schedulers.base import Bracket, Coverage
from lightning_hpo.study.run_folder import RunFolder


def make_plan(
    title: str,
    brackets: Sequence[Bracket],
    covers: Coverage,
    *,
    total_steps: int | None,
    stops: Sequence[str],
    workers: int,
) -> Plan:
    """Return the plan of a search; without an end and without a limit of steps, its size is not known."""
    counted = () if covers == "round" else brackets
    steps, jobs = sum(bracket.steps for bracket in counted), sum(bracket.jobs for bracket in counted)
    if total_steps is not None:
        jobs = round(jobs * min(total_steps / steps, 1.0)) if steps else 0
        steps = min(steps or total_steps, total_steps)
    rungs = tuple(tuple((rung.trials, rung.max_steps) for rung in bracket.rungs) for bracket in brackets)
    return Plan(title, steps, jobs, workers, rungs, tuple(stops))


def make_watch(plan: Plan, console: Console, mode: Mode, folder: RunFolder) -> Watch:
    """Follow a run, and let its console say how long it will still take."""
    plan.write(folder.path)
    watch = Watch(plan, console.monitor, mode, folder.trial, folder.best_checkpoint)
    console.seconds_left = watch.left
    return watch


@contextmanager
def shown(watch: Watch, console: Console, verbose: Verbose) -> Iterator[None]:
    """Show the live view while the block runs, where there is a terminal."""
    if not wants_live(verbose):
        yield
        return
    from lightning_hpo.reporting.live import LiveView  # noqa: PLC0415  # loads rich, which only a terminal needs

    console.quiet_jobs = True
    with LiveView(watch.view):
        yield
