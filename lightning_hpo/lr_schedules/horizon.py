# ruff: noqa: PYI041  # int and float differ here: a number of steps, or a fraction
"""The horizon of a schedule: the optimizer step at which its curve ends, which may become known after construction."""

from typing import Any, ClassVar

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_hpo.lr_schedules.first_update import may_update
from lightning_hpo.text import check_steps, length_message


class HorizonLR(LRScheduler):
    """Base of :class:`~lightning_hpo.lr_schedules.ClosedFormLR`: lengths in steps or as fractions of a horizon.

    A subclass sets ``warmup`` and ``_horizon_given``, calls :meth:`_set_horizon`, and writes the learning rate of the
    current step in :meth:`_write_if_known`.
    """

    ends: ClassVar[bool] = True
    """Whether the curve reaches its minimum at ``max_steps`` and stays there."""

    warmup: int | float
    max_steps: int | None = None
    _horizon_given: bool

    @property
    def needs_max_steps(self) -> bool:
        """Whether the curve depends on a horizon that was given neither at construction nor to :meth:`extend`."""
        return not self._horizon_given and (
            self.ends or any(isinstance(length, float) and length <= 1.0 for length in self._lengths())
        )

    def bind(self, max_steps: int) -> None:
        """Take the horizon from the training loop; does nothing where the user gave one.

        Args:
            max_steps: length of the whole training in optimizer steps.

        Raises:
            ValueError: if ``max_steps`` is below 1 or shorter than the warm-up.
        """
        if not self._horizon_given:
            self._rehorizon(max_steps)

    def extend(self, max_steps: int) -> None:
        """Move the horizon: from now on the learning rates are those of a schedule constructed with ``max_steps``.

        Args:
            max_steps: the new total in optimizer steps, counted from the start of training; may also be smaller.

        Raises:
            ValueError: if ``max_steps`` is below 1 or shorter than the warm-up.
        """
        self._rehorizon(max_steps)
        self._horizon_given = True

    def _rehorizon(self, max_steps: int) -> None:
        before = self.max_steps
        try:
            self._set_horizon(max_steps)
        except ValueError:
            self._set_horizon(before)
            raise
        self._write_if_known()

    def _lengths(self) -> tuple[int | float, ...]:
        """Return the lengths that may be fractions of the horizon."""
        return (self.warmup,)

    def _set_horizon(self, max_steps: int | None) -> None:
        """Set ``max_steps`` and what follows from it: ``warmup_steps`` here, more in subclasses."""
        if max_steps is not None:
            max_steps = check_steps("max_steps", max_steps, at_least=1)
        self.max_steps = max_steps
        self.warmup_steps = self._in_steps("warmup", self.warmup)
        if max_steps is not None and self.warmup_steps > max_steps:
            raise ValueError(f"`warmup` must not be longer than `max_steps`, got {self.warmup_steps} > {max_steps}.")
        self.span = 1 if max_steps is None else max_steps - self.warmup_steps  # 1: factor(0) is 1 while unbound
        self._unbound = max_steps is None and self.needs_max_steps

    def _in_steps(self, name: str, length: int | float, at_least: int = 0) -> int:
        """Return a length in steps; while unbound, a fraction counts as the shortest length that is not zero."""
        if isinstance(length, float) and length > 1.0 and length.is_integer():
            length = int(length)  # 1e3, as YAML and command lines have it
        if not isinstance(length, float):
            return check_steps(name, length, at_least, or_fraction=True)
        if not 0.0 <= length <= 1.0 or (at_least and length == 0.0):
            raise ValueError(length_message(name, length, at_least))
        if self.max_steps is None:
            return 1 if length else 0
        return max(at_least, round(length * self.max_steps))

    def _write_if_known(self) -> None:
        """Write the learning rate of the current step, unless the horizon that it depends on is missing."""
        raise NotImplementedError

    def _before_first_update(self, _optimizer: Optimizer, _args: Any, kwargs: Any) -> None:
        """Refuse to train by a schedule that no training loop has tied to itself; removed at the first step."""
        if not may_update(self, kwargs.get("closure"), unbound=self._unbound):
            self._unbound = False  # until it is bound, its shortest form
