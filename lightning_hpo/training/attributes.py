"""Changes in an object's attributes while it is used, as values that a checkpoint can hold.

Covered are the values of :mod:`lightning_hpo.training.packing`, and the attributes of helper objects in turn: a
dataclass, a running mean, a module that is kept in a list so that no optimizer sees it; and by their ``state_dict``
optimizers, LR schedules and gradient scalers that Lightning does not know. Not covered is state that an object keeps
outside its attributes (a queue, an open file, `__slots__`).
"""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from io import IOBase
from typing import Any, TypeAlias

import lightning.pytorch as pl
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

from lightning_hpo.training.packing import (
    CONTAINERS,
    KIND,
    PLAIN,
    is_grown,
    is_kept,
    is_long,
    length_of,
    mark,
    packed,
    unpacked,
)

Changes: TypeAlias = dict[str, dict[str, Any]]
"""Owner -> attribute -> value."""
Owners: TypeAlias = Iterable[tuple[str, Any]]

_MOST_HELPERS = 1_000  # in one container
_DEEPEST = 4  # helpers of helpers
_WITH_STATE = (Optimizer, LRScheduler, GradScaler)
_OF_LIGHTNING = frozenset(vars(pl.LightningModule())) | frozenset(vars(pl.LightningDataModule()))
# Objects of these packages keep their state by themselves, or have none that is a trial's own.
_FOREIGN = frozenset({
    "builtins", "collections", "functools", "lightning", "lightning_hpo", "logging", "multiprocessing", "numpy",
    "optuna", "pathlib", "pytorch_lightning", "random", "threading", "torch", "types", "weakref",
})  # fmt: skip


class Attributes:
    """Changes in objects since this was created; :func:`put_back` puts them into other objects of the same classes.

    ``owners`` returns name and object of each; attributes that ``leave_out`` names do not count.
    """

    def __init__(self, owners: Callable[[], Owners], leave_out: Iterable[str] = ()) -> None:
        self._owners = owners
        self._leave_out = frozenset(leave_out)
        self._data: dict[str, set[str]] = {}  # attributes that were long from the beginning
        self._before: dict[str, dict[str, Any]] = {}
        self._lengths: dict[str, dict[str, int]] = {}
        self._objects: dict[str, Any] = {}
        self._code: dict[str, dict[str, Any]] = {}
        for key, owner in owners():
            self._objects[key], self._code[key] = owner, _code_in(owner)
            values = self._values(key, owner)
            self._before[key] = {name: mark(value) for name, value in values.items()}
            self._lengths[key] = {name: len(value) for name, value in values.items() if isinstance(value, CONTAINERS)}
            self._data[key] = {name for name, value in _vars(owner).items() if is_long(value)}

    def changed(self) -> Changes:
        """Return a copy of the changes."""
        changes: Changes = {}
        for key, owner in self._owners():
            before = self._before.get(key, {})
            values = self._values(key, owner)
            new = {k: self._grown(key, k, v) for k, v in values.items() if before.get(k, _NOTHING) != mark(v)}
            if self._objects.get(key, owner) is not owner and _is_helper(owner):
                new[KIND] = "replaced"
            if new:
                changes[key] = new
        return changes

    def iterators(self) -> list[str]:
        """Return the names of attributes whose position no checkpoint can hold, such as an iterator over a loader."""
        parts = ((key, name, value) for key, owner in self._owners() for name, value in _vars(owner).items())
        return [
            _path(key, name)
            for key, name, value in parts
            if isinstance(value, Iterator) and not isinstance(value, IOBase) and not _is_helper(value)
        ]

    def other_code(self) -> list[str]:
        """Return the names of attributes that hold another function, or an object of another class, than before."""
        classes = [k for k, owner in self._owners() if type(self._objects.get(k, owner)) is not type(owner)]
        code = ((key, name, value) for key, owner in self._owners() for name, value in _code_in(owner).items())
        return classes + [_path(k, name) for k, name, value in code if self._code.get(k, {}).get(name, value) != value]

    def _grown(self, key: str, name: str, value: Any) -> Any:
        """Return the value packed; of a container that has grown or shrunk, with its length at the beginning."""
        length = self._lengths.get(key, {}).get(name, 0)
        content = packed(value)
        if not length or not isinstance(value, CONTAINERS) or len(value) == length:
            return content
        return {KIND: "grown", "length": length, "value": content}

    def _values(self, key: str, owner: Any) -> dict[str, Any]:
        if isinstance(owner, _OWN_STATE):
            return owner.now()
        skipped = self._leave_out | self._data.get(key, set())
        return {k: v for k, v in _vars(owner).items() if k not in skipped and is_kept(v)}


