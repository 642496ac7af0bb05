"""The example notebook in a real kernel: run, interrupted, gone on with."""

import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest

from lightning_hpo.reporting.run_view import read_run

nbformat = pytest.importorskip("nbformat", reason="the notebook is run by nbclient")
nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


pytestmark = pytest.mark.timeout(1800)


@pytest.fixture
def notebook(tmp_path):
    opened = nbformat.read(EXAMPLES / "notebook.ipynb", as_version=4)
    settings = next(cell for cell in opened.cells if cell.source.startswith("ROOT = "))
    settings.source = settings.source.replace('"runs"', repr(str(tmp_path / "runs"))).replace("= 54", "= 27")
    report = opened.cells[-1]
    report.source = report.source.replace('"digits.html"', repr(str(tmp_path / "digits.html")))
    return opened


def printed(cell):
    return "".join(output.get("text", "") for output in cell.outputs)


def shown(cell, kind):
    return [output["data"][kind] for output in cell.outputs if kind in output.get("data", {})]


def views(cell):
    """The live view of a search, as often as it stands in the output of a cell."""
    return [text for text in shown(cell, "text/plain") if re.match(r"\w+Tuner in ", text)]


def recorded(folder):
    return {(row.number, step): value for row in read_run(folder).rows for step, value in row.values.items()}


def test_searches_an_interrupt_and_a_continuation(notebook, tmp_path):
    """The kernel is interrupted once some jobs have ended; the same cell again goes on behind them."""
    client = nbclient.NotebookClient(
        notebook, timeout=1500, allow_errors=True, resources={"metadata": {"path": str(EXAMPLES)}}
    )
    folder = tmp_path / "runs" / "notebook-hyperband"
    search = next(index for index, cell in enumerate(notebook.cells) if "HyperbandTuner(SPACE" in cell.source)
    environment = {name: value for name, value in os.environ.items() if name != "CI"}  # where a view is drawn
    with client.setup_kernel(env=environment):
        for index, cell in enumerate(notebook.cells[:search]):
            client.execute_cell(cell, index)
        cell = notebook.cells[search]
        stop = threading.Thread(target=_interrupt_after, args=(client, folder, 4))
        stop.start()
        client.execute_cell(cell, search)
        stop.join()
        (error,) = (output for output in cell.outputs if output["output_type"] == "error")
        assert error["ename"] == "StudyPaused"
        assert error["traceback"] == [
            "StudyPaused: the search is paused and everything is saved: run the same call again to continue"
        ]
        before = recorded(folder)
        assert len(before) >= 4
        for index, cell in enumerate(notebook.cells[search:], start=search):
            client.execute_cell(cell, index)
    errors = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output["output_type"] == "error"
    ]
    assert errors == []
    cell = notebook.cells[search]
    assert re.search(r"continues: \d+ of \d+ trials", printed(cell))
    after = recorded(folder)
    assert len(after) > len(before)
    assert before.items() <= after.items()
    assert not re.search(r"^trial +\d+ @ \d+", printed(cell), re.MULTILINE)
    assert "Best: trial" in shown(cell, "text/html")[-1]
    for cell in notebook.cells:
        if ".fit(" in cell.source:
            (view,) = views(cell)  # one output, updated in place
            assert " running " not in view.partition("best:")[2]
            assert re.search(r"best: val_acc 0\.\d+", view)
    for source, name in (
        ('result.plot("curves")', "best: trial"), ('evolved.plot("family")', ""), ('expected.plot("model")', "")
    ):  # fmt: skip
        cell = next(cell for cell in notebook.cells if cell.source == source)
        (figure,) = shown(cell, "application/vnd.plotly.v1+json")
        assert any(str(trace.get("name", "")).startswith(name) for trace in figure["data"])
    assert (tmp_path / "digits.html").stat().st_size > 1e6


def _interrupt_after(client, folder, count):
    """Wait for values of jobs; without them the test fails by its assertions."""
    end = time.monotonic() + 1200
    while time.monotonic() < end:
        with suppress(Exception):  # the run is not there yet, or its last line is not whole
            if len(recorded(folder)) >= count:
                break
        time.sleep(0.02)
    os.kill(client.km.provisioner.pid, signal.SIGINT)
