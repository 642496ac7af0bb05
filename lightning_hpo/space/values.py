"""Values of a choice: what a study stores of each, and what the user's module receives.

Text, numbers, ``True``, ``False`` and ``None`` that Optuna can tell apart are stored as they are. Any other choice (a
list, a tuple, a dictionary, an enum, a class, a function, ``1`` beside ``True``) is stored as a *label*, a text that
every Optuna tool shows, and the module receives the value that the label stands for.
"""

import ast
import copy
import keyword
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from types import BuiltinFunctionType, FunctionType
from typing import Any

from optuna.distributions import BaseDistribution


@dataclass(frozen=True)
class Choice:
    """Values of which one is chosen, each with the label that it was given, if any.

    Args:
        options: pairs of label (None where the value itself says enough) and value.
    """

    options: tuple[tuple[str | None, Any], ...]


@dataclass(frozen=True)
class Entry:
    """One hyperparameter, read.

    Args:
        distribution: of what a study stores.
        text: the same in the grammar, without the condition.
        meanings: stored label -> the value that it stands for; empty if values are stored themselves.
        condition: syntax tree of what stands behind ``if``, or None.
    """

    distribution: BaseDistribution
    text: str
    meanings: Mapping[Any, Any]
    condition: ast.expr | None = None


def choice(*values: Any, **named: Any) -> Choice:
    """Make a choice of any Python values; the module receives the very value.

    Args:
        *values: text, numbers, lists, tuples, dictionaries, enums, classes, functions.
        **named: label -> any value at all. A study stores and shows the label.

    Returns:
        A value for a space.

    Raises:
        ValueError: if there is no value.

    Example:
        >>> space = {"widths": choice((64,), (64, 64)), "cfg": choice(small={"depth": 2}, large={"depth": 8})}
        >>> [label for label, _ in space["cfg"].options]
        ['small', 'large']
    """
    options = (*((None, value) for value in values), *named.items())
    if not options:
        raise ValueError("choice takes one or more values, e.g. choice(16, 32, 64).")
    return Choice(options)


def labels(
    where: str, options: Sequence[tuple[str | None, Any]], show: Callable[[Any], Any] = lambda value: value
) -> list[Any]:
    """Return what a study stores of each value of a choice: the value itself, or a label.

    Raises:
        ValueError: if a value is given twice, or nothing says how to call it.
    """
    given = [(label, number(value)) for label, value in options]
    if all(label is None and _is_plain(value) and has_label(value) for label, value in given):
        values = [value for _, value in given]
        if all(value != other for index, value in enumerate(values) for other in values[:index]):
            return values
    texts = [label if label is not None else _label(where, value, show(value)) for label, value in given]
    if len({*texts}) < len(texts):
        texts = [
            repr(text) if label is None and isinstance(value, str) else _long_label(text, label, value)
            for text, (label, value) in zip(texts, given, strict=True)
        ]
    for index, text in enumerate(texts):
        if text in texts[:index]:
            value = show(given[index][1])
            raise ValueError(
                f"{where}: the choice {value!r} is given twice. Leave one out, or give each a name: "
                "lightning_hpo.choice(first=..., second=...)."
            )
    return texts


def delivered(value: Any) -> Any:
    """Return a value for one trial: itself, or a copy where a trial could change it for the others."""
    return copy.deepcopy(number(value))


def is_literal(value: Any) -> bool:
    """Whether the grammar can write a value so that it reads the same again."""
    if isinstance(value, list | tuple):
        return all(map(is_literal, value))
    if isinstance(value, Mapping):
        return all(is_literal(key) and is_literal(item) for key, item in value.items())
    return _is_plain(number(value))


def plain(value: Any) -> Any:
    """Return a literal value as YAML can hold it: lists for tuples."""
    value = number(value)
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return value


def literal(value: Any) -> str:
    """Write a value as the grammar reads it; a class, a function or another object as text.

    Example:
        >>> literal((64, "a", None, float("inf")))
        "(64, 'a', None, 1e999)"
    """
    value = number(value)
    if isinstance(value, float) and math.isinf(value):
        return "1e999" if value > 0 else "-1e999"
    if _is_plain(value):
        return repr(str(value) if isinstance(value, str) else value)
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    return repr(_name(value) or f"<{type(value).__name__}>")


def has_label(value: Any) -> bool:
    """Whether a value says by itself how it is called in a study; another one needs a name."""
    if isinstance(value, list | tuple):
        return all(has_label(item) for item in value)
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and has_label(item) for key, item in value.items())
    value = number(value)
    return (_is_plain(value) and value == value) or bool(_name(value))  # noqa: PLR0124  # NaN is unlike itself


def alike(value: Any, other: Any) -> bool:
    """Equality that tells ``1`` from ``True``, and a list from a tuple, inside lists too."""
    if type(value) is not type(other) or not bool(value == other):
        return False
    return not (is_literal(value) and is_literal(other)) or literal(value) == literal(other)


def is_label(text: str) -> bool:
    """Whether a text can be the name of a choice in the grammar."""
    return text.isidentifier() and not keyword.iskeyword(text)


def _label(where: str, value: Any, shown: Any) -> str:
    if not has_label(value):
        raise ValueError(
            f"{where}: a study has no name for the choice {shown!r}. Give it one: lightning_hpo.choice(first=...), "
            "and the study shows 'first'."
        )
    if isinstance(value, str) and not isinstance(value, Enum):
        return value
    return _name(value) or _with_names(value)


def _with_names(value: Any) -> str:
    """Write a list, tuple or dictionary with the names of classes and functions inside it."""
    if isinstance(value, list | tuple) and not isinstance(value, Enum):
        inner = ", ".join(map(_with_names, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner}{',' if len(value) == 1 else ''})"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key!r}: {_with_names(item)}' for key, item in value.items())}}}"
    return _name(value) or literal(value)


def _long_label(text: str, label: str | None, value: Any) -> str:
    """Tell classes and functions of one name apart by their module."""
    if label is None and isinstance(value, type | FunctionType | BuiltinFunctionType):
        return f"{value.__module__}.{value.__qualname__}"
    return text


def _name(value: Any) -> str:
    """Name of an enum's member, a class or a function; empty if it has none that means the same in every process."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, type | FunctionType | BuiltinFunctionType) and "<lambda>" not in value.__qualname__:
        return str(value.__name__)
    return ""


def _is_plain(value: Any) -> bool:
    return isinstance(value, str | int | float | None) and not isinstance(value, Enum)


def number(value: Any) -> Any:
    """Return a number of numpy or torch as Python's."""
    shapeless = hasattr(value, "item") and getattr(value, "shape", None) == ()
    return value.item() if shapeless else value
