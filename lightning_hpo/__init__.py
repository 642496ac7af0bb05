"""Hyperparameter optimisation for PyTorch Lightning.

Names are imported when they are first used, so that a part which needs little (``lightning_hpo.schedulers`` needs the
standard library only) does not load torch and Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hpo.callbacks.trial_report import TrialReport
    from lightning_hpo.cli import HPOCLI
    from lightning_hpo.objective import Objective
    from lightning_hpo.optuna_door import OptunaTuner, create_optuna_study
    from lightning_hpo.results import Result
    from lightning_hpo.schedulers import FullBudget, Hyperband, Job, Scheduler, SuccessiveHalving
    from lightning_hpo.trials import Row
    from lightning_hpo.tuners import HyperbandTuner, RandomTuner, Tuner

__version__ = "0.1.0"

_HOMES = {
    "FullBudget": "schedulers",
    "HPOCLI": "cli",
    "Hyperband": "schedulers",
    "HyperbandTuner": "tuners",
    "Job": "schedulers",
    "Objective": "objective",
    "OptunaTuner": "optuna_door",
    "RandomTuner": "tuners",
    "Result": "results",
    "Row": "trials",
    "Scheduler": "schedulers",
    "SuccessiveHalving": "schedulers",
    "TrialReport": "callbacks.trial_report",
    "Tuner": "tuners",
    "create_optuna_study": "optuna_door",
}

__all__ = [
    "HPOCLI",
    "FullBudget",
    "Hyperband",
    "HyperbandTuner",
    "Job",
    "Objective",
    "OptunaTuner",
    "RandomTuner",
    "Result",
    "Row",
    "Scheduler",
    "SuccessiveHalving",
    "TrialReport",
    "Tuner",
    "create_optuna_study",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
