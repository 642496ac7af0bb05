"""Checks of arguments: the value, the rule and the nearest valid name in one sentence."""

import difflib
import math
from collections.abc import Mapping, Sequence
from numbers import Integral


def check_range(name: str, value: float, low: float, high: float) -> float:
    """Return ``value`` as a float if it is finite and in [low, high].

    Raises:
        ValueError: if it is not.
    """
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (number and math.isfinite(value) and low <= value <= high):
        bounds = f">= {low:g}" if math.isinf(high) else f"in [{low:g}, {high:g}]"
        raise ValueError(f"`{name}` must be a finite number {bounds}, got {value!r}.")
    return float(value)


def check_steps(name: str, value: int, at_least: int, *, or_fraction: bool = False) -> int:
    """Return ``value`` as an int if it is a whole number of at least ``at_least``.

    Raises:
        ValueError: if it is not; the message offers a fraction where one is allowed.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < at_least:
        if or_fraction:
            raise ValueError(length_message(name, value, at_least))
        raise ValueError(f"`{name}` must be an int >= {at_least}, got {value!r}.")
    return int(value)


def length_message(name: str, value: float, at_least: int) -> str:
    """Return the sentence for a length that is neither a number of steps nor a fraction."""
    bracket = "(" if at_least else "["
    return (
        f"`{name}` must be a number of steps (int >= {at_least}) or a fraction of max_steps (float in {bracket}0, 1]),"
        f" got {value!r}."
    )


def nearest(name: object, known: Mapping[str, object] | Sequence[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name that is nearest to ``name``, or an empty text."""
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.5)
    return f" Did you mean {found[0]!r}?" if found else ""
