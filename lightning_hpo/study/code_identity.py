"""What a study was computed with: a short hash for each piece of code of the model, the data module or the function.

The hash is of the syntax tree of the source, so comments, docstrings, annotations, formatting and line numbers do not
count, and another version of Python gives the same. Code without a source (typed at a prompt, made by ``exec``) counts
by its bytecode, which is only compared under the same minor version of Python.

Counted are the given classes and functions, their bases outside the libraries, and functions and classes of the same
file that they use by name; with them the values that they hold: class attributes, default arguments, fields of
dataclasses, variables of a closure, arguments of a partial. Of an object, numbers, texts, containers and arrays of them
are compared. Not seen: other files, global values, other objects, and the data itself. A file that is edited while the
process runs counts as it is when it is read first.

A list, dict or array counts as it was when this process saw it first: code often collects in one what happens. For the
same reason, what the code itself assigns while it runs (a counter in a closure or of a callable object) does not count.

A change of a model's or data module's code is an error, not a warning: values from before and after a changed loss
cannot be told apart later. The error names the methods that changed, and ``allow_changed=True`` continues on purpose
and writes it down. A plain function is often the same computation with a counter or a print around it, so its change
is a warning, written down with the study.
"""

import ast
import contextlib
import dataclasses
import dis
import functools
import hashlib
import linecache
import math
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_LIBRARIES = {
    *sys.stdlib_module_names, "torch", "lightning", "pytorch_lightning", "lightning_fabric", "torchmetrics",
    "torchvision", "transformers", "timm", "numpy", "optuna", "lightning_hpo",
} - {"__main__"}  # fmt: skip
_PLAIN = (int, float, complex, str, bytes, bool, type(None), range, slice)
_WRITTEN_OUT = ("builtins", "datetime", "decimal", "fractions", "uuid", "pathlib", "torch", "numpy")  # by their repr
_LARGEST = 100_000  # numbers of an array that are compared; of a larger one the shape counts
_NOT_COMPARED = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind"}  # fields of a syntax tree
_BYTECODE = f"python{sys.version_info.major}.{sys.version_info.minor}:"  # how the text and hash of bytecode begin
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
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
    texts: dict[str, str] = {}
    seen: set[int] = set()
    for subject in subjects:
        for name, text in _pieces(subject, seen):
            texts[name] = texts.get(name, "") + text
    return {
        name: (_BYTECODE if _BYTECODE in text else "") + hashlib.sha256(text.encode()).hexdigest()[:12]
        for name, text in texts.items()
    }


def comparable(stored: str | None, new: str | None) -> bool:
    """Whether two hashes of a piece of code, or None where there is no such piece, differ only if the code does."""
    return stored is None or new is None or stored.rpartition(":")[0] == new.rpartition(":")[0]


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
    plain = [_value(default) or type(default).__name__ for default in defaults]
    bound = _bound(function)
    yield function.__qualname__, f"{_text(function)}{plain}{_written(bound) or ''}"
    named = [function.__globals__.get(name) for name in sorted(_names(function.__code__))]
    for used in (*named, *bound.values()):
        if isinstance(used, type | FunctionType) and used.__module__ == function.__module__:
            yield from _pieces(used, seen)


def _members(kind: type, seen: set[int]) -> Iterator[tuple[str, str]]:
    values = {}
    for name, member in vars(kind).items():
        function = getattr(member, "__func__", getattr(member, "fget", member))  # of static, class methods, properties
        if isinstance(function, FunctionType | type) and function.__module__ == kind.__module__:
            yield from _pieces(function, seen)
        elif not (name.startswith("__") and name.endswith("__")):
            values[name] = function
    yield kind.__qualname__, "\n".join(_written(values))


def _settings(owner: Any) -> Iterator[tuple[str, str]]:
    """Attributes of an object, without those that its methods assign."""
    methods = (
        member
        for kind in type(owner).__mro__
        for name, member in vars(kind).items()
        if isinstance(member, FunctionType) and name != "__init__"
    )
    assigned = set().union(*(_stored(method.__code__, "STORE_ATTR") for method in methods))
    held = _written({name: value for name, value in getattr(owner, "__dict__", {}).items() if name not in assigned})
    if held:
        yield f"{type(owner).__qualname__} (its attributes)", "\n".join(held)


def _bound(function: FunctionType) -> dict[str, Any]:
    """Variables of a closure, without those that its code assigns."""
    assigned = {*_stored(function.__code__, "STORE_DEREF"), "__class__"}
    values = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # of a cell that is still empty
            values[name] = cell.cell_contents
    return {name: value for name, value in values.items() if name not in assigned}


def _inner(subject: Any) -> Any:
    """The function in a partial, a method, or a function that a decorator has made."""
    for name in ("func", "__func__", "__wrapped__"):
        if isinstance(subject, functools.partial | MethodType | FunctionType) and hasattr(subject, name):
            return _inner(getattr(subject, name))
    return subject


def _text(function: FunctionType) -> str:
    """What a function does, as text that depends neither on its place in a file nor on a process."""
    code = function.__code__
    source = "".join(linecache.getlines(code.co_filename, function.__globals__))
    found = _definitions(source).get((code.co_firstlineno, code.co_name), [])
    if len(found) > 1:  # lambdas of one line
        places = set(code.co_positions())
        found = [node for node in found if isinstance(node, ast.Lambda) and _place(node.body) in places]
    if len(found) != 1:
        return f"{_BYTECODE}{_bytecode(code)}"
    parts = [getattr(found[0], part, []) for part in ("decorator_list", "args", "body")]  # the name is with the hash
    return f"{type(found[0]).__name__}{''.join(map(_tree, parts))}"


