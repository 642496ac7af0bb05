"""The package, its pages and its tests use the words of docs/glossary.md."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
REPLACED = re.compile(
    r"\b(legs?|grafts?|grafted|occasions?|standings?|seats?|stretch|stretches|askers?|claims?|claimed|surroundings|conduct|"
    r"let_go|refuse_\w+|for one in)\b",
    re.IGNORECASE,
)
PAGES = [
    *ROOT.glob("lightning_hpo/**/*.py"),
    *ROOT.glob("docs/**/*.md"),
    ROOT / "README.md",
    *(page for folder in ("examples", "benchmarks", "tests") for page in ROOT.glob(f"{folder}/**/*.py")),
]
OWN = {"glossary.md", "test_words.py"}


@pytest.mark.parametrize("page", [page for page in PAGES if page.name not in OWN], ids=lambda page: page.name)
def test_no_replaced_word(page):
    lines = enumerate(page.read_text(encoding="utf-8").splitlines(), 1)
    assert [(number, found[0]) for number, line in lines for found in REPLACED.finditer(line)] == []


def test_every_page_is_in_the_navigation():
    listed = re.findall(r": ([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    pages = [str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")]
    assert sorted(listed) == sorted(pages), "each page has one line in `nav` of mkdocs.yml"
