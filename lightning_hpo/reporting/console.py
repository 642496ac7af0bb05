"""Lines that a search prints: the plan before the first step, a line for each finished job, a table at the end."""

import os
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from operator import eq
from typing import Any, Literal, TypeAlias

from lightning_hpo.records import Confirmation, Mode, Row, best_row, confirmations, ranked, spent
from lightning_hpo.reporting.best_so_far import BestSoFar
from lightning_hpo.reporting.events import Event, JobEnded, SearchEnded
from lightning_hpo.schedulers.base import Bracket, Coverage
from lightning_hpo.schedulers.units import STEPS, Unit
from lightning_hpo.space import SearchSpace
from lightning_hpo.text import HIDDEN, hide_passwords, is_secret, masked, one_line, say

Verbose: TypeAlias = bool | Literal["lines"]
ABSENT = "-"  # in the place of a value that a trial has not
_REASON = 100  # letters of a failure's reason in a line; the whole is with the trial


class Console:
    """Prints plain lines, so that a log file and a terminal show the same.

    Args:
        monitor: name of the score.
        mode: whether lower or higher scores are better.
        verbose: False prints nothing.
        unit: of the budget.
    """

    def __init__(self, monitor: str, mode: Mode, *, verbose: Verbose, unit: Unit = STEPS) -> None:
        self.monitor = monitor
        self._mode = mode
        self._verbose = verbose
        self._unit = unit
        self._best = BestSoFar(mode)
        self.seconds_left: Callable[[], float | None] = lambda: None
        """Says how long the search will still take, if that is known."""
        self.quiet_jobs = False
        """Whether jobs get no line, because a live view shows them; failures still get theirs."""
        self._kept: list[str] | None = None  # lines to be printed later

    def on(self, event: Event) -> None:
        """Print a line for a job that has ended, and the table when the search is over."""
        if not self._verbose:
            return
        if isinstance(event, JobEnded):
            if not self.quiet_jobs or event.row.state == "failed":
                self.job(event.row, event.rows, event.reason)
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
        """Print the plan of the search, and what a continued study already holds."""
        self.line(title)
        texts = space.texts() if isinstance(space, SearchSpace) else {}
        for name, text in texts.items():
            self.line(f"  {name:<24} {_range(name, space[name], text)}")
        self._brackets(brackets)
        if brackets:
            trials, jobs, steps, copies = (
                sum(getattr(bracket, name) for bracket in brackets) for name in ("trials", "jobs", "steps", "copies")
            )
            least = "" if covers == "all" else "at least "
            scope = "each round" if covers == "round" else "in all"
            self.line(f"  {scope}: {trials} trials, {least}{jobs} jobs, {self.amount(steps)}")
            confirming = sum(bracket.trials for bracket in brackets if bracket.label)
            searched = sum(row.confirms is None for row in rows)
            if searched < len(rows) and searched < trials - confirming:
                self.line(f"  up to {confirming} more trials, if others than those confirmed so far become the best")
            if copies:
                self.line(f"  members that copy go on as new trials: up to about {copies} more, in the same jobs")
            if covers == "round":
                self.line("  rounds follow each other until the search is stopped")
        for stop in stops:
            self.line(f"  no new job {stop}")
        if rows:
            ended = sum(row.state != "running" for row in rows)
            self.line(f"  continues: {ended} of {len(rows)} trials so far have ended, {self._spent(rows)} are done")

    def _brackets(self, brackets: Sequence[Bracket]) -> None:
        """Print the rungs of each bracket; brackets that repeat once."""
        if brackets:
            self.line(f"  bracket    rungs: trials @ {self._unit.label}")
        of_search = [bracket for bracket in brackets if not bracket.label]
        once = _once(of_search)
        for index, bracket in enumerate(of_search[: min(once, 12)]):
            rungs = "  ".join(f"{rung.trials} @ {self._unit.number(rung.max_steps)}" for rung in bracket.rungs)
            self.line(f"  {index + 1:<10} {rungs}")
        if once > 12:
            self.line(f"  ... and {once - 12} more brackets")
        if len(of_search) > once:
            self.line(f"  the same {len(of_search) // once} times")
        for bracket in brackets:
            if bracket.label:
                rung = bracket.rungs[-1]
                self.line(f"  then       {rung.trials} @ {self._unit.number(rung.max_steps)}: {bracket.label}")

    def job(self, row: Row, rows: Sequence[Row], reason: str = "") -> None:
        """Print a line for a job that gave a score or failed."""
        seconds = self.seconds_left()
        left = "" if seconds is None else f", about {duration(seconds)} left"
        gave_none = row.state == "failed" or not row.values
        outcome = row.state if gave_none else f"{self.monitor} {row.values[row.step]:.5g}"
        reason = reason or row.ended or ""
        if reason:
            outcome += f": {textwrap.shorten(reason.splitlines()[0], _REASON)}"
        elif not row.feasible:
            outcome += " (infeasible)"
        outcome += f" {over_folds(row)}" if row.folds and not gave_none else ""
        best, _ = self._best.update(rows)
        so_far = "" if best is None else f"  best {best.score:.5g} (trial {best.number})"
        at = f"@ {self._unit.number(row.step)}" if row.values else ""
        self.line(f"trial {row.number:>4} {at:<8} {outcome:<22}{so_far}  [{self._spent(rows)}{left}]")

    def table(self, rows: Sequence[Row], count: int = 10) -> None:
        """Print the best trials of a search, best first, and how those that were confirmed did with other seeds."""
        shown = ranked([row for row in rows if row.confirms is None], self._mode)
        names = list(dict.fromkeys(name for row in shown[:count] for name in row.params))
        notes = [_note(row) for row in shown[:count]]
        spread = ["± over folds"] if any(row.folds for row in shown[:count]) else []
        header = ["trial", self._unit.name, self.monitor, *spread, *names, *(["ended"] if any(notes) else [])]
        lines = [header]
        for row, note in zip(shown, notes, strict=False):
            values = [short(masked(name, row.params.get(name, ABSENT))) for name in names]
            values = [f"{row.spread:.2g}" if row.spread is not None else ABSENT for _ in spread] + values
            line = [str(row.number), str(self._unit.number(row.step)), f"{row.score:.5g}", *values, note]
            lines.append(line[: len(header)])
        widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
        for line in lines:
            self.line("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))
        if len(shown) > count:
            self.line(f"... and {len(shown) - count} more trials with a score")
        failed = [row.number for row in rows if row.state == "failed"]
        if failed:
            self.line(
                f"failed: {len(failed)} trials ({', '.join(map(str, failed[:10]))}{', ...' if failed[10:] else ''})"
            )
        for text in confirmed_lines(confirmations(rows, self._mode), self.monitor):
            self.line(text)
        if answer := mean_over_seeds(rows, self._mode):
            self.line(f"best: {self.monitor} {answer}")

    def amount(self, count: int) -> str:
        """Return an amount of training in the unit of the budget."""
        return self._unit.amount(count)

    def _spent(self, rows: Sequence[Row]) -> str:
        return f"{self._unit.number(spent(rows)):,} {self._unit.name}"

    def line(self, text: str) -> None:
        """Print one line, without secrets; control characters are written out, so they cannot steer a terminal."""
        if self._kept is not None:
            self._kept.append(text)
        elif self._verbose:
            say(one_line(hide_passwords(text)))


def wants_live(verbose: Verbose, stream: Any = None) -> bool:
    """Whether a search is shown as a live view: on a terminal or in a notebook, outside of CI, if it is wanted.

    Args:
        verbose: True for a live view where it can be, ``"lines"`` for plain lines, False for nothing.
        stream: where to print. Default: ``sys.stdout``.
    """
    stream = sys.stdout if stream is None else stream
    is_terminal = bool(getattr(stream, "isatty", lambda: False)()) and os.environ.get("TERM", "dumb") != "dumb"
    return verbose is True and (is_terminal or in_notebook()) and not os.environ.get("CI")


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return getattr(shell, "kernel", None) is not None


def confirmed_lines(confirmed: Sequence[Confirmation], monitor: str) -> list[str]:
    """Say how the best configurations did with other seeds; nothing if none was confirmed."""
    cells = [("trial", f"mean {monitor}", "std", "n", "search saw", "optimism", "failed")]
    for each in confirmed:
        seen, optimism = (ABSENT if value is None else f"{value:.5g}" for value in (each.seen, each.optimism))
        row = (str(each.trial), f"{each.mean:.5g}", f"{each.std:.2g}", str(each.n), seen, optimism, str(each.failed))
        cells.append(row)
    if not confirmed:
        return []
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["confirmed with other seeds:"]
    lines += ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in cells]
    if confirmed[0].tied:
        tied = ", ".join(str(each.trial) for each in confirmed[1:] if each.tied)
        lines.append(f"a tie: trial {confirmed[0].trial} is within one standard error of {tied}")
    return lines


