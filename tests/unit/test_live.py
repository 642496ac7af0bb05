"""What a search shows while it runs: progress, the live view, plain lines elsewhere."""

import dataclasses
import io
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from dataclasses import asdict

import pytest
from rich.console import Console as Terminal

from lightning_hpo import HyperbandTuner, PopulationTuner
from lightning_hpo.records import Row
from lightning_hpo.reporting.live import LiveView, block, sparkline
from lightning_hpo.reporting.notebook import shown_in_notebook
from lightning_hpo.reporting.outside import running_lines
from lightning_hpo.reporting.pace import Pace
from lightning_hpo.reporting.view import Plan, View, read_plan
from lightning_hpo.study.progress import Progress, ProgressFile, read_progress
from tests.faults.scripts import become, warm
from tests.support.small import Data, Net

pytestmark = pytest.mark.timeout(1800)  # most of it waits for events of other processes
CPU = {"accelerator": "cpu"}
FUNCTION = """
from lightning_hpo import RandomTuner
from tests.support import functions
if __name__ == "__main__":
    tuner = RandomTuner({{"x": "uniform(0, 1)"}}, max_steps=1, n_trials=6, root={root!r}, name="r", {more})
    tuner.optimize(functions.slow)
"""
TRAINING = """
from lightning_hpo import HyperbandTuner, PopulationTuner
from tests.support.small import Data, Net
if __name__ == "__main__":
    HyperbandTuner({{"model.lr": "loguniform(1e-3, 1)"}}, monitor="val_loss", max_steps={steps}, min_steps={steps} // 9,
                   workers=2, trainer={{"accelerator": "cpu"}}, root={root!r}, name="r").fit(Net, datamodule=Data)
"""
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|\r")


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Position:
    def __init__(self):
        self.global_step, self.values, self.is_global_zero = 0, {}, True

    def place(self):
        return {"step": self.global_step}


def in_terminal(code, *, until=None, environment=(), limit=540):
    """Run a script in a terminal of its own, with Ctrl-C once ``until`` is printed; return exit code and output."""
    warm()
    pid, handle = pty.fork()
    if pid == 0:
        os.environ.pop("CI", None)
        terminal = {"TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"}
        become(code, "", env={**terminal, **dict(environment)})
    written, deadline, interrupted = b"", time.monotonic() + limit, False
    while time.monotonic() < deadline:
        if select.select([handle], [], [], 0.2)[0]:
            try:
                data = os.read(handle, 65536)
            except OSError:  # the terminal's other end is closed
                break
            if not data:
                break
            written += data
        if until is not None and not interrupted and re.search(until, ESCAPE.sub("", written.decode(errors="replace"))):
            interrupted = True
            os.write(handle, b"\x03")
    else:
        os.kill(pid, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.close(handle)
    return code, written.decode(errors="replace")


def drawn(view, width=140, height=40):
    out = io.StringIO()
    Terminal(file=out, width=width, force_terminal=True).print(block(view, height, width))
    return ESCAPE.sub("", out.getvalue())


# Progress


def test_progress_is_written_at_most_twice_a_second(tmp_path):
    clock, job = Clock(), Position()
    file = ProgressFile(tmp_path, 3, 10, 100, lambda: False, clock=clock)
    file.follow(job, job)
    written = 0
    for step in range(11, 101):  # 8 steps a second for 11 seconds
        clock.now += 0.125
        job.global_step = step
        job.values[step] = 1 / step
        file.pause_wanted()
        written += (tmp_path / "progress.json").exists()
        (tmp_path / "progress.json").unlink(missing_ok=True)
    assert 21 <= written <= 23
    file.close()
    progress = read_progress(tmp_path)
    assert (progress.trial, progress.step, progress.begin, progress.target) == (3, 100, 10, 100)
    assert progress.rate == pytest.approx(8)
    assert progress.value == pytest.approx(1 / 100)
    assert len(progress.curve) == 40


def test_a_pause_is_asked_for_at_every_step(tmp_path):
    asked = []
    file = ProgressFile(tmp_path, 0, 0, 9, lambda: asked.append(1) or len(asked) > 2)
    assert [file.pause_wanted() for _ in range(4)] == [False, False, True, True]
    assert not list(tmp_path.iterdir())  # nothing is followed


BAD = ["", "[]", "{", '{"trial": 1}', '{"curve": 3}', '{"curve": [[1, "x"]]}', "\xff"]
GOOD = json.dumps(asdict(Progress(0, 1, 0, 9)))
BAD += [GOOD.replace('"step": 1', f'"step": {step}') for step in ("NaN", '"x"', "null", "1" + "0" * 400)]


@pytest.mark.parametrize("text", BAD)
def test_progress_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / "progress.json").write_bytes(text.encode("latin-1"))
    assert read_progress(tmp_path) is None


def test_progress_does_not_follow_a_planted_link(tmp_path):
    other, job = tmp_path / "other", Position()
    other.write_text("mine")
    (tmp_path / "t").mkdir()
    (tmp_path / "t" / ".progress.json.tmp").symlink_to(other)
    (tmp_path / "t" / "progress.json").symlink_to(other)
    file = ProgressFile(tmp_path / "t", 0, 0, 9, lambda: False)
    file.follow(job, job)
    file.close()
    assert other.read_text() == "mine"
    assert read_progress(tmp_path / "t").step == 0


