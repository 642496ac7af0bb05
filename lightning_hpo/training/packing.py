"""Values of attributes as a checkpoint holds them: tensors and plain values only, each with a way back.

Covered are numbers, texts, None, members of an Enum, tensors, arrays, random number generators, and containers of them,
named tuples too. A checkpoint names a class, and what is not imported already is not imported for it.
"""

import random
import sys
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterable, Mapping
from enum import Enum
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import nn

PLAIN = (bool, int, float, str, type(None))
_TENSORS = (torch.Tensor, nn.Parameter)  # no subclass of another kind, whose own attributes would be lost
_LARGEST = 1_000_000  # elements of a tensor; more is taken for a cache
_LONGEST = 100_000  # elements of a container or an array; more is taken for data
KIND = "lightning_hpo.kind"  # key of the type in a dict that stands for a value that is not plain
_MAPPINGS = {"defaultdict": defaultdict, "OrderedDict": OrderedDict, "Counter": Counter}
_NAMED = ("enum", "named tuple")
_SETS = {"set": set, "frozenset": frozenset}
CONTAINERS = (list, dict, deque, set)
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def is_long(value: Any) -> bool:
    """Whether a container is taken for data, not for state."""
    return isinstance(value, list | tuple | dict | deque | set | frozenset) and not is_kept(value)


def is_kept(value: Any) -> bool:
    """Whether a checkpoint can hold a value, and it is not too large for that."""
    return _left(value, _LONGEST) >= 0


def _left(value: Any, elements: int) -> int:  # noqa: PLR0911  # a line for each type
    """Return how many more elements a container may have after a value; < 0 if it is too long or of an unknown type."""
    kind = type(value)
    if kind in PLAIN or isinstance(value, _GENERATORS):
        return elements
    if isinstance(value, torch.Tensor):
        return elements if kind in _TENSORS and value.numel() <= _LARGEST else -1
    if isinstance(value, Enum):
        return elements if _class_named(_name_of(kind)) is kind and type(value.value) in PLAIN else -1
    if isinstance(value, np.generic | np.ndarray):
        return elements - value.size if value.dtype.kind in "biufc" else -1
    parts: Iterable[Any] = value
    if kind in (dict, *_MAPPINGS.values()):
        if not all(type(key) in PLAIN for key in value):
            return -1
        parts = value.values()
    elif kind not in (list, tuple, deque, *_SETS.values()) and not _is_named_tuple(kind):
        return -1
    for part in parts:
        elements = _left(part, elements - 1)
        if elements < 0:
            break
    return elements


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


def mark(value: Any) -> Any:
    """Return a mark that equals a later one only if the value has not changed."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return _TensorMark(value)
    if isinstance(value, _GENERATORS):
        state = _state_of(value)
        return state.numpy().tobytes() if isinstance(state, torch.Tensor) else mark(state)
    if isinstance(value, np.generic | np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if kind in (list, tuple, deque) or _is_named_tuple(kind):
        return (kind.__name__, *map(mark, value))
    if isinstance(value, dict):
        return (kind.__name__, *((key, mark(inner)) for key, inner in value.items()))
    return (kind.__name__, value if kind not in _SETS.values() else frozenset(value))


def packed(value: Any) -> Any:  # noqa: C901, PLR0911  # a line for each type
    """Return the value in tensors and plain values; nothing is shared with it."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return value.detach().clone()
    if kind in (list, tuple):
        return kind(map(packed, value))
    if kind is dict:
        return {key: packed(inner) for key, inner in value.items()}
    if isinstance(value, Enum):
        return {KIND: "enum", "value": value.value, "class": _name_of(kind)}
    if _is_named_tuple(kind):
        return {KIND: "named tuple", "value": [packed(element) for element in value], "class": _name_of(kind)}
    if isinstance(value, _GENERATORS):
        return {KIND: "generator", "value": packed(_state_of(value))}
    if isinstance(value, np.generic | np.ndarray):
        content = torch.frombuffer(bytearray(value.tobytes()), dtype=torch.uint8) if value.size else torch.empty(0)
        shape = list(value.shape) if isinstance(value, np.ndarray) else None
        return {KIND: "array", "value": content, "dtype": value.dtype.str, "shape": shape}
    if kind is deque:
        return {KIND: "deque", "value": [packed(element) for element in value], "maxlen": value.maxlen}
    if kind in _SETS.values():
        return {KIND: kind.__name__, "value": [packed(element) for element in value]}
    if isinstance(value, dict):
        return {KIND: kind.__name__, "value": [(key, packed(inner)) for key, inner in value.items()]}
    return value


