"""The live view in a notebook: one output of the cell that is updated in place, with IPython's display handles."""

import contextvars
import io
import threading
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from rich.console import Console as Terminal

from lightning_hpo.reporting.console import in_notebook
from lightning_hpo.reporting.live import LiveView, block, redraw
from lightning_hpo.reporting.view import View

_WIDTH, _HEIGHT = 110, 40
_STYLE = "font-family:Menlo,Consolas,'DejaVu Sans Mono',monospace;line-height:1.3;white-space:pre;overflow-x:auto"


class NotebookView:
    """Shows a search in the output of a cell, and updates it while the block runs; no widgets are needed.

    The last state stays in the notebook.
    """

    def __init__(self, view: Callable[[], View]) -> None:
        self._view = view
        self._over = threading.Event()
        # Messages of a thread belong to a cell by the context that the cell runs in.
        run = contextvars.copy_context().run
        self._thread = threading.Thread(
            target=run, args=(redraw, self._over, self._update), name="lightning_hpo notebook view", daemon=True
        )

    def __enter__(self) -> Self:
        from IPython.display import display  # noqa: PLC0415  # only a notebook has it

        self._handle: Any = display(shown_in_notebook(self._view()), raw=True, display_id=True)  # type: ignore[no-untyped-call]  # IPython types it not
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._show(replace(self._view(), left=None))  # nothing is at work any more

    def _update(self) -> None:
        self._show(self._view())

    def _show(self, view: View) -> None:
        self._handle.update(shown_in_notebook(view), raw=True)


def live_view(view: Callable[[], View]) -> LiveView | NotebookView:
    """Return what shows a search while a block runs, in a notebook or a terminal."""
    return NotebookView(view) if in_notebook() else LiveView(view)


def shown_in_notebook(view: View) -> dict[str, str]:
    """Draw a view as MIME types of a notebook's output: HTML, and text where that is not shown."""
    drawn = Terminal(file=io.StringIO(), record=True, width=_WIDTH, force_jupyter=False, color_system="truecolor")
    drawn.print(block(view, _HEIGHT, _WIDTH))
    page = drawn.export_html(
        inline_styles=True, clear=False, code_format=f'<pre style="{_STYLE}">{{code}}</pre>'
    )  # fmt: skip
    return {"text/html": page, "text/plain": drawn.export_text()}
