"""The options that all tuners share: flat keywords for people, grouped and checked for the code that uses them."""

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict, TypeVar

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from lightning_hpo.errors import SearchFailedError
from lightning_hpo.records import Mode, Row
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.schedulers.units import STEPS, Unit, count_of
from lightning_hpo.text import nearest, require_int

_ENOUGH_TO_JUDGE = 10  # ended trials, for a share of failures
_UNITS = {"d": 86_400, "h": 3_600, "m": 60, "s": 1}
Group = TypeVar("Group")


class Options(TypedDict, total=False):
    """Keywords that all tuners share; see :class:`~lightning_hpo.Tuner`."""

    monitor: str | None
    mode: Mode | None
    sampler: BaseSampler | None
    seed: int
    name: str | None
    storage: str | BaseStorage | None
    root: str | Path
    trainer: Mapping[str, Any] | None
    checkpoint_every: int
    keep_checkpoints: bool
    workers: int
    devices_per_trial: int
    timeout: float | str | None
    total: float | None
    total_steps: int | None
    max_failed: int | float
    trial_timeout: float | str | None
    max_retries: int
    stop_on_nan: bool
    isolate: bool
    allow_changed: bool
    overwrite: bool
    shared: bool
    verbose: bool


@dataclass(frozen=True)
class Goal:
    """What is searched for; several metrics make a search with several objectives, of which the first ranks trials.

    Args:
        monitor: metric that the module logs in validation, or several.
        mode: whether lower or higher values are better, or one for each metric; None is ``"min"``, unless the name of a
            metric suggests otherwise.
        sampler: that proposes trials; None is the tuner's default.
        seed: of everything random.
        constraints: logged metrics that must be <= 0 in a feasible trial.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    monitor: str | Sequence[str] | None = None
    mode: Mode | Sequence[Mode] | None = None
    sampler: BaseSampler | None = None
    seed: int = 0
    constraints: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.sampler is not None and not isinstance(self.sampler, BaseSampler):
            raise TypeError(f"`sampler` must be an Optuna sampler, got {self.sampler!r}.")
        require_int("seed", self.seed, 0)
        modes = self._given_modes
        if len(modes) != len(self.monitors) or not modes:
            raise ValueError(f"`mode` must be one of 'min', 'max', or one for each `monitor`, got {self.mode!r}.")
        object.__setattr__(self, "mode", [*map(direction, self.monitors, modes)])

    @property
    def monitors(self) -> tuple[str | None, ...]:
        """All metrics; one None without any."""
        return (self.monitor,) if isinstance(self.monitor, str | None) else tuple(self.monitor)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Direction of each metric."""
        return tuple(self.mode)  # type: ignore[arg-type]  # resolved in __post_init__

    @property
    def _given_modes(self) -> tuple[Mode | None, ...]:
        return (self.mode,) * len(self.monitors) if isinstance(self.mode, str | None) else tuple(self.mode)


@dataclass(frozen=True)
class RunOptions:
    """Where a search keeps everything, and who may work on it; see :class:`~lightning_hpo.Tuner`.

    Raises:
        ValueError: for ``overwrite`` where a run folder cannot be moved away.
    """

    name: str | None = None
    root: str | Path = "runs"
    storage: str | BaseStorage | None = None
    allow_changed: bool = False
    overwrite: bool = False
    shared: bool = False
    verbose: bool = True

    def __post_init__(self) -> None:
        if self.overwrite and (self.shared or self.storage is not None):
            other = "shared" if self.shared else "storage"
            raise ValueError(
                f"`overwrite` moves a run folder away, which `{other}` does not allow: choose a new `name`."
            )


@dataclass(frozen=True)
class TrialOptions:
    """How a trial trains and what it keeps; see :class:`~lightning_hpo.Tuner`."""

    trainer: Mapping[str, Any] | None = None
    checkpoint_every: int = 25
    keep_checkpoints: bool = False
    stop_on_nan: bool = False


