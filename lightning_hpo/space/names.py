"""Dotted names: which part of a trial receives a value, and where inside an argument."""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

from lightning_hpo.text import nearest


def split_name(name: str) -> tuple[str, str]:
    """Split a dotted name into the part that receives the value and the rest.

    Args:
        name: e.g. ``data.batch_size``; a name without a dot belongs to ``model``.

    Returns:
        For example ``("data", "batch_size")``.

    Raises:
        TypeError: if ``name`` is no text.
        ValueError: if a part between the dots is empty.

    Example:
        >>> split_name("lr"), split_name("trainer.gradient_clip_val")
        (('model', 'lr'), ('trainer', 'gradient_clip_val'))
    """
    if not isinstance(name, str):
        raise TypeError(f"a name in `space` must be text, got {name!r}.")
    if not all(part.strip() == part and part for part in name.split(".")):
        raise ValueError(f"`space` has the name {name!r}; a name is one or more words joined by dots, e.g. 'model.lr'.")
    head, dot, rest = name.partition(".")
    return (head, rest) if dot else ("model", head)


def nested_config(params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
    """Write parameters as a config: one block for each receiver, and the budget.

    Example:
        >>> nested_config({"model.cfg.opt.lr": 0.1, "data.size": 2}, 100)
        {'model': {'cfg': {'opt': {'lr': 0.1}}}, 'data': {'size': 2}, 'trainer': {'max_steps': 100}}
    """
    config: dict[str, Any] = {}
    for head in dict.fromkeys(split_name(name)[0] for name in params):
        config[head] = {}
        for argument, value in part(params, head).items():
            *path, last = argument.split(".")
            block = config[head]
            for key in path:
                block = block.setdefault(key, {})
            block[last] = value
    config.setdefault("trainer", {})["max_steps"] = max_steps
    return config


def part(params: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Return the arguments of one receiver, outer ones first.

    Example:
        >>> part({"model.cfg.lr": 1, "model.cfg": {}, "data.size": 2}, "model")
        {'cfg': {}, 'cfg.lr': 1}
    """
    own = {split_name(name)[1]: value for name, value in params.items() if split_name(name)[0] == head}
    return dict(sorted(own.items(), key=lambda item: item[0].count(".")))


def replaced(holder: Any, path: str, value: Any, *, check_only: bool = False) -> Any:
    """Return a copy of a nested value with another value at a dotted path; ``holder`` is not changed.

    Args:
        holder: a dataclass, a dictionary, a pydantic model, or an object with attributes such as a namespace.
        path: keys or attributes, joined by dots; each must be there.
        value: to put there.
        check_only: look for the path, and return ``holder`` itself.

    Raises:
        LookupError: if a part of the path is not there; the message says which, and what is.

    Example:
        >>> replaced({"opt": {"lr": 0.1, "beta": 0.9}}, "opt.lr", 0.2)
        {'opt': {'lr': 0.2, 'beta': 0.9}}
    """
    key, _, rest = path.partition(".")
    members = _members(holder)
    if key not in members:
        known = ", ".join(map(str, members)) or "nothing"
        raise LookupError(
            f"{type(holder).__name__} has no {key!r}; it has {known}.{nearest(key, [*map(str, members)])}"
        )
    new = replaced(members[key], rest, value, check_only=check_only) if rest else value
    if check_only:
        return holder
    if isinstance(holder, Mapping):
        changed = copy.copy(holder)
        changed[key] = new  # type: ignore[index]  # a mapping that cannot be changed is no one's config
        return changed
    if dataclasses.is_dataclass(holder) and not isinstance(holder, type):
        return dataclasses.replace(holder, **{key: new})
    if hasattr(holder, "model_copy"):  # pydantic
        return type(holder).model_validate({**members, key: new})
    changed = copy.copy(holder)
    setattr(changed, key, new)
    return changed


def value_at(holder: Any, path: str) -> Any:
    """Return the value at a dotted path inside a nested value.

    Raises:
        LookupError: if a part of the path is not there.

    Example:
        >>> value_at({"opt": {"lr": 0.1}}, "opt.lr")
        0.1
    """
    for key in path.split("."):
        holder = _members(holder)[key]
    return holder


def _members(holder: Any) -> dict[str, Any]:
    if isinstance(holder, Mapping):
        return dict(holder)
    if dataclasses.is_dataclass(holder):
        return {field.name: getattr(holder, field.name) for field in dataclasses.fields(holder) if field.init}
    return dict(vars(holder)) if hasattr(holder, "__dict__") else {}
