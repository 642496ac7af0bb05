"""Changes in an object's attributes while it is used, as values that a checkpoint can hold.

Covered are plain values (numbers, texts, None, tensors, arrays), containers of them, random number generators, and the
attributes of helper objects in turn: a dataclass, a running mean, a module that is kept in a list so that no optimizer
sees it; and by their ``state_dict`` optimizers, LR schedules and gradient scalers that Lightning does not know. Not
covered is state that an object keeps outside its attributes (a queue, an open file, `__slots__`).
"""

import copy
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from io import IOBase
from typing import Any, TypeAlias

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from torch import nn
from torch.amp import GradScaler
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader

Changes: TypeAlias = dict[str, dict[str, Any]]
"""Owner -> attribute -> value."""
Owners: TypeAlias = Iterable[tuple[str, Any]]

_PLAIN = (bool, int, float, str, type(None))
_LARGEST = 1_000_000  # elements of a tensor; more is taken for a cache
_LONGEST = 100_000  # elements of a container or an array; more is taken for data
_MOST_HELPERS = 1_000  # in one container
_DEEPEST = 4  # helpers of helpers
_KIND = "lightning_hpo.kind"  # key of the type in a dict that stands for a value that is not plain
_MAPPINGS = {"defaultdict": defaultdict, "OrderedDict": OrderedDict, "Counter": Counter}
_SETS = {"set": set, "frozenset": frozenset}
_CONTAINERS = (list, dict, deque, set)
_WITH_STATE = (Optimizer, LRScheduler, GradScaler)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
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
        for key, owner in owners():
            values = self._values(key, owner)
            self._before[key] = {name: _mark(value) for name, value in values.items()}
            self._lengths[key] = {name: len(value) for name, value in values.items() if isinstance(value, _CONTAINERS)}
            self._data[key] = {name for name, value in _vars(owner).items() if _is_long(value)}

    def changed(self) -> Changes:
        """Return a copy of the changes."""
        changes: Changes = {}
        for key, owner in self._owners():
            before = self._before.get(key, {})
            values = self._values(key, owner)
            packed = {k: self._grown(key, k, v) for k, v in values.items() if before.get(k, _NOTHING) != _mark(v)}
            if packed:
                changes[key] = packed
        return changes

    def iterators(self) -> list[str]:
        """Return the names of attributes whose position no checkpoint can hold, such as an iterator over a loader."""
        parts = ((key, name, value) for key, owner in self._owners() for name, value in _vars(owner).items())
        return [
            f"{key}.{name}"
            for key, name, value in parts
            if isinstance(value, Iterator) and not isinstance(value, IOBase) and not _is_helper(value)
        ]

    def _grown(self, key: str, name: str, value: Any) -> Any:
        """Return the value packed; of a container that has grown or shrunk, with its length at the beginning."""
        length = self._lengths.get(key, {}).get(name, 0)
        packed = _packed(value)
        if not length or not isinstance(value, _CONTAINERS) or len(value) == length:
            return packed
        return {_KIND: "grown", "length": length, "value": packed}

    def _values(self, key: str, owner: Any) -> dict[str, Any]:
        if isinstance(owner, _Weights):
            return dict(owner.tensors)
        if isinstance(owner, _StateDict):
            return {"state_dict": owner.object.state_dict()}
        skipped = self._leave_out | self._data.get(key, set())
        return {k: v for k, v in _vars(owner).items() if k not in skipped and _left(v, _LONGEST) >= 0}


def put_back(owners: Owners, changes: Mapping[str, Mapping[str, Any]], device: torch.device) -> None:
    """Put changes back into objects of the same classes; tensors that are not there yet come to ``device``."""
    for key, owner in list(owners):
        for name, value in changes.get(key, {}).items():
            if isinstance(owner, _Weights | _StateDict):
                owner.put_back(name, value)
                continue
            attributes: Any = owner if isinstance(owner, dict) else vars(owner)
            now = attributes.get(name)
            content, length = (value["value"], value["length"]) if _is_grown(value) else (value, None)
            expected = (0, length, _length(content))
            if isinstance(now, _CONTAINERS) and expected[-1] >= 0 and len(now) not in expected:
                continue  # it has grown elsewhere too, so it is not the trial's own
            where = now.device if isinstance(now, torch.Tensor) else device
            attributes[name] = _unpacked(content, now, where)


