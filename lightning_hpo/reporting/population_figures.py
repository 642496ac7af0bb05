"""Figures of a population: who copied whom, and the values of the hyperparameters that each member trained with."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lightning_hpo.records import Row, best_row
from lightning_hpo.reporting.drawing import BEST, COLOURS, GREY, Figure, Panels, axis, figure, line, safe
from lightning_hpo.reporting.run import Run
from lightning_hpo.text import is_secret, masked

_PARAMETERS = 8


def _is_population(run: Run) -> bool:
    return any(row.parent is not None for row in run.rows)


def _way(rows: Sequence[Row], number: int) -> list[tuple[Row, int]]:
    """Trials that the weights of a trial have gone through, first to last, each with the step where they left it."""
    way: list[tuple[Row, int]] = []
    row, until = rows[number], rows[number].step
    while True:
        way.append((row, until))
        until = row.start if row.forked_at is None else row.forked_at
        if row.parent is None:
            return way[::-1]
        row = rows[row.parent]


def family_tree(run: Run) -> Figure | None:
    """Every member over its optimizer steps, coloured by score, with a line from each donor to its copy."""
    if not _is_population(run):
        return None
    bars: list[tuple[Any, Any]] = []
    copies: list[tuple[Any, Any]] = []
    steps = sorted({step for row in run.rows for step in row.values})
    slant = 0.4 * min((after - step for step, after in pairwise(steps)), default=0)  # lines that would hide each other
    for row in run.rows:
        bars += [(row.start, row.home), (row.step, row.home), (None, None)]
        if row.parent is not None:
            copies += [
                ((row.start if row.forked_at is None else row.forked_at) - slant, run.rows[row.parent].home),
                (row.start, row.home),
                (None, None),
            ]
    points = [(step, row.home, value, row.number) for row in run.rows for step, value in row.values.items()]
    data = [
        {**line(bars, "training", GREY), "hoverinfo": "skip"},
        {**line(copies, "copied from", COLOURS[2]), "hoverinfo": "skip"},
    ]
    best = best_row(run.rows, run.mode)
    if best is not None:
        way = _way(run.rows, best.number)
        places = [(step, row.home) for row, until in way for step in (row.start, until)]
        data.append(line(places, f"way to the best, trial {best.number}", BEST, width=4))
    data.append({
        "type": "scatter", "mode": "markers", "showlegend": False,
        "x": [point[0] for point in points], "y": [point[1] for point in points],
        "customdata": [[point[2], point[3]] for point in points],
        "hovertemplate": "member %{y} at step %{x}: %{customdata[0]:.6g} (trial %{customdata[1]})<extra></extra>",
        "marker": {"size": 8, "color": [point[2] for point in points], "colorscale": "Viridis",
                   "reversescale": run.mode == "min", "colorbar": {"title": {"text": safe(run.monitor)}}},
    })  # fmt: skip
    drawn = figure(data, axis("optimizer step"), axis("member"))
    drawn["layout"]["legend"] = {"orientation": "h", "y": 1.12}
    return drawn


def effective_values(run: Run) -> Figure | None:
    """Value of each hyperparameter over the steps of every member, with the schedule of the best one."""
    names = [name for name in run.distributions if any(name in row.params for row in run.rows)][:_PARAMETERS]
    if not names or not _is_population(run):
        return None
    best = best_row(run.rows, run.mode)
    way = [] if best is None else _way(run.rows, best.number)
    panels = Panels(len(names), 2)
    data: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        hidden: dict[Any, str] = {}
        points: list[tuple[Any, Any]] = []
        for member in sorted({row.home for row in run.rows}):
            own = sorted(
                (row for row in run.rows if row.home == member and name in row.params), key=lambda row: row.start
            )
            for row in own:
                value = _shown(name, row.params[name], hidden)
                points += [(row.start, value), (row.step, value)]
            points.append((None, None))
        data.append({**line(points, "members", GREY, mode="lines+markers"), "marker": {"size": 4},
                     "showlegend": index == 0, **panels.axes(index)})  # fmt: skip
        taken = [
            (step, _shown(name, row.params[name], hidden))
            for row, until in way for step in (row.start, until) if name in row.params
        ]  # fmt: skip
        if taken:
            data.append(
                {**line(taken, "schedule of the best", BEST, width=3), "showlegend": index == 0, **panels.axes(index)}
            )
        log = bool(getattr(run.distributions[name], "log", False))
        panels.describe(index, {"title": {"text": "optimizer step"}}, axis("", log=log), name)
    panels.layout["legend"] = {"orientation": "h", "y": 1.08}
    return {"data": data, "layout": panels.layout}


def _shown(name: str, value: Any, hidden: dict[Any, str]) -> Any:
    """Return a number as it is, another value as text, and a secret by its place among the secrets."""
    if is_secret(name, value):
        return hidden.setdefault(value, f"{masked(name, value)} {len(hidden) + 1}")
    return value if isinstance(value, int | float) and not isinstance(value, bool) else safe(value)
