"""Looking at a run: what is printed, what the page holds, and what is never done."""

import html.parser
import json
import logging
import math
import os
import re
import shutil
import subprocess
import sys
import time
import warnings
from dataclasses import asdict

import numpy as np
import optuna
import pytest

from lightning_hpo import BayesianTuner, HyperbandTuner, OptunaTuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.reporting.report import table, to_html
from lightning_hpo.reporting.run_view import read_run, view_run
from lightning_hpo.study.progress import Progress

EVIL = "<script>alert(1)</script>"
SPACE = {"x": "loguniform(1e-3, 1)", "kind": f"choice('{EVIL}', 'b&\"')"}


def some(job, params):
    if job.trial == 3:
        raise RuntimeError(EVIL)
    return params["x"] + 1 / job.max_steps


@pytest.fixture
def run(tmp_path):
    HyperbandTuner(SPACE, max_steps=9, min_steps=1, root=tmp_path, name="r", verbose=False).optimize(some)
    return tmp_path / "r"


class Page(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.open = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_show(run, capsys):
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert "17 trials: " in out
    assert "1 failed" in out
    assert f"trial 3 failed: RuntimeError: {EVIL}" in out
    assert "(not running)" in out
    assert "\n... and 6 more trials with a score\n" in out


def test_warnings_of_optuna_about_its_figures_stay_out_of_the_report(tmp_path, caplog):
    space = {"x": "uniform(0, 1)", "kind": ["a", "b"], "y": "uniform(0, 1) if kind == 'a'"}
    tuner = RandomTuner(space, max_steps=1, n_trials=6, root=tmp_path, name="r", verbose=False)
    result = tuner.optimize(lambda job, params: params["x"] + params.get("y", 0))
    read = read_run(tmp_path / "r")
    trial = read.trials[0]
    trial.datetime_start, trial.datetime_complete = trial.datetime_complete, trial.datetime_start
    logger = logging.getLogger("optuna")
    logger.addHandler(caplog.handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        to_html(read)
        result.report(tmp_path / "report.html")
    logger.removeHandler(caplog.handler)
    assert not caplog.records


def test_a_trial_that_nobody_trains_is_paused(tmp_path):
    study = optuna.create_study()
    for _ in range(2):
        study.ask().report(1.0, 3)
    folder = tmp_path / "trials" / "0001"
    folder.mkdir(parents=True)
    with subprocess.Popen(["sleep", "600"]) as search:
        (tmp_path / "owner.json").write_text(json.dumps({"pid": search.pid}))
        (folder / "progress.json").write_text(json.dumps(asdict(Progress(1, 4, 3, 9, pid=search.pid))))
        run = view_run(study, tmp_path)
        assert run.counts == "2 trials: 1 paused, 1 running"
        page = table(run, run.rows)
        for host, counts in (("elsewhere", "1 paused, 1 running"), ("", "2 paused")):
            progress = Progress(1, 4, 3, 9, pid=2**30, host=host)  # no process of this machine has that number
            (folder / "progress.json").write_text(json.dumps(asdict(progress)))
            assert view_run(study, tmp_path).counts == f"2 trials: {counts}"
        search.kill()
    assert page.index("<td>paused</td>") < page.index("<td>running</td>")


def test_a_process_of_another_machine_is_known_by_what_it_changes(tmp_path):
    owner = tmp_path / "owner.json"
    owner.write_text(json.dumps({"pid": 7, "host": "elsewhere"}))
    study = optuna.create_study()
    assert view_run(study, tmp_path).owner == 7
    os.utime(owner, (0, 0))
    assert view_run(study, tmp_path).owner is None


def figures_of(text):
    return json.loads(re.search(r'<script type="application/json" id="figures">(.*?)</script>', text)[1])


def without_scripts(text):
    return re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)


def test_report_is_whole_self_contained_and_escaped(run, capsys):
    assert main(["report", str(run)]) == 0
    path = run / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    text = path.read_text()
    assert path.stat().st_size < 6e6
    page = Page(without_scripts(text))
    assert page.open == []
    assert not {"link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    policy = dict(page.attributes)["content"]
    assert policy.startswith("default-src 'none'")
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert "http" not in without_scripts(text).replace("http-equiv", "")
    assert page.tags.count("tr") == 1 + 17
    assert page.tags.count("div") == len(figures_of(text)) + 1
    assert "RuntimeError: &lt;script&gt;" in text
    assert EVIL not in json.dumps(figures_of(text))


def test_what_the_report_of_a_hyperband_draws(run):
    main(["report", str(run)])
    drawn = figures_of((run / "report.html").read_text())
    names = {
        "history",
        "curves",
        "brackets",
        "promotions",
        "importance",
        "slice",
        "parallel",
        "contour",
        "rank",
        "plan",
    }
    assert names <= set(drawn)
    judged = {trace["name"]: trace["y"] for trace in drawn["brackets"]["data"] if trace.get("xaxis") == "x"}
    assert judged["plan"] == [9, 3, 1]
    assert judged["promoted"][0] + judged["stopped"][0] == 8  # one has failed before its first value
    assert drawn["curves"]["layout"]["xaxis"]["type"] == "log"
    assert drawn["curves"]["layout"]["xaxis"]["tickvals"] == [1, 3, 9]
    best = next(trace for trace in drawn["curves"]["data"] if trace["name"].startswith("best"))
    rows = read_run(run).rows
    row = min((row for row in rows if row.state == "complete"), key=lambda row: row.score)
    assert best["name"] == f"best: trial {row.number}"
    assert best["y"] == pytest.approx(list(row.values.values()), rel=1e-5)
    spent = next(trace for trace in drawn["plan"]["data"] if trace["name"].startswith("done"))
    assert sum(spent["y"]) == sum(row.step for row in rows)


def test_log_axes_where_the_values_ask_for_them(tmp_path):
    RandomTuner(
        {"x": "loguniform(1e-6, 1)", "y": "uniform(0, 1)"}, max_steps=1, n_trials=12, root=tmp_path, name="r",
        verbose=False,
    ).optimize(lambda job, params: params["x"])  # fmt: skip
    drawn = figures_of(to_html(read_run(tmp_path / "r")))
    assert drawn["history"]["layout"]["yaxis"]["type"] == "log"
    assert {drawn["slice"]["layout"][name].get("type") for name in ("xaxis", "xaxis2")} == {"log", None}
    assert drawn["slice"]["layout"]["yaxis"]["type"] == "log"


def test_the_report_of_many_trials_is_bounded(tmp_path):
    study = optuna.create_study(study_name="big")
    space = {f"p{index}": optuna.distributions.FloatDistribution(0, 1) for index in range(12)}
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(3000):
        params = {name: float(rng.random()) for name in space}
        score = sum(params.values())
        trials.append(
            optuna.trial.create_trial(
                params=params,
                distributions=space,
                value=score,
                intermediate_values={s: score / s for s in range(1, 20)},
            )
        )
    study.add_trials(trials)
    run = view_run(study, tmp_path / "big")
    page = to_html(run)
    assert len(page) < 6e6
    assert " of 3,000 trials.</p>" in page
    assert len(figures_of(page)["slice"]["data"]) == 8


def test_a_result_in_a_notebook(tmp_path):
    space = {"x": "uniform(0, 1)", "n": "int(1, 3)", "hf_token": "choice('S3CRET', 'S3CRET2')"}
    result = RandomTuner(space, max_steps=1, n_trials=12, root=tmp_path, name="r", verbose=False).optimize(
        lambda job, params: params["x"]
    )
    shown = result._repr_html_()
    assert Page(shown).open == []
    assert f"Best: trial {result.best_trial}" in shown
    assert shown.count("<tr") == 1 + 10
    table = result.dataframe()
    assert len(table) == 12
    assert table["value"].idxmin() == result.best_trial
    assert table.loc[result.best_trial, "params_x"] == result.best_params["x"]
    figures = result.plot()
    assert {"history", "curves", "importance", "slice"} <= set(figures)
    assert list(result.plot("slice", "history")) == ["slice", "history"]
    assert result.plot("history").layout.title.text == "History"
    with pytest.raises(ValueError, match=r"no figure 'historie'; this search has .* Did you mean 'history'\?"):
        result.plot("historie")
    everything = shown + table.to_string() + "".join(figure.to_json() for figure in figures.values())
    assert "S3CRET" not in everything
    assert "*** 1" in everything


def test_a_missing_pandas_is_named_with_its_install_line(run, monkeypatch):
    result = HyperbandTuner(
        SPACE, max_steps=9, min_steps=1, root=run.parent, name="r", verbose=False, allow_changed=True
    ).optimize(some)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-hpo-suite\[pandas\]'"):
        result.dataframe()


def test_what_the_model_expects_is_in_the_report(tmp_path):
    BayesianTuner(
        {"x": "uniform(0, 1)", "api_key": "choice('S3CRET', 'S3CRET2')"}, max_steps=1, n_trials=8, n_startup_trials=4,
        root=tmp_path, name="r", verbose=False,
    ).optimize(lambda job, params: (params["x"] - 0.3) ** 2)  # fmt: skip
    text = (tmp_path / "r" / "report.html").read_text()
    assert "S3CRET" not in text + (tmp_path / "r" / "slices.json").read_text()
    drawn = figures_of(text)["model"]
    mean = next(trace for trace in drawn["data"] if trace.get("name") == "x")
    band = next(trace for trace in drawn["data"] if trace["xaxis"] == mean["xaxis"])
    assert len(band["y"]) == 2 * len(mean["y"])
    lowest = mean["x"][mean["y"].index(min(mean["y"]))]
    assert abs(lowest - 0.3) < 0.1


def test_best(run, capsys):
    assert main(["best", str(run)]) == 0
    assert capsys.readouterr().out == (run / "best.yaml").read_text()


def test_a_missing_run_and_an_unknown_command_are_errors(tmp_path, capsys):
    assert main(["show", str(tmp_path / "nope")]) == 4
    assert "holds no study.journal" in capsys.readouterr().err
    assert not (tmp_path / "nope").exists()
    with pytest.raises(SystemExit) as left:
        main(["shw", str(tmp_path)])
    assert left.value.code == 2


def test_odd_values_and_odd_studies(tmp_path):
    scores = iter([1e308, -1e308, math.nan, 0.0])
    RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=4, root=tmp_path, name="r", verbose=False).optimize(
        lambda job, params: next(scores)
    )
    assert "history" in figures_of(to_html(read_run(tmp_path / "r")))
    OptunaTuner(
        {"x": "uniform(0, 1)"}, max_steps=1, n_trials=3, monitor=("a", "b"), root=tmp_path, name="two", verbose=False
    ).optimize(lambda job, params: (params["x"], 1 - params["x"]))
    assert len(read_run(tmp_path / "two").rows) == 3
    assert "pareto" in figures_of(to_html(read_run(tmp_path / "two")))


def test_a_run_at_work_and_nothing_imported_that_it_names(tmp_path):
    """From another process, while a job runs; the module that computes the scores cannot be imported there."""
    (tmp_path / "secret_module.py").write_text("def f(job, params):\n    import sys\n    "
        "print('at work', flush=True)\n    sys.stdin.readline()\n    return params['x']\n")  # fmt: skip
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\nfrom secret_module import f\n"
        "from lightning_hpo import RandomTuner\n"
        "RandomTuner({'x': 'uniform(0, 1)'}, max_steps=1, n_trials=2, root=sys.argv[1], name='r').optimize(f)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as at_work:
        assert next(line for line in at_work.stdout if line.startswith("at work"))
        at_work.stdin.write("\n")
        at_work.stdin.flush()
        assert next(line for line in at_work.stdout if line.startswith("at work"))
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "lightning_hpo", "show", str(tmp_path / "r")],
            check=False,
            capture_output=True,
            text=True,
        )
        at_work.communicate("\n")
    assert done.returncode == 0, done.stderr
    assert f"process {at_work.pid} is running" in done.stdout
    assert "1 complete, 1 running" in done.stdout