@functools.lru_cache(maxsize=64)
def _definitions(source: str) -> Mapping[tuple[int, str], Sequence[_Definition]]:
    """Functions of a source: (first line, name) -> nodes of its syntax tree; empty if it is no Python."""
    found: dict[tuple[int, str], list[_Definition]] = {}
    with contextlib.suppress(SyntaxError, ValueError, RecursionError):
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, _Definition):
                first = min([node, *getattr(node, "decorator_list", ())], key=lambda part: part.lineno)
                found.setdefault((first.lineno, getattr(node, "name", "<lambda>")), []).append(node)
    return found


def _place(node: ast.expr) -> tuple[int | None, ...]:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _tree(node: Any) -> str:
    """A syntax tree as text that is the same under every version of Python, without statements that do nothing."""
    if isinstance(node, list):
        return f"[{' '.join(_tree(item) for item in node if not _does_nothing(item))}]"
    if isinstance(node, ast.JoinedStr):  # Python 3.12 puts empty texts into it
        return f"JoinedStr{_tree([part for part in node.values if getattr(part, 'value', None) != ''])}"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = ((name, value) for name, value in ast.iter_fields(node) if name not in _NOT_COMPARED)
    written = (f"{name}={_tree(value)}" for name, value in fields if value not in (None, []) or name == "value")
    return f"{type(node).__name__}({' '.join(written)})"


def _does_nothing(node: Any) -> bool:
    """Whether a node is ``pass``, a docstring, or another constant that is not used."""
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _bytecode(code: CodeType) -> str:
    """What code without a source does. A docstring is among the constants, but no instruction uses it."""
    steps = [(step.opname, _constant(step.argval)) for step in dis.get_instructions(code)]
    return repr((steps, code.co_varnames[: code.co_argcount + code.co_kwonlyargcount], code.co_flags))


def _constant(value: Any) -> str:
    if isinstance(value, CodeType):
        return _bytecode(value)
    if isinstance(value, frozenset):  # its order differs from process to process
        return f"frozenset({sorted(map(_constant, value))})"
    return f"({', '.join(map(_constant, value))})" if isinstance(value, tuple) else repr(value)


def _stored(code: CodeType, operation: str) -> set[str]:
    inner = (_stored(constant, operation) for constant in code.co_consts if isinstance(constant, CodeType))
    return {str(step.argval) for step in dis.get_instructions(code) if step.opname == operation}.union(*inner)


def _names(code: CodeType) -> set[str]:
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return {*code.co_names}.union(*map(_names, inner))


def _written(values: Mapping[str, Any]) -> list[str]:
    """Each value of which something is known, with its name."""
    return sorted(f"{name}={text}" for name, value in values.items() if (text := _value(value)) is not None)


def _value(value: Any) -> str | None:
    """Text of a value that code holds, the same in every process; None for an object of which nothing is known."""
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


def _described(value: Any) -> str | None:
    kind = type(value)
    for kinds, describe in _DESCRIPTIONS:
        if isinstance(value, kinds):
            return describe(value)
    if hasattr(value, "tolist") and isinstance(getattr(value, "shape", None), tuple):  # of numpy or torch
        numbers = "..."
        if math.prod(value.shape) <= _LARGEST:
            with contextlib.suppress(RuntimeError, TypeError):  # of a sparse tensor, or one without content
                numbers = value.tolist()
        return f"{kind.__name__}({tuple(value.shape)}, {getattr(value, 'dtype', None)}, {numbers})"
    if dataclasses.is_dataclass(value):
        fields = [getattr(value, field.name, None) for field in dataclasses.fields(value)]
        return f"{kind.__qualname__}({_each(fields)})"
    if kind.__module__.partition(".")[0] in _WRITTEN_OUT and " at 0x" not in (text := repr(value)):
        return text
    return None


def _described_function(function: FunctionType) -> str:
    in_library = function.__module__.partition(".")[0] in _LIBRARIES
    return f"{function.__qualname__}{'' if in_library else _text(function)}"


def _each(values: Iterable[Any]) -> str:
    return ", ".join(_value(value) or type(value).__name__ for value in values)


_DESCRIPTIONS: Sequence[tuple[Any, Callable[[Any], str]]] = (  # the first that fits
    (ModuleType, lambda module: module.__name__),
    (Enum, lambda member: f"{type(member).__qualname__}.{member.name}"),
    (type | BuiltinFunctionType, lambda kind: f"{kind.__module__}.{kind.__qualname__}"),
    (FunctionType, _described_function),
    (functools.partial, lambda partial: f"partial({_each([partial.func, *partial.args, partial.keywords])})"),
    (Mapping, lambda held: f"{{{', '.join(f'{_each([key])}: {_each([item])}' for key, item in held.items())}}}"),
    (tuple, lambda items: f"({_each(items)})"),
    (list | deque, lambda items: f"[{_each(items)}]"),
    (set | frozenset, lambda items: f"{type(items).__name__}({sorted(_each([item]) for item in items)})"),
)
