"""Figures of a population: who copied whom, and the values of the hyperparameters that each member trained with."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from lightning_hpo.records import best_row
from lightning_hpo.reporting.drawing import BEST, COLOURS, GREY, Figure, Panels, axis, figure, line, safe
from lightning_hpo.reporting.run_view import Run
from lightning_hpo.study.lineage import Segment, schedule_of, segment_of
from lightning_hpo.text import is_secret, masked

_PARAMETERS = 8


def segments_of(run: Run) -> list[Segment]:
    """Return the segments of a population; empty for another search."""
    if not any(row.parent is not None for row in run.rows):
        return []
    return [segment_of(trial) for trial in run.trials]


def family_tree(run: Run) -> Figure | None:
    """Every member over its optimizer steps, coloured by score, with a line from each donor to its copy."""
    segments = segments_of(run)
    if not segments:
        return None
    by_number = {segment.number: segment for segment in segments}
    bars: list[tuple[Any, Any]] = []
    copies: list[tuple[Any, Any]] = []
    steps = sorted({step for segment in segments for step in segment.values})
    slant = 0.4 * min((after - step for step, after in pairwise(steps)), default=0)  # lines that would hide each other
    for segment in segments:
        bars += [(segment.start, segment.member), (segment.stop, segment.member), (None, None)]
        parent = None if segment.parent is None else by_number[segment.parent]
        if parent is not None:
            copies += [((segment.forked_at or 0) - slant, parent.member), (segment.start, segment.member), (None, None)]
    points = [
        (step, segment.member, value, segment.number) for segment in segments for step, value in segment.values.items()
    ]
    data = [
        {**line(bars, "training", GREY), "hoverinfo": "skip"},
        {**line(copies, "copied from", COLOURS[2]), "hoverinfo": "skip"},
    ]
    best = best_row(run.rows, run.mode)
    if best is not None:
        data.append(line(_way(by_number, best.number), f"way to the best, trial {best.number}", BEST, width=4))
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
    segments = segments_of(run)
    names = [name for name in run.distributions if any(name in segment.params for segment in segments)][:_PARAMETERS]
    if not names:
        return None
    best = best_row(run.rows, run.mode)
    chosen = next((segment for segment in segments if best is not None and segment.number == best.number), None)
    schedule = [] if chosen is None else schedule_of(chosen, segments)
    panels = Panels(len(names), 2)
    data: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        hidden: dict[Any, str] = {}
        points: list[tuple[Any, Any]] = []
        for member in sorted({segment.member for segment in segments}):
            own = sorted((s for s in segments if s.member == member and name in s.params), key=lambda s: s.start)
            for segment in own:
                value = _shown(name, segment.params[name], hidden)
                points += [(segment.start, value), (segment.stop, value)]
            points.append((None, None))
        data.append({**line(points, "members", GREY, mode="lines+markers"), "marker": {"size": 4},
                     "showlegend": index == 0, **panels.axes(index)})  # fmt: skip
        taken = [
            (step, _shown(name, part.params[name], hidden))
            for part in schedule for step in (part.start, part.start + part.steps) if name in part.params
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


def _way(segments: dict[int, Segment], number: int) -> Sequence[tuple[Any, Any]]:
    """Places of a trial and its ancestors, first to last."""
    ways: list[tuple[int, int, int]] = []  # member, from step, to step
    segment: Segment | None = segments[number]
    until = segments[number].stop
    while segment is not None:
        ways.append((segment.member, segment.start, until))
        until = segment.start if segment.forked_at is None else segment.forked_at
        segment = None if segment.parent is None else segments[segment.parent]
    points = [(step, member) for member, start, stop in reversed(ways) for step in (start, stop)]
    return [at for index, at in enumerate(points) if index == 0 or at != points[index - 1]]
