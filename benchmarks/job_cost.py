"""CPU of one job of a tuner over a bare ``Trainer.fit`` that trains, validates and saves as often.

python benchmarks/job_cost.py [--steps 25] [--jobs 20] [--rounds 7]

Both sides run in one process, in turns, so that the load of the machine counts for both. The study is left out: it is
measured in overhead.py.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.simplefilter("ignore")

from benchmarks.overhead import SPACE, bare  # noqa: E402
from lightning_hpo import Job, Objective  # noqa: E402
from lightning_hpo.quiet import warnings_only  # noqa: E402
from lightning_hpo.records import Task  # noqa: E402
from tests.support.small import Data, Net  # noqa: E402


def ours(steps: int, jobs: int) -> float:
    """CPU seconds of the same fits as jobs of an objective."""
    trainer = {"accelerator": "cpu", "check_val_every_n_epoch": None, "val_check_interval": 10**9, "logger": False}
    objective = Objective(Net, SPACE, data=Data, monitor="val_loss", max_steps=steps, trainer=trainer)
    params = objective.middle()
    with tempfile.TemporaryDirectory() as root:
        started = time.process_time()
        gc.freeze()
        for number in range(jobs):
            objective.run(Task(Job(steps, trial=number), params, Path(root) / str(number)))
            gc.collect()
        gc.unfreeze()
        return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    steps, jobs = arguments.steps, arguments.jobs
    with warnings_only("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        bare(steps, 2, checkpoints=True), ours(steps, 2)
        pairs = [(bare(steps, jobs, checkpoints=True), ours(steps, jobs)) for _ in range(arguments.rounds)]
    columns = [[1e3 * seconds / jobs for seconds in column] for column in zip(*pairs, strict=True)]
    added = sorted(job - plain for plain, job in zip(*columns, strict=True))
    print(f"CPU ms per job of {steps} steps: bare fit that saves {statistics.median(columns[0]):.1f};"
          f" job {statistics.median(columns[1]):.1f};"
          f" added {statistics.median(added):.1f} ({added[0]:.1f} to {added[-1]:.1f})")  # fmt: skip


if __name__ == "__main__":
    main()
