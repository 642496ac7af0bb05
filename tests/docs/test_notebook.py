"""The example notebook in a real kernel: run, interrupted, gone on with."""

import os
import re
import signal
import threading
import time
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the notebook is run by nbclient")
nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient")

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


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


def test_both_tuners_an_interrupt_and_a_continuation(notebook, tmp_path):
    """The kernel is interrupted once some trials have ended; the same cell again goes on behind them."""
    client = nbclient.NotebookClient(
        notebook, timeout=300, allow_errors=True, resources={"metadata": {"path": str(EXAMPLES)}}
    )
    search = next(index for index, cell in enumerate(notebook.cells) if "HyperbandTuner(SPACE" in cell.source)
    with client.setup_kernel():
        for index, cell in enumerate(notebook.cells[:search]):
            client.execute_cell(cell, index)
        cell = notebook.cells[search]
        stop = threading.Thread(target=_interrupt_after, args=(client, cell, 4))
        stop.start()
        client.execute_cell(cell, search)
        stop.join()
        first = printed(cell)
        (error,) = (output for output in cell.outputs if output["output_type"] == "error")
        assert error["ename"] == "StudyPaused"
        before = set(re.findall(r"^trial +(\d+ @ \d+)", first, re.MULTILINE))
        assert len(before) >= 4
        for index, cell in enumerate(notebook.cells[search:], start=search):
            client.execute_cell(cell, index)
    errors = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if output["output_type"] == "error"
    ]
    assert errors == []
    cell = notebook.cells[search]
    assert re.search(r"continues: \d+ of \d+ trials", printed(cell))
    after = set(re.findall(r"^trial +(\d+ @ \d+)", printed(cell), re.MULTILINE))
    assert after
    assert not before & after
    (summary,) = shown(cell, "text/html")
    assert "Best: trial" in summary
    curves = next(cell for cell in notebook.cells if cell.source == 'result.plot("curves")')
    (figure,) = shown(curves, "application/vnd.plotly.v1+json")
    assert any(trace["name"].startswith("best: trial") for trace in figure["data"])
    model = next(cell for cell in notebook.cells if cell.source == 'expected.plot("model")')
    assert shown(model, "application/vnd.plotly.v1+json")
    assert (tmp_path / "digits.html").stat().st_size > 1e6


def _interrupt_after(client, cell, count):
    end = time.monotonic() + 120
    while time.monotonic() < end and printed(cell).count("\ntrial ") < count:
        time.sleep(0.05)
    os.kill(client.km.provisioner.pid, signal.SIGINT)
