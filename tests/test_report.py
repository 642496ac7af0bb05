"""Looking at a run: what is printed, what the page holds, and what is never done."""

import html.parser
import math
import shutil
import subprocess
import sys

import pytest

from lightning_hpo import HyperbandTuner, OptunaTuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.reporting.report import to_html
from lightning_hpo.reporting.run_view import read_run

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
    assert "nobody is at work" in out


def test_report_is_whole_self_contained_and_escaped(run, capsys):
    assert main(["report", str(run)]) == 0
    path = run / "report.html"
    assert capsys.readouterr().out.strip() == str(path)
    text = path.read_text()
    page = Page(text)
    assert page.open == []
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name in ("src", "href") or name.startswith("on")]
    assert "http" not in text.replace("http-equiv", "")
    assert page.tags.count("tr") == 1 + 17
    assert page.tags.count("svg") == 2 + 2
    assert "RuntimeError: &lt;script&gt;" in text


def test_best(run, capsys):
    assert main(["best", str(run)]) == 0
    assert capsys.readouterr().out == (run / "best.yaml").read_text()


def test_what_is_not_there(tmp_path, capsys):
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
    assert "nan,"  not in to_html(read_run(tmp_path / "r"))  # fmt: skip
    OptunaTuner(
        {"x": "uniform(0, 1)"}, max_steps=1, n_trials=3, monitor=("a", "b"), root=tmp_path, name="two", verbose=False
    ).optimize(lambda job, params: (params["x"], 1 - params["x"]))
    assert len(read_run(tmp_path / "two").rows) == 3
    assert "<svg" in to_html(read_run(tmp_path / "two"))


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
    assert f"process {at_work.pid} is at work" in done.stdout
    assert "1 complete, 1 running" in done.stdout


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
