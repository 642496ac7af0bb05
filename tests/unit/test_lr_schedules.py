"""LR schedules against 40-digit numbers, against other libraries, and against their own contract."""

import importlib.util
import math
import sys
import types
from itertools import pairwise
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_hpo.lr_schedules import (
    ClosedFormLR,
    CosineLR,
    CosineRestartsLR,
    InverseSqrtLR,
    LinearDecayLR,
    StepDecayLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
    make_lr_schedule,
)
from lightning_hpo.testing import LRScheduleTestCase

torch.set_num_threads(1)


def sgd(*lrs):
    return LRScheduleTestCase.optimizer(*lrs)


def near(value):
    return pytest.approx(value, rel=1e-12, abs=1e-15 if value == 0 else 0)


class TestCosine(LRScheduleTestCase):
    schedule_class = CosineLR


class TestWarmupCosine(LRScheduleTestCase):
    schedule_class = WarmupCosineLR


class TestLinearDecay(LRScheduleTestCase):
    schedule_class = LinearDecayLR


class TestWarmupStableDecay(LRScheduleTestCase):
    schedule_class = WarmupStableDecayLR


class TestWarmupStableDecayInSteps(LRScheduleTestCase):
    schedule_class = WarmupStableDecayLR
    arguments: ClassVar = {"decay": 30, "form": "1-square"}


class TestStepDecay(LRScheduleTestCase):
    schedule_class = StepDecayLR


class TestStepDecayInSteps(LRScheduleTestCase):
    schedule_class = StepDecayLR
    arguments: ClassVar = {"decay_steps": 7, "decay_rate": 0.5}


class TestInverseSqrt(LRScheduleTestCase):
    schedule_class = InverseSqrtLR


class TestCosineRestarts(LRScheduleTestCase):
    schedule_class = CosineRestartsLR


class TestCosineRestartsGrowing(LRScheduleTestCase):
    schedule_class = CosineRestartsLR
    arguments: ClassVar = {"cycle_steps": 13, "mult": 2, "decay": 0.5}


class OwnLR(ClosedFormLR):
    """A schedule as a user would write it."""

    def factor(self, step):
        return max(0.0, 1.0 - step / self.span) ** 2 if step < self.span else 0.0


class TestOwnSchedule(LRScheduleTestCase):
    schedule_class = OwnLR


WARMUP_COSINE = {0: 0, 1: 1e-5, 50: 5e-4, 99: 9.9e-4, 100: 1e-3, 101: 9.999969538288952e-4, 325: 8.535533905932737e-4}
WARMUP_COSINE |= {550: 5e-4, 775: 1.4644660940672623e-4, 999: 3.046171104809261e-9}


@pytest.mark.parametrize(("step", "lr"), WARMUP_COSINE.items())
def test_warmup_cosine(step, lr):
    assert WarmupCosineLR(sgd(1e-3), 1000, warmup=100).lr_at(step) == near(lr)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (101, 9.999972584460456e-4),
        (325, 8.681980515339464e-4),
        (550, 5.5e-4),
        (775, 2.3180194846605362e-4),
        (999, 1.0000274155399433e-4),
    ],
)
def test_warmup_cosine_with_minimum(step, lr):
    assert WarmupCosineLR(sgd(1e-3), 1000, warmup=100, min_lr=1e-4).lr_at(step) == near(lr)


@pytest.mark.parametrize("step", [1000, 1001, 5000])
def test_after_the_end_it_is_exactly_the_minimum(step):
    assert WarmupCosineLR(sgd(1e-3), 1000, warmup=100).lr_at(step) == 0.0
    assert WarmupCosineLR(sgd(1e-3), 1000, warmup=100, min_lr=1e-4).lr_at(step) == 1e-4
    assert CosineLR(sgd(0.1), 1000, min_lr=0.001).lr_at(step) == 0.001
    assert LinearDecayLR(sgd(1e-3), 1000, warmup=100).lr_at(step) == 0.0


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.1),
        (1, 0.09999975572749198),
        (250, 0.0855017856687341),
        (500, 0.0505),
        (750, 0.015498214331265898),
        (999, 0.0010002442725080209),
    ],
)
def test_cosine(step, lr):
    assert CosineLR(sgd(0.1), 1000, min_lr=0.001).lr_at(step) == near(lr)


