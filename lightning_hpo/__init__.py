"""Hyperparameter optimisation for PyTorch Lightning.

Names are imported when they are first used, so that a part which needs little (``lightning_hpo.schedulers`` needs the
standard library only) does not load torch and Lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hpo.bayesian_tuner import BayesianTuner
    from lightning_hpo.callbacks import LRSchedule
    from lightning_hpo.callbacks.population import PopulationBasedTraining
    from lightning_hpo.callbacks.trial_report import TrialReport
    from lightning_hpo.cli import HPOCLI
    from lightning_hpo.hyperband_tuner import ASHATuner, HyperbandTuner
    from lightning_hpo.lineage import ReplayLR, replay
    from lightning_hpo.lr_schedules import (
        ClosedFormLR,
        CosineLR,
        CosineRestartsLR,
        InverseSqrtLR,
        LinearDecayLR,
        StepDecayLR,
        WarmupCosineLR,
        WarmupStableDecayLR,
        make_lr_schedule,
    )
    from lightning_hpo.objective import Objective
    from lightning_hpo.optuna_door import OptunaTuner, create_optuna_study
    from lightning_hpo.plots import plot_lr_schedule
    from lightning_hpo.population_tuner import PopulationTuner
    from lightning_hpo.results import Result
    from lightning_hpo.samplers import GaussianProcessSampler, KernelDensitySampler
    from lightning_hpo.schedulers import (
        ASHA,
        AsyncHyperband,
        FullBudget,
        Hyperband,
        Job,
        MedianStopping,
        Scheduler,
        SuccessiveHalving,
    )
    from lightning_hpo.trials import Row
    from lightning_hpo.tuners import RandomTuner, Tuner

__version__ = "0.1.0"

_HOMES = {
    "ASHA": "schedulers",
    "ASHATuner": "hyperband_tuner",
    "AsyncHyperband": "schedulers",
    "BayesianTuner": "bayesian_tuner",
    "ClosedFormLR": "lr_schedules",
    "CosineLR": "lr_schedules",
    "CosineRestartsLR": "lr_schedules",
    "FullBudget": "schedulers",
    "GaussianProcessSampler": "samplers",
    "HPOCLI": "cli",
    "Hyperband": "schedulers",
    "HyperbandTuner": "hyperband_tuner",
    "InverseSqrtLR": "lr_schedules",
    "Job": "schedulers",
    "KernelDensitySampler": "samplers",
    "LRSchedule": "callbacks",
    "LinearDecayLR": "lr_schedules",
    "MedianStopping": "schedulers",
    "Objective": "objective",
    "OptunaTuner": "optuna_door",
    "PopulationBasedTraining": "callbacks.population",
    "PopulationTuner": "population_tuner",
    "RandomTuner": "tuners",
    "ReplayLR": "lineage",
    "Result": "results",
    "Row": "trials",
    "Scheduler": "schedulers",
    "StepDecayLR": "lr_schedules",
    "SuccessiveHalving": "schedulers",
    "TrialReport": "callbacks.trial_report",
    "Tuner": "tuners",
    "WarmupCosineLR": "lr_schedules",
    "WarmupStableDecayLR": "lr_schedules",
    "create_optuna_study": "optuna_door",
    "make_lr_schedule": "lr_schedules",
    "plot_lr_schedule": "plots",
    "replay": "lineage",
}

__all__ = [
    "ASHA",
    "HPOCLI",
    "ASHATuner",
    "AsyncHyperband",
    "BayesianTuner",
    "ClosedFormLR",
    "CosineLR",
    "CosineRestartsLR",
    "FullBudget",
    "GaussianProcessSampler",
    "Hyperband",
    "HyperbandTuner",
    "InverseSqrtLR",
    "Job",
    "KernelDensitySampler",
    "LRSchedule",
    "LinearDecayLR",
    "MedianStopping",
    "Objective",
    "OptunaTuner",
    "PopulationBasedTraining",
    "PopulationTuner",
    "RandomTuner",
    "ReplayLR",
    "Result",
    "Row",
    "Scheduler",
    "StepDecayLR",
    "SuccessiveHalving",
    "TrialReport",
    "Tuner",
    "WarmupCosineLR",
    "WarmupStableDecayLR",
    "create_optuna_study",
    "make_lr_schedule",
    "plot_lr_schedule",
    "replay",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
