"""Draw what the tuners do on a made learning curve: python docs/tuner_figures.py writes docs/tuners/<tuner>.png."""

import tempfile
from pathlib import Path

import matplotlib as mpl
import numpy as np

from lightning_hpo import ASHATuner, HyperbandTuner, Job, RandomTuner, Result

mpl.use("agg")
from matplotlib import pyplot as plt

SPACE = {"lr": "loguniform(1e-4, 1)", "width": "uniform(0, 1)"}
FULL = 81


def loss(steps: float | np.ndarray, lr: float, width: float) -> float | np.ndarray:
    """A curve that falls from 1: fast with a large lr, low with lr near 0.03 and a width near 1."""
    end = 0.08 + 0.1 * (np.log10(lr) + 1.5) ** 2 + 0.25 * (1 - width)
    return end + (1 - min(end, 1)) * np.exp(-steps * lr**0.35 / (4 + 12 * width))


def score(job: Job, params: dict[str, float]) -> float:
    """Value of the curve at the end of a job."""
    return float(loss(job.max_steps, **params))


def draw(result: Result, title: str, file: Path) -> None:
    """Draw every trial to where it was trained, coloured by the step at which it was judged first."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    firsts = sorted({min(row.values) for row in result.rows})
    for row in result.rows:
        steps = np.linspace(0, row.step, 200)
        colour = f"C{firsts.index(min(row.values))}"
        axes.plot(steps, loss(steps, **row.params), color=colour, alpha=0.35, linewidth=1)
        axes.plot(list(row.values), list(row.values.values()), ".", color=colour, markersize=5)
    for place, first in enumerate(firsts):
        count = sum(min(row.values) == first for row in result.rows)
        axes.plot([], [], color=f"C{place}", label=f"{count} trials, first judged after {first} steps")
    best = result.rows[result.best_trial]
    axes.plot(best.step, best.values[best.step], "*", color="black", markersize=11, label="best")
    axes.set(xlabel="optimizer steps", ylabel="val_loss", title=title, xlim=(0, FULL * 1.02), ylim=(0, 1.3))
    axes.legend(fontsize=8, frameon=False, loc="upper right")
    figure.savefig(file, dpi=110)
    plt.close(figure)


def main() -> None:
    """Run three searches of about the same number of steps and draw them."""
    here = Path(__file__).parent / "tuners"
    with tempfile.TemporaryDirectory() as root:
        common = {"root": root, "seed": 2, "verbose": False}
        searches = {
            "hyperband": HyperbandTuner(SPACE, max_steps=FULL, min_steps=3, **common),
            "asha": ASHATuner(SPACE, max_steps=FULL, min_steps=3, total_steps=972, **common),
            "random": RandomTuner(SPACE, max_steps=FULL, n_trials=12, **common),
        }
        for name, tuner in searches.items():
            result = tuner.optimize(score)
            steps = sum(row.step for row in result.rows)
            draw(result, f"{type(tuner).__name__}: {len(result.rows)} trials, {steps} steps", here / f"{name}.png")


if __name__ == "__main__":
    main()
