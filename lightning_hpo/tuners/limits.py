"""When a search starts no more jobs, and numbers and lengths of time that users give."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any

from lightning_hpo.errors import SearchFailedError
from lightning_hpo.records import Row
from lightning_hpo.schedulers.units import STEPS, Unit, count_of

_ENOUGH_TO_JUDGE = 10  # ended trials, for a share of failures
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}


@dataclass(frozen=True)
class Limits:
    """When to start no more jobs.

    Args:
        timeout: seconds from now, a text such as ``"8h"`` or ``"1h30m"``, or None.
        total: recorded optimizer steps, epochs or samples, as the budget is in, those of earlier calls included, or
            None.
        total_steps: the same in optimizer steps.
        max_failed: failed trials in a row (an int), or as a share of all that have ended (a float below 1), which is
            judged from the tenth on.
        unit: of the budget.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    timeout: float | None = None  # in seconds, once it is made
    total: float | None = None
    total_steps: int | None = None
    max_failed: int | float = 5
    unit: Unit = STEPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", seconds("timeout", self.timeout))
        for name in ("total", "total_steps", "max_failed"):
            require_positive(name, getattr(self, name))
        if self.total_steps is not None and self.total is not None:
            raise TypeError("give either `total` or `total_steps`: both say how much is spent in all.")
        if self.total_steps is not None and not self.unit.is_steps:
            raise TypeError(
                f"`total_steps` is in optimizer steps, but the budget is in {self.unit.label}: give `total`, in "
                f"{self.unit.label}."
            )

    @property
    def count(self) -> int | None:
        """How much may be spent in all, as the scheduler counts; None without end."""
        total = self.total if self.total_steps is None else self.total_steps
        return None if total is None else count_of(self.unit, total)

    def check_failures(self, in_a_row: int, rows: Sequence[Row], last: str) -> None:
        """Raise SearchFailedError if too many trials failed, and the one that has ended now is among them."""
        if not last:
            return
        if self.max_failed >= 1:
            if in_a_row >= self.max_failed:
                raise SearchFailedError(f"{in_a_row} trials in a row failed, the last one with: {last}")
            return
        ended = [row for row in rows if row.state != "running"]
        failed = sum(row.state == "failed" for row in ended)
        if len(ended) >= _ENOUGH_TO_JUDGE and failed >= self.max_failed * len(ended):
            raise SearchFailedError(f"{failed} of {len(ended)} trials failed, the last one with: {last}")

    def texts(self) -> list[str]:
        """Each limit that ends a search before its scheduler does, as words."""
        count = self.count
        steps = None if count is None else f"once {self.unit.number(count):,} {self.unit.label} are recorded"
        time = None if self.timeout is None else f"after {self.timeout:g} s"
        return [text for text in (steps, time) if text is not None]


def require_positive(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless ``value`` is None or a number above 0."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"`{name}` must be a number above 0, got {value!r}.")
    if value is not None and not float(value) > 0:
        raise ValueError(f"`{name}` must be above 0, got {value!r}.")


def seconds(name: str, value: Any) -> float | None:
    """Return a length of time in seconds.

    Args:
        name: of the argument.
        value: a number of seconds above 0, a text of numbers with the units d, h, m and s, or None.

    Raises:
        TypeError, ValueError: for another value.

    Example:
        >>> seconds("timeout", "1h30m"), seconds("timeout", 90)
        (5400.0, 90)
    """
    if isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", value)
        if not parts or re.sub(r"\d+(?:\.\d+)?\s*[dhms]|\s", "", value):
            raise ValueError(f"`{name}` must be a number of seconds, or a text such as '8h' or '1h30m', got {value!r}.")
        value = sum(float(number) * _UNITS[unit] for number, unit in parts)
    require_positive(name, value)
    return value  # type: ignore[no-any-return]  # a number above 0, or None
