"""Pictures; matplotlib is imported when one is drawn."""

from typing import Any

from lightning_hpo.lr_schedules import ClosedFormLR


def plot_lr_schedule(
    schedule: ClosedFormLR, steps: int | None = None, *, group: int = 0, label: str | None = None, ax: Any = None
) -> Any:
    """Draw the learning rate over optimizer steps, without changing the schedule.

    Args:
        schedule: what to draw.
        steps: how many steps; None = up to and including the schedule's ``max_steps``.
        group: index of the parameter group.
        label: of the line; None = the class name.
        ax: matplotlib ``Axes`` to draw on, e.g. to compare schedules; None = a new figure.

    Returns:
        The ``Axes``.

    Raises:
        ModuleNotFoundError: if matplotlib is not installed.
        ValueError: if neither ``steps`` nor the schedule's ``max_steps`` is given.
        RuntimeError: if the schedule is unbound.
    """
    try:
        import matplotlib.pyplot as plt  # noqa: PLC0415  # optional
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "plot_lr_schedule needs matplotlib: pip install 'lightning-hpo-suite[plot]'"
        ) from error
    if steps is None and schedule.max_steps is not None:
        steps = schedule.max_steps + 1
    lrs = schedule.simulate(steps, group)
    if ax is None:
        ax = plt.figure(layout="constrained").subplots()
        ax.set(xlabel="optimizer step", ylabel="learning rate")
    ax.plot(range(len(lrs)), lrs, label=label or type(schedule).__name__)
    return ax
