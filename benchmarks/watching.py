"""Cost of watching a search: ``python benchmarks/watching.py``.

The digits study of ``examples/digits.py``'s size runs in this process, in turns without and with everything that
watches: progress files, the live view in a pseudo terminal. Printed is CPU time of all threads, children included.
"""

import argparse
import os
import pty
import resource
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

STUDY = """
import sys, resource
sys.path.insert(0, {here!r})
from lightning_hpo import HyperbandTuner
from tests.small import Data, Net
from lightning_hpo.study import progress
if {quiet}:
    progress.ProgressFile.follow = lambda self, job: None
HyperbandTuner(
    {{"model.lr": "loguniform(1e-3, 1)", "model.hidden": "choice(16, 32)"}}, monitor="val_loss", max_steps={steps},
    min_steps={steps} // 27, root={root!r}, name="r", verbose={verbose}, trainer={{"accelerator": "cpu"}}{more},
).fit(Net, datamodule=Data)
"""


def cpu(code: str, *, terminal: bool) -> float:
    """Run a script; return the seconds of CPU that it took."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    environment.pop("CI", None)
    ours, theirs = pty.openpty()
    drain = threading.Thread(target=_drain, args=(ours,), daemon=True)
    drain.start()
    out = theirs if terminal else subprocess.DEVNULL
    subprocess.run([sys.executable, "-c", code], stdout=out, env=environment, check=True)
    os.close(theirs)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _drain(handle: int) -> None:
    try:
        while os.read(handle, 65536):
            pass
    except OSError:
        pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900, help="full budget of a trial")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    here = str(Path(__file__).resolve().parent.parent)
    kinds = {
        "nothing": (True, False, ""),
        "progress": (False, False, ""),
        "progress and live view": (False, True, ""),
        "progress, live view, CSV logger": (False, True, ", logger='csv'"),
    }
    taken: dict[str, list[float]] = {name: [] for name in kinds}
    for _ in range(given.pairs):
        for name, (quiet, live, more) in kinds.items():
            with tempfile.TemporaryDirectory() as root:
                code = STUDY.format(here=here, quiet=quiet, root=root, verbose=live, more=more, steps=given.steps)
                taken[name].append(cpu(code, terminal=live))
    bare = statistics.median(taken["nothing"])
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"{name:<35} {middle:7.2f} s of CPU  {middle / bare - 1:+.1%}   {' '.join(f'{s:.2f}' for s in seconds)}")


if __name__ == "__main__":
    main()
