"""Text from users, studies and other files, made fit to be shown: no control characters, no secrets."""

import re
from collections.abc import Mapping
from typing import Any

# scheme://user:password@host, also inside a longer text. A password may hold anything but white space and "/";
# up to the last "@", since people forget to write it as %40.
_URL_PASSWORD = re.compile(r"(?P<before>\b[A-Za-z][A-Za-z0-9+.-]*://[^\s:/@]*:)[^\s/]*(?P<at>@)")
_SECRET = re.compile(r"(^|[._-])(api)?(token|key|secret)$|passw|credential", re.IGNORECASE)
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
HIDDEN = "***"


def one_line(text: object) -> str:
    r"""Write control characters, ESC and line breaks among them, the way Python does.

    Example:
        >>> one_line("a\x1b[31m" + chr(10) + "é")
        'a\\x1b[31m\\né'
    """
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in str(text))


def hide_passwords(text: str) -> str:
    """Replace the passwords of URLs in a text.

    Example:
        >>> hide_passwords("cannot connect to postgresql://me:s3cret@host/db")
        'cannot connect to postgresql://me:***@host/db'
    """
    return _URL_PASSWORD.sub(rf"\g<before>{HIDDEN}\g<at>", text)


def masked(name: str, value: Any) -> Any:
    """Hide the value of a parameter whose name says that it is a secret: ``*_token``, ``*_key``, ``*password*``.

    Example:
        >>> masked("data.api_key", "abc"), masked("lr", 0.1), masked("monkey", 1)
        ('***', 0.1, 1)
    """
    return HIDDEN if _SECRET.search(name) else value


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
