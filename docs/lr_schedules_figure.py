"""Draw docs/lr_schedules.png: every shape over 1000 steps."""

from pathlib import Path

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
import torch

from lightning_hpo.lr_schedules import (
    CosineLR,
    CosineRestartsLR,
    InverseSqrtLR,
    LinearDecayLR,
    StepDecayLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
)
from lightning_hpo.reporting.lr_plot import plot_lr_schedule

STEPS = 1000
SHAPES = {
    "CosineLR": lambda optimizer: CosineLR(optimizer, STEPS, min_lr_ratio=0.1),
    "WarmupCosineLR": lambda optimizer: WarmupCosineLR(optimizer, STEPS),
    "LinearDecayLR, warmup=0.1": lambda optimizer: LinearDecayLR(optimizer, STEPS, warmup=0.1),
    "StepDecayLR, decay_rate=0.5": lambda optimizer: StepDecayLR(optimizer, STEPS, decay_rate=0.5, decay_steps=0.2),
    "InverseSqrtLR, warmup=100": lambda optimizer: InverseSqrtLR(optimizer, STEPS, warmup=100),
    "CosineRestartsLR, mult=2, decay=0.7": lambda optimizer: CosineRestartsLR(
        optimizer, STEPS, cycle_steps=142, mult=2, decay=0.7
    ),
}


def main() -> None:
    """Write the figure beside this script."""
    figure, axes = plt.subplots(2, 4, figsize=(12, 4.6), sharex=True, sharey=True, layout="constrained")
    panels = list(axes.flat)
    for (title, make), ax in zip(SHAPES.items(), panels, strict=False):
        plot_lr_schedule(make(torch.optim.SGD([torch.zeros(1)], lr=1.0)), ax=ax)
        ax.set_title(title, fontsize=9)
    for form in ("linear", "1-sqrt", "cosine", "1-square"):
        schedule = WarmupStableDecayLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), STEPS, decay=0.4, form=form)
        plot_lr_schedule(schedule, label=form, ax=panels[6])
    panels[6].set_title("WarmupStableDecayLR, decay=0.4", fontsize=9)
    panels[6].legend(fontsize=7)
    for total in (500, 1000):
        schedule = WarmupStableDecayLR(torch.optim.SGD([torch.zeros(1)], lr=1.0), total, warmup=50, decay=100)
        plot_lr_schedule(schedule, STEPS, label=f"max_steps={total}", ax=panels[7])
    panels[7].set_title("WarmupStableDecayLR, extended", fontsize=9)
    panels[7].legend(fontsize=7)
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel("learning rate / base", fontsize=9)
    figure.savefig(Path(__file__).with_suffix("").with_name("lr_schedules.png"), dpi=80)


if __name__ == "__main__":
    main()
