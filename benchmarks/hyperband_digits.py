"""HyperbandTuner against random search on handwritten digits: the same optimizer steps in all, five seeds, two workers.

python benchmarks/hyperband_digits.py
"""

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "examples")]
warnings.simplefilter("ignore")

import torch  # noqa: E402
from digits import SPACE, DigitsData, DigitsNet  # noqa: E402

from lightning_hpo import HyperbandTuner, RandomTuner, Tuner  # noqa: E402


def best(tuner: Callable[..., Tuner], seed: int, max_steps: int, total_steps: int, **arguments: int) -> float:
    with tempfile.TemporaryDirectory() as root:
        search = tuner(
            SPACE,
            monitor="val_loss",
            max_steps=max_steps,
            seed=seed,
            root=root,
            total_steps=total_steps,
            trainer={"accelerator": "cpu", "logger": False},
            verbose=False,
            **arguments,
        )
        return search.fit(DigitsNet, datamodule=DigitsData).best_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max-steps", type=int, default=90)
    parser.add_argument("--budgets", type=int, default=20, help="total steps of a search, in full budgets of a trial")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    total = arguments.budgets * arguments.max_steps
    print(f"best val_loss after {total} steps in all, {arguments.max_steps} a trial, {arguments.workers} workers")
    print(f"{'seed':>4} {'HyperbandTuner':>15} {'RandomTuner':>12}")
    rows = []
    for seed in range(arguments.seeds):
        shared = (seed, arguments.max_steps, total)
        rows.append(
            (
                best(HyperbandTuner, *shared, workers=arguments.workers),
                best(RandomTuner, *shared, workers=arguments.workers, n_trials=arguments.budgets),
            )
        )
        print(f"{seed:>4} {rows[-1][0]:>15.4f} {rows[-1][1]:>12.4f}", flush=True)
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    wins = sum(ours < random for ours, random in rows)
    print(f"mean {means[0]:>15.4f} {means[1]:>12.4f}   HyperbandTuner is better in {wins} of {len(rows)}")


if __name__ == "__main__":
    main()
