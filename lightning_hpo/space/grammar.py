"""What a person types for one hyperparameter, as an Optuna distribution.

============================  =====================================================================
text                          meaning
============================  =====================================================================
``uniform(0, 0.5)``           a float; ``uniform(0, 0.5, step=0.1)`` on a grid
``loguniform(1e-5, 1e-1)``    a float whose logarithm is uniform
``int(1, 8)``                 an integer, both ends included; ``int(16, 128, step=16)`` on a grid
``logint(16, 512)``           an integer whose logarithm is about uniform
``choice(relu, "gelu", 3)``   one of the values: text (quotes optional), numbers, ``True``, ``False``, ``None``, lists,
                              tuples and dictionaries of these; ``choice(small={...}, large={...})`` gives them names
============================  =====================================================================

Each may end with a condition: ``uniform(0.8, 0.99) if optimizer == 'sgd'``. A list is a choice of its items, and a
number, an enum, a class or a function is a fixed value.
"""

import ast
import math
import warnings
from ast import literal_eval as read_literal  # literals only, whatever its name suggests
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.space.values import Choice, Entry, has_label, is_label, is_literal, labels, literal, number
from lightning_hpo.text import HIDDEN, is_number, is_secret, masked, nearest

GRAMMAR = "uniform(low, high), loguniform(low, high), int(low, high), logint(low, high) or choice(a, b, ...)"
_BUILDERS = ("uniform", "loguniform", "int", "logint", "choice")
_LOW_WORDS, _HIGH_WORDS = ("low", "min", "lower"), ("high", "max", "upper")


@dataclass(frozen=True)
class Conditional:
    """A value of a space that a trial has only under a condition.

    Args:
        condition: e.g. ``"optimizer == 'sgd'"``.
        value: anything that a space takes.
    """

    condition: str
    value: Any


def when(condition: str, value: Any) -> Conditional:
    """Give a value of a space that is not text a condition.

    Args:
        condition: e.g. ``"optimizer == 'sgd'"``; see :mod:`lightning_hpo.space.conditions`.
        value: an Optuna distribution, a choice, a fixed value.

    Example:
        >>> when("act == 'elu'", FloatDistribution(0.5, 2.0)).condition
        "act == 'elu'"
    """
    return Conditional(condition, value)


def read_entry(name: str, value: Any) -> Entry:
    """Read what a person typed for one name.

    Raises:
        TypeError: if it is nothing that a space takes.
        ValueError: if it does not follow the grammar.
    """
    where = f"space[{name!r}]"
    if isinstance(value, Conditional):
        inner = read_entry(name, value.value)
        if inner.condition is not None:
            raise ValueError(f"{where} has two conditions: join them with `and`.")
        return replace(inner, condition=_expression(f"{where}: the condition", value.condition))
    if isinstance(value, str):
        return _read_secret(name, value) if is_secret(name, value) else _read_text(name, value)
    if isinstance(value, BaseDistribution) and not isinstance(value, CategoricalDistribution):
        return Entry(value, format_distribution(value), {})
    if isinstance(value, list) and len(value) == 2 and all(isinstance(end, float) for end in value):
        _warn_of_range(where, value)
    if options := _options(value):
        return _choice(where, options, name)
    raise TypeError(f"{where} = {masked(name, value)!r} {_remedy(name, value)}")


def _warn_of_range(where: str, ends: list[float]) -> None:
    """Warn of a list of two numbers that looks like the ends of a range."""
    text = _range_text(*ends)
    if text.startswith("log"):
        warnings.warn(
            f"{where} = {ends!r} is a choice of two values. For the range between them write {text!r}; for the two "
            f"values, {_choice_text(ends)!r}.",
            stacklevel=2,
        )


def _options(value: Any) -> Sequence[tuple[str | None, Any]]:
    """Labels and values of a choice in any of its forms; a fixed value is a choice of one."""
    match value:
        case Choice(options=options):
            return options
        case CategoricalDistribution(choices=choices):
            return [(None, choice) for choice in choices]
        case list():
            return [(None, item) for item in value]
        case tuple() | Mapping():
            return []
    return [(None, value)] if has_label(value) else []