def put_back(owners: Owners, changes: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """Put changes back into objects of the same classes; tensors that are not there yet come to ``device``."""
    _put(_with_copies(list(owners), changes), changes, device)


@contextmanager
def changed_for_a_while(owners: Owners, changes: Mapping[str, Mapping[str, Any]]) -> Iterator[None]:
    """Put changes back into objects, and take them out again at the end of the block; what the block sets stays."""
    if not changes:
        yield
        return
    cpu, found = torch.device("cpu"), list(owners)
    holders = [(_attributes(owner), changes[key]) for key, owner in found if key in changes]
    before = [(holder, {name: holder[name] for name in new if name in holder}, new) for holder, new in holders]
    contents = [(value, packed(value)) for _, known, _ in before for value in known.values() if is_kept(value)]
    states = [
        (owner, copy.deepcopy(owner.now())) for key, owner in found if isinstance(owner, _OWN_STATE) and key in changes
    ]
    inside = _with_copies(found, changes)
    _put(inside, changes, cpu)
    try:
        yield
    finally:
        for (_, owner), (_, own) in zip(found, inside, strict=True):
            if own is not owner:
                _exchange(inside, own, owner)
        for holder, known, new in before:
            for name in new:
                holder.pop(name, None)
            holder.update(known)
        for value, content in contents:  # those that are changed in place
            unpacked(content, value, value.device if isinstance(value, torch.Tensor) else cpu)
        for owner, state in states:
            for name, value in state.items():
                owner.put_back(name, value)


def _put(owners: Owners, changes: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    for key, owner in owners:
        for name, value in changes.get(key, {}).items():
            if name == KIND:
                continue
            if isinstance(owner, _OWN_STATE):
                owner.put_back(name, value)
                continue
            attributes = _attributes(owner)
            now = attributes.get(name)
            content, length = (value["value"], value["length"]) if is_grown(value) else (value, None)
            expected = (0, length, length_of(content))
            if isinstance(now, CONTAINERS) and expected[-1] >= 0 and len(now) not in expected:
                continue  # it has grown elsewhere too, so it is not the trial's own
            where = now.device if isinstance(now, torch.Tensor) else device
            attributes[name] = unpacked(content, now, where)


def missing(owners: Owners, changes: Mapping[str, Any]) -> list[str]:
    """Return the names of objects that have changed, and are not there to put their changes back into."""
    keys = {key for key, _ in owners}
    return [key for key in changes if key not in keys]


def _with_copies(found: list[tuple[str, Any]], changes: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """Put copies in place of helper objects that training replaces: other trials may share those that are there."""
    for key in [key for key, own in changes.items() if own.get(KIND) == "replaced"]:
        now = dict(found).get(key)
        if _is_helper(now):
            own = copy.copy(now)
            _exchange(found, now, own)
            found = [(name, own if owner is now else owner) for name, owner in found]
    return found


def _exchange(owners: Owners, now: Any, new: Any) -> None:
    """Put one object in place of another in the attributes of all owners."""
    for _, owner in owners:
        attributes = _attributes(owner)
        for name, value in list(attributes.items()):
            if (exchanged := _exchanged(value, now, new)) is not value:
                attributes[name] = exchanged


def _exchanged(value: Any, now: Any, new: Any) -> Any:
    """Return the value with one object in place of another; a list or a dictionary is changed in place."""
    if value is now:
        return new
    if all(part is not now for _, part in _parts(value)):
        return value
    if isinstance(value, tuple):
        return tuple(new if part is now else part for part in value)
    for place, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
        if part is now:
            value[place] = new
    return value


def with_helpers(key: str, owner: Any, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield an object, the helper objects in its attributes, and theirs, each with its name.

    Objects whose ids have been ``seen`` are left out; ``depth`` helpers lead to the object.
    """
    if id(owner) in seen:
        return
    seen.add(id(owner))
    yield key, owner
    for name, value in list(vars(owner).items()) if depth < _DEEPEST else ():
        if type(value) in PLAIN or name in _OF_LIGHTNING:
            continue
        for place, part in _parts(value):
            inner = f"{key}.{name}{place}"
            if isinstance(part, nn.Module) and id(part) not in seen:  # not registered
                for path, submodule in part.named_modules():
                    yield f"{inner}.{path} weights", _Weights(submodule)
                    yield from with_helpers(f"{inner}.{path}", submodule, seen, depth + 1)
            elif isinstance(part, _WITH_STATE) and not isinstance(part, LightningOptimizer) and id(part) not in seen:
                seen.add(id(part))
                yield inner, _StateDict(part)
            elif _is_helper(part):
                yield from with_helpers(inner, part, seen, depth + 1)


class _Weights:
    """Parameters and buffers of a module that no other module has registered."""

    def __init__(self, module: nn.Module) -> None:
        own = {**module._parameters, **module._buffers}  # noqa: SLF001  # without those of submodules
        self.tensors = {name: tensor for name, tensor in own.items() if tensor is not None}

    def now(self) -> dict[str, Any]:
        return dict(self.tensors)

    @torch.no_grad()
    def put_back(self, name: str, value: torch.Tensor) -> None:
        own = self.tensors.get(name)
        if own is not None:
            own.copy_(value)


class _StateDict:
    """An object that saves and loads its state by itself."""

    def __init__(self, owner: Any) -> None:
        self.object = owner

    def now(self) -> dict[str, Any]:
        return {"state_dict": self.object.state_dict()}

    def put_back(self, name: str, value: Any) -> None:  # as of weights
        self.object.load_state_dict(copy.deepcopy(value))


_OWN_STATE = (_Weights, _StateDict)


def _parts(value: Any) -> list[tuple[str, Any]]:
    if type(value) in (list, tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)] if len(value) <= _MOST_HELPERS else []
    if type(value) is dict:
        return [(f"[{name!r}]", part) for name, part in value.items()] if len(value) <= _MOST_HELPERS else []
    return [("", value)]


def _path(key: str, name: str) -> str:
    return f"{key.removesuffix('.')}.{name}"  # the module itself is "model."


def _code_in(owner: Any) -> dict[str, Any]:
    """Functions, classes and methods among the attributes of an object."""
    return {
        name: value
        for name, value in _vars(owner).items()
        if callable(value) and not isinstance(value, nn.Module) and not _is_helper(value)
    }


def _is_helper(value: Any) -> bool:
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, Enum)  # all trials share its members
        and not isinstance(value, (type, nn.Module, pl.LightningDataModule, DataLoader, *_WITH_STATE))
        and not isinstance(value, torch.Tensor | Logger | pl.Callback | pl.Trainer | BaseException)
        and kind.__module__.partition(".")[0] not in _FOREIGN
        and not hasattr(kind, "__deepcopy__")  # one instance serves all trials
    )


def _attributes(owner: Any) -> dict[str, Any]:
    """All attributes of an object, to be changed; of hyperparameters, themselves."""
    if isinstance(owner, _OWN_STATE):
        return {}
    return owner if isinstance(owner, dict) else vars(owner)


def _vars(owner: Any) -> dict[str, Any]:
    """The attributes of an object that are its own."""
    if isinstance(owner, _OWN_STATE):
        return {}
    if isinstance(owner, dict):  # hyperparameters
        return owner
    hidden = _OF_LIGHTNING | {"training"} if isinstance(owner, nn.Module | pl.LightningDataModule) else frozenset()
    return {name: value for name, value in vars(owner).items() if name not in hidden}


_NOTHING = object()
