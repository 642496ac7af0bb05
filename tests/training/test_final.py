"""Presets compose a tuner; they override nothing."""

import pytest

import lightning_hpo
from lightning_hpo import Tuner

PRESETS = [getattr(lightning_hpo, name) for name in lightning_hpo.__all__ if name.endswith("Tuner") and name != "Tuner"]


@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_has_a_constructor_only(preset):
    assert preset.__bases__ == (Tuner,)
    assert {name for name in vars(preset) if name in vars(Tuner) and callable(getattr(Tuner, name))} == {"__init__"}