def what_it_confirms(row: Row) -> str:
    """Say, after its state, which trial a confirmation trains once more."""
    return "" if row.confirms is None else f", confirms {row.confirms}"


def mean_over_seeds(rows: Sequence[Row], mode: Mode) -> str:
    """Say what the best score is the mean of, and which trial stands for it; nothing without confirmations."""
    best = best_row(rows, mode)
    if best is None or best.confirms is None:
        return ""
    each = confirmations(rows, mode)[0]
    return (
        f"{each.mean:.6g}, the mean of trial {each.trial} over {each.n} seeds (trial {best.number} is the best of them)"
    )


def _note(row: Row) -> str:
    """Note of a trial in the table: why it ended, whether it is infeasible."""
    later = "failed later" if row.state == "failed" else ""
    hopeless = f"stopped after {len(row.folds)} folds" if row.state == "pruned" and row.folds else ""
    notes = (row.ended or hopeless, "" if row.feasible else "infeasible", later)
    return "; ".join(text for text in notes if text)


def over_folds(row: Row) -> str:
    """Say how the scores of a trial spread over folds; nothing without folds."""
    spread = "" if row.spread is None else f"± {row.spread:.2g} "
    return f"{spread}over {len(row.folds)} fold{'s'[: len(row.folds) - 1]}" if row.folds else ""


def _once(brackets: Sequence[Bracket]) -> int:
    """Number of brackets before they repeat."""
    count = len(brackets)
    lengths = (length for length in range(1, count) if count % length == 0)
    return next((length for length in lengths if all(map(eq, brackets, brackets[length:]))), count)


def _range(name: str, distribution: Any, text: str) -> str:
    """A parameter in the grammar of spaces, without the values of secrets."""
    hidden = any(is_secret(name, value) for value in getattr(distribution, "choices", (0.0,)))
    return HIDDEN if hidden else hide_passwords(text)


def short(value: Any) -> str:
    """Write the value of a parameter for a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def duration(seconds: float) -> str:
    """Write a duration for people.

    Example:
        >>> duration(80), duration(300), duration(9000)
        ('80 s', '5 min', '2.5 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
