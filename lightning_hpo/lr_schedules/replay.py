"""The learning rate that a population found, as a schedule."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch.optim import Optimizer

from lightning_hpo.lr_schedules.closed_form import ClosedFormLR


class ReplayLR(ClosedFormLR):
    """Sets the learning rate that a population found, step by step.

    It counts optimizer steps: the callback LRSchedule and every tuner step it so; in a plain Trainer return it with
    ``"interval": "step"``. Parameter groups keep their proportions: each is scaled by its first learning rate,
    relative to that of the first group.

    Args:
        optimizer: to schedule.
        schedule: (first step, learning rate) of each phase, as from
            :meth:`lightning_hpo.study.lineage.Replay.schedule`.
        shape: multiplies the rate at each step: the LR schedule that the population's members trained with, as a
            function of the step; None is constant.
        last_epoch: as for every torch schedule.

    Raises:
        ValueError: if the schedule is empty, does not begin at step 0, or is not in order.
    """

    ends: ClassVar[bool] = False

    def __init__(
        self,
        optimizer: Optimizer,
        schedule: Sequence[tuple[int, float]],
        shape: Callable[[int], float] | None = None,
        last_epoch: int = -1,
    ) -> None:
        starts = [start for start, _ in schedule]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ValueError(f"`schedule` must begin at step 0 and be in order of the step, got {list(schedule)!r}.")
        self.schedule = [(int(start), float(rate)) for start, rate in schedule]
        self._shape = shape
        first = optimizer.param_groups[0]
        self._reference = float(first.get("initial_lr", first["lr"]))
        super().__init__(optimizer, last_epoch=last_epoch)

    def _terms(self, step: int) -> tuple[float, float, float]:
        rate = next(value for start, value in reversed(self.schedule) if start <= step)
        shape = 1.0 if self._shape is None else self._shape(step)
        return rate * shape / self._reference, 0.0, 0.0

    def state_dict(self) -> dict[str, Any]:
        """Return the step, and the rates that were found."""
        return {**super().state_dict(), "schedule": self.schedule}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to the saved step; the rates are those of the saved schedule."""
        self.schedule = [(int(start), float(rate)) for start, rate in state_dict.get("schedule", self.schedule)]
        super().load_state_dict(state_dict)
