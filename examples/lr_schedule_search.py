"""Search the LR schedule and its shape together with the learning rate, on scikit-learn's handwritten digits.

    python examples/lr_schedule_search.py

The module reads the schedule's name and its warm-up from its hyperparameters; the tuner gives the schedule the full
budget as its horizon in every rung.
"""

import argparse
from pathlib import Path

import torch
from lr_schedules import Classifier, Digits

from lightning_hpo import HyperbandTuner

SPACE = {
    "lr": "loguniform(1e-3, 1)",
    "lr_schedule": "choice(cosine, linear_warmup_cosine, linear, warmup_stable_decay)",
    "warmup": "uniform(0, 0.3)",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=270, help="full budget of a trial, in optimizer steps")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = HyperbandTuner(
        SPACE,
        monitor="val_acc",
        mode="max",
        max_steps=arguments.max_steps,
        name="lr-schedules",
        root=arguments.root,
        trainer={"accelerator": "cpu", "check_val_every_n_epoch": None},
    ).fit(Classifier, datamodule=Digits)
    print(f"best: val_acc {result.best_score:.4f} with {result.best_params}")


if __name__ == "__main__":
    main()
