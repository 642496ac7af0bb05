"""An extension of griffe, for the site: what Sphinx and MkDocs call by different names in docstrings."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data|exc):`~?(?:lightning_hpo\.(?:\w+\.)*)?([^`]*)`")


class Docstrings(griffe.Extension):
    """Makes roles plain code, and an example a section whose code is shown as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object."""
        if obj.docstring is not None:
            text = _ROLE.sub(r"`\1`", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", text)
