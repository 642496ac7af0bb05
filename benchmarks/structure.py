"""Figures of the package's structure, beside what they may be: ``python benchmarks/structure.py``.

An import counts wherever it stands: inside a function and under ``TYPE_CHECKING`` too. ``lightning_hpo/__init__.py``
names everything and is nobody's import; every other ``__init__`` is a module of its own.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent / "lightning_hpo"
FLOORS = (
    {"_moved", "text", "atomic", "quiet"},
    {"errors"},
    {"records", "space", "interrupts"},
    {"checkpoints", "lr_schedules", "samplers"},
    {"schedulers"},
    {"study"},
    {"lineage", "training", "reporting"},
    {"callbacks", "executors"},
    {"tuners", "testing"},
    {"cli"},
    {"__main__"},
)
"""Rooms, lowest floor first: a room imports from lower floors only."""
_CHANGES = {
    "add", "append", "appendleft", "clear", "difference_update", "discard", "extend", "insert", "pop", "popitem",
    "popleft", "remove", "setdefault", "update",
}  # fmt: skip
_LOCKS = {"Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"}
PROCESS_WIDE = {
    "samplers.gaussian_process._alone": "the number of threads of BLAS belongs to the process",
    "training.random_state._TRAINS": "so do the global random numbers, which a trial draws from",
}
"""Locks that stand at the level of a file, with the reason."""


@dataclass(frozen=True)
class Structure:
    """The modules of a package and what they import from each other.

    Args:
        package: its folder.
    """

    package: Path

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Dotted name below the package -> syntax tree."""
        return {self._name(file): ast.parse(file.read_text(encoding="utf-8")) for file in self.package.rglob("*.py")}

    @cached_property
    def lines(self) -> dict[str, int]:
        """Dotted name -> lines of the file."""
        return {self._name(file): file.read_text(encoding="utf-8").count("\n") for file in self.package.rglob("*.py")}

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Dotted name -> names of the modules that it imports."""
        return {name: set(self._targets(tree)) - {name, ""} for name, tree in self.trees.items()}

    def in_root(self) -> list[str]:
        """Modules that stand in the package's root."""
        rooms = {name.partition(".")[0] for name in self.trees if "." in name}
        return sorted(
            name for name in self.trees if "." not in name and name not in rooms and not name.startswith("__")
        )

    def longest_chain(self) -> list[str]:
        """Modules on the longest way of imports from the package down."""
        known: dict[str, list[str]] = {}

        def chain(name: str, above: tuple[str, ...]) -> list[str]:
            if name not in known:
                below = (chain(target, (*above, name)) for target in self.imports[name] if target not in above)
                known[name] = [name, *max(below, key=len, default=[])]
            return known[name]

        return ["__init__", *max((chain(name, ()) for name in self.imports if name != "__init__"), key=len)]

    def circles(self) -> list[str]:
        """Modules that import themselves through others."""
        return [name for name in self.imports if name in self._reached(name)]

    def upward(self) -> list[tuple[str, str]]:
        """Imports of a room that is not on a lower floor."""
        floor = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
        return sorted(
            (source, target)
            for source, targets in self.imports.items()
            for target in targets
            if source != "__init__"
            and (room := source.partition(".")[0]) != (below := target.partition(".")[0])
            and floor[room] <= floor[below]
        )

    def classes(self) -> dict[str, int]:
        """Class -> its lines."""
        return {
            f"{name}.{node.name}": (node.end_lineno or 0) - node.lineno + 1
            for name, node in self._nodes(ast.ClassDef)
        }  # fmt: skip

    def signatures(self) -> dict[str, int]:
        """Function -> its arguments, without ``self`` and variable ones."""
        return {
            f"{name}.{node.name}": sum(
                argument.arg not in ("self", "cls")
                for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
            )
            for name, node in self._nodes(ast.FunctionDef)
        }

    def changing_names(self) -> list[str]:
        """Names at the level of a file that its code changes, locks among them, and calls made when it is imported."""
        found = []
        for name, tree in self.trees.items():
            own = {
                target.id: node.value
                for node in tree.body
                if isinstance(node, ast.Assign | ast.AnnAssign)
                for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
                if isinstance(target, ast.Name)
            }
            changed = {word for node in ast.walk(tree) for word in _changed_by(node)}
            changed |= {word for word, value in own.items() if _is_lock(value)}
            found += [f"{name}.{word}" for word in own if word in changed]
            found += [f"{name}: {ast.unparse(node)}" for node in tree.body if _is_call(node)]
        return sorted(found)

    def _nodes(self, kind: type[ast.AST]) -> Iterator[tuple[str, ast.AST]]:
        return ((name, node) for name, tree in self.trees.items() for node in ast.walk(tree) if isinstance(node, kind))

    def _name(self, file: Path) -> str:
        name = ".".join(file.relative_to(self.package).with_suffix("").parts)
        return name.removesuffix(".__init__")

    def _targets(self, tree: ast.Module) -> Iterator[str]:
        prefix = f"{self.package.name}."
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                yield from (alias.name.removeprefix(prefix) for alias in node.names if alias.name.startswith(prefix))
            elif isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith(prefix):
                source = f"{node.module}.".removeprefix(prefix)
                for alias in node.names:
                    target = source + alias.name
                    yield target if target in self.trees else source.rstrip(".")

    def _reached(self, name: str) -> set[str]:
        reached: set[str] = set()
        waiting = list(self.imports[name])
        while waiting:
            target = waiting.pop()
            if target not in reached:
                reached.add(target)
                waiting += self.imports[target]
        return reached


def _changed_by(node: ast.AST) -> Iterator[str]:
    """Names that a piece of code changes in place, or declares ``global``."""
    if isinstance(node, ast.Global):
        yield from node.names
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in _CHANGES:
        if isinstance(node.func.value, ast.Name):
            yield node.func.value.id
    elif isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load) and isinstance(node.value, ast.Name):
        yield node.value.id


def _is_lock(value: ast.AST | None) -> bool:
    return isinstance(value, ast.Call) and ast.unparse(value.func).rpartition(".")[2] in _LOCKS


def _is_call(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)


def figures(structure: Structure) -> list[tuple[str, int, int | None, str]]:
    """Return name, figure, the most that it may be, and where it is found."""

    def largest(sizes: dict[str, int]) -> tuple[int, str]:
        where = max(sizes, key=sizes.__getitem__)
        return sizes[where], where

    chain, module = structure.longest_chain(), largest(structure.lines)
    biggest, widest = largest(structure.classes()), largest(structure.signatures())
    changing = sorted({*structure.changing_names()} - {*PROCESS_WIDE})
    return [
        ("modules in the root", len(structure.in_root()), 8, ", ".join(structure.in_root())),
        ("longest chain of imports", len(chain), 12, " > ".join(chain)),
        ("modules in circles", len(structure.circles()), 0, ", ".join(structure.circles())),
        ("imports that go up", len(structure.upward()), 0, ", ".join(map(str, structure.upward()))),
        ("names of files that change", len(changing), 0, ", ".join(changing)),
        ("lines of the package", sum(structure.lines.values()), None, "the aim is 12,000"),
        ("lines of the largest module", module[0], 400, module[1]),
        ("lines of the largest class", biggest[0], 250, biggest[1]),
        ("arguments of the widest signature", widest[0], 14, widest[1]),
        ("modules", len(structure.trees), None, ""),
    ]


if __name__ == "__main__":
    for name, figure, most, where in figures(Structure(PACKAGE)):
        print(f"{name:<35} {figure:>7,} {'' if most is None else f'at most {most:,}':<16} {where}")
