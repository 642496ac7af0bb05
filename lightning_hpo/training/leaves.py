"""The plain values inside a module, its optimizers and schedules: the path of each value, and how to change it there.

Two builds of the same code have the same paths, so their values can be compared path by path.
"""

import contextlib
import functools
import types
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_hpo.errors import ParameterMismatchError

Path: TypeAlias = tuple[tuple[str, Any], ...]
"""Steps from a root to a value: (how, key), e.g. ("attribute", "p") or ("item", 0)."""

_PLAIN = (bool, int, float, complex, str, bytes, type(None), Enum, torch.dtype, torch.device, np.generic, range, slice)
_LONGEST = 1000  # elements of a container that are values of their own
# Attributes of every module and optimizer of torch and Lightning, and those that training changes by itself.
_OF_MODULES = (set(vars(pl.LightningModule())) | set(vars(pl.LightningDataModule()))) - {
    "_modules", "_buffers", "_parameters", "_hparams"
} | {"_hparams_initial", "_hparams_name"}  # fmt: skip
_OF_OPTIMIZERS = (set(vars(torch.optim.SGD([torch.zeros(1)], lr=0.1))) | {"step", "_opt_called"}) - {"param_groups"}
_OF_SCHEDULES = {"_last_lr", "_first_update", "_calls_of_torch"}
# Objects of these packages are no settings.
_FOREIGN = (
    "_thread", "logging", "multiprocessing", "optuna", "sqlalchemy", "threading", "torch._dynamo", "torch._inductor",
    "weakref",
)  # fmt: skip


@dataclass(frozen=True)
class Fixed:
    """A property that cannot change after construction: the class of an object, the shape of a parameter."""

    value: Any


def leaves(roots: Mapping[str, Sequence[Any]]) -> dict[Path, Any]:
    """Return path -> value of everything plain that can be reached from the roots; each path begins with two items.

    Tensors are values. A parameter counts by its shape, an object by its class, a function by its name, its defaults
    and the values it closes over. An object that belongs to several roots counts for its own root only.
    """
    seen = {id(root) for group in roots.values() for root in group}
    values: dict[Path, Any] = {}
    for name, group in roots.items():
        for index, root in enumerate(group):
            seen.discard(id(root))
            values.update(_walk(root, (("item", name), ("item", index)), seen))
    return values


def get(root: Any, path: Path) -> Any:
    """Return the value at ``path``.

    Raises:
        LookupError: if there is none.
    """
    for how, key in path:
        try:
            root = _step(root, how, key)
        except (AttributeError, TypeError, ValueError) as error:
            raise LookupError(f"{key!r}: {error}") from error
    return root


def put(root: Any, path: Path, value: Any) -> None:
    """Change the value at ``path``; a tensor keeps its identity, device and type.

    Raises:
        LookupError: if the place is not there, or cannot be changed.
    """
    owner, (how, key) = get(root, path[:-1]), path[-1]
    if isinstance(owner, tuple):
        put(root, path[:-1], tuple(value if index == key else old for index, old in enumerate(owner)))
        return
    try:
        current = _step(owner, how, key)
        if isinstance(current, torch.Tensor) and current.shape == torch.as_tensor(value).shape:
            with torch.no_grad():
                current.copy_(torch.as_tensor(value))
        elif how == "attribute":
            setattr(owner, key, value)
        elif how == "cell":
            owner.__closure__[key].cell_contents = value
        elif how == "arguments":
            owner.__setstate__((owner.func, value, owner.keywords, vars(owner)))
        elif how == "default":
            owner.__defaults__ = tuple(value if i == key else old for i, old in enumerate(owner.__defaults__))
        else:
            owner[key] = value
    except (AttributeError, TypeError, ValueError) as error:
        raise LookupError(f"{key!r}: {error}") from error


def put_and_check(root: Any, path: Path, value: Any) -> None:
    """Change the value at ``path`` and read it back.

    Raises:
        ParameterMismatchError: if it cannot be set, or is not in effect afterwards.
    """
    try:
        put(root, path, value)
        effective = get(root, path)
    except LookupError as error:
        raise ParameterMismatchError(f"{text(path)}={value!r} was asked for, and cannot be set: {error}") from error
    if not same(effective, value):
        raise ParameterMismatchError(f"{text(path)}={value!r} was asked for, {effective!r} is in effect.")


def copy_of(value: Any) -> Any:
    """Return a value that later changes of a tensor in place do not reach."""
    return value.detach().clone() if isinstance(value, torch.Tensor) else value


