"""Whether code that runs in training reads a value: an attribute that nothing reads has no effect."""

import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_hpo.training.leaves import Path, get

# They have run before the first step, and their effect shows in the objects that they leave.
BUILDING = frozenset({
    "__init__", "__new__", "__post_init__", "__repr__", "__getstate__", "__setstate__", "extra_repr",
    "configure_optimizers", "configure_model", "configure_callbacks", "setup", "prepare_data", "reset_parameters",
    "_reset_parameters", "on_hyperparameters",
})  # fmt: skip
_BASES = (torch.nn.Module, pl.LightningModule, pl.LightningDataModule, pl.Callback, torch.optim.Optimizer, object)


def is_used(
    path: Path, roots: Mapping[str, Sequence[Any]], readers: Iterable[Any], building: frozenset[str] = BUILDING
) -> bool:
    """Whether a value that differs between two builds makes a difference to training.

    Args:
        path: of the value, which the build has moved.
        roots: that the path begins in.
        readers: other objects whose code may read it, such as callbacks.
        building: methods that do not count, as they have run before training.
    """
    kind, _, *inner = path
    if kind[1] in ("optimizers", "schedules") or any(how in ("cell", "default", "arguments") for how, _ in path):
        return True
    owners = [get(roots, path[:end]) for end in range(2, len(path))]
    own = max(
        (i for i, owner in enumerate(owners) if isinstance(owner, torch.nn.Module | pl.LightningDataModule)), default=0
    )
    names = {str(key) for _, key in inner[own:] if key not in ("_hparams", "_buffers")}
    classes = [type(owner) for owner in (*owners, *readers)]
    if names & set(_names_in_classes(classes, building)):
        return True
    curves = [curve for schedule in roots["schedules"] for curve in getattr(schedule, "lr_lambdas", ())]
    return bool(names & {name for curve in curves for name in _names(getattr(curve, "__code__", None))})


def reads(kind: type, name: str) -> bool:
    """Whether code of a class reads a name when an object of it is there already."""
    return name in set(_names_in_classes([kind], BUILDING - {"setup", "prepare_data"}))


def _names_in_classes(classes: Iterable[type], building: frozenset[str]) -> Iterator[str]:
    seen: set[Any] = set()
    for kind in classes:
        if kind in seen:
            continue
        seen.add(kind)
        for function in _methods(kind, building):
            yield from _names(function.__code__)
            yield from _names_in_helpers(function, seen)


def _methods(kind: type, building: frozenset[str]) -> Iterator[types.FunctionType]:
    """Yield the methods of an instance; an overridden method only if the overriding method calls it."""
    done = set(building)
    for base in kind.__mro__:
        if base in _BASES:
            continue
        for name, member in vars(base).items():
            function = getattr(member, "__func__", getattr(member, "fget", getattr(member, "func", member)))
            function = getattr(function, "__wrapped__", function)
            if name in done or not isinstance(function, types.FunctionType):
                continue
            if "super" not in function.__code__.co_names:
                done.add(name)
            yield function


def _names_in_helpers(function: types.FunctionType, seen: set[Any]) -> Iterator[str]:
    """Yield the names in functions of the same package that a method calls."""
    package = function.__module__.partition(".")[0]
    for name in function.__code__.co_names:
        helper = function.__globals__.get(name)
        if isinstance(helper, types.FunctionType) and helper not in seen:
            seen.add(helper)
            if helper.__module__.partition(".")[0] == package:
                yield from _names(helper.__code__)
                yield from _names_in_helpers(helper, seen)


def _names(code: types.CodeType | None) -> Iterator[str]:
    if code is None:
        return
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, tuple):
            yield from (part for part in constant if isinstance(part, str))
        elif isinstance(constant, types.CodeType):
            yield from _names(constant)
