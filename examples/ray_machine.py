"""Images on a Ray that is started on this machine for the time of the search: two trials at a time, in actors.

``pip install "lightning-hpo-suite[ray]"``, then ``python examples/ray_machine.py``. On a cluster, ``address="auto"``
is the only difference.
"""

import argparse
import importlib.util
from pathlib import Path

from digits import SPACE, DigitsData, DigitsNet

from lightning_hpo import ASHATuner, RayExecutor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=81)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    if importlib.util.find_spec("ray") is None:
        raise SystemExit("skipped: Ray is not installed; pip install 'lightning-hpo-suite[ray]'")
    result = ASHATuner(
        SPACE,
        monitor="val_loss",
        max_steps=arguments.max_steps,
        n_trials=27,
        root=arguments.root,
        name="ray",
        executor=RayExecutor(workers=2),
        trainer={"accelerator": "cpu"},
    ).fit(DigitsNet, datamodule=DigitsData)
    print(f"best val_loss {result.best_score:.4f} with {dict(result.best_params)}")


if __name__ == "__main__":
    main()
