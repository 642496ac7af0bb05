"""A search space as a table of numbers: one column per hyperparameter for search, feature columns for the model.

=============  ==========================================================================================
column kind    contents of the search column
=============  ==========================================================================================
continuous     position in [0, 1], logarithmic where the distribution says so; also integers and steps with
               many values, which are rounded when a suggestion is decoded
ordered        position in [0, 1] out of few: small integer and step ranges, and choices that are all
               numbers (equally spaced by rank: 16, 32, 64, 128 are steps of equal size)
categorical    index of the choice
=============  ==========================================================================================

The feature columns are the same, except that a categorical column becomes one column per choice (0 or √½), which share
a length scale; two different choices are then at squared distance 1 (Hamming distance).

A configuration that lacks a conditional parameter is given the middle of its column (Lévesque et al. 2017, *Bayesian
Optimization for Conditional Hyperparameter Spaces*, call this imputation): ½ for a number, no choice at all (zeros) for
a categorical one, marked by the search position -1. What tells it from a configuration that has the middle value is the
column of the parameter that decides. So configurations of one branch differ by that branch's parameters only.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Real
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.samplers.arrays import Floats, Groups
from lightning_hpo.space.unit import from_unit, to_unit

MOST_ORDERED = 32  # a range with more values is searched as if it were continuous
Kind = Literal["continuous", "ordered", "categorical"]


class Branched(Protocol):
    """A parsed space with conditions (:class:`lightning_hpo.space.SearchSpace`)."""

    conditions: Mapping[str, Any]

    def __getitem__(self, name: str) -> BaseDistribution: ...

    def __contains__(self, name: object) -> bool: ...

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Whether these are the parameters of a trial."""

    def draw(self, pick: Callable[[str], Any]) -> dict[str, Any]:
        """Choose a value for each name that a trial has."""


class Column:
    """One hyperparameter: its distribution, its kind and, if it has few values, those values and their positions."""

    def __init__(self, distribution: BaseDistribution) -> None:
        self.distribution = distribution
        self.low, self.high, self.step, self.log = _range(distribution)
        self.values = _few_values(distribution)
        self.kind: Kind = "continuous"
        if isinstance(distribution, CategoricalDistribution):
            self.kind = "ordered" if all(_is_number(choice) for choice in distribution.choices) else "categorical"
        elif self.values is not None:
            self.kind = "ordered"
        if self.kind == "categorical":
            self.positions = np.arange(len(self.values or ()), dtype=float)
        elif isinstance(distribution, CategoricalDistribution):
            self.positions = np.linspace(0.0, 1.0, len(self.values or ()))
        else:
            self.positions = np.array([to_unit(distribution, value) for value in self.values or ()])

    @property
    def absent(self) -> float:
        """Search position of a configuration that lacks this parameter."""
        return -1.0 if self.kind == "categorical" else 0.5

    @property
    def size(self) -> float:
        """Number of different values; infinite for a continuous float."""
        if self.values is not None:
            return len(self.values)
        return round((self.high - self.low) / self.step) + 1 if self.step else math.inf

    def holds(self, value: Any) -> bool:
        """Whether ``value`` can be placed in this column."""
        if isinstance(self.distribution, CategoricalDistribution):
            return _index(self.distribution.choices, value) is not None
        return isinstance(value, Real) and self.low <= float(value) <= self.high

    def encode(self, values: Sequence[Any]) -> Floats:
        """Return the position of each value, shape (len(values),)."""
        if isinstance(self.distribution, CategoricalDistribution):
            places: Floats = self.positions[[_index(self.values or (), value) or 0 for value in values]]
            return places
        if self.values is not None and self.size == 1:
            return np.full(len(values), 0.5)
        # the vectorised form of space.to_unit
        numbers, low, high = np.array(values, dtype=float), self.low - self.step / 2, self.high + self.step / 2
        if self.log:
            numbers, low, high = np.log(numbers), math.log(low), math.log(high)
        if high <= low:
            return np.full(len(values), 0.5)
        return np.clip((numbers - low) / (high - low), 0.0, 1.0)

    def decode(self, position: float) -> Any:
        """Return the plain Python value at (or nearest to) a position."""
        if self.values is not None:
            return self.values[int(np.argmin(np.abs(self.positions - position)))]
        return from_unit(self.distribution, position)

    def grid(self) -> Floats:
        """Return the positions of all values of a range with many of them."""
        values = [self.low + i * self.step for i in range(int(self.size))]
        return np.array([to_unit(self.distribution, value) for value in values])

    def place(self, units: Floats) -> Floats:
        """Map uniform numbers of [0, 1) to positions, each value having the same share."""
        if self.values is None:
            return units
        placed: Floats = self.positions[np.minimum((units * len(self.positions)).astype(int), len(self.positions) - 1)]
        return placed

    def nearest(self, positions: Floats) -> Floats:
        """Move positions to the nearest one that belongs to a value."""
        if self.values is not None:
            moved: Floats = self.positions[np.abs(positions[:, None] - self.positions).argmin(axis=1)]
            return moved
        if math.isinf(self.size):
            return positions
        return np.array([to_unit(self.distribution, self.decode(position)) for position in positions])


