"""Every example runs, with a small budget, as a person would start it."""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments):
    done = subprocess.run(  # noqa: PLW1510  # the assertion below shows what it printed
        [sys.executable, *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_digits(tmp_path):
    out = run("examples/digits.py", "--max-steps", "27", "--root", str(tmp_path))
    assert "in all: 49 trials, 69 jobs" in out
    assert float(re.search(r"test_acc\D+([\d.]+)", out).group(1)) > 0.5
    assert (tmp_path / "digits" / "best.ckpt").exists()
    again = run("examples/digits.py", "--max-steps", "27", "--root", str(tmp_path))
    assert "trial    0 @" not in again
    assert out.splitlines()[-1] == again.splitlines()[-1]