@dataclass(frozen=True)
class WorkerOptions:
    """Where jobs run; see :class:`~lightning_hpo.Tuner`.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    workers: int = 1
    devices_per_trial: int = 1
    isolate: bool = False
    trial_timeout: float | None = None
    max_retries: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "trial_timeout", seconds("trial_timeout", self.trial_timeout))
        for name, least in (("workers", 1), ("devices_per_trial", 1), ("max_retries", 0)):
            require_int(name, getattr(self, name), least)

    @property
    def in_process(self) -> bool:
        """Whether jobs run in this process."""
        return self.workers == 1 and not self.isolate


@dataclass(frozen=True)
class Limits:
    """When to start no more jobs.

    Args:
        timeout: seconds from now, a text such as ``"8h"`` or ``"1h30m"``, or None.
        total: recorded optimizer steps, epochs or samples, as the budget is in, those of earlier calls included, or
            None.
        total_steps: the same in optimizer steps.
        max_failed: failed trials in a row (an int), or as a share of all that have ended (a float below 1), which is
            judged from the tenth on.
        unit: of the budget.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    timeout: float | None = None  # in seconds, once it is made
    total: float | None = None
    total_steps: int | None = None
    max_failed: int | float = 5
    unit: Unit = STEPS

    def __post_init__(self) -> None:
        object.__setattr__(self, "timeout", seconds("timeout", self.timeout))
        for name in ("total", "total_steps", "max_failed"):
            require_positive(name, getattr(self, name))
        if self.total_steps is not None and self.total is not None:
            raise TypeError("give either `total` or `total_steps`: both say how much is spent in all.")
        if self.total_steps is not None and not self.unit.is_steps:
            raise TypeError(
                f"`total_steps` is in optimizer steps, but the budget is in {self.unit.label}: give `total`, in "
                f"{self.unit.label}."
            )

    @property
    def count(self) -> int | None:
        """How much may be spent in all, as the scheduler counts; None without end."""
        total = self.total if self.total_steps is None else self.total_steps
        return None if total is None else count_of(self.unit, total)

    def check_failures(self, in_a_row: int, rows: Sequence[Row], last: str) -> None:
        """Raise SearchFailedError if too many trials failed.

        Args:
            in_a_row: failed trials since the last one that did not fail.
            rows: all trials.
            last: reason of the last failure.
        """
        if self.max_failed >= 1:
            if in_a_row >= self.max_failed:
                raise SearchFailedError(f"{in_a_row} trials in a row failed, the last one with: {last}")
            return
        ended = [row for row in rows if row.state != "running"]
        failed = sum(row.state == "failed" for row in ended)
        if in_a_row and len(ended) >= _ENOUGH_TO_JUDGE and failed >= self.max_failed * len(ended):
            raise SearchFailedError(f"{failed} of {len(ended)} trials failed, the last one with: {last}")

    def texts(self) -> list[str]:
        """Each limit that ends a search before its scheduler does, as words."""
        count = self.count
        steps = None if count is None else f"once {self.unit.number(count):,} {self.unit.label} are recorded"
        time = None if self.timeout is None else f"after {self.timeout:g} s"
        return [text for text in (steps, time) if text is not None]


DEFAULTS = {
    field.name: field.default
    for kind in (Goal, RunOptions, TrialOptions, WorkerOptions, Limits)
    for field in fields(kind)
}
"""Default of each keyword."""


def group(kind: type[Group], options: Mapping[str, Any]) -> Group:
    """Make a group of options from flat keywords; those of other groups are left out."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # each kind is a dataclass
    return kind(**{name: value for name, value in options.items() if name in names})


def arguments_of(kind: type) -> list[str]:
    """Names of the arguments that a tuner takes."""
    variable = inspect.Parameter.VAR_KEYWORD
    own = [name for name, given in inspect.signature(kind).parameters.items() if given.kind is not variable]
    return [*own, *(name for name in Options.__annotations__ if name not in own)]


def validate_names(kind: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError if there is an option that no tuner has."""
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"{kind.__name__} has no argument {name!r}.{nearest(name, arguments_of(kind))}")


def require_positive(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless ``value`` is None or a number above 0."""
    if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"`{name}` must be a number above 0, got {value!r}.")
    if value is not None and not float(value) > 0:
        raise ValueError(f"`{name}` must be above 0, got {value!r}.")


def seconds(name: str, value: Any) -> float | None:
    """Return a length of time in seconds.

    Args:
        name: of the argument.
        value: a number of seconds above 0, a text of numbers with the units d, h, m and s, or None.

    Raises:
        TypeError, ValueError: for another value.

    Example:
        >>> seconds("timeout", "1h30m"), seconds("timeout", 90)
        (5400.0, 90)
    """
    if isinstance(value, str):
        parts = re.findall(r"(\d+(?:\.\d+)?)\s*([dhms])", value)
        if not parts or re.sub(r"\d+(?:\.\d+)?\s*[dhms]|\s", "", value):
            raise ValueError(f"`{name}` must be a number of seconds, or a text such as '8h' or '1h30m', got {value!r}.")
        value = sum(float(number) * _UNITS[unit] for number, unit in parts)
    require_positive(name, value)
    return value  # type: ignore[no-any-return]  # a number above 0, or None
