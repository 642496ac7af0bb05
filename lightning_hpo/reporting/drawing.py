"""Parts of figures in plotly's plain form, ``{"data": [...], "layout": {...}}``: axes, lines, panels, safe text.

Colours of background and text are left to the page.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any, TypeAlias

from lightning_hpo.records import Mode, Row, ranked
from lightning_hpo.text import hide_passwords, one_line

Figure: TypeAlias = dict[str, Any]

STATE_COLOURS = {"complete": "#2da44e", "pruned": "#bf8700", "running": "#4493f8", "failed": "#e5534b"}
COLOURS = ("#4493f8", "#2da44e", "#bf8700", "#a371f7", "#e5534b", "#39c5cf", "#db61a2", "#848d97")
BEST = "#e16f24"
GREY = "rgba(132,141,151,0.5)"
MOST = 1000
"""Trials in a figure."""


def safe(value: object) -> str:
    """Text for a figure or a page: one line, escaped, without passwords."""
    return escape(one_line(hide_passwords(str(value))))


def is_log(values: Iterable[float]) -> bool:
    """Whether an axis is better logarithmic: all values are positive and span two decades or more."""
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) >= 100 * min(finite)


def axis(title: str, values: Iterable[float] | None = None, *, log: bool | None = None, **more: Any) -> dict[str, Any]:
    """Describe an axis; logarithmic where its values ask for it, or as told."""
    kind = "log" if (is_log(values or ()) if log is None else log) else "linear"
    return {"title": {"text": safe(title)}, "type": kind, **more}


def thin(rows: Sequence[Row], mode: Mode, most: int = MOST) -> list[Row]:
    """Choose the rows of a figure: all, or the better half of as many as are shown and some of each age."""
    if len(rows) <= most:
        return list(rows)
    kept = {row.number for row in ranked(rows, mode)[: most // 2]}
    others = [row for row in rows if row.number not in kept]
    kept |= {others[index * len(others) // (most - most // 2)].number for index in range(most - most // 2)}
    return [row for row in rows if row.number in kept]


def finite_values(row: Row) -> dict[int, float]:
    """Step -> value, in order, where the value is a finite number."""
    return {step: value for step, value in sorted(row.values.items()) if math.isfinite(value)}


def line(points: Sequence[tuple[Any, Any]], name: str, colour: str, width: float = 1.5, **more: Any) -> dict[str, Any]:
    """A trace: a line through points."""
    shape = {"shape": more.pop("shape")} if "shape" in more else {}
    return {
        "type": "scatter", "mode": "lines", "name": name, "line": {"color": colour, "width": width, **shape},
        "x": [x for x, _ in points], "y": [y for _, y in points], **more,
    }  # fmt: skip


def star(x: Any, y: Any, name: str) -> dict[str, Any]:
    """A trace: the mark of the best trial."""
    return {"type": "scatter", "mode": "markers", "name": name, "x": [x], "y": [y],
            "marker": {"symbol": "star", "size": 16, "color": BEST}}  # fmt: skip


def figure(data: list[dict[str, Any]], x: dict[str, Any], y: dict[str, Any]) -> Figure:
    """A figure with one pair of axes."""
    return {"data": data, "layout": {"xaxis": x, "yaxis": y}}


class Panels:
    """Places of several pairs of axes in one figure, row by row."""

    def __init__(self, count: int, columns: int) -> None:
        self._columns = min(count, columns)
        self._rows = -(-count // self._columns)
        self.layout: dict[str, Any] = {"annotations": [], "height": 60 + 300 * self._rows}

    def axes(self, index: int) -> dict[str, str]:
        """Names of a panel's axes, for a trace."""
        end = str(index + 1) if index else ""
        return {"xaxis": f"x{end}", "yaxis": f"y{end}"}

    def describe(self, index: int, x: dict[str, Any], y: dict[str, Any], title: str = "") -> None:
        """Place a panel's axes and title."""
        column, row = index % self._columns, index // self._columns
        width, height = 1 / self._columns, 1 / self._rows
        left, top = column * width, 1 - row * height
        end = str(index + 1) if index else ""
        across = [left + 0.12 * width * (column > 0), left + width * 0.94]
        up = [top - height * 0.8 if row < self._rows - 1 else 0.0, top - height * 0.1]
        self.layout[f"xaxis{end}"] = {"domain": across, "anchor": f"y{end}", **x}
        self.layout[f"yaxis{end}"] = {"domain": up, "anchor": f"x{end}", **y}
        if title:
            self.layout["annotations"].append({
                "text": safe(title), "x": sum(across) / 2, "y": up[1], "xref": "paper", "yref": "paper",
                "xanchor": "center", "yanchor": "bottom", "showarrow": False,
            })  # fmt: skip
