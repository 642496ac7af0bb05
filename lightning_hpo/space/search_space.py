"""A search space, parsed once: what each name may be, when a trial has it, and what the module receives."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.space.conditions import Condition, dependency_order, read_condition
from lightning_hpo.space.grammar import read_entry
from lightning_hpo.space.names import nested_config, split_name
from lightning_hpo.space.unit import from_unit
from lightning_hpo.space.values import Entry, alike, delivered, is_literal, plain
from lightning_hpo.text import is_number, masked, nearest

Space: TypeAlias = Mapping[str, Any]
"""Dotted name -> text of the grammar, an Optuna distribution, a list, ``choice(...)`` or a fixed value."""
Define: TypeAlias = Callable[[optuna.Trial], Mapping[str, Any]]
"""A function of a trial that takes the place of a space: it asks the trial for values, and returns name -> value."""


class SearchSpace(Mapping[str, BaseDistribution]):
    """Name -> Optuna distribution, in the order given, with conditions and the values that labels stand for.

    A study, samplers and schedulers know what the distributions hold: plain values, and labels of other values. Only
    what a trial builds with is translated, by :meth:`deliver`.

    Args:
        space: as a person types it.

    Raises:
        TypeError, ValueError: see :func:`parse_space`.
    """

    def __init__(self, space: Space) -> None:
        owners: dict[tuple[str, str], str] = {}
        for name in space:
            place = split_name(name)
            if place in owners:
                raise ValueError(f"`space` names {'.'.join(place)!r} twice: as {owners[place]!r} and as {name!r}.")
            owners[place] = name
        self._entries: dict[str, Entry] = {name: read_entry(name, value) for name, value in space.items()}

        def find(typed: str) -> str | None:
            return typed if typed in self._entries else owners.get(split_name(typed))

        self.conditions: Mapping[str, Condition] = {
            name: read_condition(f"space[{name!r}]", entry.condition, find, self._entries)
            for name, entry in self._entries.items()
            if entry.condition is not None
        }
        """Name -> when a trial has it, for the names that not every trial has."""
        self.order = dependency_order(self._entries, self.conditions)
        """All names, each after those that decide whether a trial has it."""

    def __getitem__(self, name: str) -> BaseDistribution:
        return self._entries[name].distribution

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, SearchSpace):
            return self.texts() == other.texts() and dict(self) == dict(other)
        return not self.conditions and dict(self) == other

    __hash__ = None  # type: ignore[assignment]  # as of any mapping

    def __repr__(self) -> str:
        return f"SearchSpace({self.texts()!r})"

    def texts(self) -> dict[str, str]:
        """Return name -> text in the grammar, from which the same space can be parsed again.

        Example:
            >>> parse_space({"opt": ["sgd", "adam"], "beta": "uniform(0.8, 1) if opt == 'sgd'"}).texts()
            {'opt': "choice('sgd', 'adam')", 'beta': "uniform(0.8, 1.0) if opt == 'sgd'"}
        """
        return {
            name: entry.text + (f" if {self.conditions[name].text}" if name in self.conditions else "")
            for name, entry in self._entries.items()
        }

    def has(self, name: str, params: Mapping[str, Any]) -> bool:
        """Whether a trial with these parameters has ``name`` too.

        Args:
            name: of the space.
            params: of the trial, as a study stores them, at least those that come before ``name`` in :attr:`order`.
        """
        condition = self.conditions.get(name)
        return condition is None or condition.holds(params)

    def draw(self, pick: Callable[[str], Any]) -> dict[str, Any]:
        """Choose a value for each name that a trial has.

        Args:
            pick: called with each name in the order of :attr:`order`.

        Returns:
            The values, in the order of the space.
        """
        params: dict[str, Any] = {}
        for name in self.order:
            if self.has(name, params):
                params[name] = pick(name)
        return {name: params[name] for name in self if name in params} if self.conditions else params

    def completed(self, params: Mapping[str, Any], fill: Callable[[str], Any]) -> dict[str, Any]:
        """Return the parameters that a trial has of these: without those it has not, and with those that it lacks.

        Args:
            params: of which some may have changed; names outside the space are kept.
            fill: gives a value for a name that is missing.
        """
        others = {name: value for name, value in params.items() if name not in self}
        return self.draw(lambda name: params[name] if name in params else fill(name)) | others

    def middle(self, params: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Return parameters with the middle of its distribution for each name that ``params`` lacks."""
        return self.completed(params or {}, lambda name: from_unit(self[name], 0.5))

    def fits(self, params: Mapping[str, Any]) -> bool:
        """Whether these are the parameters of a trial, as a study stores them: each inside its distribution."""
        return params.keys() <= self.keys() and all(
            name in params and _holds(self[name], params[name]) if self.has(name, params) else name not in params
            for name in self
        )

    def deliver(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the module receives for parameters as a study stores them.

        Lists, dictionaries and other values that a trial could change are copied.
        """
        return {name: self._meaning(name, value, delivered) for name, value in params.items()}

    def plain(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return parameters as YAML can hold them; an object that it has no form for stays a label."""
        meant = {name: self._meaning(name, value, lambda meaning: meaning) for name, value in params.items()}
        return {name: plain(meaning) if is_literal(meaning) else params[name] for name, meaning in meant.items()}

    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Write parameters and budget as what ``best.yaml`` of a plain function holds."""
        return nested_config(self.plain(params), max_steps)

    def stored(self, name: str, value: Any) -> Any:
        """Return what a study stores of a value that the module would receive, or of its label.

        A list stands for the tuple with the same items, as YAML has no tuples, unless the list is a choice too.

        Raises:
            ValueError: if the value is outside the distribution.
        """
        entry = self._entries[name]
        for label, meaning in entry.meanings.items():
            if alike(meaning, value):
                return label
        for label, meaning in entry.meanings.items():
            if alike(plain(meaning), plain(value)):
                return label
        if not _holds(entry.distribution, value):
            shown = masked(name, value)
            raise ValueError(f"{name!r} is {shown!r}, which is not in its space: {self.texts()[name]}.")
        return entry.distribution.to_external_repr(entry.distribution.to_internal_repr(value))

    def starting_point(self, point: Mapping[str, Any]) -> dict[str, Any]:
        """Return a configuration that a person wants to try first, as a study stores it; a sampler fills the rest.

        Args:
            point: name, in any form that the space knows -> value that the module would receive, or its label.

        Raises:
            ValueError: for a name or a value outside the space, a parameter that the trial would not have, or one of
                which the point does not say whether the trial has it.

        Example:
            >>> parse_space({"act": [(1,), (2,)], "lr": "uniform(0, 1)"}).starting_point({"model.act": (2,)})
            {'act': '(2,)'}
        """
        places = {split_name(name): name for name in self}
        given: dict[str, Any] = {}
        for typed, value in point.items():
            name = typed if typed in self else places.get(split_name(typed))
            if name is None:
                hint = nearest(typed, self) or nearest(typed, [".".join(place) for place in places])
                hint = hint or f" The space has {', '.join(self)}."
                raise ValueError(f"a starting point names {typed!r}, which is not in the space.{hint}")
            if name in given:
                raise ValueError(f"a starting point names {name!r} twice.")
            given[name] = self.stored(name, value)
        has = self._presence(given)
        for name in given:
            if not has[name]:
                condition = self.conditions[name]
                missing = " and ".join(repr(other) for other in condition.names if other not in given)
                why = "does not hold there: leave it out" if has[name] is False else f"needs {missing}: give it too"
                raise ValueError(f"a starting point has {name!r}, but its condition `{condition.text}` {why}.")
        return given

    def known_part(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return those of some values that a trial has for certain, as a study stores them: a starting point.

        Args:
            values: name of the space -> value that the module would receive.

        Raises:
            ValueError: if a value is outside the space.
        """
        given: dict[str, Any] = {}
        for name in self.order:
            if name in values and self._presence(given)[name]:
                given[name] = self.stored(name, values[name])
        return given

    def _presence(self, given: Mapping[str, Any]) -> dict[str, bool | None]:
        """Say for each name whether a trial with these parameters has it; None where they leave that open."""
        known = {name: from_unit(self[name], 0.5) for name in self if self[name].single()} | dict(given)
        has: dict[str, bool | None] = {}
        for name in self.order:
            condition = self.conditions.get(name)
            if condition is not None and any(has[o] is None or (has[o] and o not in known) for o in condition.names):
                has[name] = None
            else:
                held = {other: value for other, value in known.items() if has.get(other)}
                has[name] = condition is None or condition.holds(held)
        return has

    def _meaning(self, name: str, value: Any, made: Callable[[Any], Any]) -> Any:
        meanings = self._entries[name].meanings if name in self._entries else {}
        return made(meanings[value]) if isinstance(value, str) and value in meanings else value


def parse_space(space: Space) -> SearchSpace:
    """Read a space as a person types it.

    Args:
        space: dotted name -> text of the grammar (:mod:`lightning_hpo.space.grammar`), an Optuna distribution, a list
            of choices, ``choice(...)``, ``when(...)`` or a fixed value. The order is kept.

    Returns:
        The same names, each with its Optuna distribution.

    Raises:
        TypeError: if ``space`` is no mapping, a name no text, or a value nothing that a space takes.
        ValueError: if the space is empty, a name is malformed or given twice (``lr`` and ``model.lr``), a text does
            not follow the grammar, or a condition names what is not there. The message says what to write.

    Example:
        >>> parse_space({"lr": "loguniform(1e-5, 1e-1)"})["lr"].high
        0.1
    """
    if isinstance(space, SearchSpace):
        return space
    if not isinstance(space, Mapping):
        raise TypeError(f"`space` must map names to distributions such as 'uniform(0, 1)', got {space!r}.")
    if not space:
        raise ValueError("`space` is empty: name at least one hyperparameter, e.g. {'lr': 'loguniform(1e-5, 1e-1)'}.")
    return SearchSpace(space)


def suggest(trial: optuna.Trial, space: SearchSpace | Define) -> dict[str, Any]:
    """Let a trial suggest a value for each name of a space that it has, or let a function of the trial do it."""
    if callable(space):
        return dict(space(trial))
    return space.draw(lambda name: _suggest(trial, name, space[name]))


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
    raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")


def _holds(distribution: BaseDistribution, value: Any) -> bool:
    """Whether a value is inside a distribution, of the right type."""
    if isinstance(distribution, CategoricalDistribution):
        return any(type(choice) is type(value) and choice == value for choice in distribution.choices) or (
            value in distribution.choices and not isinstance(value, bool)
        )
    return is_number(value) and distribution._contains(distribution.to_internal_repr(value))  # noqa: SLF001  # has no public name