def test_a_trial_keeps_its_curve_from_job_to_job(tmp_path):
    tuner = HyperbandTuner(
        {"model.lr": "loguniform(1e-3, 1)"}, monitor="val_loss", max_steps=27, min_steps=9, root=tmp_path, name="r",
        trainer={**CPU, "val_check_interval": 3}, verbose=False,
    )  # fmt: skip
    result = tuner.fit(Net, datamodule=Data)
    (best,) = [row for row in result.trials() if row.number == result.best_trial]
    progress = read_progress(tmp_path / "r" / "trials" / f"{result.best_trial:04d}")
    assert progress.step == progress.target == 27
    assert [step for step, _ in progress.curve] == list(range(3, 28, 3))
    assert progress.value == best.values[27]
    assert read_plan(tmp_path / "r").steps == sum(bracket.steps for bracket in tuner.plan())


@pytest.mark.parametrize("workers", [1, 2])
def test_members_of_a_population_tell_their_progress(tmp_path, workers):
    PopulationTuner(
        {"model.lr": "loguniform(1e-3, 1)"}, monitor="val_loss", population_size=3, interval=9, max_steps=27,
        workers=workers, root=tmp_path, name="r", trainer=CPU, verbose=False,
    ).fit(Net, datamodule=Data)  # fmt: skip
    for member in range(3):
        progress = read_progress(tmp_path / "r" / "trials" / f"{member:04d}")
        assert progress.step == progress.target == 27
        assert [step for step, _ in progress.curve] == [9, 18, 27]


# Time left


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("per_job", [0.0, 20.0])
def test_the_time_left_is_right_within_a_factor_of_2(workers, per_job):
    """Short jobs first, long ones later, with a start-up of a minute that is in no job's steps."""
    clock, steps = Clock(), [10] * 30 + [100] * 10
    pace, stated = Pace(workers, clock=clock), []
    left = sum(steps)
    for batch in range(0, len(steps), workers):
        jobs = steps[batch : batch + workers]
        for trial, _ in enumerate(jobs, start=batch):
            pace.started(trial)
        startup = 60.0 if batch == 0 else 0.0
        clock.now += startup + per_job + max(jobs) * 0.1
        for trial, count in enumerate(jobs, start=batch):
            pace.ended(trial, count, Progress(trial, count, 0, count, steps=count, seconds=count * 0.1))
            left -= count
        seconds = pace.left(left, len(steps) - batch - len(jobs))
        if seconds is not None and batch >= workers:
            stated.append((clock.now, seconds))
    assert len(stated) > len(steps) / workers / 2
    for at, seconds in stated[:-1]:
        assert (clock.now - at) / 2 <= seconds <= (clock.now - at) * 2


def test_no_time_is_stated_before_a_step_is_timed():
    pace = Pace(1)
    assert pace.left(1000, 10) is None
    assert pace.left(1000, 10, [Progress(0, 1, 0, 1000)]) is None
    assert pace.left(1000, 10, [Progress(0, 5, 0, 1000, steps=4, seconds=0.01)]) is None


def test_no_time_is_stated_while_trials_differ_too_much():
    slow, fast = (Progress(0, 100, 0, 100, steps=100, seconds=seconds) for seconds in (100.0, 1.0))
    pace = Pace(2)
    assert pace.left(1000, 10, [fast, slow]) is None
    assert pace.left(1000, 10, [fast, fast]) == pytest.approx(5.0)


def test_no_time_is_stated_where_the_plan_is_nearly_done_and_may_grow():
    assert Plan(steps=100).left(95) == 5
    assert Plan(steps=100, is_least=True).left(80) == 20
    assert Plan(steps=100, is_least=True).left(95) is None
    assert Plan(steps=100).left(101) is None


# The view


def test_the_view_shows_trials_and_hides_secrets():
    rows = [
        Row(0, {"lr": 0.1, "data.api_key": "hunter22"}, {9: 0.5}, state="complete"),
        Row(1, {"lr": 0.2, "data.api_key": "hunter22"}, {}, target=9),
        Row(2, {"lr": 0.3, "data.url": "redis://:hunter22@host"}, {9: 0.7}, parent=0, start=9, state="complete"),
        Row(3, {"lr": 0.4, "a[red]b": "<b>\x1b[31m\n"}, {9: 0.9}, state="failed"),
    ]
    progress = {1: Progress(1, 4, 0, 9, steps=4, seconds=2.0, curve=((1, 3.0), (3, 2.0), (4, 1.0)))}
    plan = Plan("HyperbandTuner in runs/x", 27, 3, 1, (((2, 9), (1, 27)),))
    view = View(plan, "val_loss", "min", rows, {1: 12.0}, progress, 30.0, 95.0)
    text = drawn(view)
    in_notebook = shown_in_notebook(view)
    assert "hunter22" not in text + in_notebook["text/html"] + in_notebook["text/plain"]
    assert [line.rstrip() for line in in_notebook["text/plain"].splitlines()] == [
        line.rstrip() for line in drawn(view, 110).splitlines()
    ]
    assert "a[red]b" in in_notebook["text/html"]
    assert "<b>" not in in_notebook["text/html"]
    assert "redis://:***@host" in text
    assert "running" in text
    assert "4/9" in text
    assert "█▅▁" in text
    assert "22 of 27 steps; 30 s, about 2 min left" in text
    assert "best: val_loss 0.5 (trial 0 @ 9)" in text
    assert "bracket 1: 1/2 @ 9" in text
    assert "copied at step 9: 2 from 0" in text
    assert "a[red]b" in text
    assert "\x1b" not in text
    assert running_lines(view)[0] == "trial 1 runs: step 4 of 9, val_loss 1, 2 steps/s"
    in_epochs = dataclasses.replace(view, plan=dataclasses.replace(plan, unit="epochs"))
    assert running_lines(in_epochs)[0] == "trial 1 runs: epoch 4 of 9, val_loss 1, 2 epochs/s"
    assert "copied at epoch 9: 2 from 0" in drawn(in_epochs)


