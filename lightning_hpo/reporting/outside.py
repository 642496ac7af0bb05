"""A run from outside: as JSON, one trial of it, or again and again while a search is at work."""

import json
import math
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from lightning_hpo.records import Row, confirmations
from lightning_hpo.reporting.console import Console, duration, over_folds, wants_live, what_it_confirms
from lightning_hpo.reporting.run import Run
from lightning_hpo.reporting.view import View, read_plan, view_from_outside
from lightning_hpo.study.progress import Progress
from lightning_hpo.text import hide_passwords, masked, one_line, say

SCHEMA = 1
"""Version of :func:`to_json`; it grows when a key goes or changes its meaning, and stays when a key is added."""
_OF_SEEDS = ("n", "mean", "std", "optimism")
_POLL = 1.0


def view_of(run: Run) -> View:
    """Return how a run stands."""
    plan = read_plan(run.path)
    return view_from_outside(
        run.rows, plan, run.monitor, run.mode, path=run.path, at_work=run.owner is not None
    )  # fmt: skip


def running_lines(view: View) -> list[str]:
    """A line for each trial at work, and how much of the plan is done."""
    lines = []
    for number in view.running:
        job = view.progress.get(number)
        if job is None:
            lines.append(f"trial {number} runs")
            continue
        value = "" if job.value is None else f", {view.monitor} {job.value:.5g}"
        lines.append(f"trial {number} runs: {_place(job, view.plan.unit, value)}")
    if view.running and view.plan.steps:
        left = "" if view.left is None else f", about {duration(view.left)} left"
        lines.append(f"{view.done:,} of {view.plan.steps:,} planned {view.plan.unit}{left}")
    return lines


def _place(job: Progress, unit: str, value: str = "") -> str:
    """Where a job stands: its step in the unit of the budget, its value, and how fast it is."""
    unit = unit.removeprefix("optimizer ")
    rate = "" if job.rate is None else f", {job.rate:.3g} {unit}/s"
    return f"{unit.removesuffix('s')} {job.step} of {job.target}{value}{rate}"


def show_trial(run: Run, number: int) -> None:
    """Print all that is known of one trial.

    Raises:
        ValueError: if the run has no such trial.
    """
    if not 0 <= number < len(run.rows):
        raise ValueError(f"{run.path} has no trial {number}; it has {len(run.rows)} trials, counted from 0.")
    row, console = run.rows[number], Console(run.monitor, run.mode, verbose=True)
    view, at = view_of(run), run.axis.removeprefix("optimizer ")
    console.line(f"trial {number} of {run.path}: {_state_of(view, row)}{what_it_confirms(row)}")
    for name, value in row.params.items():
        console.line(f"  {name:<24} {masked(name, value)}")
    if row.parent is not None:
        console.line(f"  began from trial {row.parent} at {at} {row.start}")
    for step, value in sorted(row.values.items()):
        seen = f", {run.metric} {row.validations[step]:.6g}" if step in row.validations else ""
        console.line(f"  {at} {step:<10} {run.monitor} {value:.6g}{seen}")
    for fold, score in enumerate(row.folds):
        console.line(f"  fold {fold:<10} {run.monitor} {score:.6g}")
    if row.folds and row.score is not None:
        console.line(f"  mean            {run.monitor} {row.score:.6g} {over_folds(row)}")
    if (job := view.progress.get(number)) is not None and number in view.running:
        console.line(f"  now at {_place(job, run.unit.count_label)}")
    if row.ended:
        console.line(f"  {row.ended}")
    for line in run.failures.get(number, "").splitlines():
        console.line(f"  {line}")
    console.line(f"  folder: {_folder(run, number)}")


