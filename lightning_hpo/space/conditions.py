"""Conditions: which parameters a trial has, by the values of others.

A condition is text such as ``optimizer == 'sgd'``, ``depth > 2 and act in ('relu', 'gelu')``. It is parsed, never
evaluated as code. A comparison with a parameter that the trial does not have is false.
"""

import ast
import operator
from ast import literal_eval as read_literal  # literals only, whatever its name suggests
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeAlias

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.space.values import Entry, alike
from lightning_hpo.text import is_number, masked, nearest

FORMS = "name == value, name in (a, b), name > number, joined by and, or, not"
_ORDERS: Mapping[type, Callable[[Any, Any], bool]] = MappingProxyType(
    {ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge}
)
_MIRRORED: Mapping[type, type[ast.cmpop]] = MappingProxyType(
    {ast.Lt: ast.Gt, ast.LtE: ast.GtE, ast.Gt: ast.Lt, ast.GtE: ast.LtE, ast.Eq: ast.Eq, ast.NotEq: ast.NotEq}
)
Test: TypeAlias = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True)
class Compared:
    """A parameter that the trial has is compared with a number or with values, as a study stores them."""

    name: str
    relation: Callable[[Any, Any], bool]
    other: Any

    def __call__(self, params: Mapping[str, Any]) -> bool:
        """Whether it holds."""
        return self.name in params and self.relation(params[self.name], self.other)


@dataclass(frozen=True)
class Joined:
    """Several tests, of which all or any must hold; or the opposite of one."""

    join: Callable[[Any], bool]
    tests: tuple[Test, ...]

    def __call__(self, params: Mapping[str, Any]) -> bool:
        """Whether it holds."""
        return self.join(test(params) for test in self.tests)


@dataclass(frozen=True)
class Condition:
    """When a trial has a parameter.

    Args:
        text: as it is written in a space.
        names: of the parameters that decide.
        test: of the parameters that the trial has so far.
    """

    text: str
    names: tuple[str, ...]
    test: Test

    def holds(self, params: Mapping[str, Any]) -> bool:
        """Whether a trial with these parameters, as a study stores them, has the conditional one."""
        return self.test(params)


def read_condition(
    where: str, node: ast.expr, find: Callable[[str], str | None], domains: Mapping[str, Entry]
) -> Condition:
    """Read a condition from its syntax tree.

    Raises:
        ValueError: for another form than :data:`FORMS`, an unknown name, or a value that the parameter never has.
    """
    reader = _Reader(where, find, domains, [])
    test = reader.read(node)
    return Condition(ast.unparse(node), tuple(dict.fromkeys(reader.names)), test)


