"""What the rule of ``FoldByFold`` saves and costs: hopeless configurations are stopped after two folds.

Configurations have a quality (uniform in [0, 1] to the power of ``shape``: with 3, good ones are common), each fold an
effect of its own, and each score noise. Printed for each noise: the share of folds that were trained, how often the
answer is the one of training all folds, and the mean loss in quality by that, in units of the noise.

    python benchmarks/folds.py
"""

import statistics

import numpy as np

from lightning_hpo.records import best_row
from lightning_hpo.schedulers.folds import FoldByFold
from lightning_hpo.testing.schedulers import simulate

FOLDS, TRIALS, STUDIES = 5, 40, 50


def study(seed: int, noise: float, shape: float) -> tuple[float, bool, float]:
    """Return the share of folds trained, whether the answer is the same, and the loss in quality."""
    rng = np.random.default_rng([seed, round(1000 * noise), round(shape)])
    quality = rng.random(TRIALS) ** shape
    scores = quality[:, None] + rng.normal(0, 0.2, FOLDS) + rng.normal(0, noise, (TRIALS, FOLDS))
    rows = simulate(FoldByFold(1, FOLDS, TRIALS), lambda number, step: float(scores[number, :step].mean())).rows
    best = best_row(rows, "min")
    assert best is not None
    whole = int(scores.mean(axis=1).argmin())
    share = sum(row.step for row in rows) / (FOLDS * TRIALS)
    return share, best.number == whole, float(quality[best.number] - quality[whole]) / noise


def main() -> None:
    """Print a table."""
    print("shape  noise  folds trained  same answer  loss / noise")
    for shape in (1, 3):
        for noise in (0.01, 0.03, 0.1, 0.3):
            share, same, loss = zip(*(study(seed, noise, shape) for seed in range(STUDIES)), strict=True)
            mean = statistics.fmean
            print(f"{shape:>5}  {noise:>5}  {mean(share):>13.2f}  {mean(same):>11.2f}  {mean(loss):>12.3f}")


if __name__ == "__main__":
    main()
