"""What safety costs: CPU of the digits study with and without it, and where files are synced.

python benchmarks/faults.py
"""

import argparse
import collections
import contextlib
import os
import statistics
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from unittest import mock

import torch

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent.parent / "examples")]
warnings.simplefilter("ignore")

from digits import DigitsData, DigitsNet  # noqa: E402

from lightning_hpo import HyperbandTuner, checkpoints  # noqa: E402
from lightning_hpo.quiet import warnings_only  # noqa: E402
from lightning_hpo.study import fingerprint as fingerprints  # noqa: E402
from lightning_hpo.training.run_to_step import RunToStep  # noqa: E402

SPACE = {"lr": "loguniform(1e-4, 1e-1)", "width": "int(4, 16)", "dropout": "uniform(0, 0.5)"}


def study(**options) -> tuple[float, int]:
    """CPU seconds of a Hyperband study on digits, and its optimizer steps."""
    with tempfile.TemporaryDirectory() as root:
        started = time.process_time()
        result = HyperbandTuner(
            SPACE, max_steps=108, min_steps=4, monitor="val_acc", mode="max", root=root, name="r",
            trainer={"accelerator": "cpu"}, verbose=False, **options,
        ).fit(DigitsNet, datamodule=DigitsData)  # fmt: skip
        steps = sum(max(row.values, default=0) for row in result.trials())
        return time.process_time() - started, steps


@contextlib.contextmanager
def without():
    """No hashes, no syncs, no code fingerprint, no signs of life, no watch for NaN.

    What stays is what any tuner that can continue must do: write a checkpoint and a row.
    """
    with contextlib.ExitStack() as stack:
        for owner, name, value in [
            (checkpoints, "_write_sealed", torch.save),
            (checkpoints, "_sync_folder", lambda _: None),
            (checkpoints, "_is_sealed", Path.exists),
            (checkpoints, "verify", lambda path: Path(path).stat()),
            (fingerprints, "code_parts", lambda _: {}),
            (RunToStep, "on_validation_batch_end", lambda *_: None),
        ]:
            stack.enter_context(mock.patch.object(owner, name, value))
        yield


def cost(rounds: int) -> None:
    """Paired: the two kinds take turns, and the ratio is taken within each pair."""
    study()
    ratios = []
    for index in range(rounds):
        order = [False, True] if index % 2 else [True, False]
        seconds = {}
        for safe in order:
            with contextlib.nullcontext() if safe else without():
                options = {"trial_timeout": 600.0, "stop_on_nan": True} if safe else {}
                seconds[safe], _ = study(**options)
        ratios.append(seconds[True] / seconds[False])
        print(f"  with {seconds[True]:.2f} s, without {seconds[False]:.2f} s: {ratios[-1]:.3f}", flush=True)
    print(f"CPU with / without: median {statistics.median(ratios):.3f} (asked: at most 1.03)")


def syncs() -> None:
    """Count calls of fsync by where they come from; inside a training step there must be none."""
    places: collections.Counter[str] = collections.Counter()
    inside = [0]
    sync, step = os.fsync, DigitsNet.training_step

    def counting(handle):
        names = [frame.name for frame in traceback.extract_stack()]
        places["in training_step" if inside[0] else "checkpoint" if "save_checkpoint" in names else "other"] += 1
        sync(handle)

    def marked(self, batch, batch_idx):
        inside[0] += 1
        try:
            return step(self, batch, batch_idx)
        finally:
            inside[0] -= 1

    with mock.patch.object(os, "fsync", counting), mock.patch.object(DigitsNet, "training_step", marked):
        _, steps = study()
    print(f"fsync in {steps} optimizer steps: {dict(places)} (asked: none in a training step)")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with warnings_only("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        syncs()
        cost(arguments.rounds)
