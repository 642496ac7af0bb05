"""Figures of a run that Optuna has not: learning curves, brackets, plan, other metrics, durations.

All text is escaped, and secrets are masked. A function returns None where there is nothing to draw.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightning_hpo.records import Row, best_row, ranked, reach, searched
from lightning_hpo.reporting.drawing import (
    BEST,
    COLOURS,
    GREY,
    MOST,
    STATE_COLOURS,
    Figure,
    Panels,
    axis,
    figure,
    finite_values,
    is_log,
    line,
    safe,
    star,
    thin,
)
from lightning_hpo.reporting.run import Run
from lightning_hpo.schedulers.base import Bracket, Rung, hyperband_brackets, make_bracket, rung_steps

_CURVE_POINTS = 10_000  # of all learning curves
_SHOWN_METRICS, _CURVES, _POINTS = 12, 20, 200  # other metrics, the trials of each, points of a trial
_HALVING = ("ASHA", "AsyncHyperband", "Hyperband", "SuccessiveHalving")


def history(run: Run) -> Figure | None:
    """Last value of each trial in the order of their start, and the best so far of those that got furthest."""
    rows = [(row, list(finite_values(row).values())[-1]) for row in thin(run.rows, run.mode) if finite_values(row)]
    if not rows:
        return None
    data = []
    for state, colour in STATE_COLOURS.items():
        of_state = [(row, value) for row, value in rows if row.state == state]
        if of_state:
            data.append({
                "type": "scatter", "mode": "markers", "name": state, "marker": {"color": colour, "size": 6},
                "x": [row.number for row, _ in of_state], "y": [value for _, value in of_state],
                "customdata": [row.step for row, _ in of_state],
                "hovertemplate": "trial %{x} at step %{customdata}: %{y:.6g}",
            })  # fmt: skip
    competing = [row for row in run.rows if row.score is not None and row.feasible]
    furthest = max(map(reach, competing), default=0)
    better = min if run.mode == "min" else max
    steps: list[tuple[int, float]] = []
    for row in competing:
        if reach(row) == furthest and row.score is not None:
            steps.append((row.number, better(row.score, steps[-1][1]) if steps else row.score))
    steps = [at for index, at in enumerate(steps) if index in (0, len(steps) - 1) or at[1] != steps[index - 1][1]]
    data.append(line(steps, "best so far", BEST, shape="hv"))
    return figure(data, axis("trial"), axis(run.monitor, [value for _, value in rows]))


def learning_curves(run: Run) -> Figure | None:
    """Value over optimizer steps, a colour for each bracket, the best trial marked."""
    most = _CURVE_POINTS * len(run.rows) // (sum(len(row.values) for row in run.rows) or 1)
    rows = [row for row in thin(run.rows, run.mode, min(max(most, 10), MOST)) if finite_values(row)]
    if not rows:
        return None
    entries = sorted({min(row.values) for row in rows})
    entries = entries if 1 < len(entries) <= 6 else [entries[0]]
    data = []
    for index, entry in enumerate(entries):
        following = entries[index + 1] if index + 1 < len(entries) else math.inf
        members = [row for row in rows if min(row.values) < following and (index == 0 or min(row.values) >= entry)]
        x, y, numbers = [], [], []
        for row in members:
            curve = finite_values(row)
            x += [*curve, None]
            y += [*curve.values(), None]
            numbers += [row.number] * (len(curve) + 1)
        name = f"judged first after {run.unit.amount(entry)}" if len(entries) > 1 else "trials"
        data.append({
            "type": "scatter", "mode": "lines+markers", "name": name, "x": x, "y": y, "customdata": numbers,
            "opacity": 0.55, "line": {"color": COLOURS[index % len(COLOURS)], "width": 1}, "marker": {"size": 4},
            "hovertemplate": f"trial %{{customdata}} at {run.axis} %{{x}}: %{{y:.6g}}",
        })  # fmt: skip
    best = best_row(run.rows, run.mode)
    if best is not None:
        data.append(
            line(list(finite_values(best).items()), f"best: trial {best.number}", BEST, mode="lines+markers", width=3)
        )
    steps = [step for row in rows for step in row.values]
    x_axis = axis(run.axis)
    if len(set(steps)) <= 12:  # rungs
        log = min(steps) > 0 and max(steps) >= 9 * min(steps)
        x_axis = axis(run.axis, log=log, tickvals=sorted(set(steps)))
    return figure(data, x_axis, axis(run.monitor, [value for row in rows for value in finite_values(row).values()]))


def planned_brackets(run: Run) -> list[tuple[Bracket, int]]:
    """Brackets of the plan, and how often each was begun; empty where the scheduler plans none.

    How long a search goes on may change from call to call, so this is the plan of what was begun.
    """
    settings = run.settings.get("scheduler", {})
    kind, most, members = (settings.get(name) for name in ("type", "max_steps", "population_size"))
    rungs = (most, settings.get("min_steps"), settings.get("eta"))
    if isinstance(most, int) and isinstance(members, int):
        return [(Bracket((Rung(members, most),)), 1)]
    if isinstance(most, int) and kind == "FullBudget":
        plan: tuple[Bracket, ...] = (Bracket((Rung(max(len(searched(run.rows)), 1), most),)),)
    elif kind not in _HALVING or not all(isinstance(number, int) for number in rungs):
        return []
    else:
        eta = rungs[2]
        steps = rung_steps(*rungs, settings.get("rungs", "down"))
        if kind in ("Hyperband", "AsyncHyperband"):
            plan = hyperband_brackets(steps, eta)
        else:
            plan = (make_bracket(eta ** (len(steps) - 1), steps, eta),)
    by_entry = {bracket.rungs[0].max_steps: bracket for bracket in plan}
    entered = dict.fromkeys(by_entry, 0)
    for row in searched(run.rows):
        if row.values:
            entered[_entry(row, list(by_entry))] += 1
    return [(bracket, -(-entered[entry] // bracket.trials)) for entry, bracket in sorted(by_entry.items())]


def _entry(row: Row, entries: Sequence[int]) -> int:
    """Rung at which a trial with values entered: a Trainer may stand beyond it."""
    return max((entry for entry in entries if entry <= min(row.values)), default=min(entries))


def brackets(run: Run) -> Figure | None:
    """Trials that each rung of each bracket has judged, by what became of them, beside the plan."""
    plan = [(bracket, times) for bracket, times in planned_brackets(run) if times]
    if not any(len(bracket.rungs) > 1 for bracket, _ in plan):
        return None
    entries = [bracket.rungs[0].max_steps for bracket, _ in plan]
    fates = {"promoted": COLOURS[1], "full budget": COLOURS[3], "stopped": COLOURS[2],
             "may go on": COLOURS[0], "failed later": COLOURS[4]}  # fmt: skip
    data: list[dict[str, Any]] = []
    panels = Panels(len(plan), columns=4)
    for index, (bracket, times) in enumerate(plan):
        members = [row for row in searched(run.rows) if row.values and _entry(row, entries) == entries[index]]
        steps = [rung.max_steps for rung in bracket.rungs]
        names = [f"step {step}" for step in steps]
        found = [
            [_fate(row, step, above) for row in members]
            for step, above in zip(steps, [*steps[1:], math.inf], strict=True)
        ]
        where = panels.axes(index)
        for fate, colour in fates.items():
            data.append({
                "type": "bar", "name": fate, "legendgroup": fate, "showlegend": index == 0, "x": names,
                "y": [fate_of.count(fate) for fate_of in found], "marker": {"color": colour}, **where,
            })  # fmt: skip
        data.append({
            "type": "scatter", "mode": "markers", "name": "plan", "legendgroup": "plan", "showlegend": index == 0,
            "x": names, "y": [times * rung.trials for rung in bracket.rungs],
            "marker": {"symbol": "line-ew-open", "size": 26, "color": BEST, "line": {"width": 2}}, **where,
        })  # fmt: skip
        panels.describe(index, {}, {"title": {"text": "trials" if index == 0 else ""}}, f"bracket from {names[0]}")
    return {"data": data, "layout": {"barmode": "stack", **panels.layout}}


def _fate(row: Row, step: int, above: float) -> str:
    """What became of a trial at a rung; empty if it was not judged there."""
    if row.at(step, above) is None or (row.ended is not None and row.step < step):
        return ""
    if math.isinf(above):
        return "full budget"
    if row.step >= above:
        return "promoted"
    return {"failed": "failed later", "running": "may go on"}.get(row.state, "stopped")


def promotions(run: Run) -> Figure | None:
    """How far each trial was taken, and its place among the trials of the same rung."""
    steps = sorted({rung.max_steps for bracket, _ in planned_brackets(run) for rung in bracket.rungs})
    if len(steps) < 2:
        return None
    sign = 1 if run.mode == "min" else -1
    points: list[tuple[int, float, float, float]] = []  # trial, rung, value, share of the rung that is better
    for step, above in zip(steps, [*steps[1:], math.inf], strict=True):
        reached = [row for row in run.rows if row.confirms is None and row.values and step <= row.step]
        at = [(row.number, row.at(step, above)) for row in reached]
        judged = sorted(
            (sign * value, number, value) for number, value in at if value is not None and math.isfinite(value)
        )
        places = enumerate(judged)
        points += [(number, step, value, place / max(len(judged) - 1, 1)) for place, (_, number, value) in places]
    shown = {row.number for row in thin(run.rows, run.mode)}
    points = sorted(point for point in points if point[0] in shown)
    lines: list[tuple[float | None, float | None]] = []
    for before, after in pairwise(points):
        if before[0] == after[0]:
            lines += [before[:2], after[:2], (None, None)]
    data = [
        {**line(lines, "", GREY), "showlegend": False, "hoverinfo": "skip"},
        {
            "type": "scatter", "mode": "markers", "showlegend": False,
            "x": [point[0] for point in points], "y": [point[1] for point in points],
            "customdata": [point[2] for point in points],
            "hovertemplate": "trial %{x} at step %{y}: %{customdata:.6g}<extra></extra>",
            "marker": {
                "size": 7, "color": [point[3] for point in points], "colorscale": "Viridis", "reversescale": True,
                "colorbar": {"title": {"text": "place in its rung"}, "tickvals": [0, 1], "ticktext": ["best", "worst"]},
            },
        },
    ]  # fmt: skip
    best = best_row(run.rows, run.mode)
    if best is not None:
        data.append(star(best.number, best.step, f"best: trial {best.number}"))
    drawn = figure(data, axis("trial"), axis(f"rung ({run.axis})", log=True, tickvals=steps))
    drawn["layout"]["legend"] = {"orientation": "h", "y": 1.12}
    return drawn


def plan_and_spent(run: Run) -> Figure | None:
    """Optimizer steps on the way to each rung: planned and done."""
    plan = planned_brackets(run)
    steps = sorted({rung.max_steps for bracket, _ in plan for rung in bracket.rungs})
    budget = run.settings.get("scheduler", {}).get("max_steps")
    steps = steps or ([budget] if isinstance(budget, int) else [])
    if not steps or not any(row.values for row in run.rows):
        return None
    edges = list(pairwise([0, *steps[:-1], math.inf]))
    done = [sum(max(min(row.step, high) - max(row.start, low), 0) for row in run.rows) for low, high in edges]
    names = [f"to step {step}" for step in steps]
    data = [{"type": "bar", "name": f"done: {sum(done):,}", "x": names, "y": done, "marker": {"color": COLOURS[0]}}]
    if plan:
        planned = dict.fromkeys(steps, 0)
        for bracket, times in plan:
            for before, rung in pairwise([None, *bracket.rungs]):
                below = 0 if before is None else before.max_steps
                for low, high in pairwise([0, *steps]):
                    if rung is not None and below <= low and high <= rung.max_steps:
                        planned[high] += times * rung.trials * (high - low)
        name = f"planned: {sum(planned.values()):,}"
        data.insert(0, {"type": "bar", "name": name, "x": names, "y": list(planned.values()),
                        "marker": {"color": GREY}})  # fmt: skip
    drawn = figure(data, axis("", type="category"), axis(run.unit.count_label))
    drawn["layout"]["barmode"] = "group"
    return drawn


def durations(run: Run) -> Figure | None:
    """Time from the start of each trial to its end."""
    by_state: dict[str, list[tuple[int, float, int]]] = {}
    for row, trial in zip(run.rows, run.trials, strict=True):
        if trial.duration is not None:
            by_state.setdefault(row.state, []).append((row.number, trial.duration.total_seconds(), row.step))
    kept = {row.number for row in thin(run.rows, run.mode)}
    data = [
        {
            "type": "scatter", "mode": "markers", "name": state, "marker": {"color": STATE_COLOURS[state], "size": 6},
            "x": [point[0] for point in points if point[0] in kept],
            "y": [point[1] for point in points if point[0] in kept],
            "customdata": [point[2] for point in points if point[0] in kept],
            "hovertemplate": "trial %{x}: %{y:.4g} s for %{customdata} steps",
        }
        for state, points in by_state.items()
    ]  # fmt: skip
    if not data:
        return None
    seconds = [point[1] for points in by_state.values() for point in points]
    return figure(data, axis("trial"), axis("seconds from start to end", seconds))


def other_metrics(run: Run) -> Figure | None:
    """What the best trials have logged beside the score, over optimizer steps; a menu chooses the metric."""
    best = ranked(run.rows, run.mode)[:_CURVES]
    logged = {row.number: _logged(run, row) for row in best}
    names = sorted({name for curves in logged.values() for name in curves if name != run.monitor})[:_SHOWN_METRICS]
    if not names:
        return None
    data, values = [], []
    for name in names:
        values.append([value for curves in logged.values() for value in curves.get(name, {}).values()])
        for index, row in enumerate(best):
            curve = line(list(logged[row.number].get(name, {}).items()), f"trial {row.number}",
                         BEST if index == 0 else COLOURS[index % len(COLOURS)])  # fmt: skip
            data.append({**curve, "visible": name == names[0]})
    buttons = [
        {
            "label": safe(name), "method": "update",
            "args": [{"visible": [other == name for other in names for _ in best]},
                     {"yaxis.title.text": safe(name), "yaxis.type": "log" if is_log(numbers) else "linear"}],
        }
        for name, numbers in zip(names, values, strict=True)
    ]  # fmt: skip
    drawn = figure(data, axis(run.axis), axis(names[0], values[0]))
    drawn["layout"]["updatemenus"] = [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.18, "yanchor": "top"}]
    return drawn


def _logged(run: Run, row: Row) -> dict[str, dict[int, float]]:
    """Metric -> step -> value, as the file of a trial has them; empty without one."""
    found: dict[str, dict[int, float]] = {}
    try:
        with (run.path / "trials" / f"{row.home:04d}" / "metrics.csv").open(newline="", encoding="utf-8") as file:
            for entry in csv.DictReader(file):
                value = float(entry["value"])
                if math.isfinite(value) and row.start <= int(entry["step"]) <= row.step:
                    found.setdefault(entry["metric"], {})[int(entry["step"])] = value
    except (OSError, KeyError, TypeError, ValueError):  # no file, or somebody is writing its last line
        pass
    return {name: _every(curve) for name, curve in found.items()}


def _every(curve: Mapping[int, float]) -> dict[int, float]:
    """At most so many points of a curve as are shown, the last one included."""
    apart = -(-len(curve) // _POINTS)
    return dict(list(curve.items())[::-1][:: max(apart, 1)][::-1])
