"""The way from a tuner's ``fit`` to ``Trainer.fit`` is short: a traceback of a user's module shows it."""

import sys
import threading
from pathlib import Path

import pytest
import torch

import lightning_hpo
from lightning_hpo import ASHATuner, BayesianTuner, HyperbandTuner, OptunaTuner, PopulationTuner, RandomTuner
from tests.support.small import Data, Net
from tests.training.test_tuners import CPU

OURS = str(Path(lightning_hpo.__file__).parent)
MOST = 6


def frames_above(frame):
    """Names of our functions that called a Trainer's ``fit``, outermost first, in the frame's thread."""
    names = []
    while frame is not None:
        if frame.f_code.co_name == "fit" and frame.f_code.co_filename.endswith("trainer/trainer.py"):
            names = []
        elif frame.f_code.co_filename.startswith(OURS):
            names.append(frame.f_code.co_qualname)
        frame = frame.f_back
    return names[::-1]


class Looks(Net):
    seen = []

    def on_fit_start(self):
        if self.trainer.max_steps > 1:  # not the check of one batch
            Looks.seen.append(frames_above(sys._getframe()))
            main = sys._current_frames()[threading.main_thread().ident]
            if threading.current_thread() is not threading.main_thread():
                Looks.seen[-1] = [*frames_above(main), *Looks.seen[-1]]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


@pytest.mark.parametrize(
    ("tuner", "options"),
    [
        (RandomTuner, {"n_trials": 1}),
        (HyperbandTuner, {"min_steps": 3, "total_steps": 6}),
        (ASHATuner, {"min_steps": 3, "n_trials": 3}),
        (BayesianTuner, {"n_trials": 1}),
        (OptunaTuner, {"n_trials": 1}),
        (PopulationTuner, {"population_size": 2, "interval": 3}),
    ],
)
def test_at_most_six_frames_of_ours(tmp_path, tuner, options):
    Looks.seen = []
    made = tuner({"lr": "loguniform(1e-3, 1)"}, monitor="val_loss", max_steps=6, root=tmp_path, trainer=CPU,
                 verbose=False, **options)  # fmt: skip
    made.fit(Looks, datamodule=Data)
    assert Looks.seen
    assert max(map(len, Looks.seen)) <= MOST, max(Looks.seen, key=len)
