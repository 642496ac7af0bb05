"""Text from users, studies and other files, made fit to be shown: no control characters, no secrets."""

import re
from collections.abc import Mapping
from typing import Any

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