@dataclass(frozen=True)
class _Reader:
    where: str
    find: Callable[[str], str | None]
    domains: Mapping[str, Entry]
    names: list[str]

    def read(self, node: ast.expr) -> Test:
        match node:
            case ast.BoolOp(op=op, values=values):
                return Joined(all if isinstance(op, ast.And) else any, tuple(map(self.read, values)))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                return Joined(_none, (self.read(operand),))
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = zip([left, *rights[:-1]], ops, rights, strict=True)
                tests = tuple(self.compare(*side) for side in sides)
                return tests[0] if len(tests) == 1 else Joined(all, tests)
        raise ValueError(f"{self.where}: the condition {ast.unparse(node)!r} is not of the form {FORMS}.")

    def compare(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Test:
        if _dotted(left) is None and _dotted(right) is not None and type(op) in _MIRRORED:
            left, op, right = right, _MIRRORED[type(op)](), left
        name, value = self.name(left), self.value(right)
        match op:
            case ast.Eq() | ast.NotEq():
                return Compared(name, _is_other if isinstance(op, ast.NotEq) else _is_among, self.stored(name, value))
            case ast.In() | ast.NotIn() if isinstance(value, list | tuple) and value:
                stored = tuple(item for listed in value for item in self.stored(name, listed))
                return Compared(name, _is_other if isinstance(op, ast.NotIn) else _is_among, stored)
            case ast.Lt() | ast.LtE() | ast.Gt() | ast.GtE():
                return self.ordered(name, op, value)
        raise ValueError(f"{self.where}: {_text(left, op, right)!r} is not of the form {FORMS}.")

    def name(self, node: ast.expr) -> str:
        typed = _dotted(node)
        if typed is None:
            raise ValueError(f"{self.where}: {ast.unparse(node)!r} is no name of the space; a condition is {FORMS}.")
        name = self.find(typed)
        if name is None:
            raise ValueError(
                f"{self.where}: the condition names {typed!r}, which is not in the space.{nearest(typed, self.domains)}"
            )
        self.names.append(name)
        return name

    def value(self, node: ast.expr) -> Any:
        if (word := _dotted(node)) is not None:
            raise ValueError(f"{self.where}: write {word!r} in quotes: a condition compares a name with a value.")
        try:
            return read_literal(node)
        except (ValueError, TypeError):
            raise ValueError(f"{self.where}: {ast.unparse(node)!r} is not a plain value.") from None

    def stored(self, name: str, value: Any) -> tuple[Any, ...]:
        """Find the values of a parameter that a person means by ``value``."""
        domain = self.domains[name]
        if not isinstance(domain.distribution, CategoricalDistribution):
            self.number(name, value)
            return (value,)
        choices = domain.distribution.choices
        meant = tuple(choice for choice in choices if _same(domain.meanings.get(choice, choice), value))
        meant = meant or tuple(choice for choice in choices if isinstance(value, str) and choice == value)
        if not meant:
            known = [str(masked(name, choice)) for choice in choices]
            raise ValueError(
                f"{self.where}: {name!r} is never {masked(name, value)!r}; it is one of {', '.join(known)}."
                f"{nearest(value, known) if isinstance(value, str) else ''}"
            )
        return meant

    def ordered(self, name: str, op: ast.cmpop, value: Any) -> Test:
        domain, order = self.domains[name], _ORDERS[type(op)]
        self.number(name, value)
        if isinstance(domain.distribution, CategoricalDistribution):
            meanings = {choice: domain.meanings.get(choice, choice) for choice in domain.distribution.choices}
            if not all(is_number(choice) for choice in meanings.values()):
                raise ValueError(f"{self.where}: the choices of {name!r} are not all numbers: use == or in.")
            return Compared(name, _is_among, tuple(kept for kept, choice in meanings.items() if order(choice, value)))
        return Compared(name, order, value)

    def number(self, name: str, value: Any) -> None:
        distribution = self.domains[name].distribution
        if not is_number(value):
            raise ValueError(f"{self.where}: {name!r} is compared with {masked(name, value)!r}, which is no number.")
        if isinstance(distribution, FloatDistribution | IntDistribution) and not (
            distribution.low <= value <= distribution.high
        ):
            raise ValueError(
                f"{self.where}: {name!r} is compared with {value!r}, but it lies between {distribution.low!r} and "
                f"{distribution.high!r}."
            )


def dependency_order(names: Mapping[str, Any], conditions: Mapping[str, Condition]) -> tuple[str, ...]:
    """Order names so that each comes after those that its condition names; otherwise as given.

    Raises:
        ValueError: if conditions depend on each other in a circle.
    """
    order: list[str] = []
    path: list[str] = []

    def visit(name: str) -> None:
        if name in path:
            circle = " -> ".join([*path[path.index(name) :], name])
            raise ValueError(f"`space` has conditions that depend on each other: {circle}. Take one condition out.")
        if name not in order:
            path.append(name)
            for parent in conditions[name].names if name in conditions else ():
                visit(parent)
            order.append(path.pop())

    for name in names:
        visit(name)
    return tuple(order)


def _is_among(value: Any, values: tuple[Any, ...]) -> bool:
    return value in values


def _is_other(value: Any, values: tuple[Any, ...]) -> bool:
    return value not in values


def _none(tests: Any) -> bool:
    return not any(tests)


def _dotted(node: ast.expr) -> str | None:
    """A name such as ``model.optimizer`` from its syntax tree."""
    match node:
        case ast.Name(id=name):
            return name
        case ast.Attribute(value=value, attr=attribute):
            head = _dotted(value)
            return None if head is None else f"{head}.{attribute}"
    return None


def _text(left: ast.expr, op: ast.cmpop, right: ast.expr) -> str:
    return ast.unparse(ast.Compare(left=left, ops=[op], comparators=[right]))


def _same(value: Any, other: Any) -> bool:
    """Equality that tells 1 from True, and a list from a tuple."""
    if is_number(value) and is_number(other):
        return bool(value == other)
    return alike(value, other)
