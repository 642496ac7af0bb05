"""Who may import whom (docs/architecture.md): each room only from rooms below it, and no circle anywhere."""

import ast
from pathlib import Path

import lightning_hpo

PACKAGE = Path(lightning_hpo.__file__).parent
FLOORS = [
    {"text", "atomic", "interrupts", "quiet"},
    {"errors"},
    {"records", "space"},
    {"checkpoints", "lr_schedules", "samplers"},
    {"schedulers"},
    {"study"},
    {"lineage", "training", "reporting"},
    {"callbacks", "executors"},
    {"tuners", "testing"},
    {"cli", "__main__"},
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def imports():
    """Module -> modules of the package that it imports anywhere, inside functions and under TYPE_CHECKING too."""
    modules = {
        ".".join(file.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): file
        for file in PACKAGE.rglob("*.py")
    }
    del modules["__init__"]  # the public names, each in its room
    for name, file in modules.items():
        nodes = [node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)]
        for node in nodes:
            source = (node.module or "").removeprefix("lightning_hpo").lstrip(".")
            if (node.module or "").partition(".")[0] == "lightning_hpo":
                for alias in node.names:
                    target = f"{source}.{alias.name}".lstrip(".")
                    yield name, target if target in modules else source


def test_every_import_goes_down():
    wrong = {
        (source, target)
        for source, target in imports()
        if source.partition(".")[0] != target.partition(".")[0]
        and FLOOR[source.partition(".")[0]] <= FLOOR[target.partition(".")[0]]
    }
    assert not wrong
