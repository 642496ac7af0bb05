"""The report of a run: one HTML file with figures and a table, which loads nothing and runs no script but its own."""

import base64
import hashlib
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from lightning_hpo.atomic import atomic_write
from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import Row, best_row, confirmations, ranked, spent
from lightning_hpo.reporting import figures, model_figure, population_figures
from lightning_hpo.reporting.console import ABSENT, mean_over_seeds, over_folds, what_it_confirms
from lightning_hpo.reporting.drawing import Figure, safe
from lightning_hpo.reporting.parameter_figures import ParameterFigures
from lightning_hpo.reporting.run import Run
from lightning_hpo.reporting.run_view import lines_of, read_best, read_run
from lightning_hpo.text import hide_passwords, masked, one_line

_ROWS, _CELLS = 1000, 20_000  # of the table
_FAILURES = 100


@dataclass(frozen=True)
class Part:
    """A figure of the report.

    Args:
        title: above it.
        caption: what it shows.
        figure: in plotly's plain form; None if it could not be drawn.
        problem: why it could not be drawn.
    """

    title: str
    caption: str
    figure: Figure | None
    problem: str = ""


def draw_parts(run: Run) -> dict[str, Part]:
    """Draw all figures that a run has something for, by name."""
    parameters = ParameterFigures(run)
    at = f"after {run.unit.amount(parameters.step or 0)}"
    makers: dict[str, tuple[str, str, Callable[[], Figure | None]]] = {
        "history": (
            "History", "Last value of each trial, and the best so far of those that got furthest.",
            lambda: figures.history(run),
        ),
        "curves": (
            "Learning curves", "Value at each rung or validation; the best trial is marked.",
            lambda: figures.learning_curves(run),
        ),
        "brackets": (
            "Brackets", "Trials judged at each rung by what became of them; the lines are the plan of what was begun.",
            lambda: figures.brackets(run),
        ),
        "promotions": (
            "Promotions", "How far each trial was taken, coloured by its place among all trials of a rung.",
            lambda: figures.promotions(run),
        ),
        "family": (
            "Lineage", "Members of the population over their steps, and who copied whom.",
            lambda: population_figures.family_tree(run),
        ),
        "effective": (
            "Effective values", "Hyperparameters that the members trained with; the best one's schedule is marked.",
            lambda: population_figures.effective_values(run),
        ),
        "pareto": ("Compromises", "Trials that no other is better than in all objectives.", parameters.pareto_front),
        "importance": (
            "Importance", f"How much each parameter matters to be among the best {at} (PED-ANOVA).",
            parameters.importance,
        ),
        "slice": ("Slices", f"Score {at} over each parameter.", parameters.slice),
        "model": (
            "What the model expects",
            "Mean and two standard deviations of the Gaussian process, through its best configuration.",
            lambda: model_figure.model_slices(run),
        ),
        "parallel": ("Parallel coordinates", f"The best trials {at}, up to a hundred.", parameters.parallel),
        "contour": ("Contour", f"Score {at} over the two parameters that matter most.", parameters.contour),
        "rank": ("Rank", f"Rank {at} over the two parameters that matter most.", parameters.rank),
        "metrics": (
            "Other metrics", "What the best trials have logged; choose the metric on the left.",
            lambda: figures.other_metrics(run),
        ),
        "plan": ("Plan and spent", "Training on the way to each rung.", lambda: figures.plan_and_spent(run)),
        "timeline": ("Timeline", "When the last trials ran; a paused trial counts as running.", parameters.timeline),
        "durations": (
            "Durations", "Time from the start of a trial to its end, pauses included.",
            lambda: figures.durations(run),
        ),
    }  # fmt: skip
    parts = {}
    with warnings_only("optuna", least=logging.ERROR), warnings.catch_warnings():
        # Of a parameter with one value, or a clock that was set back: a reader of the page can do nothing about it.
        warnings.simplefilter("ignore", UserWarning)
        for name, (title, caption, make) in makers.items():
            try:
                drawn, problem = make(), ""
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:  # of odd values
                drawn, problem = None, f"{type(error).__name__}: {error}"
            if drawn is not None or problem:
                parts[name] = Part(title, caption, drawn, problem)
    return parts