def format_distribution(distribution: BaseDistribution) -> str:
    """Write a distribution in the grammar; the inverse of parsing.

    Raises:
        ValueError: if the distribution is of a kind that the grammar cannot write.

    Example:
        >>> format_distribution(IntDistribution(16, 512, log=True))
        'logint(16, 512)'
    """
    match distribution:
        case CategoricalDistribution(choices=choices):
            return f"choice({', '.join(map(literal, choices))})"
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return f"{'loguniform' if log else 'uniform'}({low!r}, {high!r}{_step_text(step, None)})"
        case IntDistribution(low=low, high=high, log=log, step=step):
            return f"{'logint' if log else 'int'}({low!r}, {high!r}{_step_text(step, 1)})"
    raise ValueError(f"{distribution!r} cannot be written as {GRAMMAR}.")


def _step_text(step: float | None, default: float | None) -> str:
    return "" if step == default else f", step={step!r}"


def _expression(where: str, text: str) -> ast.expr:
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        raise ValueError(f"{where} {text!r} cannot be read.") from None


def _read_text(name: str, text: str) -> Entry:
    where = f"space[{name!r}] = {text!r}"
    node, condition = _parsed(text)
    if isinstance(node, ast.IfExp):
        raise ValueError(f"{where} has an `else`: a condition has none. Give the other case a name of its own.")
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
        fixed = f" A fixed text is written choice({text.strip()!r})." if text.strip().isidentifier() else ""
        raise ValueError(f"{where} is not {GRAMMAR}.{fixed}")
    kind = node.func.id
    if kind not in _BUILDERS:
        raise ValueError(f"{where}: {kind!r} is unknown; use {GRAMMAR}.{nearest(kind, _BUILDERS)}")
    arguments = [_literal(where, argument, bare_words=kind == "choice") for argument in node.args]
    keywords = {
        argument.arg: _literal(where, argument.value, bare_words=kind == "choice") for argument in node.keywords
    }
    if kind == "choice":
        entry = _choice(where, [*((None, argument) for argument in arguments), *keywords.items()])
    else:
        distribution = _range(where, kind, arguments, keywords)
        entry = Entry(distribution, format_distribution(distribution), {})
    return replace(entry, condition=condition)


def _parsed(text: str) -> tuple[ast.expr | None, ast.expr | None]:
    """Parse ``value`` or ``value if condition``: Python's own grammar, once it has the ``else`` that it asks for."""
    for whole in (text.strip(), f"{text.strip()} else None"):
        try:
            node = ast.parse(whole, mode="eval").body
        except (SyntaxError, ValueError):
            continue
        return (node.body, node.test) if isinstance(node, ast.IfExp) and whole != text.strip() else (node, None)
    return None, None


def _read_secret(name: str, text: str) -> Entry:
    """Read without repeating in an error what may be a secret."""
    try:
        return _read_text(name, text)
    except ValueError:
        raise ValueError(f"space[{name!r}] = {HIDDEN!r} is not {GRAMMAR}, with every text in quotes.") from None


def _literal(where: str, node: ast.expr, *, bare_words: bool) -> Any:
    if bare_words and isinstance(node, ast.Name):
        return node.id
    try:
        return read_literal(node)
    except (ValueError, TypeError):
        raise ValueError(f"{where}: {ast.unparse(node)!r} is not a plain number, text, True, False or None.") from None


def _choice(where: str, options: Sequence[tuple[str | None, Any]], name: str = "") -> Entry:
    if not options:
        raise ValueError(f"{where}: choice takes one or more values, e.g. choice(16, 32, 64).")
    for label, _ in options:
        if label is not None and not is_label(label):
            raise ValueError(f"{where}: the name {label!r} of a choice must be one word of letters, digits and _.")
    stored = labels(where, options, lambda value: masked(name, value))
    values = [number(value) for _, value in options]
    same = all(label is None for label, _ in options) and [*map(type, stored)] == [*map(type, values)]
    texts = (
        ("" if label is None else f"{label}=") + (literal(value) if is_literal(value) else repr(kept))
        for kept, (label, value) in zip(stored, options, strict=True)
    )
    meanings = {} if same else dict(zip(stored, values, strict=True))
    return Entry(CategoricalDistribution(stored), f"choice({', '.join(texts)})", meanings)


