"""Hyperparameter optimisation for PyTorch Lightning.

Names are imported when they are first used, so that a part which needs little (``lightning_hpo.schedulers`` needs the
standard library only) does not load torch and Lightning.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from lightning_hpo._moved import MovedModules

if TYPE_CHECKING:
    from lightning_hpo.callbacks import (
        LRSchedule,
        PopulationBasedTraining,
        PopulationReplay,
        TrialReport,
        TrialValidation,
    )
    from lightning_hpo.cli.hpo_cli import HPOCLI
    from lightning_hpo.errors import (
        DamagedCheckpointError,
        DivergedError,
        JobError,
        LightningHPOError,
        ParameterMismatchError,
        RankLostError,
        SearchFailedError,
        StorageError,
        StudyInUseError,
        StudyMismatchError,
        StudyPaused,
        UnreadableStateError,
        WorkerStartError,
    )
    from lightning_hpo.executors.ray import RayExecutor
    from lightning_hpo.executors.submitit_executor import SubmititExecutor
    from lightning_hpo.lr_schedules import (
        ClosedFormLR,
        CosineLR,
        CosineRestartsLR,
        InverseSqrtLR,
        LinearDecayLR,
        ReplayLR,
        StepDecayLR,
        WarmupCosineLR,
        WarmupStableDecayLR,
        make_lr_schedule,
    )
    from lightning_hpo.records import Job, Row
    from lightning_hpo.reporting.lr_plot import plot_lr_schedule
    from lightning_hpo.reporting.result import Result
    from lightning_hpo.samplers import GaussianProcessSampler, KernelDensitySampler, MultiFidelitySampler
    from lightning_hpo.schedulers import (
        ASHA,
        AsyncHyperband,
        FullBudget,
        Hyperband,
        MedianStopping,
        Scheduler,
        SuccessiveHalving,
    )
    from lightning_hpo.space import choice, parse_space, when
    from lightning_hpo.study.lineage import replay
    from lightning_hpo.training.folds import KFold
    from lightning_hpo.training.objective import Objective, ObjectiveOptions
    from lightning_hpo.tuners.base import Tuner
    from lightning_hpo.tuners.optuna import OptunaTuner, create_optuna_study
    from lightning_hpo.tuners.population import PopulationTuner
    from lightning_hpo.tuners.presets import ASHATuner, BayesianTuner, HyperbandTuner, RandomTuner

__version__ = "0.2.0"

_NAMES = {
    "callbacks": "LRSchedule PopulationBasedTraining PopulationReplay TrialReport TrialValidation",
    "cli.hpo_cli": "HPOCLI",
    "errors": (
        "DamagedCheckpointError DivergedError JobError LightningHPOError ParameterMismatchError RankLostError "
        "SearchFailedError StorageError StudyInUseError StudyMismatchError StudyPaused UnreadableStateError "
        "WorkerStartError"
    ),
    "executors.ray": "RayExecutor",
    "executors.submitit_executor": "SubmititExecutor",
    "lr_schedules": (
        "ClosedFormLR CosineLR CosineRestartsLR InverseSqrtLR LinearDecayLR ReplayLR StepDecayLR "
        "WarmupCosineLR WarmupStableDecayLR make_lr_schedule"
    ),
    "records": "Job Row",
    "reporting.lr_plot": "plot_lr_schedule",
    "reporting.result": "Result",
    "samplers": "GaussianProcessSampler KernelDensitySampler MultiFidelitySampler",
    "space": "choice parse_space when",
    "schedulers": "ASHA AsyncHyperband FullBudget Hyperband MedianStopping Scheduler SuccessiveHalving",
    "study.lineage": "replay",
    "training.folds": "KFold",
    "training.objective": "Objective ObjectiveOptions",
    "tuners.base": "Tuner",
    "tuners.optuna": "OptunaTuner create_optuna_study",
    "tuners.population": "PopulationTuner",
    "tuners.presets": "ASHATuner BayesianTuner HyperbandTuner RandomTuner",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [  # noqa: RUF022  # in alphabetical order
    "ASHA", "ASHATuner", "AsyncHyperband", "BayesianTuner", "ClosedFormLR", "CosineLR", "CosineRestartsLR",
    "DamagedCheckpointError", "DivergedError", "FullBudget", "GaussianProcessSampler", "HPOCLI", "Hyperband",
    "HyperbandTuner", "InverseSqrtLR", "Job", "JobError", "KFold", "KernelDensitySampler", "LRSchedule",
    "LightningHPOError", "LinearDecayLR", "MedianStopping", "MultiFidelitySampler", "Objective", "ObjectiveOptions",
    "OptunaTuner", "ParameterMismatchError", "PopulationBasedTraining", "PopulationReplay", "PopulationTuner",
    "RandomTuner", "RankLostError", "RayExecutor", "ReplayLR", "Result", "Row", "Scheduler", "SearchFailedError",
    "StepDecayLR", "StorageError", "StudyInUseError", "StudyMismatchError", "StudyPaused", "SubmititExecutor",
    "SuccessiveHalving", "TrialReport", "TrialValidation", "Tuner", "UnreadableStateError", "WarmupCosineLR",
    "WarmupStableDecayLR", "WorkerStartError", "choice", "create_optuna_study", "make_lr_schedule", "parse_space",
    "plot_lr_schedule", "replay", "when",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())
