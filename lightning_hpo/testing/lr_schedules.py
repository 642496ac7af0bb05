# ruff: noqa: D102  # contract tests: they assert, and a test's name says what it shows
"""Contract tests for LR schedules that you write yourself: inherit the class, and say how to construct yours."""

import random
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, Optimizer

from lightning_hpo.lr_schedules import ClosedFormLR


class LRScheduleTestCase:
    """The contract of every LR schedule.

    Inherit it under a name that pytest collects and set the class; override :meth:`make` if the class needs more
    arguments than these.

    Example::

        class TestMySchedule(LRScheduleTestCase):
            schedule_class = MySchedule
    """

    schedule_class: ClassVar[type[ClosedFormLR]]
    arguments: ClassVar[dict[str, Any]] = {}
    max_steps: ClassVar[int] = 100
    warmup: ClassVar[int] = 10

    def make(self, optimizer: Optimizer, **arguments: Any) -> ClosedFormLR:
        """Construct the schedule with a horizon and a warm-up."""
        return self.schedule_class(
            optimizer, **{"max_steps": self.max_steps, "warmup": self.warmup, **self.arguments, **arguments}
        )

    @staticmethod
    def optimizer(*lrs: float | Tensor, momentum: float = 0.9) -> Optimizer:
        """Return SGD with one small parameter group for each learning rate (default: a group of 0.1)."""
        groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs or (0.1,)]
        return SGD(groups, momentum=momentum)

    @staticmethod
    def train(schedule: ClosedFormLR, steps: int) -> list[list[float]]:
        """Make ``steps`` updates; return the learning rates that each group used in each."""
        used = []
        for _ in range(steps):
            used.append([float(group["lr"]) for group in schedule.optimizer.param_groups])
            schedule.optimizer.step()
            schedule.step()
        return used

    def test_first_lr_is_in_force_at_once(self) -> None:
        optimizer = self.optimizer()
        assert self.make(optimizer, initial_lr=0.001).lr_at(0) == optimizer.param_groups[0]["lr"] == 0.001
        optimizer = self.optimizer()
        self.make(optimizer, warmup=0)
        assert optimizer.param_groups[0]["lr"] == 0.1

    def test_warmup_is_a_line_to_the_base_lr(self) -> None:
        schedule = self.make(self.optimizer())
        for step in range(self.warmup + 1):
            assert schedule.lr_at(step) == pytest.approx(0.1 * step / self.warmup, rel=1e-15, abs=1e-18)

    def test_fraction_equals_steps(self) -> None:
        steps = self.make(self.optimizer())
        fraction = self.make(self.optimizer(), warmup=self.warmup / self.max_steps)
        assert steps.simulate(2 * self.max_steps) == fraction.simulate(2 * self.max_steps)

    def test_simulated_equals_used(self) -> None:
        schedule = self.make(self.optimizer(0.1, 0.01), min_lr=1e-4)
        simulated = [schedule.simulate(2 * self.max_steps, group) for group in (0, 1)]
        assert schedule.last_epoch == 0
        assert [list(lrs) for lrs in zip(*simulated, strict=True)] == self.train(schedule, 2 * self.max_steps)

    def test_never_outside_minimum_and_base(self) -> None:
        lrs = self.make(self.optimizer(), min_lr=0.01, initial_lr=0.01).simulate(5 * self.max_steps)
        assert min(lrs) >= 0.01 * (1 - 1e-15)
        assert max(lrs) <= 0.1 * (1 + 1e-15)

    def test_holds_the_minimum_after_the_end(self) -> None:
        if not self.schedule_class.ends:
            assert self.make(self.optimizer()).lr_at(0) == self.make(self.optimizer(), max_steps=1000).lr_at(0)
            return
        for minimum in ({"min_lr": 0.001}, {"min_lr_ratio": 0.01}, {}):
            schedule = self.make(self.optimizer(), **minimum)
            for late in (0, 1, 10, self.max_steps, 2 * self.max_steps + 1):
                assert schedule.lr_at(self.max_steps + late) == (0.001 if minimum else 0.0)

    def test_resumes_bit_equal(self) -> None:
        generator = random.Random(0)
        reference = self.make(self.optimizer(0.1, 0.01), min_lr_ratio=0.1)
        expected = self.train(reference, 2 * self.max_steps)
        for stop in generator.sample(range(1, 2 * self.max_steps), 20):
            schedule = self.make(self.optimizer(0.1, 0.01), min_lr_ratio=0.1)
            self.train(schedule, stop)
            saved = schedule.optimizer.state_dict(), schedule.state_dict()
            resumed = self.make(self.optimizer(0.1, 0.01), min_lr_ratio=0.1)
            resumed.optimizer.load_state_dict(saved[0])
            resumed.load_state_dict(saved[1])
            assert self.train(resumed, 2 * self.max_steps - stop) == expected[stop:]

    def test_state_is_the_step(self) -> None:
        schedule = self.make(self.optimizer())
        self.train(schedule, 7)
        assert schedule.state_dict() == {"last_epoch": 7}

    def test_extending_gives_the_longer_curve_at_once(self) -> None:
        expected = self.make(self.optimizer(), max_steps=2 * self.max_steps).simulate()
        schedule = self.make(self.optimizer())
        self.train(schedule, 37)
        schedule.extend(2 * self.max_steps)
        assert [lr for (lr,) in self.train(schedule, 2 * self.max_steps - 37)] == expected[37:]

    def test_unbound_until_bound(self) -> None:
        expected = self.make(self.optimizer()).simulate(2 * self.max_steps)
        schedule = self.make(self.optimizer(), max_steps=None, warmup=self.warmup / self.max_steps)
        assert schedule.needs_max_steps
        assert schedule.lr_at(0) == schedule.get_last_lr()[0] == expected[0]
        with pytest.raises(RuntimeError, match="max_steps"):
            schedule.lr_at(1)
        schedule.load_state_dict({"last_epoch": 5})
        schedule.bind(self.max_steps)
        assert schedule.get_last_lr() == [expected[5]]
        assert schedule.simulate(2 * self.max_steps) == expected

    def test_unbound_without_warmup_starts_at_the_base_lr(self) -> None:
        assert self.make(self.optimizer(), max_steps=None, warmup=0).get_last_lr() == [0.1]

    def test_given_horizon_is_not_rebound(self) -> None:
        schedule = self.make(self.optimizer())
        expected = schedule.simulate(2 * self.max_steps)
        assert not schedule.needs_max_steps
        schedule.bind(3 * self.max_steps)
        assert schedule.simulate(2 * self.max_steps) == expected

    def test_groups_keep_their_ratio(self) -> None:
        for big, small in self.train(self.make(self.optimizer(1e-3, 1e-4), min_lr_ratio=0.1), 2 * self.max_steps):
            assert big == pytest.approx(10 * small, rel=1e-12)

    def test_added_group_takes_part(self) -> None:
        schedule = self.make(self.optimizer(0.1))
        self.train(schedule, 20)
        schedule.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.01})
        for big, small in self.train(schedule, self.max_steps)[1:]:
            assert big == pytest.approx(10 * small, rel=1e-12)

    def test_tensor_lr_is_written_in_place(self) -> None:
        lr = torch.tensor(0.1, dtype=torch.float64)
        schedule = self.make(self.optimizer(lr))
        expected = self.make(self.optimizer(0.1)).simulate(self.max_steps)
        used = [step[0] for step in self.train(schedule, self.max_steps)]
        assert used == pytest.approx(expected, rel=1e-15, abs=1e-18)
        assert schedule.optimizer.param_groups[0]["lr"] is lr
        assert all(isinstance(base, float) for base in schedule.base_lrs)

    def test_changed_base_lr_lasts(self) -> None:
        full = self.make(self.optimizer(0.1, 0.01)).simulate(2 * self.max_steps)
        schedule = self.make(self.optimizer(0.1, 0.01))
        self.train(schedule, 50)
        schedule.set_base_lr([0.5 * float(lr) for lr in schedule.base_lrs])
        assert float(schedule.get_last_lr()[0]) == pytest.approx(0.5 * full[50], rel=1e-15)
        assert [group["initial_lr"] for group in schedule.optimizer.param_groups] == schedule.base_lrs
        self.train(schedule, 10)
        resumed = self.make(self.optimizer(0.1, 0.01))
        resumed.optimizer.load_state_dict(schedule.optimizer.state_dict())
        resumed.load_state_dict(schedule.state_dict())
        for used, unchanged in zip(self.train(resumed, self.max_steps), full[60:], strict=False):
            assert used[0] == pytest.approx(0.5 * unchanged, rel=1e-15, abs=1e-18)
            assert used[1] == pytest.approx(0.05 * unchanged, rel=1e-14, abs=1e-18)

    @pytest.mark.parametrize(
        ("name", "value"),
        [
            ("max_steps", 0),
            ("max_steps", -1),
            ("max_steps", True),
            ("max_steps", 2.5),
            ("warmup", -1),
            ("warmup", 101),
            ("warmup", 1.0),
            ("warmup", 1.5),
            ("warmup", -0.1),
            ("warmup", float("nan")),
            ("min_lr", -1e-3),
            ("min_lr", 0.2),
            ("min_lr", float("nan")),
            ("min_lr_ratio", 1.5),
            ("initial_lr", float("inf")),
        ],
    )
    def test_bad_arguments_name_the_value(self, name: str, value: float) -> None:
        with pytest.raises(ValueError, match=f"(?s){name}.*{value}"):
            self.make(self.optimizer(), **{name: value})
