"""Objects of ``pytorch_lightning`` made fit for the Trainer of ``lightning.pytorch``.

The two packages hold the same code under two names, and each Trainer takes the classes of its own package only. Many
libraries still bring modules of ``pytorch_lightning``. Such an object gets a class that is a subclass of its own class
and of the same classes of ``lightning``, which come first: methods that the user has not overridden are then the
Trainer's own.
"""

import functools
import importlib
from typing import Any, TypeVar

_NAMES = {"pytorch_lightning": "lightning.pytorch", "lightning_fabric": "lightning.fabric"}
T = TypeVar("T")


def of_lightning(given: T) -> T:
    """Let an object of ``pytorch_lightning``, and modules within it, be instances of the classes of ``lightning`` too.

    Args:
        given: a module (with the modules within it), data module, callback, logger, or a list of these. It is changed
            in place; anything else is left as it is.

    Returns:
        The same object.
    """
    if isinstance(given, list | tuple):
        for item in given:
            of_lightning(item)
        return given
    children = given.modules() if hasattr(given, "modules") and hasattr(given, "_modules") else ()
    for part in (*children, given):
        before: Any = type(part)
        kind = _both(before)
        if kind is not before:
            part.__class__ = kind
    return given


def is_a(given: object, kind: type) -> bool:
    """Whether an object is of a class of ``lightning``, or of the same class of ``pytorch_lightning``."""
    return any(kind in (base, _same_of_lightning(base)) for base in type(given).__mro__)


@functools.cache
def _both(kind: type) -> type:
    """Return a subclass of a class and of its bases' counterparts in ``lightning``; without any, the class itself."""
    if not any(map(_same_of_lightning, kind.__mro__)) or issubclass(type(kind), _Both):
        return kind
    meta = type("_Both", (_Both, type(kind)), {})
    same = (found for base in kind.__mro__ if (found := _same_of_lightning(base)) is not None)
    made: type = meta(kind.__name__, (kind, next(same)), {"__module__": kind.__module__, "__doc__": kind.__doc__})
    made.__qualname__ = kind.__qualname__
    return made


class _Both(type):
    """Puts each class of ``lightning`` right before the same class of ``pytorch_lightning``."""

    def mro(cls) -> list[type]:
        order: list[type] = [cls]
        for base in cls.__bases__[0].__mro__:
            same = _same_of_lightning(base)
            order += [base] if same is None else [same, base]
        missing = [base for base in cls.__bases__[1].__mro__ if base not in order]
        return [*order[:-1], *missing, object]


@functools.cache
def _same_of_lightning(kind: type) -> type | None:
    package, _, rest = kind.__module__.partition(".")
    if package not in _NAMES:
        return None
    module: Any = importlib.import_module(".".join(filter(None, (_NAMES[package], rest))))
    found = functools.reduce(lambda owner, name: getattr(owner, name, None), kind.__qualname__.split("."), module)
    return found if isinstance(found, type) else None
