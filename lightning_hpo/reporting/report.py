"""What a run folder holds, for people: a summary as text, and a report as one HTML file that needs nothing else.

Only the study and the files of the run are read; nothing that its config names is imported.
"""

import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection

from lightning_hpo.atomic import atomic_write
from lightning_hpo.errors import StorageError
from lightning_hpo.records import Mode, Row, best_row, reach, spent
from lightning_hpo.reporting.best import disagreement
from lightning_hpo.reporting.console import ABSENT, Console
from lightning_hpo.schedulers.units import STEPS, Unit
from lightning_hpo.space import SearchSpace, parse_space
from lightning_hpo.study.journal import JOURNAL, read_journal
from lightning_hpo.study.storage_errors import readable, sqlite_url
from lightning_hpo.study.table import FAILURE, FINGERPRINT, read_rows
from lightning_hpo.study.trial_folders import STUDY_ID, identity_of
from lightning_hpo.text import HIDDEN, hide_passwords, is_secret, masked, one_line

_COLOURS = {"complete": "#1a7f37", "pruned": "#9a6700", "running": "#0969da", "failed": "#cf222e"}
_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #1f2328 }
table { border-collapse: collapse } td, th { border: 1px solid #d0d7de; padding: 2px 8px; text-align: right }
pre { white-space: pre-wrap; background: #f6f8fa; padding: 8px } svg { margin: 4px; background: #f6f8fa }
text { font-size: 11px; fill: #57606a }
"""


@dataclass(frozen=True)
class Run:
    """A run as its files tell it.

    Args:
        path: of the run folder.
        rows: all trials.
        mode: whether lower or higher scores are better, in the first objective.
        monitor: what the score is called.
        failures: trial number -> reason.
        distributions: of every parameter, as the study has them.
        owner: process id at work on it, or None.
        study_id: of the study; empty if it was made by an older version.
        unit: of the budget.
    """

    path: Path
    rows: Sequence[Row]
    mode: Mode
    monitor: str
    failures: Mapping[int, str]
    distributions: Mapping[str, BaseDistribution]
    owner: int | None
    study_id: str = ""
    space: SearchSpace | None = None
    unit: Unit = STEPS

    def amount(self, count: int) -> str:
        """Return an amount of training in the unit of the budget."""
        return f"{self.unit.number(count):,} {self.unit.label}"


def read_run(path: str | Path, storage: str | None = None) -> Run:
    """Read a run folder, finished or at work.

    Args:
        path: of the run folder, ``runs/<name>``.
        storage: URL of the study if it is not in the folder.

    Raises:
        StorageError: if there is no study.
    """
    path = Path(path).resolve()
    opened: str | BaseStorage
    if storage is not None:
        opened = storage
    elif (file := path / JOURNAL).is_file():
        opened = read_journal(file)
    elif (file := path / "study.db").is_file():  # of the first edition of this package
        opened = sqlite_url(file)
    else:
        raise StorageError(f"{path} holds no {JOURNAL}: give the folder of a run, runs/<name>, or its storage.")
    try:
        with readable(path):
            study = optuna.load_study(study_name=path.name, storage=opened)
            trials = study.get_trials(deepcopy=False)
            attributes = study.user_attrs
    except KeyError:
        raise StorageError(f"the storage of {path} holds no study with the name {path.name!r}.") from None
    noted = attributes.get(FINGERPRINT, {})
    monitor = noted.get("monitor") or "score"
    max_steps = noted.get("scheduler", {}).get("max_steps", 1)
    distributions = _joined(named for trial in trials for named in trial.distributions.items())
    return Run(
        path,
        read_rows(study, at=max_steps),
        "min" if study.directions[0] is StudyDirection.MINIMIZE else "max",
        monitor if isinstance(monitor, str) else str(monitor[0]),
        {trial.number: str(trial.user_attrs.get(FAILURE, "")) for trial in trials if trial.state.name == "FAIL"},
        distributions,
        _owner(path),
        attributes.get(STUDY_ID, ""),
        _space(noted.get("space")),
        Unit.from_settings(noted.get("unit")),
    )


def _space(texts: Any) -> SearchSpace | None:
    """Space of a study as its fingerprint has it; None for a function of a trial, or where it cannot be read."""
    try:
        return parse_space(texts)
    except (TypeError, ValueError):
        return None


def _joined(distributions: Iterable[tuple[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """The last distribution of each name; of a choice that has changed, the choices of all trials."""
    joined: dict[str, BaseDistribution] = {}
    for name, new in distributions:
        old = joined.get(name)
        if isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution) and old != new:
            more = [choice for choice in new.choices if choice not in old.choices]
            joined[name] = CategoricalDistribution([*old.choices, *more])
        else:
            joined[name] = new
    return joined


def read_best(run: Run) -> str:
    """Return the text of ``best.yaml``, without the values of secrets; a comment if it cannot be read.

    Raises:
        StorageError: if there is none yet.
    """
    path = run.path / "best.yaml"
    if not path.exists():
        raise StorageError(f"{run.path} holds no best.yaml yet: no trial has succeeded.")
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)  # nothing is constructed
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"# {path.name} is not shown: it is no YAML ({type(error).__name__})\n"
    _hide_secrets(node)
    return _lines(yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=1000)) + "\n"


def show(run: Run) -> None:
    """Print a summary, and compare the files of the best trial with the study.

    Raises:
        StorageError: if ``best.ckpt`` or ``best.yaml`` is of another trial or step than the study's best, and no
            process is at work that may be about to write it.
    """
    console = Console(run.monitor, run.mode, verbose=True, unit=run.unit)
    console.line(f"{run.path}  ({f'process {run.owner} is at work' if run.owner else 'nobody is at work'})")
    console.line(f"{_counts(run)}; {run.amount(spent(run.rows))}")
    console.table(run.rows)
    for number, reason in run.failures.items():
        console.line(f"trial {number} failed: {(reason.splitlines() or ['no reason given'])[0]}")
    for name in ("best.yaml", "best.ckpt"):
        if (run.path / name).exists():
            console.line(f"{name}: {run.path / name}")
    best = best_row(run.rows, run.mode)
    if best is not None and run.owner is None:
        identity = identity_of(run.study_id, best.number, best.params) if run.study_id else {}
        what = disagreement(best, identity, run.path / "best.ckpt", run.path / "best.yaml", run.space)
        if what is not None:
            raise StorageError(f"{run.path}: {what}, so it is not the study's best: run the search again to mend it")


def write_report(run: Run, path: str | Path | None = None) -> Path:
    """Write ``report.html``, whole or not at all, and return its path."""
    path = run.path / "report.html" if path is None else Path(path)
    atomic_write(path, to_html(run))
    return path


def to_html(run: Run) -> str:
    """Render a run as one HTML page without scripts and without anything to load; all its text is escaped."""
    best = best_row(run.rows, run.mode)
    parts = [f"<h1>{_safe(run.path.name)}</h1><p>{_safe(_counts(run))}; {run.amount(spent(run.rows))}</p>"]
    if best is not None:
        parts.append(
            f"<p>Best: trial {best.number}, {_safe(run.monitor)} = {best.score:.6g} after "
            f"{run.unit.number(best.step)} {run.unit.name}</p>"
        )
        config = run.path / "best.yaml"
        if config.exists():
            parts.append(f"<details><summary>best.yaml</summary><pre>{escape(read_best(run))}</pre></details>")
    parts += ["<h2>History</h2>", _history(run), "<h2>Learning curves</h2>", _curves(run)]
    parts += ["<h2>Parameters</h2>", *(_parameter(run, name) for name in run.distributions)]
    if run.failures:
        rows = [(number, hide_passwords(reason)[:4000]) for number, reason in run.failures.items()]
        parts += [
            "<h2>Failures</h2>",
            *(f"<p>trial {number}</p><pre>{escape(_lines(reason))}</pre>" for number, reason in rows),
        ]
    parts += ["<h2>Trials</h2>", _table(run)]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{_safe(run.path.name)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>\n"
    )


def _owner(path: Path) -> int | None:
    try:
        pid = int(json.loads((path / "owner.json").read_text())["pid"])
        os.kill(pid, 0)
    except (OSError, ValueError, KeyError):
        return None
    return pid


def _counts(run: Run) -> str:
    at_work = run.owner not in (None, os.getpid())  # this process writes a report when its work is over
    counts = Counter("paused" if row.state == "running" and not at_work else row.state for row in run.rows)
    return f"{len(run.rows)} trials: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items()))


def _last(row: Row) -> float | None:
    """Score of a row where it got furthest, if it is a number."""
    value = row.values[max(row.values)] if row.values else math.nan
    return value if math.isfinite(value) else None


def _history(run: Run) -> str:
    scored = [(row, score) for row in run.rows if (score := _last(row)) is not None]
    points = [(row.number, score, row.state, f"trial {row.number}: {score:.6g}") for row, score in scored]
    line: list[tuple[float, float]] = []
    competing = [row for row in run.rows if row.score is not None and row.feasible]
    furthest = max(map(reach, competing), default=0)
    better = min if run.mode == "min" else max
    for row in competing:
        if reach(row) == furthest and row.score is not None:
            line.append((row.number, better(row.score, line[-1][1]) if line else row.score))
    return _plot([line], points, "trial", run.monitor, size=(640, 260))


def _curves(run: Run) -> str:
    lines = [
        [(run.unit.number(step), v) for step, v in sorted(row.values.items()) if math.isfinite(v)] for row in run.rows
    ]
    ends = [
        (line[-1][0], line[-1][1], row.state, f"trial {row.number} @ {line[-1][0]}: {line[-1][1]:.6g}")
        for row, line in zip(run.rows, lines, strict=True)
        if line
    ]
    return _plot(lines, ends, run.unit.label.removesuffix("s"), run.monitor, size=(640, 260))


def _parameter(run: Run, name: str) -> str:
    distribution = run.distributions[name]
    points = []
    for row in run.rows:
        score = _last(row)
        if score is None or name not in row.params:
            continue
        value = row.params[name]
        shown = masked(name, value)
        place = distribution.to_internal_repr(value)
        if getattr(distribution, "log", False):
            place = math.log10(place)
        points.append((place, score, row.state, f"trial {row.number}: {name}={shown}, {score:.6g}"))
    if isinstance(distribution, CategoricalDistribution):
        label = f"{name}: {', '.join(str(masked(name, choice)) for choice in distribution.choices)}"
    else:
        label = f"log10 {name}" if getattr(distribution, "log", False) else name
    return _plot([], points, label, run.monitor, size=(310, 200))


def _table(run: Run) -> str:
    names = list(run.distributions)
    columns = ("trial", "state", "ended", "parent", run.unit.name, run.monitor, *names)
    head = "".join(f"<th>{_safe(name)}</th>" for name in columns)
    body = []
    for row in run.rows:
        score = row.values[row.step] if row.values else None
        cells = [row.number, row.state, row.ended, row.parent, run.unit.number(row.step), score]
        cells += [masked(name, row.params.get(name, ABSENT)) for name in names]
        body.append(f"<tr>{''.join(f'<td>{escape(_cell(cell))}</td>' for cell in cells)}</tr>")
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else one_line(value)


def _safe(text: str) -> str:
    """Text of one line for a page."""
    return escape(one_line(text))


def _lines(text: str) -> str:
    """Text of several lines, without other control characters."""
    return "\n".join(map(one_line, text.splitlines()))


def _hide_secrets(node: Any, name: str = "") -> None:
    """Replace the scalars of a YAML document that are secrets, by the names of the mappings they are in."""
    match node:
        case yaml.MappingNode():
            for key, value in node.value:
                inner = str(key.value)
                _hide_secrets(value, f"{inner}.{name}" if is_secret(name) else inner)
        case yaml.SequenceNode():
            for value in node.value:
                _hide_secrets(value, name)
        case yaml.ScalarNode(tag=tag, value=text):
            is_number = tag.endswith((":int", ":float"))
            node.value = HIDDEN if is_secret(name, 0 if is_number else text) else hide_passwords(text)


def _plot(
    lines: Iterable[Sequence[tuple[float, float]]],
    points: Sequence[tuple[float, float, str, str]],
    x_label: str,
    y_label: str,
    *,
    size: tuple[int, int],
) -> str:
    """Lines and points (x, y, state, what a mouse over it says) as SVG, with the ends of both axes written down."""
    lines = [line for line in lines if line]
    xs = [x for line in lines for x, _ in line] + [point[0] for point in points]
    ys = [y for line in lines for _, y in line] + [point[1] for point in points]
    if not xs:
        return "<p>no values yet</p>"
    (width, height), (left, bottom, top) = size, (62, 34, 10)
    x0, x1, y0, y1 = min(xs), max(xs), min(ys), max(ys)

    def at(x: float, y: float) -> str:
        across = (x / 2 - x0 / 2) / ((x1 / 2 - x0 / 2) or 1)  # halves: the ends may be as far apart as floats go
        up = (y / 2 - y0 / 2) / ((y1 / 2 - y0 / 2) or 1)
        return f"{left + across * (width - left - 14):.1f},{height - bottom - up * (height - bottom - top):.1f}"

    drawn = [
        f'<polyline fill="none" stroke="#8c959f" points="{" ".join(at(x, y) for x, y in line)}"/>' for line in lines
    ]
    for x, y, state, words in points:
        cx, cy = at(x, y).split(",")
        drawn.append(
            f'<circle cx="{cx}" cy="{cy}" r="3" fill="{_COLOURS[state]}"><title>{_safe(words)}</title></circle>'
        )
    texts = [
        (left - 4, top + 8, "end", f"{y1:.4g}"),
        (left - 4, height - bottom, "end", f"{y0:.4g}"),
        (left, height - bottom + 14, "start", f"{x0:.4g}"),
        (width - 14, height - bottom + 14, "end", f"{x1:.4g}"),
        ((width + left) / 2, height - 6, "middle", x_label),
        (4, top + 24, "start", y_label),
    ]
    drawn += [f'<text x="{x}" y="{y}" text-anchor="{anchor}">{_safe(words)}</text>' for x, y, anchor, words in texts]
    return f'<svg width="{width}" height="{height}" role="img">{"".join(drawn)}</svg>'