def with_helpers(key: str, owner: Any, seen: set[int], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield an object, the helper objects in its attributes, and theirs, each with its name.

    Objects whose ids have been ``seen`` are left out; ``depth`` helpers lead to the object.
    """
    if id(owner) in seen:
        return
    seen.add(id(owner))
    yield key, owner
    for name, value in list(vars(owner).items()) if depth < _DEEPEST else ():
        if type(value) in _PLAIN or name in _OF_LIGHTNING:
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

    @torch.no_grad()
    def put_back(self, name: str, value: torch.Tensor) -> None:
        own = self.tensors.get(name)
        if own is not None:
            own.copy_(value)


class _StateDict:
    """An object that saves and loads its state by itself."""

    def __init__(self, owner: Any) -> None:
        self.object = owner

    def put_back(self, name: str, value: Any) -> None:  # as of weights
        self.object.load_state_dict(copy.deepcopy(value))


def _parts(value: Any) -> list[tuple[str, Any]]:
    if type(value) in (list, tuple):
        return [(f"[{index}]", part) for index, part in enumerate(value)] if len(value) <= _MOST_HELPERS else []
    if type(value) is dict:
        return [(f"[{name!r}]", part) for name, part in value.items()] if len(value) <= _MOST_HELPERS else []
    return [("", value)]


def _is_helper(value: Any) -> bool:
    kind = type(value)
    return (
        hasattr(value, "__dict__")
        and not isinstance(value, (type, nn.Module, pl.LightningDataModule, DataLoader, *_WITH_STATE))
        and not isinstance(value, torch.Tensor | Logger | pl.Callback | pl.Trainer | BaseException)
        and kind.__module__.partition(".")[0] not in _FOREIGN
        and not hasattr(kind, "__deepcopy__")  # one instance serves all trials
    )


def _vars(owner: Any) -> dict[str, Any]:
    if isinstance(owner, _Weights | _StateDict):
        return {}
    if isinstance(owner, dict):  # hyperparameters
        return owner
    hidden = _OF_LIGHTNING | {"training"} if isinstance(owner, nn.Module | pl.LightningDataModule) else frozenset()
    return {name: value for name, value in vars(owner).items() if name not in hidden}


def _is_long(value: Any) -> bool:
    return isinstance(value, list | tuple | dict | deque | set | frozenset) and _left(value, _LONGEST) < 0


def _left(value: Any, elements: int) -> int:
    """Return how many more elements a container may have after a value; < 0 if it is too long or of an unknown type."""
    kind = type(value)
    if kind in _PLAIN or isinstance(value, _GENERATORS):
        return elements
    if isinstance(value, torch.Tensor):
        return elements if kind is torch.Tensor and value.numel() <= _LARGEST else -1
    if isinstance(value, np.generic | np.ndarray):
        return elements - value.size if value.dtype.kind in "biufc" else -1
    parts: Iterable[Any] = value
    if kind in (dict, *_MAPPINGS.values()):
        if not all(type(key) in _PLAIN for key in value):
            return -1
        parts = value.values()
    elif kind not in (list, tuple, deque, *_SETS.values()):
        return -1
    for part in parts:
        elements = _left(part, elements - 1)
        if elements < 0:
            break
    return elements


_NOTHING = object()


class _TensorMark:
    """Equal to another mark of the same tensor as long as its content stays: torch counts in-place changes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor  # kept, so that its id is not given to another tensor
        self._version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  # its documented name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TensorMark) and (self._tensor is other._tensor) and self._version == other._version

    __hash__ = None  # type: ignore[assignment]  # compared only


def mark_of(tensor: torch.Tensor) -> object:
    """Return a mark that equals a later one only if the tensor has not changed."""
    return _TensorMark(tensor)


def _mark(value: Any) -> Any:
    """Return a mark that equals a later one only if the value has not changed."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return _TensorMark(value)
    if isinstance(value, _GENERATORS):
        state = _state_of(value)
        return state.numpy().tobytes() if isinstance(state, torch.Tensor) else _mark(state)
    if isinstance(value, np.generic | np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if kind in (list, tuple, deque):
        return (kind.__name__, *map(_mark, value))
    if isinstance(value, dict):
        return (kind.__name__, *((key, _mark(inner)) for key, inner in value.items()))
    return (kind.__name__, value if kind not in _SETS.values() else frozenset(value))


def _packed(value: Any) -> Any:  # noqa: PLR0911  # a line for each type
    """Return the value in tensors and plain values; nothing is shared with it."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if kind in (list, tuple):
        return kind(map(_packed, value))
    if kind is dict:
        return {key: _packed(inner) for key, inner in value.items()}
    if isinstance(value, _GENERATORS):
        return {_KIND: "generator", "value": _packed(_state_of(value))}
    if isinstance(value, np.generic | np.ndarray):
        content = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.size else torch.empty(0)
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return {_KIND: "array", "value": content, "dtype": value.dtype.str, "shape": shape}
    if kind is deque:
        return {_KIND: "deque", "value": [_packed(element) for element in value], "maxlen": value.maxlen}
    if kind in _SETS.values():
        return {_KIND: kind.__name__, "value": [_packed(element) for element in value]}
    if isinstance(value, dict):
        return {_KIND: kind.__name__, "value": [(key, _packed(inner)) for key, inner in value.items()]}
    return value


def _unpacked(value: Any, now: Any, device: torch.device) -> Any:
    """Return the value again; an existing container or generator stays the same object, as others may hold it too."""
    if isinstance(value, torch.Tensor):
        if isinstance(now, torch.Tensor) and now.requires_grad and now.is_leaf and now.shape == value.shape:
            with torch.no_grad():
                return now.copy_(value)  # something trains this tensor
        return value.clone().to(device)
    if isinstance(value, dict) and _KIND in value:
        return _unpacked_kind(value[_KIND], value, now, device)
    kind = type(value)
    if kind in (list, tuple):
        parts = list(now) if isinstance(now, kind) and len(now) == len(value) else [None] * len(value)
        return _in_place(now, kind(_unpacked(part, own, device) for part, own in zip(value, parts, strict=True)))
    if kind is dict:
        known = now if isinstance(now, dict) else {}
        return _in_place(now, {key: _unpacked(inner, known.get(key), device) for key, inner in value.items()})
    return value


def _unpacked_kind(kind: str, packed: Mapping[str, Any], now: Any, device: torch.device) -> Any:
    content = packed["value"]
    if kind == "generator":
        if isinstance(now, _GENERATORS):
            _set_state(now, _unpacked(content, None, torch.device("cpu")))
        return now
    if kind == "array":
        flat = np.frombuffer(content.cpu().numpy().tobytes(), packed["dtype"])
        return flat[0] if packed["shape"] is None else flat.reshape(packed["shape"]).copy()
    if kind == "deque":
        return _in_place(now, deque((_unpacked(element, None, device) for element in content), packed["maxlen"]))
    if kind in _SETS:
        return _in_place(now, _SETS[kind](content))
    items = {key: _unpacked(inner, None, device) for key, inner in content}
    return _in_place(now, defaultdict(None, items) if kind == "defaultdict" else _MAPPINGS[kind](items))


def _in_place(now: Any, value: Any) -> Any:
    """Fill an existing container."""
    if type(now) is not type(value) or isinstance(value, tuple | frozenset):
        return value
    now.clear()
    now.extend(value) if isinstance(value, list | deque) else now.update(value)
    return now


def _is_grown(packed: Any) -> bool:
    return isinstance(packed, dict) and packed.get(_KIND) == "grown"


def _length(packed: Any) -> int:
    """Elements of a packed container; -1 of anything else."""
    content = packed["value"] if isinstance(packed, dict) and _KIND in packed else packed
    return len(content) if isinstance(content, list | dict) else -1


def _state_of(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.RandomState):
        return generator.get_state(legacy=False)
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    elif isinstance(generator, random.Random):
        generator.setstate(state)
    else:
        generator.set_state(state)