@pytest.mark.parametrize(
    ("step", "lr"),
    [(0, 0.1), (29, 0.1), (30, 0.05), (59, 0.05), (60, 0.025), (89, 0.025), (90, 0.0125), (299, 1.953125e-4)],
)
def test_step_decay_is_exact(step, lr):
    assert StepDecayLR(sgd(0.1), decay_rate=0.5, decay_steps=30).lr_at(step) == lr


@pytest.mark.parametrize(
    ("form", "at_900", "at_999"),
    [
        ("linear", 5e-4, 5e-6),
        ("1-sqrt", 2.9289321881345245e-4, 2.5031328369998334e-6),
        ("cosine", 5e-4, 6.168375916970068e-8),
        ("1-square", 7.5e-4, 9.975e-6),
    ],
)
def test_cooldown_forms(form, at_900, at_999):
    schedule = WarmupStableDecayLR(sgd(1e-3), 1000, warmup=100, decay=200, form=form)
    for step, lr in {50: 5e-4, 100: 1e-3, 800: 1e-3, 900: at_900, 999: at_999, 1000: 0, 1001: 0, 5000: 0}.items():
        assert schedule.lr_at(step) == near(lr)


@pytest.mark.parametrize(("step", "lr"), [(100, 1e-3), (101, 9.95037190209989e-4), (400, 5e-4), (10000, 1e-4)])
def test_inverse_sqrt(step, lr):
    assert InverseSqrtLR(sgd(1e-3), 1000, warmup=100).lr_at(step) == near(lr)


@pytest.mark.parametrize(("step", "lr"), [(550, 5e-4), (999, 1.111111111111111e-6), (1000, 0), (2000, 0)])
def test_linear_decay(step, lr):
    assert LinearDecayLR(sgd(1e-3), 1000, warmup=100).lr_at(step) == near(lr)


@pytest.mark.parametrize(
    ("step", "lr"),
    [
        (0, 0.1),
        (50, 0.05),
        (99, 2.467198171342215e-5),
        (100, 0.05),
        (200, 0.025),
        (299, 3.084187958485034e-6),
        (300, 0.025),
        (500, 0.0125),
        (700, 0.0125),
    ],
)
def test_cosine_restarts(step, lr):
    assert CosineRestartsLR(sgd(0.1), cycle_steps=100, mult=2, decay=0.5).lr_at(step) == near(lr)


