"""``kill -9`` at random moments: nothing lost, nothing twice, at most one checkpoint's steps again."""

import dataclasses

import pytest

from tests.faults.campaign import campaign
from tests.faults.searches import HYPERBAND, OPTUNA, RANDOM

NO_DAMAGE = {"lost": 0, "duplicated": 0, "stuck": 0, "torn": 0, "left_over": 0, "unequal": 0}


@pytest.mark.filterwarnings("ignore:Attribute 'loss' is an instance of `nn.Module`")
@pytest.mark.parametrize(
    ("search", "kills"), [(RANDOM, 20), (HYPERBAND, 12), (OPTUNA, 12)], ids=["random", "hyperband", "optuna"]
)
def test_a_killed_study_equals_the_uninterrupted_one(tmp_path, search, kills):
    damage = campaign(search, tmp_path, kills=kills)
    assert dataclasses.asdict(damage).items() >= NO_DAMAGE.items()
    assert damage.most_repeated <= search.every
    assert damage.repeated <= search.every * kills


def test_four_processes_share_a_study_and_are_killed(tmp_path):
    damage = campaign(HYPERBAND, tmp_path, kills=12, compare=False, processes=4, shared=True)
    assert dataclasses.asdict(damage).items() >= NO_DAMAGE.items()
    assert damage.most_repeated <= HYPERBAND.every
    assert damage.trials == damage.studies * HYPERBAND.planned
