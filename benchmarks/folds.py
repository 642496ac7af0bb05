"""What the rule of ``folds`` saves and costs: hopeless configurations are stopped after two folds.

120 random configurations of a small network are trained on all 5 folds of each data set of scikit-learn, by
scikit-learn. Then 200 searches over 40 of them, drawn anew, are carried out by the rule, which sees the same scores. The
second table has made-up scores: a quality, uniform in [0, 1] to the power of ``shape`` (with 3, good configurations are
common), an effect of each fold, and noise.

Printed: the share of fits that are trained; how often the answer is that of training them all, and how often the
configuration that would have won was stopped; by how much the mean of the answer is worse, in units of the standard
deviation of a score around the means of its configuration and of its fold.

    python benchmarks/folds.py
"""

import statistics
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import numpy as np  # noqa: E402
from sklearn.datasets import load_breast_cancer, load_digits, load_wine  # noqa: E402
from sklearn.metrics import log_loss  # noqa: E402
from sklearn.model_selection import StratifiedKFold  # noqa: E402
from sklearn.neural_network import MLPClassifier  # noqa: E402

from lightning_hpo.records import best_row  # noqa: E402
from lightning_hpo.schedulers.folds import FoldByFold  # noqa: E402
from lightning_hpo.testing.schedulers import simulate  # noqa: E402

FOLDS, CONFIGURATIONS, TRIALS, STUDIES = 5, 120, 40, 200


def trained(load: object, rng: np.random.Generator) -> np.ndarray:
    """Return the loss of each configuration on each fold."""
    inputs, labels = load(return_X_y=True)
    inputs, labels = ((inputs - inputs.mean(0)) / (inputs.std(0) + 1e-6))[:600], labels[:600]
    cut = list(StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(inputs, labels))
    losses = np.empty((CONFIGURATIONS, FOLDS))
    for number in range(CONFIGURATIONS):
        network = MLPClassifier(
            (int(np.exp(rng.uniform(np.log(4), np.log(64)))),),
            alpha=10 ** rng.uniform(-4, 1),
            batch_size=int(rng.choice([16, 32, 64])),
            learning_rate_init=10 ** rng.uniform(-4, -0.5),
            max_iter=int(rng.integers(5, 30)),
            random_state=number,
        )
        for fold, (train, validate) in enumerate(cut):
            network.fit(inputs[train], labels[train])
            losses[number, fold] = log_loss(labels[validate], network.predict_proba(inputs[validate]))
    return losses


def made_up(noise: float, shape: float, rng: np.random.Generator) -> np.ndarray:
    """Return scores of which all is known."""
    quality = rng.random(CONFIGURATIONS) ** shape
    return quality[:, None] + rng.normal(0, 0.2, FOLDS) + rng.normal(0, noise, (CONFIGURATIONS, FOLDS))


def searched(scores: np.ndarray) -> tuple[float, bool, bool, float]:
    """Return share of fits, whether the answer is the same, whether the winner was stopped, and the loss."""
    rows = simulate(FoldByFold(1, FOLDS, len(scores)), lambda number, step: float(scores[number, :step].mean())).rows
    best, means = best_row(rows, "min"), scores.mean(axis=1)
    assert best is not None
    winner = int(means.argmin())
    left = scores - means[:, None] - scores.mean(axis=0) + scores.mean()
    better = left[np.argsort(means)[: len(scores) // 2]]
    loss = float(means[best.number] - means[winner]) / float(better.std())
    return sum(row.step for row in rows) / scores.size, best.number == winner, rows[winner].step < FOLDS, loss


def line(name: str, draws: Iterator[np.ndarray]) -> None:
    """Print the means over searches."""
    share, same, stopped, loss = zip(*map(searched, draws), strict=True)
    columns = (statistics.fmean(column) for column in (share, same, stopped, loss))
    print(f"{name:<28}" + "".join(f"{value:>15.3f}" for value in columns), flush=True)


def main() -> None:
    """Print both tables."""
    warnings.simplefilter("ignore")
    print(f"{'':<28}" + "".join(f"{name:>15}" for name in ("fits trained", "same answer", "winner lost", "loss")))
    for load in (load_digits, load_breast_cancer, load_wine):
        rng = np.random.default_rng(0)
        scores = trained(load, rng)
        draws = (scores[rng.permutation(CONFIGURATIONS)[:TRIALS]] for _ in range(STUDIES))
        line(load.__name__.removeprefix("load_"), draws)
    for shape in (1, 3):
        for noise in (0.01, 0.03, 0.1, 0.3):
            rng = np.random.default_rng([round(1000 * noise), shape])
            line(f"shape {shape}, noise {noise}", (made_up(noise, shape, rng)[:TRIALS] for _ in range(STUDIES)))


if __name__ == "__main__":
    main()