class Encoding:
    """The columns of a search space.

    Args:
        space: name -> distribution, at least one. Conditions of a parsed space count; its names of a single value are
            left out.

    Example:
        >>> encoding = Encoding({"lr": FloatDistribution(1e-4, 1e-2, log=True), "n": CategoricalDistribution([4, 8])})
        >>> encoding.encode([{"lr": 1e-3, "n": 8}])
        array([[0.5, 1. ]])
    """

    def __init__(self, space: Mapping[str, BaseDistribution]) -> None:
        self._space: Branched | None = space if getattr(space, "conditions", None) else None  # type: ignore[assignment]  # what has conditions is a parsed space
        kept = space if self._space is None else {k: v for k, v in space.items() if not v.single()}
        self.names = tuple(kept)
        self.columns = tuple(Column(distribution) for distribution in kept.values())
        self.low, self.high = np.zeros(len(self.columns)), np.ones(len(self.columns))

    def within(self, low: Floats, high: Floats) -> "Encoding":
        """Return the encoding of a box: it places configurations there, and its features are positions in the box.

        Args:
            low: of each search column, shape (d,); of no meaning for a categorical one.
            high: likewise, above ``low``.
        """
        box = copy.copy(self)
        categorical = np.array([column.kind == "categorical" for column in self.columns])
        box.low, box.high = np.where(categorical, 0.0, low), np.where(categorical, 1.0, high)
        return box

    @property
    def widths(self) -> Floats:
        """Length of each side of the box, shape (d,); 1 for the whole space."""
        return self.high - self.low

    def __len__(self) -> int:
        return len(self.columns)

    @cached_property
    def size(self) -> float:
        """Number of different configurations; infinite if one column is a continuous float."""
        return math.prod(column.size for column in self.columns)

    @cached_property
    def continuous(self) -> NDArray[np.intp]:
        """Indices of the columns that are searched by gradient."""
        return np.array([i for i, column in enumerate(self.columns) if column.kind == "continuous"], dtype=np.intp)

    @cached_property
    def groups(self) -> Groups:
        """For each feature column the search column it stems from, shape (D,)."""
        return np.repeat(np.arange(len(self)), [self._width(column) for column in self.columns])

    @cached_property
    def first(self) -> NDArray[np.intp]:
        """For each search column its first feature column, shape (d,)."""
        return np.searchsorted(self.groups, np.arange(len(self)))

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether ``params`` has a value for each column that can be placed there."""
        if self._space is not None:
            return self._space.fits({name: value for name, value in params.items() if name in self._space})
        return all(
            name in params and column.holds(params[name]) for name, column in zip(self.names, self.columns, strict=True)
        )

    def encode(self, params: Sequence[Mapping[str, Any]]) -> Floats:
        """Return the search columns of configurations, shape (n, d)."""
        units = np.empty((len(params), len(self)))
        for i, (name, column) in enumerate(zip(self.names, self.columns, strict=True)):
            present = [j for j, values in enumerate(params) if name in values]
            units[:, i] = column.absent
            units[present, i] = column.encode([params[j][name] for j in present])
        return units

    def decode(self, unit: Floats) -> dict[str, Any]:
        """Return the configuration of one row of search columns, shape (d,), as plain Python values."""
        if self._space is not None:
            places = dict(zip(self.names, zip(self.columns, unit, strict=True), strict=True))
            values = self._space.draw(lambda name: self._decoded(name, places))
            return {name: value for name, value in values.items() if name in places}
        return {
            name: column.decode(float(position))
            for name, column, position in zip(self.names, self.columns, unit, strict=True)
        }

    def _decoded(self, name: str, places: Mapping[str, tuple[Column, float]]) -> Any:
        if name not in places:
            assert self._space is not None
            return from_unit(self._space[name], 0.5)  # the only value
        column, position = places[name]
        return column.decode(float(position))

    def active(self, units: Floats) -> NDArray[np.bool_]:
        """Say which parameters the configurations of search columns (m, d) have, shape (m, d)."""
        has = np.ones(units.shape, dtype=bool)
        if self._space is None:
            return has
        parents = [i for i, name in enumerate(self.names) if name in self._parents]
        rows, index = np.unique(units[:, parents], axis=0, return_inverse=True)
        kinds = np.empty((len(rows), len(self)), dtype=bool)
        whole = np.full(len(self), 0.5)
        for i, row in enumerate(rows):
            whole[parents] = row
            decoded = self.decode(whole)
            kinds[i] = [name in decoded for name in self.names]
        return kinds[index.reshape(-1)]

    def settle(self, units: Floats) -> Floats:
        """Put the middle in the place of parameters that a configuration lacks, and one of few values where it has one.

        Args:
            units: search columns, shape (m, d); changed in place.
        """
        if self._space is None:
            return units
        has = self.active(units)
        for i, (name, column) in enumerate(zip(self.names, self.columns, strict=True)):
            if name in self._space.conditions:
                units[~has[:, i], i] = column.absent
                if column.values is not None:  # the middle is none of them
                    units[has[:, i], i] = column.nearest(units[has[:, i], i])
        return units

    def filled(self, units: Floats, rng: np.random.Generator) -> Floats:
        """Return search columns with random values of the parameters that a configuration lacks, shape (m, d)."""
        if self._space is None:
            return units
        random = np.column_stack([column.place(rng.random(len(units))) for column in self.columns])
        return np.where(self.active(units), units, random)

    @cached_property
    def _parents(self) -> set[str]:
        conditions = {} if self._space is None else self._space.conditions
        return {name for condition in conditions.values() for name in condition.names}

    def place(self, uniform: Floats) -> Floats:
        """Map uniform points of the unit cube to search columns, shape (m, d) both."""
        units = self.low + self.widths * uniform
        for i, column in enumerate(self.columns):
            if column.values is not None:
                units[:, i] = column.place(units[:, i])
        return self.settle(units)

    def snap(self, units: Floats) -> Floats:
        """Move rows of search columns to the nearest configurations, shape (m, d)."""
        return self.settle(np.column_stack([column.nearest(units[:, i]) for i, column in enumerate(self.columns)]))

    def choices(self, index: int) -> Floats:
        """Return the positions of a column of few values, those inside the box."""
        column = self.columns[index]
        if column.kind == "categorical":
            return column.positions
        inside: Floats = column.positions[
            (self.low[index] <= column.positions) & (column.positions <= self.high[index])
        ]
        return inside

    def grid(self) -> Floats:
        """Return all configurations of a finite space as search columns, shape (size, d)."""
        axes = [column.grid() if column.values is None else self.choices(i) for i, column in enumerate(self.columns)]
        return self.settle(np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, len(self)))

    def features(self, units: Floats) -> Floats:
        """Return the feature columns, shape (m, D), of search columns, shape (m, d)."""
        placed = (units - self.low) / self.widths
        if len(self.groups) == len(self):
            return placed
        features = np.zeros((len(units), len(self.groups)))
        rows = np.arange(len(units))
        for i, column in enumerate(self.columns):
            if column.kind == "categorical":
                has = units[:, i] >= 0
                features[rows[has], self.first[i] + units[has, i].astype(int)] = math.sqrt(0.5)
            else:
                features[:, self.first[i]] = placed[:, i]
        return features

    @staticmethod
    def _width(column: Column) -> int:
        return len(column.positions) if column.kind == "categorical" else 1


def _few_values(distribution: BaseDistribution) -> tuple[Any, ...] | None:
    """The values in order, if they are few; choices of numbers are sorted."""
    if isinstance(distribution, CategoricalDistribution):
        if all(_is_number(choice) for choice in distribution.choices):
            return tuple(sorted(distribution.choices))
        return tuple(distribution.choices)
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")
    if distribution.low == distribution.high:
        return (distribution.low,)
    if distribution.step is None:
        return None
    count = round((distribution.high - distribution.low) / distribution.step) + 1
    if count > MOST_ORDERED:
        return None
    values = [distribution.low + i * distribution.step for i in range(count)]
    return tuple(min(value, distribution.high) for value in values)


def _range(distribution: BaseDistribution) -> tuple[float, float, float, bool]:
    """Low, high, step (0 if continuous) and whether logarithmic; of no meaning for a choice."""
    if isinstance(distribution, CategoricalDistribution):
        return 0.0, 0.0, 0.0, False
    if not isinstance(distribution, FloatDistribution | IntDistribution):
        raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")
    return distribution.low, distribution.high, distribution.step or 0.0, distribution.log


def _is_number(choice: Any) -> bool:
    return isinstance(choice, int | float) and not isinstance(choice, bool) and math.isfinite(choice)


def _index(choices: Sequence[Any], value: Any) -> int | None:
    # 1 == 1.0 == True: the type decides between equals
    for i, choice in enumerate(choices):
        if choice == value and type(choice) is type(value):
            return i
    return next((i for i, choice in enumerate(choices) if choice == value), None)