def unpacked(value: Any, now: Any, device: torch.device) -> Any:
    """Return the value again; an existing container or generator stays the same object, as others may hold it too."""
    if isinstance(value, torch.Tensor):
        is_trained = isinstance(now, nn.Parameter) or (isinstance(now, torch.Tensor) and now.requires_grad)
        if is_trained and now.is_leaf and now.shape == value.shape:
            with torch.no_grad():
                return now.copy_(value)  # something trains this tensor
        return value.clone().to(device)
    if isinstance(value, dict) and KIND in value:
        return _unpacked_kind(value[KIND], value, now, device)
    kind = type(value)
    if kind in (list, tuple):
        parts = list(now) if isinstance(now, kind) and len(now) == len(value) else [None] * len(value)
        return _in_place(now, kind(unpacked(part, own, device) for part, own in zip(value, parts, strict=True)))
    if kind is dict:
        known = now if isinstance(now, dict) else {}
        return _in_place(now, {key: unpacked(inner, known.get(key), device) for key, inner in value.items()})
    return value


def _unpacked_kind(  # noqa: PLR0911  # a line for each type
    kind: str, whole: Mapping[str, Any], now: Any, device: torch.device
) -> Any:
    content = whole["value"]
    if kind == "generator":
        if isinstance(now, _GENERATORS):
            _set_state(now, unpacked(content, None, torch.device("cpu")))
        return now
    if kind == "array":
        flat = np.frombuffer(content.cpu().numpy().tobytes(), whole["dtype"])
        return flat[0] if whole["shape"] is None else flat.reshape(whole["shape"]).copy()
    if kind in _NAMED:
        made: Any = _class_named(whole["class"], now)
        if made is None:
            return now
        return made(content) if kind == "enum" else made._make(unpacked(element, None, device) for element in content)
    if kind == "deque":
        return _in_place(now, deque((unpacked(element, None, device) for element in content), whole["maxlen"]))
    if kind in _SETS:
        return _in_place(now, _SETS[kind](content))
    items = {key: unpacked(inner, None, device) for key, inner in content}
    return _in_place(now, defaultdict(None, items) if kind == "defaultdict" else _MAPPINGS[kind](items))


def _in_place(now: Any, value: Any) -> Any:
    """Fill an existing container."""
    if type(now) is not type(value) or isinstance(value, tuple | frozenset):
        return value
    now.clear()
    now.extend(value) if isinstance(value, list | deque) else now.update(value)
    return now


def _is_named_tuple(kind: type) -> bool:
    return issubclass(kind, tuple) and hasattr(kind, "_fields") and _class_named(_name_of(kind)) is kind


def _name_of(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _class_named(name: str, now: Any = None) -> type | None:
    """Return the Enum or the class of named tuples of this name: that of the value of now, or one that is imported."""
    module, _, path = name.partition(":")
    if type(now).__qualname__ == path:  # in a worker, a script is a module of another name
        return type(now)
    found: Any = reduce(lambda place, part: getattr(place, part, None), path.split("."), sys.modules.get(module))
    return found if isinstance(found, type) and (issubclass(found, Enum) or hasattr(found, "_fields")) else None


def is_grown(value: Any) -> bool:
    """Whether a packed container says how long it was at the beginning."""
    return isinstance(value, dict) and value.get(KIND) == "grown"


def length_of(value: Any) -> int:
    """Elements of a packed container; -1 of anything else."""
    content = value["value"] if isinstance(value, dict) and KIND in value else value
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
