"""Draw docs/live.svg, the live view of a search that runs: python docs/live_figure.py runs/digits.

Start the search beside it, such as ``python examples/digits.py``.
"""

import re
import sys
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lightning_hpo.reporting.live import block
from lightning_hpo.reporting.outside import view_of
from lightning_hpo.reporting.run_view import read_run

FORMAT = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg"><style>
.{unique_id}-matrix {{ font-family: Menlo, Consolas, monospace;
font-size: {char_height}px; line-height: {line_height}px; }}
.{unique_id}-title {{ font-size: 18px; font-family: arial; }}
{styles}
</style><defs><clipPath id="{unique_id}-clip-terminal"><rect x="0" y="0" width="{terminal_width}"
height="{terminal_height}"/></clipPath>{lines}</defs>{chrome}<g transform="translate({terminal_x}, {terminal_y})"
clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g></svg>
"""


def main(folder: str, least: int = 33) -> None:
    """Wait until so many trials have started and two have a curve, and draw the view."""
    while True:
        time.sleep(0.5)
        try:
            view = view_of(read_run(folder))
        except (OSError, ValueError):  # the search has not begun
            continue
        if len(view.rows) >= least:
            break
    title = view.plan.title.replace(f"{Path.cwd()}/", "")
    view = replace(view, plan=replace(view.plan, title=title))
    console = Console(record=True, width=120, highlight=False, markup=False, emoji=False)
    console.print(block(view, 22, 120))
    svg = console.export_svg(title="HyperbandTuner", code_format=FORMAT)
    Path(__file__).with_name("live.svg").write_text(re.sub(r"[ \t]+\n", "\n", svg))


if __name__ == "__main__":
    main(*sys.argv[1:])
