"""Learning-rate schedules in closed form: exact on resume, horizon in optimizer steps, one class per shape."""

from lightning_hpo.lr_schedules.closed_form import ClosedFormLR
from lightning_hpo.lr_schedules.names import LR_SCHEDULES, make_lr_schedule
from lightning_hpo.lr_schedules.replay import ReplayLR
from lightning_hpo.lr_schedules.shapes import (
    CosineLR,
    CosineRestartsLR,
    InverseSqrtLR,
    LinearDecayLR,
    StepDecayLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
)

__all__ = [
    "LR_SCHEDULES",
    "ClosedFormLR",
    "CosineLR",
    "CosineRestartsLR",
    "InverseSqrtLR",
    "LinearDecayLR",
    "ReplayLR",
    "StepDecayLR",
    "WarmupCosineLR",
    "WarmupStableDecayLR",
    "make_lr_schedule",
]
