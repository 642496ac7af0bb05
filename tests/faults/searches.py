"""The searches that are killed."""

from lightning_hpo import HyperbandTuner, RandomTuner
from tests.faults.campaign import SPACE, Search

RANDOM = Search(RandomTuner, {"max_steps": 240, "n_trials": 16}, planned=16, every=25, spacing=200)
HYPERBAND = Search(HyperbandTuner, {"max_steps": 54, "min_steps": 2}, planned=0, every=5, spacing=60)
HYPERBAND.planned = sum(bracket.trials for bracket in HyperbandTuner(SPACE, **HYPERBAND.arguments).plan())
