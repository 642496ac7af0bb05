"""What a search was called with, as JSON: stored with its study, and compared when the study is continued."""

import dataclasses
import inspect
from collections.abc import Sequence
from typing import Any

from lightning_hpo.schedulers.base import Scheduler
from lightning_hpo.schedulers.confirmed import Confirmed
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.code_identity import FirstSeen, code_parts

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


def settings(chooser: Any) -> dict[str, Any]:
    """Return the class of a sampler or pruner, and what it was constructed with where it still shows that.

    Seeds do not count: the tuner has its own. Nor does what the object itself has changed since it was seen first.
    """
    while hasattr(chooser, "sampler"):  # a sampler that wraps another
        chooser = chooser.sampler
    return dict(FirstSeen.of(chooser, _settings, {}))


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
