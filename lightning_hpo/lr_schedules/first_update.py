"""What must hold when an optimizer is about to make its first update: the schedule is tied to the training loop."""

from typing import Any

REMEDY = (
    "add the callback LRSchedule() to the Trainer"
    " (on the command line, `--trainer.callbacks+=lightning_hpo.LRSchedule`)"
)


def unbound_message(schedule: object) -> str:
    """Say that a schedule has no horizon, and what gives it one."""
    return (
        f"{type(schedule).__name__} does not know where it ends: {REMEDY}, pass `max_steps=...`, or call"
        " `bind(max_steps)`."
    )


def refuse_epochs(schedule: object, closure: Any) -> None:
    """Refuse to be stepped once per epoch by a Lightning Trainer.

    Args:
        schedule: a schedule that counts optimizer steps.
        closure: what the optimizer's ``step`` was called with. Lightning's is a partial with the module among its
            arguments; any other says nothing, and nothing is refused.

    Raises:
        RuntimeError: if the Trainer has the schedule with ``interval="epoch"``, Lightning's default.
    """
    for part in getattr(closure, "args", ()):
        configs = getattr(getattr(part, "trainer", None), "lr_scheduler_configs", ())
        if any(config.scheduler is schedule and config.interval == "epoch" for config in configs):
            raise RuntimeError(
                f"{type(schedule).__name__} counts optimizer steps, but this Trainer steps it once per epoch:"
                f' {REMEDY}, or return it from configure_optimizers with "interval": "step".'
            )
