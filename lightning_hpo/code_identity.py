"""What a study was computed with: a short hash for each piece of code of the model, the data module or the function.

Compared is what runs, not how it is written: bytecode, constants and names. Comments, docstrings, formatting and line
numbers do not count, so tidying a file never keeps a study from continuing. A change of a model's or data module's code
is an error all the same, not a warning: values from before and after a changed loss cannot be told apart later, and
nobody reads a warning at night. The error names the methods that changed, and ``allow_changed=True`` continues on
purpose and writes it down. A plain function is often the same computation with something else around it, a counter or
a print, so its change is a warning, written down with the study.

Counted are the given classes and functions, their bases outside the libraries, and functions and classes of the same
file that they use by name. Not seen: other files, global values, what a closure holds, and the data itself. Bytecode
belongs to a minor version of Python; under another one, code is not compared.
"""

import dis
import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence
from types import CodeType, FunctionType, MethodType
from typing import Any

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
_LIBRARIES = {
    *sys.stdlib_module_names, "torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics",
    "torchvision", "transformers", "timm", "numpy", "optuna", "lightning_hpo",
} - {"__main__"}  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, bool, type(None), tuple, frozenset)


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
    subject = _inner(subject)
    if id(subject) in seen:
        return
    seen.add(id(subject))
    if isinstance(subject, FunctionType):
        defaults = [*(subject.__defaults__ or ()), *sorted((subject.__kwdefaults__ or {}).items())]
        plain = [_constant(one) if isinstance(one, _PLAIN) else type(one).__name__ for one in defaults]
        yield subject.__qualname__, f"{_text(subject.__code__)}{plain}"
        for name in sorted(_names(subject.__code__)):
            used = subject.__globals__.get(name)
            if isinstance(used, type | FunctionType) and used.__module__ == subject.__module__:
                yield from _pieces(used, seen)
    elif isinstance(subject, type):
        for kind in subject.__mro__:
            if kind.__module__.partition(".")[0] not in _LIBRARIES:
                yield from _members(kind, seen)
    elif callable(subject):
        yield from _pieces(type(subject), seen)


def _inner(subject: Any) -> Any:
    """The function in a partial, a method, or what a decorator has made."""
    for name in ("func", "__func__", "__wrapped__"):
        if isinstance(subject, functools.partial | MethodType | FunctionType) and hasattr(subject, name):
            return _inner(getattr(subject, name))
    return subject


def _members(kind: type, seen: set[int]) -> Iterator[tuple[str, str]]:
    values = []
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))  # of static, class methods, properties
        if isinstance(function, FunctionType | type):
            if function.__module__ == kind.__module__:
                yield from _pieces(function, seen)
        elif isinstance(member, _PLAIN) and not (name.startswith("__") and name.endswith("__")):
            values.append(f"{name}={_constant(member)}")
    yield kind.__qualname__, "\n".join(sorted(values))


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


def _names(code: CodeType) -> set[str]:
    inner = (one for one in code.co_consts if isinstance(one, CodeType))
    return {*code.co_names}.union(*map(_names, inner))
