"""Units of a budget: optimizer steps, epochs or samples, and how many optimizer steps they are in a trial.

Schedulers count whole numbers. In epochs they count so many parts of an epoch as the numbers of the user need: with
``max_epochs=2, min_epochs=0.25`` they count quarters, up to 8. Only the fit of a trial knows how many optimizer steps
that is (:class:`Pace`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Real
from typing import Any, Literal, TypeAlias

UnitName: TypeAlias = Literal["steps", "epochs", "samples"]

UNITS: tuple[UnitName, ...] = ("steps", "epochs", "samples")
_MOST_PARTS = 1000  # of an epoch


@dataclass(frozen=True)
class Unit:
    """What a scheduler counts.

    Args:
        name: ``"steps"`` (optimizer steps), ``"epochs"`` or ``"samples"``.
        parts: a scheduler counts so many parts of a unit.
    """

    name: UnitName = "steps"
    parts: int = 1

    def __post_init__(self) -> None:
        if self.name not in UNITS:
            raise ValueError(f"`unit` must be one of {', '.join(map(repr, UNITS))}, got {self.name!r}.")

    @property
    def is_steps(self) -> bool:
        """Whether a count is a number of optimizer steps, the same in every trial."""
        return self.name == "steps"

    @property
    def label(self) -> str:
        """Name for people."""
        return "optimizer steps" if self.is_steps else self.name

    @property
    def count_label(self) -> str:
        """Name of the counts of a scheduler, for people."""
        return self.label if self.parts == 1 else f"1/{self.parts} {self.label}"

    def number(self, count: int) -> float:
        """Return a count in the unit: 10 quarters of an epoch are 2.5 epochs."""
        whole, rest = divmod(count, self.parts)
        return whole if not rest else round(count / self.parts, 3)

    def amount(self, count: int) -> str:
        """Return a count as text.

        Example:
            >>> Unit().amount(2000), Unit("epochs", 4).amount(4)
            ('2,000 optimizer steps', '1 epoch')
        """
        number = self.number(count)
        return f"{number:,} {self.label.removesuffix('s') if number == 1 else self.label}"

    def settings(self) -> Any:
        """Return what must not change while a study goes on, as plain values; None for steps."""
        return None if self.is_steps else {"name": self.name, "parts": self.parts}

    @classmethod
    def from_settings(cls, stored: Any) -> "Unit":
        """Undo :meth:`settings`; a study without them is in steps."""
        return cls() if not stored else cls(stored["name"], stored["parts"])


STEPS = Unit()


@dataclass(frozen=True)
class Budget:
    """What a user has given as budgets, in the counts of a scheduler.

    Args:
        unit: of all of them.
        full: budget of a trial.
        least: the smallest budget that a trial is judged at; None if it was not given.
        interval: as given, or None.
    """

    unit: Unit
    full: int
    least: int | None = None
    interval: int | None = None


def read_budget(
    most: Mapping[UnitName, Any], least: Mapping[UnitName, Any] | None = None, *, interval: float | None = None
) -> Budget:
    """Return the budgets of a tuner, of which exactly one is the full one.

    Args:
        most: unit -> ``max_steps``, ``max_epochs`` or ``max_samples``, None where it is not given.
        least: the same of ``min_...``.
        interval: in the unit.

    Raises:
        TypeError: if not exactly one full budget is given, or another one is in another unit.
        ValueError: if a number of epochs is not above 0, or has too many decimals.

    Example:
        >>> read_budget({"epochs": 2}, {"epochs": 0.25})
        Budget(unit=Unit(name='epochs', parts=4), full=8, least=1, interval=None)
    """
    name = _unit_of(most, least or {})
    numbers = {f"max_{name}": most[name], f"min_{name}": (least or {}).get(name), "interval": interval}
    if name == "steps":  # the scheduler checks them
        if interval is not None and interval == int(interval):  # a command line makes floats
            interval = int(interval)
        return Budget(STEPS, most[name], (least or {}).get(name), interval)  # type: ignore[arg-type]  # checked there
    for argument, value in numbers.items():
        _require_amount(argument, value, whole=name == "samples")
    fractions = [Fraction(str(value)) for value in numbers.values() if value is not None]
    parts = math.lcm(*(fraction.denominator for fraction in fractions))
    if parts > _MOST_PARTS:
        got = ", ".join(f"{argument}={value}" for argument, value in numbers.items() if value is not None)
        raise ValueError(f"numbers of epochs may have three decimals together, e.g. 2.5 and 0.125; got {got}.")
    unit = Unit(name, parts)
    full, smallest, between = (None if value is None else count_of(unit, value) for value in numbers.values())
    assert full is not None
    for argument, count in ((f"min_{name}", smallest), ("interval", between)):
        if count is not None and count > full:
            raise ValueError(f"`{argument}` must be at most `max_{name}`, got {numbers[argument]} > {most[name]}.")
    return Budget(unit, full, smallest, between)


def _unit_of(most: Mapping[UnitName, Any], least: Mapping[UnitName, Any]) -> UnitName:
    """Return the unit of the one full budget that is given."""
    given = [name for name in UNITS if most.get(name) is not None]
    if not given:
        raise TypeError(
            "the budget of a trial is missing: give one of `max_steps`, `max_epochs`, `max_samples`, e.g. max_epochs=9."
        )
    if len(given) > 1:
        got = " and ".join(f"max_{name}={most[name]!r}" for name in given)
        raise TypeError(f"the budget of a trial must be one of `max_steps`, `max_epochs`, `max_samples`; got {got}.")
    name = given[0]
    for other, value in least.items():
        if value is not None and other != name:
            raise TypeError(
                f"`min_{other}` is in {Unit(other).label}, but the budget is in {Unit(name).label}: give `min_{name}`."
            )
    return name


def count_of(unit: Unit, value: float) -> int:
    """Return an amount of a unit in counts, rounded down."""
    return math.floor(Fraction(str(value)) * unit.parts)


def _require_amount(argument: str, value: Any, *, whole: bool) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int if whole else Real):
        raise TypeError(f"`{argument}` must be {'an int' if whole else 'a number'} above 0, got {value!r}.")
    if not 0 < float(value) < math.inf:
        raise ValueError(f"`{argument}` must be above 0, got {value!r}.")


@dataclass(frozen=True)
class Pace:
    """How many optimizer steps the epochs and samples of one trial are.

    Lightning steps on the last batch of an epoch in any case, so each epoch begins with a new step.

    Args:
        unit: epochs or samples.
        batches: in an epoch.
        accumulation: batches of an optimizer step, in each epoch from the first; the last one holds for the rest.
        batch: samples in a batch, of all ranks together.
        samples: in an epoch.
        optimizers: each of which steps at every batch, under manual optimization.
    """

    unit: Unit
    batches: int
    accumulation: tuple[int, ...] = (1,)
    batch: int = 1
    samples: int = 1
    optimizers: int = 1
    _amount: int = field(init=False, repr=False)  # counts in an epoch

    def __post_init__(self) -> None:
        object.__setattr__(self, "_amount", self.unit.parts if self.unit.name == "epochs" else self.samples)

    def steps(self, count: int) -> int:
        """Return the first optimizer step at which a trial has had so much.

        Example:
            >>> Pace(Unit("samples"), batches=3, batch=64, samples=150).steps(200)
            4
        """
        epochs, rest = divmod(count, self._amount)
        changing = [self._steps_in(epoch) for epoch in range(min(epochs, len(self.accumulation)))]
        before = sum(changing) + (epochs - len(changing)) * self._steps_in(epochs)
        batches = (
            Fraction(rest, self._amount) * self.batches if self.unit.name == "epochs" else Fraction(rest, self.batch)
        )
        return before + math.ceil(batches / self._factor(epochs)) * self.optimizers

    def position(self, step: int) -> Fraction:
        """Return how much a trial has had after so many optimizer steps."""
        epoch = 0
        while epoch < len(self.accumulation) - 1 and step >= self._steps_in(epoch):
            step -= self._steps_in(epoch)
            epoch += 1
        more, step = divmod(step, self._steps_in(epoch))
        epoch += more
        batches = min(Fraction(step, self.optimizers) * self._factor(epoch), Fraction(self.batches))
        if self.unit.name == "epochs":
            return (epoch + batches / self.batches) * self._amount
        return epoch * self.samples + min(batches * self.batch, Fraction(self.samples))

    def end_of(self, epoch: int) -> int:
        """Return the last optimizer step of an epoch, counted from 0."""
        return self.steps((epoch + 1) * self._amount)

    def reached(self, step: int) -> int:
        """Return the last whole count at or before an optimizer step."""
        return math.floor(self.position(step))

    def _factor(self, epoch: int) -> int:
        return self.accumulation[min(epoch, len(self.accumulation) - 1)]

    def _steps_in(self, epoch: int) -> int:
        return -(-self.batches // self._factor(epoch)) * self.optimizers