FORMULAS = {
    "cosine": lambda t: 0.001 + 0.5 * (0.1 - 0.001) * (1 + math.cos(math.pi * min(t, 300) / 300)),
    "linear_warmup_cosine": lambda t: (
        0.01 + (0.1 - 0.01) * t / 30
        if t < 30
        else 0.001 + 0.5 * (0.1 - 0.001) * (1 + math.cos(math.pi * min((t - 30) / 270, 1)))
    ),
    "step": lambda t: 0.1 * 0.5 ** (t // 30),
}
ARGUMENTS = {
    "cosine": {"max_lr": 0.1, "min_lr": 0.001, "max_steps": 300},
    "linear_warmup_cosine": {
        "max_lr": 0.1,
        "min_lr": 0.001,
        "max_steps": 300,
        "warmup_steps": 30,
        "initial_lr": 0.01,
    },
    "step": {"max_lr": 0.1, "decay_rate": 0.5, "decay_steps": 30},
}


@pytest.mark.parametrize("name", FORMULAS)
def test_by_name_equals_the_textbook_formula_at_every_step(name):
    schedule = make_lr_schedule(name, sgd(0.7), **ARGUMENTS[name])
    used = [lr for (lr,) in LRScheduleTestCase.train(schedule, 400)]
    assert used == pytest.approx([FORMULAS[name](step) for step in range(400)], rel=0, abs=1e-15)


def test_first_lr_by_name_is_in_force_at_once():
    optimizer = sgd(0.7)
    make_lr_schedule("linear_warmup_cosine", optimizer, max_lr=0.1, max_steps=300, warmup_steps=30)
    assert optimizer.param_groups[0]["lr"] == 0.0
    make_lr_schedule("cosine", optimizer, max_lr=0.1, max_steps=300)
    assert optimizer.param_groups[0]["lr"] == 0.1


TOTAL, WARMUP, BASE = 10_000, 500, 3e-4


def lambda_curve(scheduler):
    (lambda_,) = scheduler.lr_lambdas
    return [BASE * lambda_(step) for step in range(TOTAL + 1)]


def largest_difference(schedule, theirs):
    ours = schedule.simulate(TOTAL + 1)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / BASE


def test_equals_transformers():
    peer = pytest.importorskip("transformers.optimization")
    cosine = peer.get_cosine_schedule_with_warmup(sgd(BASE), WARMUP, TOTAL)
    assert largest_difference(WarmupCosineLR(sgd(BASE), TOTAL, warmup=WARMUP), lambda_curve(cosine)) <= 1e-12
    floor = peer.get_cosine_with_min_lr_schedule_with_warmup(sgd(BASE), WARMUP, TOTAL, min_lr_rate=0.1)
    ours = WarmupCosineLR(sgd(BASE), TOTAL, warmup=WARMUP, min_lr=3e-5)
    assert largest_difference(ours, lambda_curve(floor)) <= 1e-12
    wsd = peer.get_wsd_schedule(sgd(BASE), WARMUP, 2000, num_training_steps=TOTAL, decay_type="1-sqrt")
    stable = WarmupStableDecayLR(sgd(BASE), TOTAL, warmup=WARMUP, decay=2000)
    assert largest_difference(stable, lambda_curve(wsd)) <= 1e-12
    linear = peer.get_linear_schedule_with_warmup(sgd(BASE), WARMUP, TOTAL)
    assert largest_difference(LinearDecayLR(sgd(BASE), TOTAL, warmup=WARMUP), lambda_curve(linear)) <= 1e-12
    root = peer.get_inverse_sqrt_schedule(sgd(BASE), WARMUP)
    assert largest_difference(InverseSqrtLR(sgd(BASE), TOTAL, warmup=WARMUP), lambda_curve(root)) <= 1e-12


@pytest.fixture
def timm_scheduler(monkeypatch):
    """timm.scheduler without timm's own __init__, which needs torchvision."""
    spec = importlib.util.find_spec("timm")
    if spec is None:
        pytest.skip("timm is not installed")
    parent = types.ModuleType("timm")
    parent.__path__ = list(spec.submodule_search_locations)
    monkeypatch.setitem(sys.modules, "timm", parent)
    return importlib.import_module("timm.scheduler")


def timm_curve(scheduler):
    return [scheduler._get_lr(step)[0] for step in range(TOTAL + 1)]


def test_equals_timm(timm_scheduler):
    common = {"warmup_t": WARMUP, "warmup_prefix": True}
    cosine = timm_scheduler.CosineLRScheduler(sgd(BASE), t_initial=TOTAL - WARMUP, **common)
    assert largest_difference(WarmupCosineLR(sgd(BASE), TOTAL, warmup=WARMUP), timm_curve(cosine)) <= 1e-12
    cosine = timm_scheduler.CosineLRScheduler(sgd(BASE), t_initial=TOTAL - WARMUP, lr_min=3e-5, **common)
    ours = WarmupCosineLR(sgd(BASE), TOTAL, warmup=WARMUP, min_lr=3e-5)
    assert largest_difference(ours, timm_curve(cosine)) <= 1e-12
    wsd = timm_scheduler.WSDLRScheduler(sgd(BASE), t_initial=TOTAL - WARMUP, decay_t=2000, warmup_t=WARMUP)
    stable = WarmupStableDecayLR(sgd(BASE), TOTAL, warmup=WARMUP, decay=2000)
    assert largest_difference(stable, timm_curve(wsd)) <= 1e-12


@settings(deadline=None, max_examples=200)
@given(
    schedule_class=st.sampled_from([CosineLR, LinearDecayLR, WarmupStableDecayLR, StepDecayLR, InverseSqrtLR]),
    total=st.integers(1, 3000),
    warmup=st.floats(0, 0.5),
    minimum=st.sampled_from([{}, {"min_lr": 1e-4}, {"min_lr_ratio": 0.3}]),
)
def test_never_rises_after_the_warmup(schedule_class, total, warmup, minimum):
    schedule = schedule_class(sgd(0.1), total, warmup=warmup, **minimum)
    lrs = schedule.simulate(2 * total + 2)[schedule.warmup_steps :]
    assert all(later <= lr * (1 + 4e-16) for lr, later in pairwise(lrs))
    assert min(lrs) >= 0
