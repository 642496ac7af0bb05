"""The code of the site runs, with small budgets."""

import functools
import re
import runpy
import sys
import textwrap
from pathlib import Path

import lightning as L
import optuna
import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from optuna.pruners import MedianPruner
from optuna.samplers import TPESampler
from torch import nn

import lightning_hpo
from tests.docs import mine
from tests.support.small import digits

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python([^\n]*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
SMALLER = [
    (r"max_steps=[\d_]+", "max_steps=12"),
    (r"n_trials=\d+", "n_trials=6"),
    (r"max_epochs=\d+", "max_epochs=2"),
    (r"interval=\d+", "interval=2"),
    (r"folds=\d", "folds=2"),
    (r"population_size=\d+", "population_size=4"),
    (r"total_steps=[\d_]+", "total_steps=24"),
    (r"max_steps=12, min_steps=\d+", "max_steps=12, min_steps=3"),
]
# What the pages take for granted beside the names of this package.
GIVEN = {
    "L": L, "Callback": Callback, "Trainer": Trainer, "ModelCheckpoint": ModelCheckpoint,
    "CSVLogger": CSVLogger, "optuna": optuna,
    "MedianPruner": MedianPruner, "TPESampler": TPESampler, "torch": torch, "nn": nn,
    "LitModel": mine.LitModel, "LitData": mine.LitData, "MyCLI": mine.MyCLI, "data": mine.LitData(),
    "dataset": digits()[0], "model": mine.LitModel(), "objective_fn": mine.objective_fn,
}  # fmt: skip


def with_code(page):
    return BLOCK.search(page.read_text()) is not None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("page", [*filter(with_code, PAGES)], ids=lambda page: page.name)
def test_the_code_of_a_page_runs(page, tmp_path, monkeypatch):
    """Its blocks one after the other, as a reader pastes them; each search begins in a run folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(Path(mine.__file__).parent)  # `from mine import LitModel`
    monkeypatch.setattr(sys, "argv", ["train.py"])
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    space = {"lr": "loguniform(1e-4, 1e-1)", "weight_decay": "loguniform(1e-5, 1e-1)"}
    tuner = lightning_hpo.RandomTuner(space, monitor="val_loss", max_steps=2, n_trials=10, name="given")
    names = {
        **{name: getattr(lightning_hpo, name) for name in lightning_hpo.__all__},
        **GIVEN,
        "space": space,
        "optimizer": optimizer,
        "schedule": lightning_hpo.CosineLR(optimizer, max_steps=10),
        "tuner": tuner,
        "study": optuna.create_study(),
    }
    for number, (title, text) in enumerate(BLOCK.findall(page.read_text())):
        code = functools.reduce(lambda code, pair: re.sub(pair[0], pair[1], code), SMALLER, text)
        if "tensorboard" in code:
            pytest.importorskip("tensorboard")
        file = tmp_path / str(number) / "page.py"
        file.parent.mkdir()
        file.write_text(textwrap.dedent(code))
        if re.search(r"Tuner\(|callbacks=\[pbt\]", code):
            monkeypatch.chdir(file.parent)
        names |= runpy.run_path(str(file), names, run_name="__main__" if "title=" in title else "page")