@pytest.mark.parametrize(("width", "height"), [(20, 5), (60, 12), (300, 80)])
def test_the_view_fits_into_any_terminal(width, height):
    rows = [
        Row(number, {f"p{i}": number / 7 for i in range(20)}, {9: number}, state="complete") for number in range(99)
    ]
    plan = Plan("t" * 200, 10_000, 99, 4, (((9, 9), (3, 27), (1, 81)),) * 12)
    lines = drawn(View(plan, "val_loss", "max", rows), width, height).splitlines()
    assert len(lines) <= max(height, 8)
    assert max(map(len, lines)) <= width


def test_a_sparkline_takes_any_value():
    assert sparkline([float("nan"), 1.0, float("inf")]) == "▁"
    assert sparkline([1e308, -1e308]) == "█▁"
    assert sparkline([]) == ""
    assert len(sparkline(list(range(100)), 12)) == 12


# Where it is shown


@pytest.mark.parametrize(
    ("more", "environment"), [("", {"CI": "true"}), ("", {"TERM": "dumb"}), ("verbose='lines'", {})]
)  # fmt: skip
def test_plain_lines_in_a_terminal_that_wants_no_view(tmp_path, more, environment):
    code, text = in_terminal(FUNCTION.format(root=str(tmp_path), more=more), environment=environment)
    assert code == 0, text
    assert "\x1b" not in text
    assert len(re.findall(r"^trial +\d @ 1 ", text, re.MULTILINE)) == 6


def test_no_escape_code_in_a_pipe(tmp_path):
    code = FUNCTION.format(root=str(tmp_path), more="")
    environment = {**os.environ, "TERM": "xterm-256color"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert "\x1b" not in done.stdout + done.stderr
    assert len(re.findall(r"^trial +\d @ 1 ", done.stdout, re.MULTILINE)) == 6


def test_nothing_is_shown_without_verbose(tmp_path):
    code, text = in_terminal(FUNCTION.format(root=str(tmp_path), more="verbose=False"))
    assert (code, text) == (0, "")


def test_a_terminal_that_is_closed_ends_the_view_and_not_the_search(tmp_path):
    class Closed(io.StringIO):
        closed_now = False

        def isatty(self):
            return True

        def write(self, text):
            if self.closed_now:
                raise OSError("gone")
            return super().write(text)

    stream, printed = Closed(), (sys.stdout, sys.stderr)
    with LiveView(lambda: View(Plan("t", 9), "y", "min", []), stream) as view:
        stream.closed_now = True
        view._thread.join(120)
        assert not view._thread.is_alive()
    assert (sys.stdout, sys.stderr) == printed


def test_the_live_view_of_a_function(tmp_path):
    code, text = in_terminal(FUNCTION.format(root=str(tmp_path), more=""))
    assert code == 0, text
    assert re.search(r"of 6 steps", text)
    assert not re.findall(r"^trial +\d @ 1 ", text, re.MULTILINE)
    assert re.search(r"report: .*report.html", ESCAPE.sub("", text))


def test_two_workers_in_a_terminal_are_watched_paused_and_continued(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(TRAINING.format(root=str(tmp_path), steps=2700))
    code, text = in_terminal(script, until=r"running +[1-9]\d*/\d+[^\n]*\n[^\n]*running +[1-9]\d*/")
    plain = ESCAPE.sub("", text)
    assert code == 130, plain
    assert "run the same command to continue" in plain
    assert plain.rstrip().splitlines()[-1].startswith("lightning_hpo: paused by SIGINT")
    assert text.rstrip().count("\x1b[?25l") == text.count("\x1b[?25h")  # the cursor is shown again
    done = {path: read_progress(path.parent).step for path in tmp_path.glob("r/trials/*/progress.json")}
    assert any(done.values())

    code, text = in_terminal(script, until=r"running +[1-9]\d*/(900|2700)\b")
    plain = ESCAPE.sub("", text)
    assert code == 130, plain
    assert "continues: " in plain
    assert "best: val_loss" in plain
