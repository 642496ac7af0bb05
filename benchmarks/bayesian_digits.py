"""BayesianTuner against random search on handwritten digits: the same trials, the same steps, ten seeds.

python benchmarks/bayesian_digits.py
"""

import argparse
import os
import statistics
import sys
import tempfile
import warnings
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "examples")]
warnings.simplefilter("ignore")

import torch  # noqa: E402
from digits import SPACE, DigitsData, DigitsNet  # noqa: E402

from lightning_hpo import BayesianTuner, RandomTuner  # noqa: E402


def best(kind: type, seed: int, n_trials: int, max_steps: int) -> float:
    with tempfile.TemporaryDirectory() as root:
        tuner = kind(
            SPACE,
            monitor="val_loss",
            max_steps=max_steps,
            n_trials=n_trials,
            seed=seed,
            root=root,
            trainer={"accelerator": "cpu", "logger": False, "check_val_every_n_epoch": None},
            verbose=False,
        )
        return tuner.fit(DigitsNet, datamodule=DigitsData).best_score


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=25)
    parser.add_argument("--max-steps", type=int, default=100)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"best val_loss of {arguments.trials} trials x {arguments.max_steps} steps")
    print(f"{'seed':>4} {'BayesianTuner':>14} {'RandomTuner':>12}")
    rows = []
    for seed in range(arguments.seeds):
        rows.append([best(kind, seed, arguments.trials, arguments.max_steps) for kind in (BayesianTuner, RandomTuner)])
        print(f"{seed:>4} {rows[-1][0]:>14.4f} {rows[-1][1]:>12.4f}", flush=True)
    means = [statistics.mean(column) for column in zip(*rows, strict=True)]
    wins = sum(ours < random for ours, random in rows)
    print(f"mean {means[0]:>14.4f} {means[1]:>12.4f}   BayesianTuner is better in {wins} of {len(rows)}")


if __name__ == "__main__":
    main()
