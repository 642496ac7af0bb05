"""Who may import whom (docs/architecture.md): each room only from rooms below it, and no circle anywhere."""

import pytest

from benchmarks.structure import PACKAGE, Structure, figures

STRUCTURE = Structure(PACKAGE)


def test_every_import_goes_down():
    assert STRUCTURE.upward() == []


@pytest.mark.parametrize("limit", [limit for limit in figures(STRUCTURE) if limit[2] is not None], ids=lambda it: it[0])
def test_the_package_keeps_its_size(limit):
    name, figure, most, where = limit
    assert figure <= most, f"{name}: {where}"
