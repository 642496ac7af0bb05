"""The best trial of a search, found after each job without a look at all trials."""

from collections.abc import Sequence
from operator import attrgetter

from lightning_hpo.records import Mode, Row, best_row, changed


class BestSoFar:
    """The best trial of a search, of whose rows few change at a time.

    Args:
        mode: whether lower or higher scores are better.
    """

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._rows: list[Row] = []
        self._best: Row | None = None
        self._confirms = False

    def update(self, rows: Sequence[Row]) -> tuple[Row | None, list[Row]]:
        """Return what :func:`best_row` returns, and the rows that have changed since the last call."""
        fresh = [rows[number] for number in changed(self._rows, rows)]
        self._rows = [*rows]
        self._confirms = self._confirms or any(row.confirms is not None for row in fresh)
        best = self._best
        if self._confirms or (best is not None and any(row.number == best.number for row in fresh)):
            self._best = best_row(rows, self._mode)
        elif fresh:
            candidates = fresh if best is None else [best, *fresh]
            self._best = best_row(sorted(candidates, key=attrgetter("number")), self._mode)
        return self._best, fresh