def text(path: Path) -> str:
    """Write a path as code would name it."""
    return ".".join(str(key) for _, key in path if key not in ("_modules", "_buffers"))


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal: NaN equals NaN, and tensors are equal by shape and every element."""
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        left, right = left.detach().cpu(), right.detach().cpu()
        return left.shape == right.shape and bool(torch.equal(left, right.to(left.dtype)))
    if isinstance(left, torch.Tensor) or isinstance(right, torch.Tensor):
        tensor, value = (left, right) if isinstance(left, torch.Tensor) else (right, left)
        return (
            tensor.ndim == 0
            and isinstance(value, int | float)
            and same(tensor, torch.tensor(value, dtype=tensor.dtype))
        )
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return bool(np.array_equal(left, right))
    if isinstance(left, tuple | list) and type(left) is type(right):
        return len(left) == len(right) and all(map(same, left, right))
    try:
        return bool(left == right or (left != left and right != right))  # noqa: PLR0124  # NaN
    except Exception:  # noqa: BLE001  # a comparison of the user's: values that cannot be compared count as equal
        return True


def _step(owner: Any, how: str, key: Any) -> Any:
    match how:
        case "attribute":
            return getattr(owner, key)
        case "cell":
            return owner.__closure__[key].cell_contents
        case "default":
            return owner.__defaults__[key]
        case "arguments":
            return owner.args
        case _:
            return owner[key]


def _walk(value: Any, path: Path, seen: set[int]) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, nn.UninitializedParameter | nn.UninitializedBuffer):
        yield path, Fixed(None)
    elif isinstance(value, nn.Parameter):
        yield path, Fixed(tuple(value.shape))
    elif isinstance(value, (*_PLAIN, type, torch.Tensor, np.ndarray)) or _is_flat(value):
        yield path, value
    elif id(value) not in seen and not isinstance(value, pl.Trainer | types.ModuleType):
        seen.add(id(value))
        kind = type(value)
        if f"{kind.__module__}.".startswith(tuple(f"{package}." for package in _FOREIGN)):
            return
        yield (*path, ("class", None)), Fixed(f"{kind.__module__}.{kind.__qualname__}")
        for how, key, inner in _inside(value):
            yield from _walk(inner, (*path, (how, key)), seen)


def _is_flat(value: Any) -> bool:
    """Whether a container is a single value: a tuple of plain values (``betas``), a set, or a long container."""
    if isinstance(value, set | frozenset):
        return True
    if isinstance(value, tuple | list | dict) and len(value) > _LONGEST:
        return True
    return isinstance(value, tuple) and all(isinstance(element, _PLAIN) for element in value)


def _inside(value: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, Mapping):
        # The parameters of a parameter group are those of the module.
        yield from (("item", key, inner) for key, inner in value.items() if not (key == "params" and "lr" in value))
    elif isinstance(value, list | tuple):
        yield from (("item", index, element) for index, element in enumerate(value))
    elif isinstance(value, types.FunctionType | types.MethodType | types.BuiltinFunctionType):
        yield from _inside_function(value)
    elif isinstance(value, functools.partial):
        yield from (("attribute", "func", value.func), ("attribute", "keywords", value.keywords))
        yield "arguments", None, value.args
    else:
        skipped: set[str] = _OF_SCHEDULES
        if isinstance(value, Optimizer):
            skipped = _OF_OPTIMIZERS
        elif isinstance(value, nn.Module | pl.LightningDataModule):
            skipped = _OF_MODULES
        for name in (*getattr(value, "__dict__", {}), *(name for kind in type(value).__mro__ for name in _slots(kind))):
            if name not in skipped and hasattr(value, name):
                yield "attribute", name, getattr(value, name)


def _inside_function(value: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(value, types.MethodType):
        yield "attribute", "__func__", value.__func__
        return
    yield "attribute", "__qualname__", value.__qualname__
    if isinstance(value, types.FunctionType):
        for index, cell in enumerate(value.__closure__ or ()):
            with contextlib.suppress(ValueError):  # of a cell that is still empty
                yield "cell", index, cell.cell_contents
        yield from (("default", index, default) for index, default in enumerate(value.__defaults__ or ()))


def _slots(kind: type) -> tuple[str, ...]:
    own = kind.__dict__.get("__slots__", ())
    return tuple(name for name in ([own] if isinstance(own, str) else own) if not name.startswith("__"))
