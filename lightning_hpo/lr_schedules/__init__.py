"""Learning-rate schedules in closed form: exact on resume, horizon in optimizer steps, a class per shape."""

from lightning_hpo.lr_schedules.closed_form import ClosedFormLR
from lightning_hpo.lr_schedules.replay import ReplayLR
from lightning_hpo.lr_schedules.shapes import (
    LR_SCHEDULES,
    CosineLR,
    CosineRestartsLR,
    InverseSqrtLR,
    LinearDecayLR,
    StepDecayLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
    make_lr_schedule,
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
