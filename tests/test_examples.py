"""Every example runs, with a small budget, as a person would start it."""

import os
import re
import signal
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
    assert "in all: 49 trials, at least 69 jobs" in out
    assert float(re.search(r"test_acc\D+([\d.]+)", out).group(1)) > 0.5
    assert (tmp_path / "digits" / "best.ckpt").exists()
    again = run("examples/digits.py", "--max-steps", "27", "--root", str(tmp_path))
    assert "trial    0 @" not in again
    assert out.splitlines()[-1] == again.splitlines()[-1]


def test_lr_schedule_search(tmp_path):
    out = run("examples/lr_schedule_search.py", "--max-steps", "27", "--root", str(tmp_path))
    assert re.search(r"best: val_acc 0\.\d+ with .*lr_schedule", out)


def test_two_workers_killed_with_their_group_and_continued(tmp_path):
    command = [sys.executable, "examples/digits.py", "--max-steps", "54", "--workers", "2", "--root", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        seen = [next(line for line in process.stdout if line.startswith("trial ")) for _ in range(5)]
        os.killpg(process.pid, signal.SIGKILL)
    out = run(*command[1:])
    acknowledged, later = (
        {tuple(line.split()[1:4]) for line in lines if re.match(r"trial +\d+ @", line)}
        for lines in (seen, out.splitlines())
    )
    assert len(acknowledged) == 5
    assert not acknowledged & later
    assert re.search(r"continues: \d+ of \d+ trials", out)
    assert "best of 49 trials" in out
