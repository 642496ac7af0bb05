"""Search spaces: what a person types, as Optuna distributions, and each distribution as an interval of length one.

A space maps a *dotted name* to what the value may be. The name says where the value goes: ``model.lr`` and its short
form ``lr`` are arguments of the model, ``data.batch_size`` of the data module, ``trainer.accumulate_grad_batches`` of
the Trainer. The value is text in a small grammar, or any Optuna distribution:

============================  =====================================================================
text                          meaning
============================  =====================================================================
``uniform(0, 0.5)``           a float; ``uniform(0, 0.5, step=0.1)`` on a grid
``loguniform(1e-5, 1e-1)``    a float whose logarithm is uniform
``int(1, 8)``                 an integer, both ends included; ``int(16, 128, step=16)`` on a grid
``logint(16, 512)``           an integer whose logarithm is about uniform
``choice(relu, "gelu", 3)``   one of the values: text (quotes optional), numbers, ``True``, ``False``, ``None``, and
                              lists of these; a tuple becomes a list
============================  =====================================================================
"""

import ast
import math
from ast import literal_eval as read_literal  # literals only, whatever its name suggests
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Any, TypeAlias

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.quiet import known_warnings_hidden
from lightning_hpo.text import HIDDEN, is_secret, masked, nearest

Space: TypeAlias = Mapping[str, str | BaseDistribution]

GRAMMAR = "uniform(low, high), loguniform(low, high), int(low, high), logint(low, high) or choice(a, b, ...)"
_BUILDERS = ("uniform", "loguniform", "int", "logint", "choice")


def parse_space(space: Space) -> dict[str, BaseDistribution]:
    """Turn a space as typed into Optuna distributions.

    Args:
        space: dotted name -> text of the grammar above, or an Optuna distribution. The order is kept.

    Returns:
        The same names, each with its distribution.

    Raises:
        TypeError: if ``space`` is no mapping, a name no text, or a value neither text nor a distribution.
        ValueError: if the space is empty, a name is malformed or given twice (``lr`` and ``model.lr``), or a text does
            not follow the grammar. The message names the key, the value, and the nearest valid name.

    Example:
        >>> parse_space({"lr": "loguniform(1e-5, 1e-1)"})["lr"].high
        0.1
    """
    if not isinstance(space, Mapping):
        raise TypeError(f"`space` must map names to distributions such as 'uniform(0, 1)', got {space!r}.")
    if not space:
        raise ValueError("`space` is empty: name at least one hyperparameter, e.g. {'lr': 'loguniform(1e-5, 1e-1)'}.")
    parsed: dict[str, BaseDistribution] = {}
    owners: dict[tuple[str, str], str] = {}
    for name, value in space.items():
        place = split_name(name)
        if place in owners:
            raise ValueError(f"`space` names {'.'.join(place)!r} twice: as {owners[place]!r} and as {name!r}.")
        owners[place] = name
        if isinstance(value, CategoricalDistribution):
            parsed[name] = _categorical(f"space[{name!r}]", value.choices, name)
        elif isinstance(value, BaseDistribution):
            parsed[name] = value
        elif isinstance(value, str):
            parsed[name] = _parse_secret(name, value) if is_secret(name, value) else _parse_text(name, value)
        else:
            raise TypeError(f"space[{name!r}] = {value!r} is neither text nor an Optuna distribution; use {GRAMMAR}.")
    return parsed


