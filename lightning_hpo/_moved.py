"""Import paths of earlier versions: an old module gives the names of the modules that took its place."""

import importlib
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "lightning_hpo"
_HOMES = {
    "acquisition": "samplers.acquisition",
    "best": "reporting.best records space",
    "code_identity": "study.code_identity",
    "console": "reporting.console records",
    "exits": "errors",
    "failures": "errors",
    "gp": "samplers.gp",
    "jobs": "records",
    "journal": "study.journal",
    "locks": "study.locks",
    "objective": "training.objective space",
    "options": "tuners.options tuners.limits schedulers.direction",
    "plots": "reporting.lr_plot",
    "population": "schedulers.population schedulers.explore schedulers.truncation",
    "population_tuner": "tuners.population",
    "printing": "text",
    "report": "reporting.report reporting.run reporting.run_view reporting.summary",
    "results": "reporting.result",
    "run_key": "checkpoints.key",
    "runs": "study.run_folder study.opening study.comparison errors",
    "search": "tuners.search tuners.options tuners.limits errors",
    "suggest": "samplers.adapter",
    "trials": "study.table study.rows records",
}
"""Old module -> where its names are now."""


class MovedModules(MetaPathFinder, Loader):
    """Finds the old modules; the new ones are imported when a name is asked for."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a spec for an old module; None for all others."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == PACKAGE and name in _HOMES else None

    def exec_module(self, module: ModuleType) -> None:
        """Let the module look its names up in the new ones."""
        homes = _HOMES[module.__name__.partition(".")[2]].split()

        def look_up(name: str) -> Any:
            if not name.startswith("__"):
                for home in homes:
                    found = importlib.import_module(f"{PACKAGE}.{home}")
                    if hasattr(found, name):
                        return getattr(found, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}; see {', '.join(homes)}")

        module.__getattr__ = look_up  # type: ignore[method-assign]  # PEP 562
