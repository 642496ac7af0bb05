"""The check at an optimizer's first update: its schedule must be tied to the training loop."""

from typing import Any

REMEDY = (
    "add the callback LRSchedule() to the Trainer"
    " (on the command line, `--trainer.callbacks+=lightning_hpo.LRSchedule`)"
)


def unbound_message(schedule: object) -> str:
    """Return the sentence for a schedule without a horizon, with the remedies."""
    return (
        f"{type(schedule).__name__} does not know where it ends: {REMEDY}, pass `max_steps=...`, or call"
        " `bind(max_steps)`."
    )


WILL_BIND = "lr_schedules_will_be_bound"
"""Attribute of a Trainer whose LRSchedule will bind its schedules.

Before that, a Tuner of Lightning may try learning rates or batch sizes; it takes the callbacks away meanwhile.
"""


def validate_not_chained(schedule: Any) -> None:
    """Refuse a ChainedScheduler over a schedule that sets the learning rate, where the others multiply it.

    Raises:
        RuntimeError: naming both.
    """
    inner = getattr(schedule, "_schedulers", ())
    sequential = hasattr(schedule, "_milestones")
    if len(inner) > 1 and not sequential and any(hasattr(part, "needs_max_steps") for part in inner):
        names = ", ".join(type(part).__name__ for part in inner)
        raise RuntimeError(
            f"{type(schedule).__name__} over {names} loses effects: a schedule of"
            " lightning_hpo sets the learning rate of each step, and does not multiply the rate before. Use a single"
            " schedule with the whole curve (each has a warmup), or SequentialLR for one after the other."
        )


def may_update(schedule: Any, closure: Any, *, unbound: bool) -> bool:
    """Whether an optimizer's first update by a schedule belongs to training.

    Args:
        schedule: a schedule that counts optimizer steps.
        closure: argument of the optimizer's ``step``. Lightning's is a partial with the module among its
            arguments; any other says nothing, and only a missing horizon is refused.
        unbound: whether the schedule has no horizon.

    Returns:
        False if a Tuner of Lightning tries learning rates or batch sizes, for which the schedule does not matter.

    Raises:
        RuntimeError: if the schedule has no horizon, the Trainer has it with ``interval="epoch"``, Lightning's default,
            or a ChainedScheduler holds it.
    """
    trainers = (getattr(part, "trainer", None) for part in getattr(closure, "args", ()))
    trainer = next((found for found in trainers if found is not None), None)
    configs = getattr(trainer, "lr_scheduler_configs", ())
    own = [config for config in configs if _holds(config.scheduler, schedule)]
    if trainer is not None and not own and configs:
        return False  # the learning-rate finder has put its own schedule in the place
    for config in own:
        validate_not_chained(config.scheduler)
    by_epochs = any(config.interval == "epoch" for config in own)
    if getattr(trainer, WILL_BIND, False) and (unbound or by_epochs):
        return False  # an LRSchedule binds before training begins
    if unbound:
        raise RuntimeError(unbound_message(schedule))
    if by_epochs:
        raise RuntimeError(
            f"{type(schedule).__name__} counts optimizer steps, but this Trainer steps it once per epoch:"
            f' {REMEDY}, or return it from configure_optimizers with "interval": "step".'
        )
    return True


def _holds(outer: Any, schedule: Any) -> bool:
    return outer is schedule or any(_holds(inner, schedule) for inner in getattr(outer, "_schedulers", ()))