def write_report(run: Run, path: str | Path | None = None, *, refresh: int | None = None) -> Path:
    """Write ``report.html``, whole or not at all, and return its path.

    Args:
        run: to show.
        path: of the file. Default: in the run folder.
        refresh: seconds after which a browser reads the file again; None for never.
    """
    path = run.path / "report.html" if path is None else Path(path)
    atomic_write(path, to_html(run, refresh))
    return path


def keep_report(run: Run, storage: str | None = None, every: int = 5) -> Path:
    """Write the report again and again while somebody is at work on the run, or until Ctrl-C.

    Args:
        run: to show.
        storage: URL of the study if it is not in the folder.
        every: seconds between two reports; a browser that shows the page reads it as often.
    """
    try:
        while run.owner is not None:
            write_report(run, refresh=every)
            time.sleep(every)
            run = read_run(run.path, storage)
    except KeyboardInterrupt:
        pass  # the search goes on; the page is left without the refresh
    return write_report(run)


def to_html(run: Run, refresh: int | None = None) -> str:
    """Render a run as one HTML page; all its text is escaped, and no script runs but the page's own."""
    from plotly.offline import get_plotlyjs  # noqa: PLC0415  # 5 MB, and only a report needs it

    parts = draw_parts(run)
    drawn = {name: part.figure for name, part in parts.items() if part.figure is not None}
    scripts = [get_plotlyjs(), (files(__package__) / "page.js").read_text(encoding="utf-8")]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; script-src "
    policy += " ".join(map(_hash, scripts))
    name = safe(run.path.name)
    again = "" if refresh is None else f'<meta http-equiv="refresh" content="{refresh}">'
    return "".join([
        '<!doctype html><html lang="en"><head><meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">{again}',
        f"<title>{name}</title><style>{(files(__package__) / 'page.css').read_text(encoding='utf-8')}</style></head>",
        f"<body>{_summary(run)}{''.join(_part(*part) for part in parts.items())}{_failures(run)}{_trials(run)}",
        f'<script type="application/json" id="figures">{to_json(drawn)}</script>',
        *(f"<script>{script}</script>" for script in scripts),
        "</body></html>\n",
    ])  # fmt: skip


def to_json(drawn: Mapping[str, Figure]) -> str:
    """Write figures so that nothing in them ends a script; numbers have six digits."""
    return json.dumps(_plain(drawn), separators=(",", ":"), ensure_ascii=False).replace("<", "\\u003c")


def table(run: Run, rows: Sequence[Row]) -> str:
    """Trials as a table, the best one marked; secrets are masked."""
    names = list(run.distributions)
    best = best_row(run.rows, run.mode)
    limits = run.settings.get("constraints", ())
    spread = ("± over folds",) if any(row.folds for row in run.rows) else ()
    columns = ("trial", "state", "ended", "parent", run.unit.name, "seconds", run.monitor, *spread, *limits, *names)
    head = "".join(f'<th scope="col"><button>{safe(name)}</button></th>' for name in columns)
    body = []
    for row in rows:
        cells = [
            row.number,
            run.state(row) + what_it_confirms(row),
            row.ended,
            row.parent,
            run.unit.number(row.step),
            _seconds(run, row),
        ]
        cells += [row.values[row.step] if row.values else None]
        cells += [row.spread for _ in spread]
        cells += [run.trials[row.number].constraints.get(name) for name in limits]
        cells += [masked(name, row.params.get(name, ABSENT)) for name in names]
        mark = ' class="best"' if row is best else ""
        body.append(f"<tr{mark}>{''.join(f'<td>{escape(_cell(cell))}</td>' for cell in cells)}</tr>")
    return f'<div class="table"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def summary_lines(run: Run) -> list[str]:
    """What a person wants to know first, as lines of escaped HTML."""
    best = best_row(run.rows, run.mode)
    lines = [f"{safe(run.counts)}; {run.amount(spent(run.rows))}"]
    if best is not None and best.score is not None:
        params = ", ".join(
            f"{safe(name)} = {escape(_cell(masked(name, value)))}" for name, value in best.params.items()
        )
        score = f"trial {best.number}, {safe(run.monitor)} = {best.score:.6g}"
        score += f" {over_folds(best)}".rstrip() + ("" if best.feasible else " (infeasible, as all trials)")
        if answer := mean_over_seeds(run.rows, run.mode):
            score = f"{safe(run.monitor)} = {answer}"
        lines.append(
            f"<strong>Best: {score}</strong> after {run.unit.number(best.step)} {run.unit.name}, with {params}"
        )
    return lines


