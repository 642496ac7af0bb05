"""Tuners: a scheduler, a proposer and an executor in one loop."""

from typing import Any

import lightning_hpo

_NAMES = ("ASHATuner", "BayesianTuner", "HyperbandTuner", "OptunaTuner", "PopulationTuner", "RandomTuner", "Tuner")


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(lightning_hpo, name)