def split_name(name: str) -> tuple[str, str]:
    """Split a dotted name into the part that receives the value and the rest.

    Args:
        name: e.g. ``data.batch_size``; a name without a dot belongs to ``model``.

    Returns:
        For example ``("data", "batch_size")``.

    Raises:
        TypeError: if ``name`` is no text.
        ValueError: if a part between the dots is empty.

    Example:
        >>> split_name("lr"), split_name("trainer.gradient_clip_val")
        (('model', 'lr'), ('trainer', 'gradient_clip_val'))
    """
    if not isinstance(name, str):
        raise TypeError(f"a name in `space` must be text, got {name!r}.")
    if not all(part.strip() == part and part for part in name.split(".")):
        raise ValueError(f"`space` has the name {name!r}; a name is one or more words joined by dots, e.g. 'model.lr'.")
    head, dot, rest = name.partition(".")
    return (head, rest) if dot else ("model", head)


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
            return f"choice({', '.join(repr(choice) for choice in choices)})"
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return f"{'loguniform' if log else 'uniform'}({low!r}, {high!r}{_step_text(step, None)})"
        case IntDistribution(low=low, high=high, log=log, step=step):
            return f"{'logint' if log else 'int'}({low!r}, {high!r}{_step_text(step, 1)})"
    raise ValueError(f"{distribution!r} cannot be written as {GRAMMAR}.")


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
        >>> to_unit(FloatDistribution(1e-4, 1e-2, log=True), 1e-3)
        0.5
    """
    if isinstance(distribution, CategoricalDistribution):
        return float(distribution.choices.index(value) + 0.5) / len(distribution.choices)
    low, high, log = _cell_ends(distribution)
    if high <= low:
        return 0.5
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
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


def _step_text(step: float | None, default: float | None) -> str:
    return "" if step == default else f", step={step!r}"


def _parse_text(name: str, text: str) -> BaseDistribution:
    where = f"space[{name!r}] = {text!r}"
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        call = None
    if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
        raise ValueError(f"{where} is not {GRAMMAR}.")
    kind = call.func.id
    if kind not in _BUILDERS:
        raise ValueError(f"{where}: {kind!r} is unknown; use {GRAMMAR}.{nearest(kind, _BUILDERS)}")
    arguments = [_literal(where, node, bare_words=kind == "choice") for node in call.args]
    keywords = {keyword.arg: _literal(where, keyword.value, bare_words=False) for keyword in call.keywords}
    if kind == "choice":
        return _choice(where, arguments, keywords)
    return _range(where, kind, arguments, keywords)


def _parse_secret(name: str, text: str) -> BaseDistribution:
    """Parse without repeating in an error what may be a secret."""
    try:
        return _parse_text(name, text)
    except ValueError:
        raise ValueError(f"space[{name!r}] = {HIDDEN!r} is not {GRAMMAR}, with every text in quotes.") from None


def _literal(where: str, node: ast.expr, *, bare_words: bool) -> Any:
    if bare_words and isinstance(node, ast.Name):
        return node.id
    try:
        return read_literal(node)
    except (ValueError, TypeError):
        raise ValueError(f"{where}: {ast.unparse(node)!r} is not a plain number, text, True, False or None.") from None


def _choice(where: str, choices: list[Any], keywords: Mapping[str | None, Any]) -> BaseDistribution:
    if keywords or not choices:
        raise ValueError(f"{where}: choice takes one or more values and no keywords, e.g. choice(16, 32, 64).")
    return _categorical(where, choices)


def _categorical(where: str, choices: Sequence[Any], name: str = "") -> CategoricalDistribution:
    """Make a distribution of choices that a study can store and tell apart; tuples become lists, as JSON has no tuples.

    Args:
        where: for messages.
        choices: as given.
        name: of the parameter, if its values are not in ``where``; it may be one of a secret.
    """
    plain = [_storable(where, choice, masked(name, choice)) for choice in choices]
    for index, choice in enumerate(plain):
        for other in plain[:index]:
            if choice == other:
                one, two = masked(name, other), masked(name, choice)
                same = "" if type(one) is type(two) else f": {one!r} == {two!r}, and only the first would ever be drawn"
                raise ValueError(
                    f"{where}: the choice {one!r} is given twice{same}. Leave one out, or write it as text."
                )
    with known_warnings_hidden():
        return CategoricalDistribution(plain)


def _storable(where: str, choice: Any, shown: Any) -> Any:
    """Return a choice as plain JSON."""
    if isinstance(choice, list | tuple):
        return [_storable(where, one, shown) for one in choice]
    if isinstance(choice, Mapping) and all(isinstance(key, str) for key in choice):
        return {key: _storable(where, one, shown) for key, one in choice.items()}
    if hasattr(choice, "item") and getattr(choice, "shape", None) == ():  # a number of numpy or torch
        choice = choice.item()
    if isinstance(choice, Enum) or not isinstance(choice, str | int | float | None) or choice != choice:  # noqa: PLR0124
        raise ValueError(
            f"{where}: the choice {shown!r} is not text, a number, True, False, None or a list of these, so a study "
            "cannot store it. Write its name, e.g. choice('ReLU', 'GELU'), and look it up in the model."
        )
    return choice


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


def nested_config(params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
    """Write parameters as a config: one block for each receiver, and the budget."""
    config: dict[str, dict[str, Any]] = {}
    for name, value in params.items():
        head, rest = split_name(name)
        config.setdefault(head, {})[rest] = value
    config.setdefault("trainer", {})["max_steps"] = max_steps
    return config


def suggest(
    trial: optuna.Trial, space: Mapping[str, BaseDistribution] | Callable[[optuna.Trial], Mapping[str, Any]]
) -> dict[str, Any]:
    """Let a trial suggest a value for each name of a space, or let a function of the trial do it."""
    if callable(space):
        return dict(space(trial))
    return {name: _suggest(trial, name, distribution) for name, distribution in space.items()}


def _suggest(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    match distribution:
        case CategoricalDistribution(choices=choices):
            return trial.suggest_categorical(name, choices)
        case FloatDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_float(name, low, high, log=log, step=step)
        case IntDistribution(low=low, high=high, log=log, step=step):
            return trial.suggest_int(name, low, high, log=log, step=step)
    raise TypeError(f"{distribution!r} is not a float, int or categorical distribution of Optuna.")