def _range(where: str, kind: str, arguments: list[Any], keywords: Mapping[str | None, Any]) -> BaseDistribution:
    ends: dict[str | None, Any] = dict(zip(("low", "high"), arguments, strict=False))
    takes_step = kind in ("uniform", "int")
    allowed: set[str | None] = {"low", "high", "step"} if takes_step else {"low", "high"}
    given = {**ends, **keywords}
    if len(arguments) > 2 or set(ends) & set(keywords) or not {"low", "high"} <= set(given) <= allowed:
        raise ValueError(f"{where}: {kind} takes (low, high{', step=...' if takes_step else ''}).")
    whole = kind in ("int", "logint")
    for argument, value in given.items():
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError(f"{where}: {argument} must be {'an integer' if whole else 'a number'}, got {value!r}.")
        if not math.isfinite(value):
            raise ValueError(f"{where}: {argument} must be finite, got {value!r}.")
    low, high, step = given["low"], given["high"], given.get("step")
    if low > high:
        raise ValueError(f"{where}: low {low!r} is above high {high!r}.")
    if not math.isfinite(high - low):
        raise ValueError(f"{where}: high - low must be finite, got {low!r} and {high!r}.")
    if kind.startswith("log") and low <= 0:
        raise ValueError(f"{where}: a logarithmic range needs low > 0, got {low!r}.")
    if step is not None and step <= 0:
        raise ValueError(f"{where}: step must be above 0, got {step!r}.")
    if whole:
        return IntDistribution(low, high, log=kind == "logint", step=1 if step is None else step)
    return FloatDistribution(float(low), float(high), log=kind == "loguniform", step=step)


def _remedy(name: str, value: Any) -> str:
    """Say what to write instead of a value that no space takes."""
    if isinstance(value, tuple | list) and len(value) == 2 and all(map(is_number, value)):
        return f"may be a range or two values. Write {_range_text(*value)!r} or {_choice_text(value)!r}."
    if isinstance(value, tuple):
        written = _choice_text(value) if all(map(has_label, value)) else "choice(...)"
        return f"is a tuple. Write {written!r} for one of its items, or lightning_hpo.choice({{...}}) for itself."
    if isinstance(value, list):
        return "is empty. Write the values to choose from, e.g. [16, 32, 64]."
    if isinstance(value, Mapping):
        return _remedy_for_mapping(name, value)
    if callable(value):
        return "has no name in a study. Write lightning_hpo.choice(first=...), and the study shows 'first'."
    return f"is neither text nor an Optuna distribution; use {GRAMMAR}."


def _remedy_for_mapping(name: str, value: Mapping[Any, Any]) -> str:
    low, high = (next((value[word] for word in words if word in value), None) for words in (_LOW_WORDS, _HIGH_WORDS))
    if low is not None and high is not None and is_number(low) and is_number(high):
        log = bool(value.get("log")) or "log" in str(value.get("distribution", value.get("type", "")))
        return f"is a dictionary. Write {_range_text(low, high, log=log)!r}."
    if isinstance(values := value.get("values", value.get("choices")), list | tuple) and all(map(has_label, values)):
        return f"is a dictionary. Write {_choice_text(values)!r}."
    if any(isinstance(inner, str | BaseDistribution | Choice | Conditional) for inner in value.values()):
        first = next(iter(value))
        return f"is a dictionary. Write the names with dots, e.g. '{name}.{first}': ..."
    return "is a dictionary. Write lightning_hpo.choice(first={...}) to give it a name."


def _range_text(low: float, high: float, *, log: bool | None = None) -> str:
    """Write a range; on a logarithmic scale where it spans a hundredfold."""
    if low > high:
        low, high = high, low
    log = low > 0 and high / low >= 100 if log is None else log
    whole = isinstance(low, int) and isinstance(high, int)
    kind = ("logint" if log else "int") if whole else ("loguniform" if log else "uniform")
    return f"{kind}({low!r}, {high!r})"


def _choice_text(values: Sequence[Any]) -> str:
    return f"choice({', '.join(map(literal, values))})"
