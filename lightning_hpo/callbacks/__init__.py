"""Callbacks for your own Trainer."""

from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.callbacks.population_replay import PopulationReplay
from lightning_hpo.callbacks.trial_validation import TrialValidation
from lightning_hpo.training.lr_schedule import LRSchedule
from lightning_hpo.training.trial_report import TrialReport

__all__ = ["LRSchedule", "PopulationBasedTraining", "PopulationReplay", "TrialReport", "TrialValidation"]
