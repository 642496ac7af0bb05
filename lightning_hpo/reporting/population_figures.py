"""Figures of a population: who copied whom, and the values of the hyperparameters that each member trained with."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lightning_hpo.records import Row, best_row
from lightning_hpo.reporting.drawing import BEST, COLOURS, GREY, Figure, Panels, axis, figure, line, safe
from lightning_hpo.reporting.run_view import Run
from lightning_hpo.study.table import SEGMENT
from lightning_hpo.text import is_secret, masked

_PARAMETERS = 8


@dataclass(frozen=True)
class _Segment:
    """Training of one member with constant hyperparameters: a trial, with where its weights come from."""

    row: Row
    member: int
    forked_at: int

    @property
    def start(self) -> int:
        """First optimizer step."""
        return self.row.start

    @property
    def stop(self) -> int:
        """Last optimizer step with a value."""
        return self.row.step


def _segments(run: Run) -> dict[int, _Segment]:
    """Number -> segment of a population; empty for another search."""
    if not any(row.parent is not None for row in run.rows):
        return {}
    found = {}
    for row, trial in zip(run.rows, run.trials, strict=True):
        notes = trial.system_attrs.get(SEGMENT, {})
        member, forked_at = notes.get("member"), notes.get("forked_at")
        found[row.number] = _Segment(
            row, row.number if member is None else member, row.start if forked_at is None else forked_at
        )
    return found


def _way(segments: Mapping[int, _Segment], number: int) -> list[tuple[_Segment, int]]:
    """Segments that the weights of a trial have gone through, first to last, each with the step where they left it."""
    way: list[tuple[_Segment, int]] = []
    segment: _Segment | None = segments[number]
    until = segments[number].stop
    while segment is not None:
        way.append((segment, until))
        until = segment.forked_at
        segment = None if segment.row.parent is None else segments[segment.row.parent]
    return way[::-1]


def family_tree(run: Run) -> Figure | None:
    """Every member over its optimizer steps, coloured by score, with a line from each donor to its copy."""
    by_number = _segments(run)
    segments = list(by_number.values())
    if not segments:
        return None
    bars: list[tuple[Any, Any]] = []
    copies: list[tuple[Any, Any]] = []
    steps = sorted({step for segment in segments for step in segment.row.values})
    slant = 0.4 * min((after - step for step, after in pairwise(steps)), default=0)  # lines that would hide each other
    for segment in segments:
        bars += [(segment.start, segment.member), (segment.stop, segment.member), (None, None)]
        if segment.row.parent is not None:
            copies += [
                (segment.forked_at - slant, by_number[segment.row.parent].member),
                (segment.start, segment.member),
                (None, None),
            ]
    points = [
        (step, segment.member, value, segment.row.number)
        for segment in segments
        for step, value in segment.row.values.items()
    ]
    data = [
        {**line(bars, "training", GREY), "hoverinfo": "skip"},
        {**line(copies, "copied from", COLOURS[2]), "hoverinfo": "skip"},
    ]
    best = best_row(run.rows, run.mode)
    if best is not None:
        way = _way(by_number, best.number)
        places = [(step, segment.member) for segment, until in way for step in (segment.start, until)]
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
    by_number = _segments(run)
    segments = list(by_number.values())
    names = [name for name in run.distributions if any(name in segment.row.params for segment in segments)]
    names = names[:_PARAMETERS]
    if not names:
        return None
    best = best_row(run.rows, run.mode)
    way = [] if best is None else _way(by_number, best.number)
    panels = Panels(len(names), 2)
    data: list[dict[str, Any]] = []
    for index, name in enumerate(names):
        hidden: dict[Any, str] = {}
        points: list[tuple[Any, Any]] = []
        for member in sorted({segment.member for segment in segments}):
            own = sorted((s for s in segments if s.member == member and name in s.row.params), key=lambda s: s.start)
            for segment in own:
                value = _shown(name, segment.row.params[name], hidden)
                points += [(segment.start, value), (segment.stop, value)]
            points.append((None, None))
        data.append({**line(points, "members", GREY, mode="lines+markers"), "marker": {"size": 4},
                     "showlegend": index == 0, **panels.axes(index)})  # fmt: skip
        taken = [
            (step, _shown(name, segment.row.params[name], hidden))
            for segment, until in way for step in (segment.start, until) if name in segment.row.params
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
