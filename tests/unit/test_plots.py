"""Pictures of LR schedules."""

import sys

import pytest
import torch

from lightning_hpo.lr_schedules import CosineLR, LinearDecayLR
from lightning_hpo.reporting.lr_plot import plot_lr_schedule


def sgd():
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


@pytest.fixture
def matplotlib():
    module = pytest.importorskip("matplotlib")
    module.use("Agg")
    return module


def test_draws_the_used_learning_rates(matplotlib):
    schedule = CosineLR(sgd(), 50)
    axes = plot_lr_schedule(schedule)
    assert list(axes.lines[0].get_ydata()) == schedule.simulate(51)
    assert schedule.last_epoch == 0


def test_compares_on_one_axes(matplotlib):
    axes = plot_lr_schedule(CosineLR(sgd(), 50))
    assert plot_lr_schedule(LinearDecayLR(sgd(), 50), 30, label="straight", ax=axes) is axes
    assert [line.get_label() for line in axes.lines] == ["CosineLR", "straight"]
    assert len(axes.lines[1].get_ydata()) == 30


def test_without_a_length_it_says_so(matplotlib):
    with pytest.raises(ValueError, match="steps"):
        plot_lr_schedule(CosineLR(sgd()))


def test_missing_matplotlib_names_the_install_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'lightning-hpo-suite\[plot\]'"):
        plot_lr_schedule(CosineLR(sgd(), 10))
