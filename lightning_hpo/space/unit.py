"""Each distribution as an interval of length one: what samplers and populations move in."""

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution


def to_unit(distribution: BaseDistribution, value: Any) -> float:
    """Map a value into [0, 1]: linear, or logarithmic where the distribution says so.

    An integer, a stepped float and a choice own a cell of the interval and map to its middle (integers on a log scale
    to the logarithm's place in their cell), so that :func:`from_unit` gives each its share.

    Args:
        distribution: of ``value``.
        value: inside the distribution.

    Returns:
        A float in [0, 1]; 0.5 where the distribution holds a single float.

    Example:
        >>> round(to_unit(FloatDistribution(1e-4, 1e-2, log=True), 1e-3), 9)
        0.5
    """
    if isinstance(distribution, CategoricalDistribution):
        return float(distribution.choices.index(value) + 0.5) / len(distribution.choices)
    low, high, log = _cell_ends(distribution)
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    if high <= low:  # of neighbouring floats the logarithms may be equal
        return 0.5
    return float(min(max((value - low) / (high - low), 0.0), 1.0))


def from_unit(distribution: BaseDistribution, unit: float) -> Any:
    """Map a point of [0, 1] to a value of the distribution; the inverse of :func:`to_unit`.

    Args:
        distribution: of the value.
        unit: in [0, 1]; outside it is clipped.

    Returns:
        A plain Python value inside the distribution.

    Example:
        >>> from_unit(IntDistribution(1, 4), 0.99)
        4
    """
    unit = min(max(float(unit), 0.0), 1.0)
    if isinstance(distribution, CategoricalDistribution):
        count = len(distribution.choices)
        return distribution.choices[min(int(unit * count), count - 1)]
    low, high, log = _cell_ends(distribution)
    value = math.exp(math.log(low) + unit * (math.log(high) - math.log(low))) if log else low + unit * (high - low)
    if isinstance(distribution, IntDistribution):
        steps = round((value - distribution.low) / distribution.step)
        return min(max(distribution.low + steps * distribution.step, distribution.low), distribution.high)
    assert isinstance(distribution, FloatDistribution)
    if distribution.step is not None:
        value = distribution.low + round((value - distribution.low) / distribution.step) * distribution.step
    return min(max(value, distribution.low), distribution.high)


def _cell_ends(distribution: BaseDistribution) -> tuple[float, float, bool]:
    """Ends of the interval that maps onto [0, 1]: half a step wider than the values, where there are steps."""
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")
    half = (distribution.step or 0) / 2 if distribution.high > distribution.low else 0.0
    return distribution.low - half, distribution.high + half, distribution.log


def joined(first: BaseDistribution, other: BaseDistribution) -> BaseDistribution | None:
    """Return a distribution that holds the values of both; None of a choice and a range.

    Example:
        >>> joined(IntDistribution(1, 4), IntDistribution(2, 8))
        IntDistribution(high=8, log=False, low=1, step=1)
    """
    if isinstance(first, CategoricalDistribution) and isinstance(other, CategoricalDistribution):
        known = {(type(choice), choice) for choice in first.choices}
        more = [choice for choice in other.choices if (type(choice), choice) not in known]
        return CategoricalDistribution([*first.choices, *more]) if more else first
    if isinstance(first, CategoricalDistribution) or isinstance(other, CategoricalDistribution):
        return None
    assert isinstance(first, FloatDistribution | IntDistribution)
    assert isinstance(other, FloatDistribution | IntDistribution)
    low, high, log = min(first.low, other.low), max(first.high, other.high), first.log and other.low > 0
    if isinstance(first, IntDistribution) and isinstance(other, IntDistribution):
        step = 1 if log else math.gcd(first.step, other.step, int(first.low - other.low))
        return IntDistribution(int(low), int(high), log=log, step=step)
    return FloatDistribution(float(low), float(high), log=log)
