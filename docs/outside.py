"""A hook of MkDocs: a link to a notebook leads to its page; one to another file outside ``docs`` becomes its text."""

import re
from pathlib import PurePosixPath
from typing import Any

_NOTEBOOK = re.compile(r"\(\.\./examples/notebooks/(\w+)\.ipynb\)")
_LINK = re.compile(r"\[([^\]]+)\]\(((?:\.\./)+)[^)]*\)")


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Change the links of a page that lead further up than its own folder is deep."""
    depth = len(PurePosixPath(page.file.src_uri).parents) - 1
    inside = _NOTEBOOK.sub(r"(notebooks/\1.md)", markdown)
    return _LINK.sub(lambda link: link[1] if link[2].count("../") > depth else link[0], inside)
