"""The report in a real browser: every figure is drawn, nothing is loaded, the table sorts, dark and light.

The environment variable ``REPORT_SCREENSHOTS`` names a folder for screenshots.
"""

import os
import shutil
from pathlib import Path

import pytest

from lightning_hpo import BayesianTuner, HyperbandTuner, PopulationTuner
from tests.support.browser import CHROMIUM, browser
from tests.support.small import Data, Net

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt-get install chromium")

SPACE = {
    "lr": "loguniform(1e-5, 1e-1)",
    "width": "int(16, 256)",
    "activation": "choice(relu, gelu, '<b onclick=alert(1)>')",
    "api_key": "choice('S3CRET', 'S3CRET2')",
}
COMMON = {"history", "curves", "slice", "parallel", "plan", "timeline", "durations"}
PARAMETERS = {"importance", "contour", "rank"}


def loss(job, params):
    if params["lr"] > 3e-2 and params["activation"] == "gelu":
        raise RuntimeError("diverged at <script>alert(1)</script>")
    return abs(params["lr"] - 1e-3) ** 0.5 + 1 / job.max_steps + params["width"] / 1e4


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    common = {"monitor": "val_loss", "root": root, "verbose": False}
    HyperbandTuner(SPACE, max_steps=27, min_steps=1, name="hyperband", max_failed=30, **common).optimize(loss)
    BayesianTuner(
        SPACE, max_steps=9, n_trials=14, n_startup_trials=6, name="bayesian", max_failed=14, **common
    ).optimize(loss)
    PopulationTuner(
        {"lr": "loguniform(1e-3, 1)"}, population_size=4, interval=3, max_steps=12, name="population",
        trainer={"accelerator": "cpu"}, **common,
    ).fit(Net, datamodule=Data)  # fmt: skip
    return root


@pytest.fixture(scope="module", params=["light", "dark"])
def page(request, tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile"), dark=request.param == "dark") as opened:
        opened.scheme = request.param
        yield opened


def show(page, file):
    page.problems.clear()
    page.requests.clear()
    page.open(file)
    page.wait_for("document.documentElement.dataset.drawn !== undefined")


@pytest.mark.parametrize(
    ("name", "figures"),
    [
        ("hyperband", COMMON | PARAMETERS | {"brackets", "promotions"}),
        ("bayesian", COMMON | PARAMETERS | {"model"}),
        ("population", COMMON | {"family", "effective", "metrics"}),
    ],
)
def test_every_figure_is_drawn_and_nothing_is_loaded(page, runs, name, figures):
    file = runs / name / "report.html"
    show(page, file)
    drawn = page.evaluate(
        "[...document.querySelectorAll('.figure')].filter(f => f.querySelector('.plot-container .xy, .bar, path'))"
        ".map(f => f.id)"
    )
    assert set(drawn) == figures
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith("data:")] == [file.as_uri()]
    assert "S3CRET" not in page.evaluate("document.documentElement.outerHTML")
    assert page.evaluate("document.documentElement.dataset.theme") == page.scheme
    if folder := os.environ.get("REPORT_SCREENSHOTS"):
        Path(folder).mkdir(parents=True, exist_ok=True)
        page.screenshot(Path(folder) / f"{name}-{page.scheme}.png", "body")


def test_the_table_sorts_both_ways(page, runs):
    show(page, runs / "hyperband" / "report.html")
    column = page.evaluate("[...document.querySelectorAll('th')].findIndex(h => h.textContent === 'val_loss')")
    read = f"[...document.querySelectorAll('tbody tr')].map(r => r.cells[{column}].textContent)"
    before = page.evaluate(read)
    click = f"document.querySelectorAll('th button')[{column}].click()"
    page.evaluate(click)
    values = page.evaluate(read)
    numbers = [float(text) for text in values if text]
    assert numbers == sorted(numbers)
    assert values[len(numbers) :] == [""] * before.count("")
    assert sorted(values) == sorted(before)
    page.evaluate(click)
    assert [float(text) for text in page.evaluate(read) if text] == sorted(numbers, reverse=True)
    assert page.evaluate("document.querySelector('th[aria-sort]').getAttribute('aria-sort')") == "descending"


def test_the_colours_change_at_a_click(page, runs):
    show(page, runs / "bayesian" / "report.html")
    colour = "getComputedStyle(document.querySelector('#history .xtick text')).fill"
    before = page.evaluate(colour)
    page.evaluate("document.getElementById('theme').click()")
    page.wait_for(f"{colour} !== {before!r}")
    assert page.problems == []


def test_a_script_in_the_page_that_is_not_its_own_does_not_run(page, runs, tmp_path):
    """The policy of the page names its scripts by their hash: an error of escaping would be harmless."""
    copy = Path(shutil.copy(runs / "hyperband" / "report.html", tmp_path / "report.html"))
    text = copy.read_text()
    copy.write_text(text.replace("<h1>", "<script>window.sprung = true</script><h1 onclick='window.sprung = true'>", 1))
    show(page, copy)
    page.evaluate("document.querySelector('h1').click()")
    assert page.evaluate("window.sprung") is None
    assert any("Content Security Policy" in problem for problem in page.problems)
