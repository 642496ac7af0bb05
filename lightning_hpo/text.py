"""Text that people read: escaping, secrets, printing, and the sentences about a wrong argument."""

import atexit
import difflib
import logging
import math
import os
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from numbers import Integral
from typing import Any, TypeGuard

# scheme://user:password@host, also inside a longer text. A password may hold anything but white space, "/" and "@" too,
# since people forget to write them as %2F and %40: up to the last "@".
_URL_PASSWORD = re.compile(r"(?P<before>\b[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*:)\S*(?P<at>@)")
# name="value", "name": 'value', space['name'] = "value", also with line breaks inside the quotes.
_QUOTED = re.compile(
    r"""(?<![\w.-])(?P<name>[A-Za-z_][\w.-]*)(?P<gap>["']?\]?\s*[=:]\s*)(?P<quote>["'])(?P<value>(?:\\.|(?!(?P=quote)).)*)(?P=quote)""",
    re.DOTALL,
)
_BARE = re.compile(r"""(?<![\w.-])(?P<name>[A-Za-z_][\w.-]*)=(?P<value>[^\s"'&;,)\]}]+)""")  # ?password=value, DSN
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")
_SECRET = re.compile(r"passw|passphrase|credential|secret|\bpwd\b|\btoken$|(\b|api)key$|\b(api|access|private) ?key\b")
_SECRET_TEXT = re.compile(r"token\b")  # a number under such a name is how many there are
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
HIDDEN = "***"
_LEAST = 4  # letters of a value that is looked for in a text: a shorter one may be anything


def one_line(text: object) -> str:
    r"""Write control characters, ESC and line breaks among them, the way Python does.

    Example:
        >>> one_line("a\x1b[31m" + chr(10) + "é")
        'a\\x1b[31m\\né'
    """
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(text))


def hide_passwords(text: str) -> str:
    """Replace the passwords of URLs in a text, and what stands behind a name that says that it is a secret.

    Example:
        >>> hide_passwords("cannot connect to postgresql://me:s3cret@host/db?sslpassword=abc&timeout=3")
        'cannot connect to postgresql://me:***@host/db?sslpassword=***&timeout=3'
        >>> hide_passwords("Net(lr=0.1, api_key='abc')")
        "Net(lr=0.1, api_key='***')"
    """
    text = _URL_PASSWORD.sub(rf"\g<before>{HIDDEN}\g<at>", text)
    text = _QUOTED.sub(lambda found: _without_value(found, found["gap"] + found["quote"], found["quote"]), text)
    return _BARE.sub(lambda found: _without_value(found, "=", ""), text)


def is_secret(name: str, value: Any = "") -> bool:
    """Whether a name says that its value is a secret: ``*_key``, ``*token*``, ``*secret*``, ``*password*``, ...

    Example:
        >>> is_secret("data.hfToken"), is_secret("token_file", "a"), is_secret("token_dim", 64), is_secret("tokenizer")
        (True, True, False, False)
    """
    words = " ".join(_HUMP.split(name)).lower().strip()
    return bool(_SECRET.search(words) or (isinstance(value, str) and _SECRET_TEXT.search(words)))


def masked(name: str, value: Any) -> Any:
    """Hide the value of a parameter whose name says that it is a secret, and passwords of URLs in any text.

    Example:
        >>> masked("data.api_key", "abc"), masked("lr", 0.1), masked("monkey", 1), masked("db", "redis://:pw@host")
        ('***', 0.1, 1, 'redis://:***@host')
    """
    if is_secret(name, value):
        return HIDDEN
    return hide_passwords(value) if isinstance(value, str) else value


def masked_config(config: Any, name: str = "") -> Any:
    """Hide the secrets of a nested config, whatever its depth.

    Example:
        >>> masked_config({"model": {"lr": 0.1, "api_key": "abc"}, "urls": ["redis://:pw@host"]})
        {'model': {'lr': 0.1, 'api_key': '***'}, 'urls': ['redis://:***@host']}
    """
    if isinstance(config, Mapping):
        return {
            key: masked_config(value, f"{name}.{key}" if is_secret(name) else str(key)) for key, value in config.items()
        }
    if isinstance(config, list | tuple):
        return [masked_config(value, name) for value in config]
    return masked(name, config)


