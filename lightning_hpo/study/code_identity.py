"""What a study was computed with: a short hash for each piece of code of the model, the data module or the function.

Compared is what runs, not how it is written: bytecode, constants and names. Comments, docstrings, formatting and line
numbers do not count, so tidying a file never keeps a study from continuing. A change of a model's or data module's code
is an error all the same, not a warning: values from before and after a changed loss cannot be told apart later, and
nobody reads a warning at night. The error names the methods that changed, and ``allow_changed=True`` continues on
purpose and writes it down. A plain function is often the same computation with something else around it, a counter or
a print, so its change is a warning, written down with the study.

Counted are the given classes and functions, their bases outside the libraries, and functions and classes of the same
file that they use by name; with them what they hold: class attributes, default arguments, fields of dataclasses, what a
closure or a partial binds, numbers, texts, containers and arrays of them. Not seen: other files, global values, other
objects, and the data itself. Bytecode belongs to a minor version of Python; under another one, code is not compared.

A list, dict or array counts as it was when this process saw it first: code often collects in one what happens. For the
same reason, what the code itself assigns while it runs (a counter in a closure or of a callable object) does not count.
"""

import contextlib
import dataclasses
import dis
import functools
import hashlib
import math
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBRARIES = {
    *sys.stdlib_module_names, "torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics",
    "torchvision", "transformers", "timm", "numpy", "optuna", "lightning_hpo",
} - {"__main__"}  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, bool, type(None), range, slice)
_WRITTEN_OUT = ("builtins", "datetime", "decimal", "fractions", "uuid", "pathlib", "torch", "numpy")  # by their repr
_LARGEST = 100_000  # numbers of an array that are looked at; of a larger one the shape counts
_first_seen: dict[int, tuple[Callable[[], Any], Any]] = {}  # id of what can change -> itself, and what was said of it


def code_parts(subjects: Sequence[Any]) -> dict[str, str]:
    """Name -> hash for each piece of code.

    Args:
        subjects: classes, functions or other callables; what has no Python code is passed over.

    Example:
        >>> def double(x):
        ...     return 2 * x
        >>> list(code_parts([double]))
        ['double']
    """
    parts: dict[str, str] = {}
    seen: set[int] = set()
    for subject in subjects:
        for name, text in _pieces(subject, seen):
            parts[name] = hashlib.sha256(f"{parts.get(name, '')}{text}".encode()).hexdigest()[:12]
    return parts


def _pieces(subject: Any, seen: set[int]) -> Iterator[tuple[str, str]]:
    """Names and texts of a subject's code, and of the code in its file that it uses."""
    if isinstance(subject, functools.partial):
        yield f"partial({getattr(subject.func, '__qualname__', '')})", _each([*subject.args, subject.keywords])
    if isinstance(subject, MethodType) and not isinstance(subject.__self__, type):
        yield from _settings(subject.__self__)
    subject = _inner(subject)
    if id(subject) in seen:
        return
    seen.add(id(subject))
    if isinstance(subject, FunctionType):
        yield from _function(subject, seen)
    elif isinstance(subject, type):
        for kind in subject.__mro__:
            if kind.__module__.partition(".")[0] not in _LIBRARIES:
                yield from _members(kind, seen)
    elif callable(subject):
        yield from _pieces(type(subject), seen)
        yield from _settings(subject)


def _function(function: FunctionType, seen: set[int]) -> Iterator[tuple[str, str]]:
    defaults = [*(function.__defaults__ or ()), *sorted((function.__kwdefaults__ or {}).items())]
    plain = [_value(one) or type(one).__name__ for one in defaults]
    bound = _bound(function)
    yield function.__qualname__, f"{_text(function.__code__)}{plain}{_written(bound) or ''}"
    named = [function.__globals__.get(name) for name in sorted(_names(function.__code__))]
    for used in (*named, *bound.values()):
        if isinstance(used, type | FunctionType) and used.__module__ == function.__module__:
            yield from _pieces(used, seen)


def _settings(owner: Any) -> Iterator[tuple[str, str]]:
    """Attributes of an object, without those that its methods assign."""
    assigned = set().union(*(_assigned(kind) for kind in type(owner).__mro__))
    held = _written({name: one for name, one in getattr(owner, "__dict__", {}).items() if name not in assigned})
    if held:
        yield f"{type(owner).__qualname__} (its attributes)", "\n".join(held)


def _written(values: Mapping[str, Any]) -> list[str]:
    """Each value of which something is known, with its name."""
    return sorted(f"{name}={text}" for name, one in values.items() if (text := _value(one)) is not None)


def _bound(function: FunctionType) -> dict[str, Any]:
    """What a closure holds, without what its code assigns."""
    names, assigned = function.__code__.co_freevars, _stored(function.__code__, "STORE_DEREF")
    cells = zip(names, function.__closure__ or (), strict=True)
    with_content = {}
    for name, cell in cells:
        with contextlib.suppress(ValueError):  # of a cell that is still empty
            with_content[name] = cell.cell_contents
    return {name: one for name, one in with_content.items() if name not in assigned and name != "__class__"}


