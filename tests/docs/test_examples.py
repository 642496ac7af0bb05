"""Every example runs, with a small budget, as its own main script."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.faults import scripts

ROOT = Path(__file__).resolve().parents[2]


def run(tmp_path, example, *arguments):
    code, out, err = scripts.run(tmp_path, ROOT / "examples" / example, *arguments, cwd=ROOT)
    assert code == 0, err
    return out


def test_digits(tmp_path):
    out = run(tmp_path, "digits.py", "--max-steps", "27", "--root", tmp_path)
    assert "in all: 49 trials, at least 69 jobs" in out
    assert float(re.search(r"test_acc\D+([\d.]+)", out).group(1)) > 0.5
    assert (tmp_path / "digits" / "best.ckpt").exists()
    again = run(tmp_path, "digits.py", "--max-steps", "27", "--root", tmp_path)
    assert "trial    0 @" not in again
    assert out.splitlines()[-1] == again.splitlines()[-1]


def test_lr_schedule_search(tmp_path):
    out = run(tmp_path, "lr_schedule_search.py", "--max-steps", "27", "--root", tmp_path)
    assert re.search(r"best: val_acc 0\.\d+ with .*lr_schedule", out)


def test_two_workers_killed_with_their_group_and_continued(tmp_path):
    arguments = ["--max-steps", "27", "--workers", "2", "--root", tmp_path]
    process = scripts.Script(tmp_path, ROOT / "examples" / "digits.py", *arguments, cwd=ROOT)
    seen = [process.wait_for("trial ") for _ in range(5)]
    os.killpg(process.pid, signal.SIGKILL)
    process.end()
    out = run(tmp_path, "digits.py", *arguments)
    acknowledged, later = (
        {tuple(line.split()[1:4]) for line in lines if re.match(r"trial +\d+ @", line)}
        for lines in (seen, out.splitlines())
    )
    assert len(acknowledged) == 5
    assert not acknowledged & later
    assert re.search(r"continues: \d+ of \d+ trials", out)
    assert "best of 49 trials" in out


@pytest.mark.parametrize(
    ("example", "arguments", "line"),
    [
        ("regression.py", ["--max-epochs", "1", "--n-trials", "2"], r"best val_mse \d\.\d+; a linear regression"),
        (
            "kfold.py",
            ["--max-epochs", "1", "--n-trials", "1"],
            r"best val_loss \d\.\d+ ± \d\.\d+ over 5 folds: .*\n5 fits of 5",
        ),
        ("characters.py", ["--max-steps", "9", "--n-trials", "9"], r"best: \d\.\d+ bits for each character"),
        ("gan.py", ["--max-steps", "18"], r"best val_mmd \d\.\d+; four drawn digits"),
        ("finetuning.py", ["--max-epochs", "3"], r"best val_acc 0\.\d+ with .*unfreeze_at"),
    ],
)
def test_a_script_of_the_gallery(tmp_path, example, arguments, line):
    assert re.search(line, run(tmp_path, example, *arguments, "--root", tmp_path))