def to_json(run: Run) -> str:
    """Return a run as JSON for scripts; docs/watching.md describes the keys. Secrets are hidden."""
    view = view_of(run)
    best, confirmed = view.best, confirmations(run.rows, run.mode)
    answer = None if best is None else best.score if best.confirms is None else confirmed[0].mean
    of_seeds = [{**asdict(each), **{name: getattr(each, name) for name in _OF_SEEDS}} for each in confirmed]
    for each in of_seeds:
        each["params"] = _masked(each["params"])
    content = {
        "schema": SCHEMA,
        "run": str(run.path),
        "monitor": run.metric,
        **({"score": run.settings["score"]} if "score" in run.settings else {}),
        "mode": run.mode,
        "at_work": run.owner is not None,
        "unit": view.plan.unit,
        "steps": {"done": view.done, "planned": view.plan.steps or None},
        "seconds_left": view.left,
        "trials": {"all": len(run.rows), **Counter(_state_of(view, row) for row in run.rows)},
        "best": None if best is None else _trial(run, view, best),
        **({"best_score": answer, "confirmed": of_seeds} if confirmed else {}),
        "rows": [_trial(run, view, row) for row in run.rows],
    }
    return json.dumps(_plain(content), indent=1, allow_nan=False)


def watch(read: Callable[[], Run]) -> Run:
    """Show a run as long as a process works on it: as a live view on a terminal, else a line for each change.

    Args:
        read: reads the run; it is called at most once a second, and less often if it takes long.

    Returns:
        The run as it was read last.
    """
    run = read()
    if run.owner is not None and wants_live(True, sys.stdout):
        from lightning_hpo.reporting.notebook import live_view  # noqa: PLC0415  # loads rich, which lines do not need

        with live_view(lambda: view_of(run)):
            while run.owner is not None:
                run = _read_again(read)
        return run
    last = ""
    while run.owner is not None:
        view = view_of(run)
        line = f"{len(run.rows)} trials, {view.done:,} {view.plan.unit}"
        best = view.best
        line += "" if best is None else f", best {run.monitor} {best.score:.5g} (trial {best.number})"
        if line != last:
            say(one_line(hide_passwords(line)))
        last = line
        run = _read_again(read)
    return run


def _read_again(read: Callable[[], Run]) -> Run:
    """Wait, and read; reading takes at most a tenth of the time."""
    before = time.monotonic()
    run = read()
    time.sleep(max(_POLL, 9 * (time.monotonic() - before)))
    return run


def _trial(run: Run, view: View, row: Row) -> dict[str, Any]:
    failure = run.failures.get(row.number)
    job = view.progress.get(row.number) if row.number in view.running else None
    return {
        "number": row.number,
        "state": _state_of(view, row),
        "params": _masked(row.params),
        "step": view.step(row),
        "target": None if job is None else job.target,
        "score": row.score,
        "values": {str(step): value for step, value in sorted(row.values.items())},
        **({"validations": {str(step): value for step, value in row.validations.items()}} if row.validations else {}),
        **({"folds": list(row.folds), "spread": row.spread} if row.folds else {}),
        **({} if row.confirms is None else {"confirms": row.confirms}),
        "parent": row.parent,
        "start": row.start,
        "ended": row.ended,
        "feasible": row.feasible,
        "failure": None if failure is None else hide_passwords(failure),
        "progress": None if job is None else _progress(job),
        "folder": str(_folder(run, row.number)),
    }


def _masked(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: masked(name, value) for name, value in params.items()}


def _progress(job: Progress) -> dict[str, Any]:
    return {"value": job.value, "steps_per_second": job.rate, "curve": [list(point) for point in job.curve]}


def _state_of(view: View, row: Row) -> str:
    return "running" if row.number in view.running else _state(row)


def _state(row: Row) -> str:
    return "paused" if row.state == "running" else row.state


def _folder(run: Run, number: int) -> Any:
    return run.path / "trials" / f"{number:04d}"


def _plain(value: Any) -> Any:
    """Values as JSON has them: no NaN, no infinity, nothing but text where a type is unknown."""
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, bool | int | str) else str(value)
