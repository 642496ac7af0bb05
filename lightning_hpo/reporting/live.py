"""The live view: one block of a terminal that shows a search at work, drawn with rich by a thread of its own."""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal
from rich.console import Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from lightning_hpo.records import Row, ranked
from lightning_hpo.reporting.console import duration, mean_over_seeds, short, what_it_confirms
from lightning_hpo.reporting.view import BEST, View
from lightning_hpo.text import hide_passwords, masked, one_line

_BARS = "▁▂▃▄▅▆▇█"
_SHARE = 0.005  # of one core, at most, for drawing
_INTERVAL = 1.0
_PARAMS = 6  # columns of parameters


class LiveView:
    """Draws a search again and again while the block runs; what is printed meanwhile stands above it.

    Drawing takes at most half a hundredth of a core: the longer a drawing takes, the fewer there are.

    Args:
        view: returns how the search stands.
        stream: a terminal. Default: ``sys.stdout``.
    """

    def __init__(self, view: Callable[[], View], stream: Any = None) -> None:
        self._view = view
        self._stream = sys.stdout if stream is None else stream
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=redraw, args=(self._over, self._draw), name="lightning_hpo live view", daemon=True
        )
        terminal = Terminal(file=self._stream, highlight=False, markup=False, emoji=False)
        self._live = Live(console=terminal, auto_refresh=False, transient=True)

    def __enter__(self) -> Self:
        self._printed = printed = sys.stdout, sys.stderr
        with suppress(OSError, ValueError):
            self._live.start()
        if hasattr(os, "register_at_fork"):
            replaced = sys.stdout, sys.stderr
            os.register_at_fork(after_in_child=lambda: _give_back(replaced, printed))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        with suppress(OSError, ValueError):  # the terminal is gone
            self._live.stop()
        sys.stdout, sys.stderr = self._printed

    def _draw(self) -> None:
        size = self._live.console.size
        self._live.update(block(self._view(), size.height, size.width), refresh=True)


def redraw(over: threading.Event, draw: Callable[[], None]) -> None:
    """Draw again and again; the longer a drawing takes, the fewer there are."""
    took = 0.0
    while not over.wait(max(_INTERVAL, took / _SHARE)):
        before = time.thread_time()
        try:
            draw()
        except (OSError, ValueError):  # the terminal is gone; the search goes on
            return
        took = time.thread_time() - before


