"""The callback that ties an LR schedule to the Trainer: stepped per optimizer step, horizon = the Trainer's length."""

import bisect
import math
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.types import LRSchedulerConfig
from torch.optim import Optimizer

from lightning_hpo.lr_schedules.closed_form import ClosedFormLR, write_lr
from lightning_hpo.lr_schedules.first_update import WILL_BIND, validate_not_chained
from lightning_hpo.lr_schedules.shapes import make_lr_schedule
from lightning_hpo.schedulers.units import Pace, Unit


class LRSchedule(Callback):
    """Binds the module's LR schedule to the Trainer, or brings a schedule to a module without one.

    At the start of training every schedule of this package that ``configure_optimizers`` returned (by hand, or from
    LightningCLI's ``--lr_scheduler``) is stepped once per optimizer step, stands at ``trainer.global_step``, and gets
    the Trainer's length as its horizon unless it was constructed with ``max_steps``. The length counts ``max_steps``,
    ``max_epochs``, ``limit_train_batches``, ``accumulate_grad_batches`` and ``GradientAccumulationScheduler``; where it
    cannot be known, the callback says so instead of guessing. Stopping early through ``trainer.should_stop`` leaves the
    horizon where it is, so the rungs of a tuner share one curve.

    Under manual optimization the unit is the training step, also with several optimizers: a schedule of the module is
    stepped by the module, as always in Lightning; a schedule of the callback is stepped here, after each batch. With
    ``max_steps`` each optimizer is taken to step once per batch.

    Args:
        name: None binds the module's own schedules. A name of ``LR_SCHEDULES`` brings that schedule for every optimizer
            of a module that returns no scheduler; it never replaces one.
        on_resume: ``"extend"`` puts a resumed run on the curve of this Trainer's length from its first step;
            ``"keep"`` stays on the curve of the checkpointed run and holds its end.
        **arguments: of the schedule, see ``make_lr_schedule``.

    Raises:
        ValueError: if ``name`` is unknown or an argument is out of range.
        TypeError: if an argument is unknown, or given without a name.
        MisconfigurationException: at the start of fit, if there is nothing to bind, a scheduler would be replaced, a
            schedule has a ``frequency``, or the length of training is not known.

    Example:
        >>> LRSchedule("linear_warmup_cosine", warmup=500).name
        'linear_warmup_cosine'
    """

    def __init__(
        self, name: str | None = None, *, on_resume: Literal["extend", "keep"] = "extend", **arguments: Any
    ) -> None:
        if on_resume not in ("extend", "keep"):
            raise ValueError(f"`on_resume` must be 'extend' or 'keep', got {on_resume!r}.")
        arguments = {key: value for key, value in arguments.items() if value is not None}  # LightningCLI fills in None
        if name is None and arguments:
            raise TypeError(f"LRSchedule got {arguments} but no `name`: these are arguments of the schedule to bring.")
        if name is not None:
            # On a throw-away optimizer, so that a bad argument fails here and not when training starts.
            make_lr_schedule(name, torch.optim.SGD([torch.zeros(1)], lr=math.inf), **arguments)
        self.name = name
        self.on_resume = on_resume
        self.arguments = arguments
        self._max_steps: int | None = None
        self._checkpointed_max_steps: int | None = None
        self._steps_here: list[ClosedFormLR] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Say that schedules will be bound: a Tuner of Lightning tries learning rates and batch sizes before."""
        setattr(trainer, WILL_BIND, True)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the schedule: after the optimizers exist, before a checkpoint is restored into both."""
        found = [type(config.scheduler).__name__ for config in trainer.lr_scheduler_configs]
        if self.name is None:
            if not schedules_of(trainer):
                raise MisconfigurationException(
                    f"LRSchedule() has nothing to bind: {type(pl_module).__name__}.configure_optimizers returned"
                    f" {f'only {found}' if found else 'no LR scheduler'}. Return a schedule of lightning_hpo there, or"
                    " name one to bring, e.g. LRSchedule('cosine')."
                )
            return
        if found:
            raise MisconfigurationException(
                f"LRSchedule({self.name!r}) does not replace {found}, which {type(pl_module).__name__}"
                ".configure_optimizers returned. Drop one of the two."
            )
        brought = self.bring(trainer.optimizers)
        trainer.strategy.lr_scheduler_configs = [LRSchedulerConfig(schedule, interval="step") for schedule in brought]
        self._steps_here = [] if pl_module.automatic_optimization else brought

    def bring(self, optimizers: Sequence[Optimizer]) -> list[ClosedFormLR]:
        """Make the named schedule for each optimizer; without a name, none."""
        if self.name is None:
            return []
        return [make_lr_schedule(self.name, optimizer, **self.arguments) for optimizer in optimizers]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bind: the checkpoint is restored and the data are known, no batch has been trained on."""
        for config in trainer.lr_scheduler_configs:
            if not _ours(config.scheduler):
                continue
            if config.frequency != 1:
                raise MisconfigurationException(
                    f"{type(config.scheduler).__name__} is stepped at every optimizer step, got frequency"
                    f" {config.frequency} in the lr_scheduler dict; leave it out."
                )
            if isinstance(config.scheduler, ClosedFormLR):
                _go_to_global_step(config.scheduler, trainer, pl_module)
        kept = self._checkpointed_max_steps if self.on_resume == "keep" else None
        self._checkpointed_max_steps = None  # a second fit with this callback is not resumed from the same checkpoint
        unbound = any(schedule.needs_max_steps for schedule in schedules_of(trainer))
        self._max_steps = (kept or planned_steps(trainer)) if unbound else None
        bind_to_steps(trainer, self._max_steps)

    def on_train_batch_end(self, *_: Any) -> None:
        """Step the callback's own schedules under manual optimization, where Lightning steps nothing."""
        for schedule in self._steps_here:
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """Return the horizon, for ``on_resume="keep"``."""
        return {"max_steps": self._max_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the horizon of the checkpointed run."""
        self._checkpointed_max_steps = state_dict["max_steps"]


def planned_steps(trainer: Trainer) -> int:
    """Return how many steps a schedule makes until the Trainer is done, counted from the start of training.

    They are known from ``on_train_start`` on: optimizer steps; training steps under manual optimization.

    Raises:
        MisconfigurationException: if training ends by time or by hand, or the epochs have no known length.
    """
    limits: list[int] = []
    if trainer.max_steps != -1:
        limits.append(math.ceil(trainer.max_steps / max(1, len(trainer.optimizers))))
    epochs = trainer.max_epochs
    if epochs is not None and epochs != -1:
        batches = trainer.num_training_batches
        if math.isinf(batches):
            raise MisconfigurationException(
                f"The horizon of the LR schedule is not known: max_epochs={epochs}, but the training"
                " dataloader has no length. Give Trainer(max_steps=..., max_epochs=-1), an int limit_train_batches, or"
                " max_steps to the schedule itself."
            )
        limits.append(Pace(Unit("epochs"), int(batches), accumulation_of(trainer)).steps(max(1, epochs)))
    if not limits:
        raise MisconfigurationException(
            "The horizon of the LR schedule is not known: the Trainer has neither max_steps nor max_epochs (max_time"
            " and stopping by hand set none). Give Trainer(max_steps=...), or max_steps to the schedule itself."
        )
    return min(limits)


def accumulation_of(trainer: Any) -> tuple[int, ...]:
    """Return ``accumulate_grad_batches`` of each epoch from the first; the last one holds for the rest."""
    for callback in trainer.callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return tuple(map(callback.get_accumulate_grad_batches, range(max(callback.scheduling) + 1)))
    return (trainer.accumulate_grad_batches,)


def bind_to_steps(trainer: Trainer, max_steps: int | None) -> None:
    """Have each schedule of this package stepped once per optimizer step, and give a horizon to those without.

    A schedule inside a ``SequentialLR`` ends where the next schedule begins, the last one at ``max_steps``.

    Raises:
        RuntimeError: if a ``ChainedScheduler`` holds such a schedule, which would lose the effect of the others.
    """
    for config in trainer.lr_scheduler_configs:
        if _ours(config.scheduler):
            config.interval = "step"
            _bind(config.scheduler, max_steps)
            if config.scheduler not in _ours(config.scheduler):
                _write_active(config.scheduler)


def _bind(schedule: Any, max_steps: int | None) -> None:
    if isinstance(schedule, ClosedFormLR):
        if schedule.needs_max_steps and max_steps is not None:
            schedule.bind(max_steps)
        return
    validate_not_chained(schedule)
    inner = getattr(schedule, "_schedulers", ())
    ends = [*getattr(schedule, "_milestones", ()), max_steps]
    starts = [0, *ends]
    for start, end, part in zip(starts, ends, inner, strict=False):
        _bind(part, None if end is None else max(1, min(end, max_steps or end) - start))


def _write_active(schedule: Any) -> None:
    """Give the optimizer the learning rate of the schedule whose turn it is, which the others have overwritten."""
    for group, rate in zip(schedule.optimizer.param_groups, schedule.get_last_lr(), strict=True):
        write_lr(group, "lr", rate)
    inner = getattr(schedule, "_schedulers", [schedule])
    active = inner[bisect.bisect_right(getattr(schedule, "_milestones", []), getattr(schedule, "last_epoch", 0))]
    if isinstance(active, ClosedFormLR):
        active.load_state_dict({"last_epoch": active.last_epoch})


def nested(schedule: Any) -> Iterator[Any]:
    """Yield a schedule and all schedules inside it."""
    yield schedule
    for inner in getattr(schedule, "_schedulers", ()):
        yield from nested(inner)


def schedules_of(trainer: Trainer) -> list[ClosedFormLR]:
    """Return the schedules of this package that a Trainer steps."""
    return [schedule for config in trainer.lr_scheduler_configs for schedule in _ours(config.scheduler)]


def _ours(schedule: Any) -> list[ClosedFormLR]:
    """Return the schedules of this package in a schedule, itself included."""
    return [inner for inner in nested(schedule) if isinstance(inner, ClosedFormLR)]


def _go_to_global_step(schedule: ClosedFormLR, trainer: Trainer, pl_module: LightningModule) -> None:
    """Make the position of a schedule that of the Trainer.

    They differ when a second fit reuses the optimizer and schedule of the first, as on the model of a LightningCLI, and
    when a checkpoint comes from a scheduler that was stepped per epoch. Under manual optimization the module decides
    when its schedules step, so only the start is known.
    """
    step = trainer.global_step
    if schedule.last_epoch != step and (pl_module.automatic_optimization or step == 0):
        schedule.load_state_dict({"last_epoch": step})
