"""The long run: ``python -m tests.faults --kills 200`` prints what so many kills have done, as a table.

With ``--only random`` (or hyperband, optuna, population, shared, workers, saves, flips) it runs one part; ``--seed``
moves the kills.
"""

import argparse
import dataclasses
import os
import pathlib
import random
import tempfile
import time
import warnings

import torch

from lightning_hpo import checkpoints
from tests.faults.campaign import campaign
from tests.faults.searches import HYPERBAND, OPTUNA, POPULATION, RANDOM
from tests.faults.test_storage import killed_saves

CAMPAIGNS = {
    "random": ("`RandomTuner`, 1 worker", RANDOM, {}),
    "hyperband": ("`HyperbandTuner`, 1 worker", HYPERBAND, {}),
    "optuna": ("`OptunaTuner` (TPE, MedianPruner), 1 worker, with other people's idioms", OPTUNA, {}),
    "population": ("`PopulationTuner`, 4 members, 1 worker, with a metric object", POPULATION, {}),
    "shared": (
        "`HyperbandTuner`, 4 processes, `shared=True`",
        HYPERBAND,
        {"processes": 4, "compare": False, "shared": True},
    ),
    "workers": ("`HyperbandTuner`, `workers=4`", HYPERBAND, {"workers": 4, "compare": False}),
}
COLUMNS = {
    "kills": "kills", "studies": "studies", "trials": "trials", "lost": "lost", "duplicated": "duplicated",
    "stuck": "stuck", "unequal": "unlike the uninterrupted", "steps": "steps", "repeated": "repeated",
    "most_repeated": "most per kill", "torn": "torn files", "left_over": "left-over files",
}  # fmt: skip


def flips(folder, count, seed):
    """How many of so many single bit flips in a checkpoint were found."""
    path = folder / "last.ckpt"
    checkpoints.save({"weights": torch.randn(1000, 100), "step": 7}, path)
    good, chance, found = path.read_bytes(), random.Random(seed), 0
    for _ in range(count):
        bad = bytearray(good)
        bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        path.write_bytes(bad)
        try:
            checkpoints.load(path)
        except checkpoints.DamagedCheckpointError:
            found += 1
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=[*CAMPAIGNS, "saves", "flips"])
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(f"| search | K | {' | '.join(COLUMNS.values())} | minutes |")
    print("|---" * (len(COLUMNS) + 3) + "|", flush=True)
    for key, (name, search, more) in CAMPAIGNS.items():
        if given.only not in (None, key):
            continue
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            damage = campaign(search, pathlib.Path(folder), kills=given.kills, seed=given.seed, **more)
        counted = dataclasses.asdict(damage)
        counted["unequal"] = "-" if more else counted["unequal"]
        cells = " | ".join(str(counted[column]) for column in COLUMNS)
        print(f"| {name} | {search.every} | {cells} | {(time.monotonic() - started) / 60:.1f} |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        if given.only in (None, "saves"):
            memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # usually another file system
            with tempfile.TemporaryDirectory(dir=memory) as elsewhere:
                os.environ["TMPDIR"] = tempfile.tempdir = elsewhere
                torn, left = killed_saves(pathlib.Path(folder) / "last.ckpt", kills=given.kills, seed=given.seed)
                left += len(os.listdir(elsewhere))
                tempfile.tempdir = None
            print(f"{torn} of {given.kills} killed saves left a torn file, {left} files were left over", flush=True)
        if given.only in (None, "flips"):
            print(f"{flips(pathlib.Path(folder), 300, given.seed)} of 300 single bit flips in a checkpoint were found")


if __name__ == "__main__":
    main()
