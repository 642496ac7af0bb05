"""A run from outside: ``python -m lightning_hpo show``, with one trial, as JSON, and while the search is at work."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from lightning_hpo import ASHATuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.reporting.outside import to_json
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.study.progress import read_progress
from tests.faults.scripts import Script
from tests.unit.test_live import in_terminal

KEYS = {"unit", "schema", "run", "monitor", "mode", "at_work", "steps", "seconds_left", "trials", "best", "rows"}
TRIAL_KEYS = {
    "number", "state", "params", "step", "target", "score", "values", "parent", "start", "ended", "feasible", "failure",
    "progress", "folder",
}  # fmt: skip
pytestmark = pytest.mark.timeout(1800)
TRAINING = """
from lightning_hpo import RandomTuner
from tests.support.small import Data, Net
RandomTuner({{"model.lr": "loguniform(1e-3, 1)"}}, monitor="val_loss", max_steps=200_000, n_trials=2, verbose=False,
            trainer={{"accelerator": "cpu"}}, root={root!r}, name="r").fit(Net, datamodule=Data)
"""


def function(job, params):
    if job.trial == 1:
        raise ValueError("api_key='hunter22' was refused\nsecond line")
    return float("inf") if job.trial == 2 else params["x"]


@pytest.fixture
def run(tmp_path):
    space = {"x": "uniform(0, 1)", "api_key": "choice('hunter22', 'hunter23')"}
    tuner = RandomTuner(space, max_steps=5, n_trials=4, root=tmp_path, name="r", verbose=False)
    return str(tmp_path / "r"), tuner.optimize(function)


def test_json_has_the_documented_keys_and_hides_secrets(run, capsys):
    path, result = run
    assert main(["show", "--json", path]) == 0
    text = capsys.readouterr().out
    assert "hunter" not in text
    content = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert content.keys() == KEYS
    assert all(row.keys() == TRIAL_KEYS for row in content["rows"])
    assert content["schema"] == 1
    assert content["at_work"] is False
    assert content["trials"] == {"all": 4, "complete": 2, "failed": 2}
    assert content["best"]["number"] == result.best_trial
    assert content["best"]["score"] == result.best_score
    assert content["steps"] == {"done": 10, "planned": 20}
    assert content["rows"][1]["failure"].startswith("ValueError: api_key='***' was refused")
    assert content["rows"][2]["score"] is None
    assert [row["params"]["api_key"] for row in content["rows"]] == ["***"] * 4


def test_one_trial(run, capsys):
    path, result = run
    assert main(["show", path, str(result.best_trial)]) == 0
    text = capsys.readouterr().out
    assert f"trial {result.best_trial} of {path}: complete" in text
    assert re.search(rf"step 5 +score {result.best_score:.6g}", text)
    assert "hunter" not in text
    assert main(["show", path, "1"]) == 0
    assert "second line" in capsys.readouterr().out


def test_a_function_at_its_second_rung_is_running(tmp_path):
    seen = []

    def look(job, params):
        rows = json.loads(to_json(read_run(tmp_path / "r")))["rows"]
        seen.append((job.max_steps, [row["number"] for row in rows if row["state"] == "running"] == [job.trial]))
        return params["x"]

    options = {"root": tmp_path, "name": "r", "verbose": False}
    ASHATuner({"x": "uniform(0, 1)"}, max_steps=9, min_steps=3, n_trials=3, **options).optimize(look)
    assert {steps for steps, _ in seen} == {3, 9}
    assert all(alone for _, alone in seen)


@pytest.mark.parametrize("arguments", [["99"], ["-1"], ["x"], ["--json", "--watch"]])
def test_wrong_calls_of_show(run, arguments, capsys):
    with pytest.raises(SystemExit) as left:
        main(["show", run[0], *arguments])
    assert left.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_watching_a_run_that_is_over_shows_it(run, capsys):
    assert main(["show", "--watch", run[0]]) == 0
    assert "4 trials: 2 complete, 2 failed" in capsys.readouterr().out


def test_a_search_at_work_is_shown_as_it_is(tmp_path, capsys):
    search = Script(tmp_path, TRAINING.format(root=str(tmp_path)))
    path, folder = str(tmp_path / "r"), tmp_path / "r" / "trials" / "0000"
    watcher, counts = None, re.compile(r"1 trials, [\d,]+ optimizer steps")
    try:
        deadline = time.monotonic() + 500
        while (before := read_progress(folder)) is None or not before.curve:  # until it has validated
            assert search.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        command = [sys.executable, "-m", "lightning_hpo", "show", "--watch", path]
        watcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert main(["show", "--json", path]) == 0
        content = json.loads(capsys.readouterr().out)
        after = read_progress(folder)
        assert content["at_work"] is True
        assert content["trials"] == {"all": 1, "running": 1}
        assert before.step <= content["rows"][0]["step"] <= after.step
        assert content["steps"]["done"] == content["rows"][0]["step"]
        assert content["rows"][0]["target"] == 200_000
        assert content["rows"][0]["progress"]["value"] == content["rows"][0]["progress"]["curve"][-1][1]
        assert main(["show", path]) == 0
        text = capsys.readouterr().out
        assert re.search(r"trial 0 runs: step \d+ of 200000, val_loss \S+, \S+ steps/s", text)
        assert re.search(r"[\d,]+ of 400,000 planned optimizer steps, about [\d.]+ (s|min|h) left", text)
        code = f"import sys; from lightning_hpo.__main__ import main; sys.exit(main(['show', '--watch', {path!r}]))"
        code, text = in_terminal(code, until=r"running +\d+/200000 ")  # then Ctrl-C, which the search does not get
        assert code == 0, text
        assert "RandomTuner in " in text
        assert search.poll() is None
        lines = []
        while len({line for line in lines if counts.match(line)}) < 2:
            lines.append(watcher.stdout.readline())
            assert lines[-1]
        os.kill(search.pid, signal.SIGINT)
        assert search.end(300)[0] == 130
        lines += watcher.communicate(timeout=300)[0].splitlines()
    finally:
        for process in (search, watcher):
            if process is not None:
                process.kill()
    assert "\x1b" not in "".join(lines)
    assert any("1 trials: 1 paused" in line for line in lines)
