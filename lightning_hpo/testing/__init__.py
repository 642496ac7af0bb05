"""Contract tests for people who write their own parts: inherit a class, and provide a fixture."""

from lightning_hpo.testing.lr_schedules import LRScheduleTestCase
from lightning_hpo.testing.schedulers import SchedulerTestCase, simulate

__all__ = ["LRScheduleTestCase", "SchedulerTestCase", "simulate"]
