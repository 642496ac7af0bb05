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
        LRSchedule as LRSchedule,
    )
    from lightning_hpo.callbacks import (
        PopulationBasedTraining as PopulationBasedTraining,
    )
    from lightning_hpo.callbacks import (
        PopulationReplay as PopulationReplay,
    )
    from lightning_hpo.callbacks import (
        TrialReport as TrialReport,
    )
    from lightning_hpo.callbacks import (
        TrialValidation as TrialValidation,
    )
    from lightning_hpo.cli.hpo_cli import HPOCLI as HPOCLI
    from lightning_hpo.errors import (
        DamagedCheckpointError as DamagedCheckpointError,
    )
    from lightning_hpo.errors import (
        DivergedError as DivergedError,
    )
    from lightning_hpo.errors import (
        JobError as JobError,
    )
    from lightning_hpo.errors import (
        LightningHPOError as LightningHPOError,
    )
    from lightning_hpo.errors import (
        ParameterMismatchError as ParameterMismatchError,
    )
    from lightning_hpo.errors import (
        RankLostError as RankLostError,
    )
    from lightning_hpo.errors import (
        SearchFailedError as SearchFailedError,
    )
    from lightning_hpo.errors import (
        StorageError as StorageError,
    )
    from lightning_hpo.errors import (
        StudyInUseError as StudyInUseError,
    )
    from lightning_hpo.errors import (
        StudyMismatchError as StudyMismatchError,
    )
    from lightning_hpo.errors import (
        StudyPaused as StudyPaused,
    )
    from lightning_hpo.errors import (
        UnreadableStateError as UnreadableStateError,
    )
    from lightning_hpo.errors import (
        WorkerStartError as WorkerStartError,
    )
    from lightning_hpo.executors.ray import RayExecutor as RayExecutor
    from lightning_hpo.lr_schedules import (
        ClosedFormLR as ClosedFormLR,
    )
    from lightning_hpo.lr_schedules import (
        CosineLR as CosineLR,
    )
    from lightning_hpo.lr_schedules import (
        CosineRestartsLR as CosineRestartsLR,
    )
    from lightning_hpo.lr_schedules import (
        InverseSqrtLR as InverseSqrtLR,
    )
    from lightning_hpo.lr_schedules import (
        LinearDecayLR as LinearDecayLR,
    )
    from lightning_hpo.lr_schedules import (
        ReplayLR as ReplayLR,
    )
    from lightning_hpo.lr_schedules import (
        StepDecayLR as StepDecayLR,
    )
    from lightning_hpo.lr_schedules import (
        WarmupCosineLR as WarmupCosineLR,
    )
    from lightning_hpo.lr_schedules import (
        WarmupStableDecayLR as WarmupStableDecayLR,
    )
    from lightning_hpo.lr_schedules import (
        make_lr_schedule as make_lr_schedule,
    )
    from lightning_hpo.records import Job as Job
    from lightning_hpo.records import Row as Row
    from lightning_hpo.reporting.lr_plot import plot_lr_schedule as plot_lr_schedule
    from lightning_hpo.reporting.result import Result as Result
    from lightning_hpo.samplers import (
        GaussianProcessSampler as GaussianProcessSampler,
    )
    from lightning_hpo.samplers import (
        KernelDensitySampler as KernelDensitySampler,
    )
    from lightning_hpo.samplers import (
        MultiFidelitySampler as MultiFidelitySampler,
    )
    from lightning_hpo.schedulers import (
        ASHA as ASHA,
    )
    from lightning_hpo.schedulers import (
        AsyncHyperband as AsyncHyperband,
    )
    from lightning_hpo.schedulers import (
        FullBudget as FullBudget,
    )
    from lightning_hpo.schedulers import (
        Hyperband as Hyperband,
    )
    from lightning_hpo.schedulers import (
        MedianStopping as MedianStopping,
    )
    from lightning_hpo.schedulers import (
        Scheduler as Scheduler,
    )
    from lightning_hpo.schedulers import (
        SuccessiveHalving as SuccessiveHalving,
    )
    from lightning_hpo.space import (
        choice as choice,
    )
    from lightning_hpo.space import (
        parse_space as parse_space,
    )
    from lightning_hpo.space import (
        when as when,
    )
    from lightning_hpo.study.lineage import replay as replay
    from lightning_hpo.training.folds import KFold as KFold
    from lightning_hpo.training.objective import Objective as Objective
    from lightning_hpo.tuners.base import Tuner as Tuner
    from lightning_hpo.tuners.optuna import OptunaTuner as OptunaTuner
    from lightning_hpo.tuners.optuna import create_optuna_study as create_optuna_study
    from lightning_hpo.tuners.population import PopulationTuner as PopulationTuner
    from lightning_hpo.tuners.presets import ASHATuner as ASHATuner
    from lightning_hpo.tuners.presets import BayesianTuner as BayesianTuner
    from lightning_hpo.tuners.presets import HyperbandTuner as HyperbandTuner
    from lightning_hpo.tuners.presets import RandomTuner as RandomTuner

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
    "training.objective": "Objective",
    "tuners.base": "Tuner",
    "tuners.optuna": "OptunaTuner create_optuna_study",
    "tuners.population": "PopulationTuner",
    "tuners.presets": "ASHATuner BayesianTuner HyperbandTuner RandomTuner",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]  # noqa: PLE0604  # one list of public names


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
    sys.meta_path.append(MovedModules())
