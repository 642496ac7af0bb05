"""Lightning callbacks."""

from lightning_hpo.callbacks.lr_schedule import LRSchedule

__all__ = ["LRSchedule"]