def _assigned(kind: type) -> set[str]:
    """Names of the attributes that methods other than the constructor assign."""
    methods = (one for name, one in vars(kind).items() if isinstance(one, FunctionType) and name != "__init__")
    return set().union(*(_stored(one.__code__, "STORE_ATTR") for one in methods))


def _stored(code: CodeType, operation: str) -> set[str]:
    inner = (_stored(one, operation) for one in code.co_consts if isinstance(one, CodeType))
    return {str(one.argval) for one in dis.get_instructions(code) if one.opname == operation}.union(*inner)


def _inner(subject: Any) -> Any:
    """The function in a partial, a method, or what a decorator has made."""
    for name in ("func", "__func__", "__wrapped__"):
        if isinstance(subject, functools.partial | MethodType | FunctionType) and hasattr(subject, name):
            return _inner(getattr(subject, name))
    return subject


def _members(kind: type, seen: set[int]) -> Iterator[tuple[str, str]]:
    values = {}
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))  # of static, class methods, properties
        if isinstance(function, FunctionType | type) and function.__module__ == kind.__module__:
            yield from _pieces(function, seen)
        elif not (name.startswith("__") and name.endswith("__")):
            values[name] = function
    yield kind.__qualname__, "\n".join(_written(values))


def _text(code: CodeType) -> str:
    """What a function does, as text that depends neither on its place in a file nor on a process.

    Constants are written where they are used: a docstring is among them, but never used.
    """
    steps = [(one.opname, _constant(one.argval)) for one in dis.get_instructions(code)]
    return repr((steps, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], code.co_flags))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _text(value)
    if isinstance(value, frozenset):  # its order differs from process to process
        return f"frozenset({sorted(map(_constant, value))})"
    if isinstance(value, tuple):
        return f"({', '.join(map(_constant, value))})"
    return repr(value)


def _value(value: Any) -> str | None:
    """Text of what code holds, the same in every process; None for an object of which nothing is known."""
    if isinstance(value, _PLAIN) and not isinstance(value, Enum):
        return repr(value)
    if isinstance(value, tuple | frozenset | type | FunctionType | Enum):  # these stay as they are
        return _described(value)
    text: str | None = first_seen(value, _described, meanwhile="...")  # the latter of an object that holds itself
    return text


def first_seen(value: Any, describe: Callable[[Any], Any], meanwhile: Any) -> Any:
    """Return what was said of an object when this process asked first: objects change while they work.

    Args:
        value: the object.
        describe: says something of it.
        meanwhile: what is said of it while it is being described.
    """
    seen, text = _first_seen.get(id(value), (None, None))
    if seen is None or seen() is not value:
        refer = _reference(value)
        _first_seen[id(value)] = refer, meanwhile
        text = describe(value)
        _first_seen[id(value)] = refer, text
    return text


def _reference(value: Any) -> Callable[[], Any]:
    """A weak reference, or one that keeps a list or dict alive, as there are no weak ones."""
    try:
        return weakref.ref(value)
    except TypeError:
        return lambda: value


@functools.singledispatch
def _described(value: Any) -> str | None:
    kind = type(value)
    if hasattr(value, "tolist") and hasattr(value, "shape"):  # of numpy or torch
        numbers = "..."
        if math.prod(value.shape) <= _LARGEST:
            with contextlib.suppress(RuntimeError, TypeError):  # of a sparse tensor, or one without content
                numbers = value.tolist()
        return f"{kind.__name__}({tuple(value.shape)}, {getattr(value, 'dtype', None)}, {numbers})"
    if dataclasses.is_dataclass(value):
        return f"{kind.__qualname__}({_each([getattr(value, one.name, None) for one in dataclasses.fields(value)])})"
    if kind.__module__.partition(".")[0] in _WRITTEN_OUT and " at 0x" not in (text := repr(value)):
        return text
    return None


@_described.register(ModuleType)
def _(value: ModuleType) -> str:
    return value.__name__


@_described.register(Enum)
def _(value: Enum) -> str:
    return f"{type(value).__qualname__}.{value.name}"


@_described.register(type)
@_described.register(BuiltinFunctionType)
def _(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"


@_described.register(FunctionType)
def _(value: FunctionType) -> str:
    in_library = value.__module__.partition(".")[0] in _LIBRARIES
    return f"{value.__qualname__}{'' if in_library else _text(value.__code__)}"


@_described.register(functools.partial)
def _(value: "functools.partial[Any]") -> str:
    return f"partial({_each([value.func, *value.args, value.keywords])})"


@_described.register(Mapping)
def _(value: Mapping[Any, Any]) -> str:
    return f"{{{', '.join(f'{_each([key])}: {_each([one])}' for key, one in value.items())}}}"


@_described.register(tuple)
def _(value: tuple[Any, ...]) -> str:
    return f"({_each(value)})"


@_described.register(list)
@_described.register(deque)
def _(value: Iterable[Any]) -> str:
    return f"[{_each(value)}]"


@_described.register(set)
@_described.register(frozenset)
def _(value: Iterable[Any]) -> str:
    return f"{type(value).__name__}({sorted(_each([one]) for one in value)})"


def _each(values: Iterable[Any]) -> str:
    return ", ".join(_value(one) or type(one).__name__ for one in values)


def _names(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*map(_names, inner))