def hide_values(text: str, params: Mapping[str, Any]) -> str:
    """Replace the values of secrets among parameters wherever they stand in a text.

    Example:
        >>> hide_values("401 for abcd", {"api_key": "abcd"})
        '401 for ***'
    """
    secrets = {value for name, value in params.items() if isinstance(value, str) and is_secret(name, value)}
    for value in sorted(secrets, key=len, reverse=True):
        text = text.replace(value, HIDDEN) if len(value) >= _LEAST else text
    return text


def listed(params: Mapping[str, Any]) -> str:
    """Write parameters for a message, without the values of secrets.

    Example:
        >>> listed({"lr": 0.1, "data.api_key": "abc"})
        "lr=0.1, data.api_key='***'"
    """
    return ", ".join(f"{name}={masked(name, value)!r}" for name, value in params.items())


def csv_cell(text: str) -> str:
    """Keep a spreadsheet from taking a text for a formula.

    Example:
        >>> csv_cell("=cmd|' /C calc'!A0"), csv_cell("val_loss")
        ("'=cmd|' /C calc'!A0", 'val_loss')
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode() if ord(letter) < 0xD800 or ord(letter) > 0xDFFF else "�"


def _without_value(found: re.Match[str], before: str, after: str) -> str:
    name, value = found["name"], found["value"]
    number = re.fullmatch(r"[-+0-9.e]+", value) is not None and not after
    bare_key = _HUMP.split(name)[-1].lower() == name.lower() == "key"  # of sorted(), of a dict: any name at all
    if bare_key or value == HIDDEN or not is_secret(name, 0 if number else value):
        return found[0]
    return f"{name}{before}{HIDDEN}{after}"


_LOST = "_lightning_hpo_lost"  # attribute of a stream that did not take a line: the reason


def say(text: str, stream: Any = None) -> None:
    """Print a line at once, wherever the output goes: a closed pipe, a full disk, an encoding without its letters.

    Letters that the stream cannot encode are written as escapes. A line that cannot be written is lost; the first time,
    a warning says so, unless nobody is there any more to read.

    Args:
        text: without secrets and control characters.
        stream: where to print. Default: ``sys.stdout``.
    """
    stream = sys.stdout if stream is None else stream
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        if lost(stream) is not None:
            return
        with suppress(AttributeError):  # a stream that takes no attributes: then each lost line is a warning
            setattr(stream, _LOST, error)
        atexit.register(_give_up, stream)
        if not isinstance(error, BrokenPipeError):
            logging.getLogger(__name__).warning("output cannot be written (%s), work goes on without it", error)


def lost(stream: Any) -> Exception | None:
    """Why a stream did not take all that was said, if so."""
    reason: Exception | None = getattr(stream, _LOST, None)
    return reason


def _give_up(stream: Any) -> None:
    """Let what a stream still holds go nowhere; else the interpreter ends with an error when it flushes it."""
    with suppress(ValueError):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def is_number(value: object) -> TypeGuard[float]:
    """Whether a value is a Python number, and neither True nor False."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_range(name: str, value: float, low: float, high: float) -> float:
    """Return ``value`` as a float if it is finite and in [low, high].

    Raises:
        ValueError: if it is not.
    """
    if not (is_number(value) and math.isfinite(value) and low <= value <= high):
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


def nearest(name: object, known: Mapping[str, object] | Sequence[str], least: float = 0.6) -> str:
    """Return ``" Did you mean 'x'?"`` for the known name that is nearest to ``name``, or an empty text.

    Args:
        name: as typed.
        known: names that there are.
        least: similarity, from 0 to 1, from which a name is taken for another one misspelt.
    """
    found = difflib.get_close_matches(str(name), list(known), n=1, cutoff=least)
    return f" Did you mean {found[0]!r}?" if found else ""


def require_bool(name: str, value: object, other: str | None = None) -> None:
    """Raise ValueError unless ``value`` is True or False, also as 0, 1 or NumPy's, or the text ``other``."""
    is_of_numpy = getattr(getattr(value, "dtype", None), "kind", "") == "b"
    is_switch = (isinstance(value, int) or is_of_numpy) and value in (0, 1)
    if not is_switch and (other is None or value != other):
        accepted = "True or False" if other is None else f"True, False or {other!r}"
        meant = str(value).strip().lower() not in ("", "no", "n", "false", "f", "off", "0", "0.0", "none")
        raise ValueError(f"`{name}` must be {accepted}, got {value!r}: write {name}={meant}.")


def require_int(name: str, value: object, least: int) -> None:
    """Raise ValueError unless ``value`` is an integer of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"`{name}` must be an int >= {least}, got {value!r}.")
