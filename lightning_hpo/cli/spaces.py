"""Spaces on the command line: flags and files, as names and what stands behind them."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_GRAMMAR = re.compile(r"\s*(uniform|loguniform|int|logint|choice)\s*\(")
_RANGE = ({"low", "high"}, {"min", "max"}, {"lower", "upper"}, {"values"})


def whole_names(arguments: Sequence[str]) -> list[str]:
    """Prepare flags of a space for the parser.

    ``--space.model.lr`` becomes ``--space.model/lr``, as jsonargparse keeps the last of several dotted keys only. What
    stands behind it is quoted if it is of the grammar, as YAML would read ``choice(a={'b': 1})`` as a dictionary.

    Example:
        >>> whole_names(["--space.model.lr", "uniform(0, 1)", "--space.act=[a, b]"])
        ['--space.model/lr', '"uniform(0, 1)"', '--space.act=[a, b]']
    """
    prepared: list[str] = []
    is_value = False
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if is_value or not argument.startswith("--space."):
            prepared.append(_quoted(argument) if is_value else argument)
            is_value = False
        else:
            prepared.append(flag[:8] + flag[8:].replace(".", "/") + equals + _quoted(value))
            is_value = not equals
    return prepared


def flat(space: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give the names of a space with dots, however it is nested in a file."""
    for key, value in space.items():
        name = prefix + str(key).replace("/", ".")
        if key == "__path__":  # jsonargparse's note on the file it came from
            continue
        if isinstance(value, Mapping) and not any(words <= value.keys() for words in _RANGE):
            yield from flat(value, f"{name}.")
        else:
            yield name, _unquoted(value)


def _unquoted(value: Any) -> Any:
    """Take off the quotes, which the parser leaves on."""
    quoted = isinstance(value, str) and value.startswith('"') and _GRAMMAR.match(value[1:])
    return json.loads(value) if quoted else value


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False) if _GRAMMAR.match(text) else text
