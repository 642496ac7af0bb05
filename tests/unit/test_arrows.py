"""Who may import whom (docs/architecture.md): each room only from rooms below it, and no circle anywhere."""

import pytest

from benchmarks.structure import PACKAGE, Structure, figures

STRUCTURE = Structure(PACKAGE)


def test_every_import_goes_down():
    assert STRUCTURE.upward() == []


@pytest.mark.parametrize("limit", figures(STRUCTURE), ids=lambda limit: limit[0])
def test_the_package_keeps_its_size(limit):
    name, figure, most, where = limit
    assert most is None or figure <= most, f"{name}: {where}"