def test_a_live_report_follows_the_search_until_its_end(tmp_path):
    code = (
        "import sys\nfrom lightning_hpo import RandomTuner\n"
        "def f(job, params):\n    print('at work', flush=True)\n    sys.stdin.readline()\n    return params['x']\n"
        "RandomTuner({'x': 'uniform(0, 1)'}, max_steps=1, n_trials=3, root=sys.argv[1], name='r').optimize(f)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as search:
        assert next(line for line in search.stdout if line.startswith("at work"))
        live = subprocess.Popen(
            [sys.executable, "-m", "lightning_hpo", "report", "--live", str(tmp_path / "r")],
            stdout=subprocess.PIPE,
            text=True,
        )
        with live:
            assert "follows the search" in live.stdout.readline()
            page = tmp_path / "r" / "report.html"
            end = time.monotonic() + 300
            while not page.exists() and time.monotonic() < end:
                time.sleep(0.05)
            text = page.read_text()
            assert '<meta http-equiv="refresh" content="5">' in text
            assert "1 trials: 1 running" in text
            search.communicate("\n\n\n")
            assert live.stdout.read().strip() == str(page)
        assert live.returncode == 0
    text = page.read_text()
    assert 'http-equiv="refresh"' not in text
    assert "3 trials: 3 complete" in text


def test_nothing_that_a_config_names_is_imported(run, tmp_path, capsys, monkeypatch):
    """Whatever stands in the files of a run, looking at it runs none of it."""
    (tmp_path / "trap.py").write_text("import os; os.system('touch sprung')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    copy = shutil.copytree(run, tmp_path / "copies" / run.name)
    trap = "model: {class_path: trap.Net}\ndata: !!python/object/apply:os.system ['touch sprung']\n"
    (copy / "best.yaml").write_text(trap)
    before = set(sys.modules)
    for command in ("show", "report", "best"):
        assert main([command, str(copy)]) == 0
    assert "trap.Net" in capsys.readouterr().out
    assert "trap" not in set(sys.modules) - before
    assert not (tmp_path / "sprung").exists()
