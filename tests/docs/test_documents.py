"""Examples in docstrings give what they say; code in the pages compiles, and imports what is there."""

import ast
import doctest
import importlib
import re
import textwrap
from pathlib import Path

import pytest

import lightning_hpo

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(lightning_hpo.__file__).parent
MODULES = sorted(
    ".".join(("lightning_hpo", *file.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for file in PACKAGE.rglob("*.py")
    if ">>> " in file.read_text()
)
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    pytest.param(textwrap.dedent(block), id=f"{page.name}-{number}")
    for page in PAGES
    for number, block in enumerate(re.findall(r"(?sm)^```py(?:thon[^\n]*)?\n(.*?)^```", page.read_text()))
]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples(module):
    failed, count = doctest.testmod(importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert count > 0
    assert failed == 0


@pytest.mark.parametrize("block", BLOCKS)
def test_code_of_the_pages(block):
    tree = ast.parse(block)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lightning_hpo"):
            home = importlib.import_module(node.module)
            assert all(hasattr(home, alias.name) for alias in node.names)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_the_pages_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


def test_the_version_is_the_same_everywhere():
    version = lightning_hpo.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"\n## [{version}] - " in (ROOT / "CHANGELOG.md").read_text()