def block(view: View, height: int = 50, width: int = 120) -> RenderableType:
    """Draw a view."""
    generations = _generations(view)[:3]
    rungs = _rungs(view)[: max(height // 5, 1)]
    lines = max(height - len(generations) - len(rungs) - 8, 3)
    parts: list[RenderableType] = [_head(view), _bar(view, width), _best(view)]
    if view.rows:
        parts.append(_table(view, lines))
    parts += [_text(line, style="dim") for line in (*rungs, *generations)]
    return Group(*parts)


def sparkline(values: Sequence[float], width: int = 12) -> str:
    """Draw values as bars, the largest one full.

    Example:
        >>> sparkline([3.0, 2.0, 1.0])
        '█▅▁'
    """
    finite = [value for value in values if math.isfinite(value)]
    if len(finite) > width:
        finite = [finite[round(index * (len(finite) - 1) / (width - 1))] for index in range(width)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    span = (high / 2 - low / 2) or 1.0  # halves: the ends may be as far apart as floats go
    return "".join(_BARS[round((value / 2 - low / 2) / span * (len(_BARS) - 1))] for value in finite)


def _give_back(replaced: tuple[Any, Any], printed: tuple[Any, Any]) -> None:
    """Let a forked process print directly: the thread that draws is not in it, and may have held a lock."""
    if sys.stdout is replaced[0]:
        sys.stdout = printed[0]
    if sys.stderr is replaced[1]:
        sys.stderr = printed[1]


def _text(text: object, style: str = "") -> Text:
    """Text of one line: no control characters, no passwords, no markup."""
    return Text(one_line(hide_passwords(str(text))), style=style, no_wrap=True, overflow="ellipsis")


def _head(view: View) -> Text:
    counts = {state: sum(row.state == state for row in view.rows) for state in ("complete", "pruned", "failed")}
    listed = [f"{count} {state}" for state, count in counts.items() if count]
    words = ", ".join([*listed, f"{len(view.running)} running"])
    return _text(f"{view.plan.title or 'search'}: {len(view.rows)} trials ({words})", style="bold")


def _bar(view: View, width: int) -> RenderableType:
    left = "" if view.left is None else f", about {duration(view.left)} left"
    time_so_far = f"; {duration(view.elapsed)}{left}" if view.elapsed else f"{left}"
    if not view.plan.steps:
        return _text(f"{view.done:,} {view.plan.unit}{time_so_far}")
    steps = view.plan.without(view.rows).steps
    share = min(view.done / steps, 1.0) if steps else 1.0
    words = _text(f"{share:.0%}  {view.done:,} of {steps:,} {view.plan.unit.removeprefix('optimizer ')}{time_so_far}")
    room = min(width - len(words) - 2, 40)
    if room < 5:
        return words
    line = Table.grid(padding=(0, 1))
    line.add_row(ProgressBar(total=1.0, completed=share, width=room), words)
    return line


def _best(view: View) -> Text:
    best = view.best
    if best is None or best.score is None:
        return _text("no score yet")
    answer = mean_over_seeds(view.rows, view.mode) or f"{best.score:.5g} (trial {best.number} @ {best.step})"
    words = f"best: {view.monitor} {answer}"
    params = "  ".join(f"{name}={short(masked(name, value))}" for name, value in best.params.items())
    where = "" if view.checkpoint is None else f"  {view.checkpoint.name}"
    return _text(f"{words}  {params}{where}", style="green")


def _table(view: View, lines: int) -> Table:
    running = [view.rows[number] for number in view.running if number < len(view.rows)]
    best = [row for row in ranked(view.rows, view.mode) if row.number not in view.running]
    shown = [*running[: max(lines - 2, 1)], *best[:BEST]][:lines]
    names = list(dict.fromkeys(name for row in shown for name in row.params))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("trial", "state", _axis(view), view.monitor):
        table.add_column(_text(name), justify="right", no_wrap=True)
    table.add_column("")
    table.add_column("time", justify="right", no_wrap=True)
    for name in names[:_PARAMS]:
        table.add_column(_text(name), justify="right", no_wrap=True, overflow="ellipsis", max_width=18)
    for row in shown:
        seconds = view.running.get(row.number)
        value = view.value(row)
        cells = [
            row.number,
            ("running" if seconds is not None else _state(row)) + what_it_confirms(row),
            _steps(view, row),
            "" if value is None else f"{value:.5g}",
            sparkline(view.curve(row)),
            "" if seconds is None else duration(seconds),
            *(short(masked(name, row.params[name])) if name in row.params else "–" for name in names[:_PARAMS]),
        ]
        table.add_row(*map(_text, cells), style="" if seconds is not None else "dim")
    return table


def _axis(view: View) -> str:
    """What a trial's step counts."""
    return view.plan.unit.removeprefix("optimizer ").removesuffix("s")


def _state(row: Row) -> str:
    return "paused" if row.state == "running" else row.state


def _steps(view: View, row: Row) -> str:
    if row.number not in view.running:
        return str(row.step)
    job = view.progress.get(row.number)
    target = row.target if job is None else job.target
    return f"{view.step(row)}/{target}" if target else str(view.step(row))


def _rungs(view: View) -> list[str]:
    """A line for each bracket, with how many trials have come to each of its rungs.

    Trials enter brackets in order of their number. Asynchronous brackets share their rungs, so there a rung can hold
    more trials than its bracket planned for.
    """
    lines = []
    start = 0
    for number, rungs in enumerate(view.plan.brackets, start=1):
        trials = view.rows[start : start + rungs[0][0]]
        start += rungs[0][0]
        if len(rungs) > 1 and trials:
            listed = "  ".join(f"{_reached(trials, step)}/{count} @ {step}" for count, step in rungs)
            lines.append(f"bracket {number}: {listed}")
    return lines


def _reached(rows: Iterable[Row], step: int) -> int:
    return sum(row.at(step) is not None for row in rows)


def _generations(view: View) -> list[str]:
    """A line for each of the last steps at which trials were copied: which one began from which."""
    copies: dict[int, list[str]] = {}
    for row in view.rows:
        if row.parent is not None:
            copies.setdefault(row.start, []).append(f"{row.number} from {row.parent}")
    return [f"copied at {_axis(view)} {step}: {', '.join(copies[step])}" for step in sorted(copies, reverse=True)]
