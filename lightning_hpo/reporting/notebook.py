"""A result in a notebook: its summary as HTML, its trials as a DataFrame, and the figures of the report."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lightning_hpo.records import Row, ranked
from lightning_hpo.reporting.report import draw_parts, summary_lines, table
from lightning_hpo.reporting.run_view import Run
from lightning_hpo.text import masked, nearest

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

_ROWS = 10


class Figures(dict[str, "go.Figure"]):
    """Figures of a report by name; a notebook shows all of them."""

    def show(self) -> None:
        """Show every figure the way plotly is set up to."""
        for figure in self.values():
            figure.show()

    def _ipython_display_(self) -> None:
        self.show()


def summary(run: Run) -> str:
    """Return the best trials of a run as HTML, without scripts."""
    best = {row.number for row in ranked(run.rows, run.mode)[:_ROWS]}
    lines = "".join(f"<p>{line}</p>" for line in summary_lines(run))
    return lines + table(run, [row for row in run.rows if row.number in best])


def dataframe(run: Run) -> "pd.DataFrame":
    """Return a row for each trial.

    Raises:
        ModuleNotFoundError: without pandas; the message has the install line.
    """
    try:
        import pandas as pd  # noqa: PLC0415  # an extra
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("dataframe() needs pandas: pip install 'lightning-hpo-suite[pandas]'") from error
    return pd.DataFrame([_record(run, row) for row in run.rows]).set_index("trial")


def plot(run: Run, *names: str) -> "Figures | go.Figure":
    """Draw figures of the report.

    Args:
        run: to draw.
        names: of the figures, such as ``"curves"``. Default: all that the run has something for.

    Returns:
        The figure of one name, or all of several names.

    Raises:
        ValueError: if the run has no figure of a name.
    """
    import plotly.graph_objects as go  # noqa: PLC0415  # loaded where something is drawn

    parts = {name: part for name, part in draw_parts(run).items() if part.figure is not None}
    for name in names:
        if name not in parts:
            raise ValueError(f"there is no figure {name!r}; this search has {', '.join(parts)}.{nearest(name, parts)}")
    figures = Figures()
    for name in names or parts:
        figures[name] = go.Figure(parts[name].figure).update_layout(title=parts[name].title)
    return figures[names[0]] if len(names) == 1 else figures


def _record(run: Run, row: Row) -> Mapping[str, Any]:
    trial = run.trials[row.number]
    return {
        "trial": row.number,
        "state": row.state,
        "step": row.step,
        "value": row.values[row.step] if row.values else None,
        "ended": row.ended,
        "parent": row.parent,
        "start": row.start,
        "seconds": None if trial.duration is None else trial.duration.total_seconds(),
        **{f"params_{name}": masked(name, row.params.get(name)) for name in run.distributions},
    }
