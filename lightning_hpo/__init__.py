"""Hyperparameter optimisation for PyTorch Lightning."""

from lightning_hpo.objective import Objective
from lightning_hpo.results import Result
from lightning_hpo.schedulers import FullBudget, Hyperband, Job, Scheduler, SuccessiveHalving
from lightning_hpo.trials import Row
from lightning_hpo.tuners import HyperbandTuner, RandomTuner, Tuner

__version__ = "0.1.0"

__all__ = [
    "FullBudget",
    "Hyperband",
    "HyperbandTuner",
    "Job",
    "Objective",
    "RandomTuner",
    "Result",
    "Row",
    "Scheduler",
    "SuccessiveHalving",
    "Tuner",
]
