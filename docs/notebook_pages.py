"""A hook of MkDocs: each notebook in ``examples/notebooks`` becomes a page of the site, with its outputs."""

import html
import json
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

_NOTEBOOKS = Path(__file__).resolve().parents[1] / "examples" / "notebooks"


def on_files(files: Files, *, config: Any) -> Files:
    """Add the pages."""
    for path in sorted(_NOTEBOOKS.glob("*.ipynb")):
        files.append(File.generated(config, f"notebooks/{path.stem}.md", content=page_of(path)))
    return files


def page_of(path: Path) -> str:
    """Return a notebook as Markdown.

    Args:
        path: of the notebook.
    """
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```py\n{source}\n```")
        parts += [_shown(output) for output in cell.get("outputs", ())]
    return "\n\n".join(parts)


def _shown(output: dict[str, Any]) -> str:
    data = output.get("data", {})
    if "image/png" in data:
        return f'<img alt="Figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    if "text/html" in data:
        return "".join(data["text/html"])
    text = html.escape("".join(output.get("text", data.get("text/plain", ""))))
    return f"<pre><code>{text}</code></pre>"
