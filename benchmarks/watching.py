"""Cost of watching a search, as a share of its CPU time: ``python benchmarks/watching.py``.

A Hyperband study on the digits trains in this process, in a pseudo terminal. What watches is timed where it runs:
writing the progress of trials, drawing the live view in its thread, and what observers do with the events of the loop.
"""

import argparse
import os
import pty
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

STUDY = """
import functools, sys, time
sys.path.insert(0, {here!r})
from lightning_hpo import HyperbandTuner
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.live import LiveView
from lightning_hpo.reporting.view import Watch
from lightning_hpo.study.progress import ProgressFile
from lightning_hpo.training.trial_loggers import CsvRun
from tests.support.small import Data, Net

spent = {{}}

def timed(kind, name):
    inner = getattr(kind, name)

    @functools.wraps(inner)
    def outer(*args, **more):
        before = time.thread_time()
        try:
            return inner(*args, **more)
        finally:
            spent[kind.__name__, name] = spent.get((kind.__name__, name), 0.0) + time.thread_time() - before

    setattr(kind, name, outer)

for kind, name in [(ProgressFile, "pause_wanted"), (ProgressFile, "close"), (LiveView, "_draw"), (Watch, "on"),
                   (Console, "on"), (CsvRun, "open"), (CsvRun, "end")]:
    timed(kind, name)
said, inner_view = [], Watch.view

def view(watch):
    now = inner_view(watch)
    said.append((time.monotonic(), now.left))
    return now

Watch.view = view
began, before = time.monotonic(), time.process_time()
HyperbandTuner(
    {{"model.lr": "loguniform(1e-3, 1)", "model.hidden": "choice(16, 32)"}}, monitor="val_loss", max_steps={steps},
    min_steps={steps} // 27, root={root!r}, name="r", trainer={{"accelerator": "cpu"}}, logger={logger!r},
).fit(Net, datamodule=Data)
whole = time.process_time() - before
for (kind, name), seconds in spent.items():
    print(f"{{kind + '.' + name:<30}} {{seconds:8.3f}} s  {{seconds / whole:7.2%}}", file=sys.stderr)
over = time.monotonic()
ratios = [left / (over - at) for at, left in said if left is not None and over - at > 1]
first = next(at for at, left in said if left is not None) - began
print(f"time left: first said after {{first:.1f}} of {{over - began:.1f}} s; said / true: first {{ratios[0]:.2f}}, "
      f"smallest {{min(ratios):.2f}}, largest {{max(ratios):.2f}} of {{len(ratios)}}", file=sys.stderr)
print(f"{{'all of them':<30}} {{sum(spent.values()):8.3f}} s  {{sum(spent.values()) / whole:7.2%}} of {{whole:.1f}} s",
      file=sys.stderr)
"""


def main() -> None:
    """Run the study with and without a logger of each trial."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=900, help="full budget of a trial")
    steps = parser.parse_args().steps
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
    environment.pop("CI", None)
    for logger in (None, "csv"):
        ours, theirs = pty.openpty()
        threading.Thread(target=_drain, args=(ours,), daemon=True).start()
        with tempfile.TemporaryDirectory() as root:
            here = str(Path(__file__).resolve().parent.parent)
            code = STUDY.format(here=here, root=root, steps=steps, logger=logger)
            print(f"logger: {logger}", file=sys.stderr)
            subprocess.run([sys.executable, "-c", code], stdout=theirs, env=environment, check=True)
        os.close(theirs)


def _drain(handle: int) -> None:
    try:
        while os.read(handle, 65536):
            pass
    except OSError:
        pass


if __name__ == "__main__":
    main()
