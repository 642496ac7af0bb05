# ruff: noqa: PYI041  # int and float differ here: a number of steps, or a fraction
"""The base of all schedules: warm-up, decay and minimum joined into lr(step), as a torch ``LRScheduler``.

Notation: t = ``last_epoch``, the index of the next optimizer update; w = warm-up in steps;
f = factor of the decay, a function of t - w alone. For a parameter group with base learning rate b,

    lr(t) = initial + (b - initial) * t / w        while t < w
    lr(t) = minimum + (b - minimum) * f(t - w)     from w on

Nothing is accumulated, so a schedule is exact wherever it is resumed, and its whole state is t.
"""

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_hpo.lr_schedules.first_update import may_update, unbound_message
from lightning_hpo.text import check_range, check_steps, length_message


class HorizonLR(LRScheduler):
    """The step at which a curve ends, which may become known after construction, and lengths as fractions of it.

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
        """Take the horizon from the training loop; does nothing where the user gave a horizon.

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
        """Set ``max_steps`` and the lengths that follow from it: ``warmup_steps`` here, more in subclasses."""
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


class ClosedFormLR(HorizonLR):
    """A learning rate that is a function of the step: base of every schedule here, and of your own.

    A subclass implements :meth:`factor`, and :meth:`_set_horizon` if it has lengths of its own that may be fractions.

    **Horizon.** ``max_steps`` is the step at which the curve ends. It may be left out: then the schedule is *unbound*
    until :meth:`bind` (the ``LRSchedule`` callback calls it with the Trainer's length) or :meth:`extend`. An unbound
    schedule can be constructed, restored and asked for its first learning rate, which no horizon changes; anything
    later raises ``RuntimeError``, the optimizer's first update included. So does that update in a Lightning Trainer
    that would step the schedule once per epoch. Curves without an end need no horizon unless a length is given as a
    fraction of it.

    **State.** ``state_dict`` holds the step, and the base learning rates if they were changed after construction. The
    horizon and the shape come from the constructor, so a longer run resumes on the longer curve. In a plain torch loop
    restore the optimizer first, then the schedule: it writes its learning rate into the optimizer.

    Args:
        optimizer: whose groups are scheduled. A group's own ``lr`` is its base value; a tensor is written in place.
        max_steps: horizon in optimizer steps, >= 1; None = unbound.
        warmup: length of the linear warm-up: steps (int >= 0) or a fraction of ``max_steps`` (float in [0, 1)).
        min_lr: absolute learning rate at the end, the same for all groups; at most the smallest base value.
        min_lr_ratio: the same as a share of each group's base value, in [0, 1]. Give only one of the two.
        initial_lr: learning rate at step 0 of the warm-up.
        last_epoch: as in torch: -1 for a new run; n - 1 to stand at step n.

    Raises:
        TypeError: if ``optimizer`` is no optimizer.
        ValueError: if an argument is out of range, or the warm-up is longer than ``max_steps``.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_steps: int | None = None,
        *,
        warmup: int | float = 0,
        min_lr: float = 0.0,
        min_lr_ratio: float = 0.0,
        initial_lr: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"`optimizer` must be a torch optimizer, got {type(optimizer).__name__}.")
        if min_lr and min_lr_ratio:
            raise ValueError(f"Give `min_lr` or `min_lr_ratio`, not both; got {min_lr!r} and {min_lr_ratio!r}.")
        if isinstance(warmup, float) and warmup == 1.0:  # some command-line parsers make 1.0 of 1
            raise ValueError("`warmup` = 1.0 may mean one step or all of training: give the int 1, or max_steps.")
        self.warmup = warmup
        self.min_lr = check_range("min_lr", min_lr, 0.0, math.inf)
        self.min_lr_ratio = check_range("min_lr_ratio", min_lr_ratio, 0.0, 1.0)
        self.initial_lr = check_range("initial_lr", initial_lr, 0.0, math.inf)
        self._constructed_lrs = [float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups]
        _check_minimum(self.min_lr, self._constructed_lrs)
        self._horizon_given = max_steps is not None
        self._set_horizon(max_steps)
        self._calls_of_torch = 0
        self._first_update = optimizer.register_step_pre_hook(self._before_first_update)
        super().__init__(optimizer, last_epoch)
        self.base_lrs = list(self._constructed_lrs)  # plain floats: torch keeps tensors where a group has a tensor

    def factor(self, step: int) -> float:
        """Return the decay's factor in [0, 1], ``step`` >= 0 optimizer steps after the warm-up.

        A curve that ends reaches 0 after :attr:`span` steps, from the end of the warm-up to the horizon.
        """
        raise NotImplementedError

    def step(self, epoch: int | None = None) -> None:
        """Go to the next step and write its learning rate into the optimizer.

        Args:
            epoch: deprecated in torch: the step to go to.

        Raises:
            RuntimeError: if the schedule is unbound.
        """
        if epoch is not None or self._calls_of_torch < 2:  # torch's own step checks the order of calls in the second
            if self._calls_of_torch:  # the first is the constructor's
                self._first_update.remove()
            self._calls_of_torch += 1
            super().step(epoch)
            return
        self.last_epoch += 1
        self._write()

    def get_lr(self) -> list[float | Tensor]:
        """Return the learning rate of each group at ``last_epoch``.

        Raises:
            RuntimeError: if the schedule is unbound and past its first step.
        """
        self._adopt_new_groups()
        scale, rest, floor = self._terms(self.last_epoch)
        return [max(base * scale + rest, floor) for base in self.base_lrs]

    def get_last_lr(self) -> list[float | Tensor]:
        """Return the learning rate that each group of the optimizer now has."""
        return [lr.clone() if isinstance(lr := group["lr"], Tensor) else lr for group in self.optimizer.param_groups]

    def lr_at(self, step: int, group: int = 0) -> float:
        """Return the learning rate of update number ``step`` without changing anything.

        Args:
            step: index of an optimizer update, >= 0; 0 is the first.
            group: index of the parameter group.

        Raises:
            ValueError: if ``step`` is negative.
            RuntimeError: if the schedule is unbound and ``step`` > 0.

        Example:
            >>> import torch
            >>> from lightning_hpo.lr_schedules import WarmupCosineLR
            >>> WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), max_steps=30, warmup=3).lr_at(3)
            0.1
        """
        if step < 0:
            raise ValueError(f"`step` must be >= 0, got {step!r}.")
        self._adopt_new_groups()
        scale, rest, floor = self._terms(step)
        return float(max(self.base_lrs[group] * scale + rest, floor))

    def simulate(self, steps: int | None = None, group: int = 0) -> list[float]:
        """Return the learning rates of updates 0, 1, ..., ``steps`` - 1 without changing anything.

        Args:
            steps: how many; None = up to ``max_steps``.
            group: index of the parameter group.

        Raises:
            ValueError: if neither ``steps`` nor ``max_steps`` is given.
            RuntimeError: if the schedule is unbound.
        """
        if steps is None:
            steps = self.max_steps
        if steps is None:
            raise ValueError(f"{type(self).__name__} has no `max_steps`: say how many `steps` to simulate.")
        return [self.lr_at(step, group) for step in range(steps)]

    def _terms(self, step: int) -> tuple[float, float, float]:
        """Return (scale, rest, floor): a group with base value b has max(b * scale + rest, floor) at ``step``."""
        if self._unbound and step > 0:
            raise RuntimeError(unbound_message(self))
        if step < self.warmup_steps:
            f = step / self.warmup_steps
            return f, self.initial_lr * (1.0 - f), 0.0
        return self._decay_terms(self.factor(step - self.warmup_steps))

    def _decay_terms(self, f: float) -> tuple[float, float, float]:
        """Map a factor of the decay to terms that are exactly the base value at 1 and the minimum at 0."""
        if self.min_lr_ratio:
            return self.min_lr_ratio + (1.0 - self.min_lr_ratio) * f, 0.0, 0.0
        return f, self.min_lr * (1.0 - f), 0.0

    def _write(self) -> None:
        """Write the learning rate of the current step into the optimizer."""
        groups = self.optimizer.param_groups
        if len(self.base_lrs) < len(groups):
            self._adopt_new_groups()
        scale, rest, floor = self._terms(self.last_epoch)
        for group, base in zip(groups, self.base_lrs, strict=True):
            lr = base * scale + rest
            if lr < floor:  # noqa: PLR1730  # max() costs a call for each group
                lr = floor
            if type(group["lr"]) is float:  # the common case, without a call
                group["lr"] = lr
            else:
                write_lr(group, "lr", lr)

    def _write_if_known(self) -> None:
        waits = self.last_epoch < 0  # for its turn in a SequentialLR
        if not waits and not (self._unbound and self.last_epoch > 0):
            self._write()

    def set_base_lr(self, lr: float | Sequence[float]) -> None:
        """Change the base learning rate, in force at once, at every later step, and after a save and restore.

        Args:
            lr: the new base value: a float for all groups, or a sequence with a float for each.

        Raises:
            ValueError: if a value is negative, not finite or below ``min_lr``, or their number is not that of groups.

        Example:
            >>> import torch
            >>> from lightning_hpo.lr_schedules import CosineLR
            >>> schedule = CosineLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), max_steps=100)
            >>> schedule.set_base_lr([0.5 * lr for lr in schedule.base_lrs])
            >>> schedule.lr_at(0)
            0.05
        """
        groups = self.optimizer.param_groups
        values = [float(value) for value in lr] if isinstance(lr, Sequence) else [float(lr)] * len(groups)
        if len(values) != len(groups):
            raise ValueError(f"`lr` has {len(values)} values for {len(groups)} parameter groups: {values}.")
        for value in values:
            check_range("lr", value, 0.0, math.inf)
        _check_minimum(self.min_lr, values)
        self._adopt_new_groups()
        self.base_lrs = list(values)
        self._note_initial_lrs()
        self._write_if_known()

    def _note_initial_lrs(self) -> None:
        """Keep the optimizer's own note of the base values equal to ours."""
        for group, base in zip(self.optimizer.param_groups, self.base_lrs, strict=True):
            write_lr(group, "initial_lr", base)

    def _adopt_new_groups(self) -> None:
        """Give groups that were added to the optimizer after construction their own ``lr`` as base value."""
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            base = float(group.setdefault("initial_lr", float(group["lr"])))
            _check_minimum(self.min_lr, [base])
            self.base_lrs.append(base)
            self._constructed_lrs.append(base)

    def state_dict(self) -> dict[str, Any]:
        """Return ``{"last_epoch": n}``, and ``"changed_base_lrs"`` if base values were changed after construction."""
        state: dict[str, Any] = {"last_epoch": self.last_epoch}
        if self.base_lrs != self._constructed_lrs:
            state["changed_base_lrs"] = [float(base) for base in self.base_lrs]
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved step and write its learning rate into the optimizer.

        Base values that were not changed after construction are not in the state: they stay those of this schedule, so
        a run resumed with another learning rate trains at it. The state of any other torch scheduler that counts steps
        in ``last_epoch`` is accepted too.

        Args:
            state_dict: from :meth:`state_dict`.

        Raises:
            ValueError: if there is no ``last_epoch``, or changed base values for another number of groups.
        """
        if "last_epoch" not in state_dict:
            raise ValueError(f"`state_dict` has no 'last_epoch'; it has {sorted(state_dict)}.")
        self._adopt_new_groups()
        changed = state_dict.get("changed_base_lrs")
        if changed is not None:
            if len(changed) != len(self.base_lrs):
                groups = len(self.base_lrs)
                raise ValueError(f"`state_dict` has {len(changed)} base values for {groups} parameter groups.")
            self.base_lrs = [float(base) for base in changed]
        self._note_initial_lrs()
        self.last_epoch = int(state_dict["last_epoch"])
        self._write_if_known()


def write_lr(group: dict[str, Any], key: str, value: float | Tensor) -> None:
    """Set ``group[key]``; a tensor keeps its identity, so that a compiled or captured optimizer sees the new value."""
    if isinstance(group.get(key), Tensor):
        group[key].fill_(value)
    else:
        group[key] = value


def _check_minimum(min_lr: float, base_lrs: Sequence[float]) -> None:
    for base in base_lrs:
        if min_lr > base:
            raise ValueError(
                f"`min_lr` must not be above the learning rate of a parameter group, got {min_lr!r} > {base!r};"
                " `min_lr_ratio` is relative to each group."
            )
