"""A hook of MkDocs: roles of Sphinx in docstrings (``:class:`~lightning_hpo.Tuner```) become plain code."""

import re
from typing import Any

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):<code>~?(?:lightning_hpo\.(?:\w+\.)*)?([^<]*)</code>")


def on_page_content(html: str, **_: Any) -> str:
    """Drop the name of the role and the path of the module."""
    return _ROLE.sub(r"<code>\1</code>", html)
