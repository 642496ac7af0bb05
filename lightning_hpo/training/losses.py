"""Find the first training loss that is not finite, without making a step wait for a device."""

import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_hpo.errors import DivergedError


class LossWatch:
    """Checks losses on a CPU at once; keeps losses on other devices there, to be checked together."""

    def __init__(self) -> None:
        self._losses: list[tuple[int, torch.Tensor]] = []  # with their steps

    def note(self, trainer: pl.Trainer, outputs: Any) -> None:
        """Take the loss of a batch from the outputs of ``training_step``.

        Raises:
            DivergedError: if it is on a CPU and not finite.
        """
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not isinstance(loss, torch.Tensor):  # manual optimization may return none
            return
        here = loss.device.type == "cpu"
        if here and trainer.world_size == 1 and loss.numel() == 1 and math.isfinite(loss.item()):
            return  # the common case, in every step: no tensor is made, no rank has to agree
        self._losses.append((trainer.global_step, loss.detach()))
        if here:
            self.check(trainer)

    def check(self, trainer: pl.Trainer) -> None:
        """Raise DivergedError for the first loss that is not finite, on all ranks at the same step."""
        losses, self._losses = self._losses, []
        if not losses:
            return
        finite = torch.stack([loss.float().sum() for _, loss in losses]).isfinite().tolist()
        if trainer.strategy.reduce_boolean_decision(not all(finite), all=False):
            step, loss = losses[finite.index(False) if False in finite else -1]
            raise DivergedError(f"diverged at step {step}: the training loss is {float(loss.float().sum())}")
