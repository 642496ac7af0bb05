"""States that cannot be written or read back: named before or when it happens, with place and remedy."""

import os
import re
import sys
import threading

import pytest

from lightning_hpo import (
    checkpoints,
)
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import UnreadableStateError
from tests.support.small import Data, Net
from tests.training.test_checkpoints import Colour, Holder, Settings, hyperband


class Local:
    """Can be written, but not read back."""

    def __init__(self, value):
        self.value = value

    def __reduce__(self):
        return Local, ()

    def __deepcopy__(self, memo):
        return self


@pytest.mark.parametrize(
    ("state", "place"),
    [
        ({"hyper_parameters": {"lr": 0.1, "criterion": lambda x: x}}, "hyper_parameters['criterion']"),
        ({"hyper_parameters": {"lr": 0.1, "lock": threading.Lock()}}, "hyper_parameters['lock']"),
        ({"hyper_parameters": {"nested": [{"a": Local(3)}]}}, "hyper_parameters['nested'][0]['a']"),
        ({"callbacks": {"Notes": {"file": (n for n in "a")}}}, "callbacks['Notes']['file']"),
        ({"extra": Local(1)}, "extra"),
    ],
)
def test_what_cannot_be_read_back_is_named_with_place_and_remedy(state, place, tmp_path):
    state = {"state_dict": Net().state_dict(), "epoch": 0, **state}
    with pytest.raises(UnreadableStateError, match=re.escape(f"it cannot hold {place}: ")) as caught:
        checkpoints.require_readable(state, Key.new())
    wanted = "save_hyperparameters(ignore=['" if "hyper" in place else "state_dict() and on_save_checkpoint()"
    assert wanted in str(caught.value)


def test_without_a_key_objects_are_found_to_be_unreadable():
    wanted = r"hyper_parameters\['thing'\]: UnpicklingError: Unsupported global: GLOBAL \S+Colour\. .*have its key"
    with pytest.raises(UnreadableStateError, match=wanted):
        checkpoints.require_readable({"hyper_parameters": {"thing": Colour.RED}, "state_dict": Net().state_dict()})
    checkpoints.require_readable({"hyper_parameters": {"thing": 1}, "state_dict": Net().state_dict()})


def test_a_state_that_cannot_be_written_says_where(tmp_path):
    with pytest.raises(UnreadableStateError, match=r"hyper_parameters\['f'\]"):
        checkpoints.save({"hyper_parameters": {"f": lambda: 0}}, tmp_path / "x.ckpt", Key.new())
    assert os.listdir(tmp_path) == []


def test_the_check_before_training_finds_what_cannot_be_read_back(tmp_path):
    started = []

    def build(lr):
        started.append(lr)
        return Holder(lr, Local(3))

    with pytest.raises(UnreadableStateError, match=r"hyper_parameters\['thing'\].*save_hyperparameters\(ignore="):
        hyperband(tmp_path).fit(build, datamodule=Data)
    assert not started  # the check builds in a process of its own
    assert not (tmp_path / "r").exists()


def test_objects_of_code_that_is_gone_are_named(tmp_path, monkeypatch):
    path, key = tmp_path / "last.ckpt", Key.new()
    checkpoints.save({"hyper_parameters": {"thing": Settings(1)}}, path, key)
    monkeypatch.delattr(sys.modules[Settings.__module__], "Settings")
    with pytest.raises(checkpoints.DamagedCheckpointError, match=r"is whole, but its objects cannot.*'Settings'"):
        checkpoints.load(path, key=key)