def confirmed_table(run: Run) -> str:
    """Configurations that were confirmed, as a table of escaped HTML; nothing without any."""
    found = confirmations(run.rows, run.mode)
    if not found:
        return ""
    head = "".join(f"<th>{safe(name)}</th>" for name in ("trial", f"mean {run.monitor}", "standard deviation", "n",
                                                         "the search saw", "optimism", "failed"))  # fmt: skip
    body = ""
    for each in found:
        cells = (each.trial, each.mean, each.std, each.n, each.seen, each.optimism, each.failed)
        body += f"<tr>{''.join(f'<td>{escape(_cell(cell))}</td>' for cell in cells)}</tr>"
    tie = "<p>A tie: the best mean is within one standard error of another.</p>" if found[0].tied else ""
    return (
        "<h2>Confirmed with other seeds</h2><p>Optimism: by how much the search had seen a better score than the mean."
        f'</p><div class="table"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>{tie}'
    )


def _summary(run: Run) -> str:
    parts = [f'<header><h1>{safe(run.path.name)}</h1><button id="theme">dark</button></header>']
    parts += [f"<p>{line}</p>" for line in summary_lines(run)]
    if (run.path / "best.yaml").exists() and best_row(run.rows, run.mode) is not None:
        parts.append(f"<details><summary>best.yaml</summary><pre>{escape(read_best(run))}</pre></details>")
    return "".join([*parts, confirmed_table(run)])


def _part(name: str, part: Part) -> str:
    head = f"<h2>{part.title}</h2><p>{part.caption}</p>"
    if part.figure is None:
        return f"{head}<p>Not drawn: {safe(part.problem)}</p>"
    return f'{head}<div class="figure" id="{name}"></div>'


def _failures(run: Run) -> str:
    if not run.failures:
        return ""
    shown = [(number, hide_passwords(reason)[:4000]) for number, reason in list(run.failures.items())[:_FAILURES]]
    blocks = []
    for number, reason in shown:
        first, _, after = (lines_of(reason) or "no reason given").partition("\n")
        blocks.append(
            f"<details><summary>trial {number}: {escape(first)}</summary><pre>{escape(after)}</pre></details>"
        )
    more = f"<p>and {len(run.failures) - len(shown)} more</p>" if len(run.failures) > len(shown) else ""
    return f"<h2>Failures</h2><p>{len(run.failures)} of {len(run.rows)} trials.</p>{''.join(blocks)}{more}"


def _micro_batches(run: Run) -> str:
    """Which trials were out of memory, and what they trained with."""
    split = {trial.number: trial.user_attrs["micro_batch"] for trial in run.trials if "micro_batch" in trial.user_attrs}
    said = [f"trial {number} in micro-batches of {note['batch_size']}" for number, note in split.items()]
    more = f" and {len(said) - _FAILURES} more" if len(said) > _FAILURES else ""
    return f"<p>Out of memory, and trained on: {safe(', '.join(said[:_FAILURES]))}{more}.</p>" if said else ""


def _trials(run: Run) -> str:
    most = min(_ROWS, max(_CELLS // (len(run.distributions) + 7), 10))
    kept = {row.number for row in ranked(run.rows, run.mode)[:most]}
    rows = run.rows if len(run.rows) <= most else [row for row in run.rows if row.number in kept]
    more = "" if rows is run.rows else f"<p>The best {len(rows):,} of {len(run.rows):,} trials.</p>"
    return f'<h2 id="trials">Trials</h2>{more}{_micro_batches(run)}{table(run, rows)}'


def _seconds(run: Run, row: Row) -> float | None:
    duration = run.trials[row.number].duration if run.trials else None
    return None if duration is None else round(duration.total_seconds(), 2)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else one_line(value)


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plain(value: Any) -> Any:
    """Plain values for JSON: floats of six digits, no NaN, no arrays, no dates."""
    if isinstance(value, bool | str | int | None):
        return value
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if hasattr(value, "tolist"):
        return _plain(value.tolist())
    return value.isoformat() if hasattr(value, "isoformat") else str(value)
