"""Lines that a search prints: the plan before the first step, a line for each finished job, a table at the end."""

import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import eq
from typing import Any

from lightning_hpo.records import Mode, Row, best_row, ranked, spent
from lightning_hpo.reporting.events import Event, JobEnded, SearchEnded
from lightning_hpo.schedulers.base import Bracket, Coverage
from lightning_hpo.space import SearchSpace
from lightning_hpo.text import HIDDEN, hide_passwords, is_secret, masked, one_line, say

ABSENT = "-"  # in the place of a value that a trial has not
_REASON = 100  # letters of a failure's reason in a line; the whole is with the trial


class Console:
    """Prints plain lines, so that a log file and a terminal show the same.

    Args:
        monitor: name of the score.
        mode: whether lower or higher scores are better.
        verbose: False prints nothing.
    """

    def __init__(self, monitor: str, mode: Mode, *, verbose: bool) -> None:
        self.monitor = monitor
        self._mode = mode
        self._verbose = verbose
        self.planned_steps = 0
        """Optimizer steps of the whole search; 0 if that is not known."""
        self._started = time.monotonic()
        self._steps = 0
        self._kept: list[str] | None = None  # lines to be printed later

    def on(self, event: Event) -> None:
        """Print a line for a job that has ended, and the table when the search is over."""
        if isinstance(event, JobEnded):
            self.job(event.row, event.steps, event.rows, event.reason)
            if event.remark:
                self.line(event.remark)
        elif isinstance(event, SearchEnded):
            self.table(event.rows)

    @contextmanager
    def later(self) -> Iterator[None]:
        """Print the lines of the block when it is over, however it ends.

        It goes around a lock: a terminal that accepts no more lines must not keep other processes waiting.
        """
        self._kept = []
        try:
            yield
        finally:
            lines, self._kept = self._kept, None
            for text in lines:
                self.line(text)

    def plan(
        self,
        title: str,
        space: Mapping[str, Any],
        brackets: Sequence[Bracket],
        rows: Sequence[Row],
        *,
        covers: Coverage = "all",
        stops: Sequence[str] = (),
    ) -> None:
        """Print the plan of the search, and what a continued study already holds.

        Args:
            title: first line.
            space: name -> distribution.
            brackets: of the plan; empty if there is none.
            rows: trials so far.
            covers: which jobs the plan counts.
            stops: limits that end the search earlier, e.g. "once 900 steps are done".
        """
        self.line(title)
        texts = space.texts() if isinstance(space, SearchSpace) else {}
        for name, text in texts.items():
            self.line(f"  {name:<24} {_range(name, space[name], text)}")
        if brackets:
            self.line("  bracket    rungs: trials @ optimizer steps")
        once = _once(brackets)
        for index, bracket in enumerate(brackets[: min(once, 12)]):
            rungs = "  ".join(f"{rung.trials} @ {rung.max_steps}" for rung in bracket.rungs)
            self.line(f"  {index + 1:<10} {rungs}")
        if once > 12:
            self.line(f"  ... and {once - 12} more brackets")
        if len(brackets) > once:
            self.line(f"  the same {len(brackets) // once} times")
        if brackets:
            trials, jobs, steps = (
                sum(getattr(bracket, name) for bracket in brackets) for name in ("trials", "jobs", "steps")
            )
            least = "" if covers == "all" else "at least "
            scope = "each round" if covers == "round" else "in all"
            self.line(f"  {scope}: {trials} trials, {least}{jobs} jobs, {steps:,} optimizer steps")
            if covers == "round":
                self.line("  rounds follow each other until the search is stopped")
        for stop in stops:
            self.line(f"  no new job {stop}")
        if rows:
            ended = sum(row.state != "running" for row in rows)
            self.line(f"  continues: {ended} of {len(rows)} trials so far have ended, {spent(rows):,} steps are done")

    def job(self, row: Row, steps: int, rows: Sequence[Row], reason: str = "") -> None:
        """Print a line for a job that gave a score or failed."""
        self._steps += steps
        done = spent(rows)
        pace = (time.monotonic() - self._started) / max(self._steps, 1)
        left = f", about {_duration(pace * (self.planned_steps - done))} left" if self.planned_steps > done else ""
        gave_none = row.state == "failed" or not row.values
        outcome = row.state if gave_none else f"{self.monitor} {row.values[row.step]:.5g}"
        reason = reason or row.ended or ""
        if reason:
            outcome += f": {textwrap.shorten(reason.splitlines()[0], _REASON)}"
        best = best_row(rows, self._mode)
        so_far = "" if best is None else f"  best {best.score:.5g} (trial {best.number})"
        at = f"@ {row.step}" if row.values else ""
        self.line(f"trial {row.number:>4} {at:<8} {outcome:<22}{so_far}  [{done:,} steps{left}]")

    def table(self, rows: Sequence[Row], count: int = 10) -> None:
        """Print the best trials, best first, and why a trial ended by itself or that it failed later."""
        shown = ranked(rows, self._mode)
        names = list(dict.fromkeys(name for row in shown[:count] for name in row.params))
        notes = [_note(row) for row in shown[:count]]
        header = ["trial", "steps", self.monitor, *names, *(["ended"] if any(notes) else [])]
        lines = [header]
        for row, note in zip(shown, notes, strict=False):
            values = [_short(masked(name, row.params.get(name, ABSENT))) for name in names]
            line = [str(row.number), str(row.step), f"{row.score:.5g}", *values, note]
            lines.append(line[: len(header)])
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        for line in lines:
            self.line("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        failed = [row.number for row in rows if row.state == "failed"]
        if failed:
            self.line(
                f"failed: {len(failed)} trials ({', '.join(map(str, failed[:10]))}{', ...' if failed[10:] else ''})"
            )

    def line(self, text: str) -> None:
        """Print one line, without secrets; control characters are written out, so they cannot steer a terminal."""
        if self._kept is not None:
            self._kept.append(text)
        elif self._verbose:
            say(one_line(hide_passwords(text)))


def _note(row: Row) -> str:
    """Note of a trial in the table: why it ended, whether it is infeasible."""
    later = "failed later" if row.state == "failed" else ""
    return "; ".join(text for text in (row.ended or "", "" if row.feasible else "infeasible", later) if text)


def _once(brackets: Sequence[Bracket]) -> int:
    """Number of brackets before they repeat."""
    count = len(brackets)
    lengths = (length for length in range(1, count) if count % length == 0)
    return next((length for length in lengths if all(map(eq, brackets, brackets[length:]))), count)


def _range(name: str, distribution: Any, text: str) -> str:
    """A parameter in the grammar of spaces, without the values of secrets."""
    hidden = any(is_secret(name, value) for value in getattr(distribution, "choices", (0.0,)))
    return HIDDEN if hidden else hide_passwords(text)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
