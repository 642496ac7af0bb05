"""The slices through the Gaussian process of a search, as it was when the search ended."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_hpo.reporting.drawing import COLOURS, Figure, Panels, axis, safe
from lightning_hpo.reporting.run import Run

SLICES = "slices.json"
"""In the run folder: ``{"trials": n, "slices": [{"name", "values", "mean", "sd", "log"}, ...]}``, without secrets."""

_PARAMETERS = 9


def read_slices(path: Path) -> tuple[int, Sequence[dict[str, Any]]]:
    """Return of how many trials the model has learnt, and its slices; none without a file that can be read."""
    try:
        stored = json.loads((path / SLICES).read_text(encoding="utf-8"))
        return int(stored["trials"]), list(stored["slices"])
    except (OSError, KeyError, TypeError, ValueError):
        return 0, []


def model_slices(run: Run) -> Figure | None:
    """What the Gaussian process expects along each parameter, with two standard deviations."""
    trials, slices = read_slices(run.path)
    if not slices:
        return None
    panels = Panels(min(len(slices), _PARAMETERS), 3)
    data: list[dict[str, Any]] = []
    for index, part in enumerate(slices[:_PARAMETERS]):
        name, values, log = safe(part["name"]), part["values"], bool(part["log"])
        pairs = list(zip(part["mean"], part["sd"], strict=True))
        low, high = [mean - 2 * sd for mean, sd in pairs], [mean + 2 * sd for mean, sd in pairs]
        number = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
        x = values if number else [safe(value) for value in values]
        mean = {"type": "scatter", "name": name, "x": x, "y": part["mean"], "showlegend": False,
                "line": {"color": COLOURS[0]}, **panels.axes(index)}  # fmt: skip
        if number:
            data.append({
                "type": "scatter", "mode": "lines", "x": [*x, *x[::-1]], "y": [*high, *low[::-1]], "fill": "toself",
                "line": {"width": 0}, "fillcolor": "rgba(68,147,248,0.25)", "hoverinfo": "skip", "showlegend": False,
                **panels.axes(index),
            })  # fmt: skip
            data.append({**mean, "mode": "lines"})
        else:
            data.append({**mean, "mode": "markers", "error_y": {"type": "data", "array": [2 * sd for _, sd in pairs]}})
        kind = "log" if log else "linear" if number else "category"
        title = f"{run.monitor} after {trials} trials" if index % 3 == 0 else ""
        panels.describe(index, {"title": {"text": name}, "type": kind}, axis(title, (*low, *high)))
    return {"data": data, "layout": panels.layout}
