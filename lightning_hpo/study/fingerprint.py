"""What a search was called with, as JSON: stored with its study, and compared when the study is continued."""

import dataclasses
import difflib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_hpo.schedulers.base import Scheduler
from lightning_hpo.schedulers.confirmed import Confirmed
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.code_identity import code_parts, comparable, first_seen

# Arguments that a fingerprint leaves out at their default -> that default, in words.
_LEFT_OUT = {"score": "'last'", "on_oom": "'fail'", "constraints": "no constraint", "start": "no starting point",
             "from_run": "no earlier run"}  # fmt: skip
# Settings of a scheduler that may change when a study is continued: more of the same.
_MAY_GROW = ("n_trials", "iterations")


def fingerprint(
    space: Space,
    scheduler: Scheduler,
    parts: Sequence[Any],
    code: Sequence[Any],
    *,
    trains: bool,
    **asked: Any,
) -> dict[str, Any]:
    """Return what must not change from one call of a search to the next.

    Args:
        space: name -> distribution.
        scheduler: which trial gets how many steps.
        parts: model and data module, or the function.
        code: classes and functions whose code is part of what is measured.
        trains: whether ``parts`` are trained; a function's name says little about what it computes.
        **asked: other settings.
    """
    if isinstance(scheduler, Confirmed):  # it adds trials, and changes none
        scheduler = scheduler.scheduler
    budget: dict[str, Any] = {"type": type(scheduler).__name__, "max_steps": scheduler.max_steps}
    if (own := getattr(scheduler, "settings", None)) is not None:
        budget |= own()
    elif dataclasses.is_dataclass(scheduler):
        budget |= {k: v for k, v in dataclasses.asdict(scheduler).items() if k not in _MAY_GROW}
    return {
        "space": parse_space(space).texts(),
        **asked,
        "scheduler": budget,
        "trains": [part and _identity(part) for part in parts] if trains else None,
        "code": {"parts": code_parts(code)},
    }


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what differs between two fingerprints: name of a setting -> each difference in words for people."""
    found = {name: _differences(name, stored.get(name), asked.get(name)) for name in {**stored, **asked}}
    return {name: texts for name, texts in found.items() if texts}


def _differences(name: str, stored: Any, asked: Any) -> list[str]:
    if name == "sampler" and not stored:  # of an older study
        return []
    if name == "code":
        if not stored or not asked or "python" in stored:  # older studies have none, or hashes of bytecode
            return []
        old, new = stored["parts"], asked["parts"]
        words = {(True, True): "changed", (True, False): "is gone", (False, True): "is new"}
        return [
            f"the code of {part} {words[part in old, part in new]}"
            for part in sorted({**old, **new})
            if old.get(part) != new.get(part) and comparable(old.get(part), new.get(part))
        ]
    units = [unit["name"] if unit else "steps" for unit in (stored, asked)] if name == "unit" else ["", ""]
    if units[0] != units[1]:
        return [f"{word} the budget in {unit} (`max_{unit}`)" for word, unit in zip(("was", "now"), units, strict=True)]
    if (stored is None) != (asked is None) and name != "trains":
        given = f'"{name}": {json.dumps(asked if stored is None else stored)}'
        default = f"`{name}` left out ({_LEFT_OUT[name]})" if name in _LEFT_OUT else f"`{name}` left out"
        return [f"was {default if stored is None else given}", f"now {given if stored is None else default}"]
    before, after = (json.dumps({name: setting}, indent=1, sort_keys=True).splitlines() for setting in (stored, asked))
    return [
        f"{'was' if line[0] == '-' else 'now'} {line[1:].strip().rstrip(',')}"
        for line in difflib.unified_diff(before, after, lineterm="", n=0)
        if line[0] in "+-" and line[:3] not in ("---", "+++")
    ]


def settings(chooser: Any) -> dict[str, Any]:
    """Return the class of a sampler or pruner, and what it was constructed with where it still shows that.

    Seeds do not count: the tuner has its own. Nor does what the object itself has changed since it was seen first.
    """
    while hasattr(chooser, "sampler"):  # a sampler that wraps another
        chooser = chooser.sampler
    return dict(first_seen(chooser, _settings, {}))


def _settings(chooser: Any) -> dict[str, Any]:
    kind = type(chooser)
    names = (name for name in inspect.signature(kind).parameters if name != "seed" and not name.startswith("warn"))
    held = {name: getattr(chooser, name, getattr(chooser, f"_{name}", None)) for name in names}
    plain = {
        name: repr(value) if isinstance(value, float) else value if isinstance(value, int | str) else label(value)
        for name, value in held.items()
        if value is not None
    }
    return {"type": kind.__name__, **plain}


def _identity(part: Any) -> Any:
    return getattr(part, "identity", None) or label(part)  # a builder has an identity of its own


def label(subject: Any) -> str:
    """Return a readable name of a class or function, fit for a folder."""
    while hasattr(subject, "func"):  # functools.partial
        subject = subject.func
    name = getattr(subject, "__name__", type(subject).__name__)
    return "".join(letter for letter in name if letter.isalnum() or letter == "_").strip("_").lower() or "function"
