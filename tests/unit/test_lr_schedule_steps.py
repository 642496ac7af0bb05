"""LR schedules in use: arguments, horizon, base learning rate, state, and what torch does with them."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler

from lightning_hpo.lr_schedules import (
    LR_SCHEDULES,
    CosineLR,
    CosineRestartsLR,
    InverseSqrtLR,
    StepDecayLR,
    WarmupCosineLR,
    WarmupStableDecayLR,
    make_lr_schedule,
)
from lightning_hpo.testing import LRScheduleTestCase
from tests.unit.test_lr_schedules import near, sgd


def test_warmup_as_long_as_training():
    schedule = WarmupCosineLR(sgd(0.1), 20, warmup=20)
    used = [lr for (lr,) in LRScheduleTestCase.train(schedule, 25)]
    assert used[19] == near(0.095)
    assert used[20:] == [0.0] * 5


def test_no_warmup_starts_at_the_base_lr():
    assert WarmupCosineLR(sgd(0.1), 20, warmup=0).lr_at(0) == 0.1


def test_absolute_minimum_is_the_same_for_all_groups():
    schedule = WarmupCosineLR(sgd(1e-3, 1e-4), 1000, warmup=100, min_lr=1e-5)
    assert schedule.lr_at(1000, group=0) == schedule.lr_at(1000, group=1) == 1e-5


def test_a_fraction_is_rounded_to_the_nearest_step():
    steps = [WarmupCosineLR(sgd(0.1), 100, warmup=warmup).warmup_steps for warmup in (0.29, 0.284, 0.001)]
    assert steps == [29, 28, 0]  # 0.29 * 100 is 28.999999999999996


def test_whole_floats_above_one_are_steps():
    assert WarmupCosineLR(sgd(0.1), 10_000, warmup=1e3).warmup_steps == 1000
    assert not InverseSqrtLR(sgd(0.1), warmup=1e3).needs_max_steps


def test_minimum_given_twice():
    with pytest.raises(ValueError, match="not both"):
        CosineLR(sgd(0.1), 10, min_lr=0.01, min_lr_ratio=0.1)


def test_warmup_and_cooldown_must_fit():
    with pytest.raises(ValueError, match=r"50 \+ 60 > 100"):
        WarmupStableDecayLR(sgd(0.1), 100, warmup=50, decay=60)


@pytest.mark.parametrize(
    ("schedule_class", "arguments"),
    [
        (StepDecayLR, {"decay_rate": 1.5}),
        (StepDecayLR, {"decay_steps": 0}),
        (StepDecayLR, {"decay_steps": 0.0}),
        (WarmupStableDecayLR, {"decay": 0}),
        (CosineRestartsLR, {"mult": 0}),
        (CosineRestartsLR, {"cycle_steps": -3}),
        (InverseSqrtLR, {"timescale": 0}),
    ],
)
def test_bad_shape_arguments_name_the_value(schedule_class, arguments):
    ((name, value),) = arguments.items()
    with pytest.raises(ValueError, match=f"{name}.*{value}"):
        schedule_class(sgd(0.1), 100, **arguments)


def test_unknown_form_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'sqrt-1'.*'1-sqrt'"):
        WarmupStableDecayLR(sgd(0.1), 100, form="sqrt-1")


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match=r"'cosin'.*Did you mean 'cosine'\?"):
        make_lr_schedule("cosin", sgd(0.1))


def test_unknown_argument_suggests_the_nearest():
    with pytest.raises(TypeError, match=r"'decay_rat'.*Did you mean 'decay_rate'\?"):
        make_lr_schedule("step", sgd(0.1), decay_rat=0.5)


@pytest.mark.parametrize("name", LR_SCHEDULES)
def test_every_name_makes_a_torch_scheduler(name):
    assert isinstance(make_lr_schedule(name, sgd(0.1), max_steps=100), LRScheduler)


def test_resumed_with_a_longer_horizon_is_on_the_new_curve_at_once():
    short, longer = (WarmupCosineLR(sgd(0.1), total, warmup=10) for total in (100, 200))
    expected = longer.simulate(250)
    LRScheduleTestCase.train(short, 37)
    longer.optimizer.load_state_dict(short.optimizer.state_dict())
    longer.load_state_dict(short.state_dict())
    used = dict(enumerate((lr for (lr,) in LRScheduleTestCase.train(longer, 213)), start=37))
    assert list(used.values()) == expected[37:]
    for step, lr in {38: 0.094736, 100: 0.054129, 199: 6.835e-6, 200: 0.0}.items():
        assert used[step] == pytest.approx(lr, rel=1e-4)


def test_refused_extension_changes_nothing():
    schedule = WarmupCosineLR(sgd(0.1), 100, warmup=50)
    before = schedule.simulate(200)
    with pytest.raises(ValueError, match="50 > 20"):
        schedule.extend(20)
    assert schedule.max_steps == 100
    assert schedule.simulate(200) == before


def test_trunk_of_warmup_stable_decay_does_not_depend_on_the_horizon():
    short, longer = (WarmupStableDecayLR(sgd(0.1), total, warmup=10, decay=20) for total in (100, 300))
    assert short.simulate(81) == longer.simulate(81)


def test_halved_base_lr():
    schedule = CosineLR(sgd(0.1), 100)
    LRScheduleTestCase.train(schedule, 50)
    schedule.set_base_lr(0.05)
    LRScheduleTestCase.train(schedule, 1)
    assert schedule.get_last_lr()[0] == near(0.0242147310230468)


def test_base_lr_scaled_from_outside_lasts():
    """Population-based training scales the values that torch's schedulers keep: lr, initial_lr and base_lrs."""
    schedule = CosineLR(sgd(0.1), 100)
    full = schedule.simulate()
    LRScheduleTestCase.train(schedule, 50)
    for group in schedule.optimizer.param_groups:
        group["lr"] *= 2
        group["initial_lr"] *= 2
    schedule.base_lrs = [2 * lr for lr in schedule.base_lrs]
    resumed = CosineLR(sgd(0.1), 100)
    resumed.optimizer.load_state_dict(schedule.optimizer.state_dict())
    resumed.load_state_dict(schedule.state_dict())
    used = [lr for (lr,) in LRScheduleTestCase.train(resumed, 50)]
    assert used == pytest.approx([2 * lr for lr in full[50:]], rel=1e-15)


def test_base_lr_below_the_minimum_is_refused():
    schedule = CosineLR(sgd(0.1), 100, min_lr=0.01)
    with pytest.raises(ValueError, match=r"0\.01 > 0\.001"):
        schedule.set_base_lr(0.001)
    with pytest.raises(ValueError, match="2 values for 1 parameter group"):
        schedule.set_base_lr([0.1, 0.1])
    assert schedule.base_lrs == [0.1]


def test_tensor_lr_in_single_precision_stays_close():
    lr = torch.tensor(0.1)
    address = lr.data_ptr()
    total = 100_000
    schedule = CosineLR(sgd(lr), total)
    expected = CosineLR(sgd(0.1), total)
    worst = 0.0
    schedule.optimizer.step()
    for step in range(total):
        worst = max(worst, abs(lr.item() - expected.lr_at(step)))
        schedule.step()
    assert worst <= 1e-8
    assert schedule.optimizer.param_groups[0]["lr"].data_ptr() == address


def test_compiled_optimizer_step_is_one_graph():
    from torch._dynamo.testing import CompileCounter

    lr = torch.tensor(0.1)
    optimizer = LRScheduleTestCase.optimizer(lr, momentum=0.0)
    optimizer.param_groups[0]["params"][0].grad = torch.ones(2)
    schedule = WarmupCosineLR(optimizer, 100, warmup=10)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter)
    for _ in range(15):
        step()
        schedule.step()
    assert counter.frame_count == 1
    assert lr.item() == pytest.approx(schedule.lr_at(15), rel=1e-6)


def test_state_of_another_scheduler_gives_the_step():
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(0.3), 100)
    for _ in range(37):
        theirs.optimizer.step()
        theirs.step()
    ours = CosineLR(sgd(0.1), 100)
    ours.load_state_dict(theirs.state_dict())
    assert ours.get_last_lr() == [ours.lr_at(37)]


def test_state_without_a_step_is_refused():
    with pytest.raises(ValueError, match="last_epoch"):
        CosineLR(sgd(0.1), 100).load_state_dict({"step": 3})


def test_unbound_step_says_what_to_do():
    schedule = WarmupCosineLR(sgd(0.1))
    for action in (schedule.optimizer.step, schedule.step):
        with pytest.raises(RuntimeError, match=r"WarmupCosineLR.*LRSchedule\(\).*max_steps"):
            action()
    schedule.bind(10)
    schedule.optimizer.step()
    schedule.step()
    assert not schedule.optimizer._optimizer_step_pre_hooks  # nothing is left that costs time in a step


def test_wrong_order_of_calls_is_warned_about_as_in_torch():
    schedule = CosineLR(sgd(0.1), 100)
    with pytest.warns(UserWarning, match="before `optimizer.step"):
        schedule.step()


@pytest.mark.filterwarnings("ignore:The epoch parameter")
def test_deprecated_jump_works():
    schedule = CosineLR(sgd(0.1), 100)
    LRScheduleTestCase.train(schedule, 5)
    schedule.step(50)
    assert schedule.get_last_lr() == [schedule.lr_at(50)]


def test_minimum_cuts_off_a_staircase():
    schedule = StepDecayLR(sgd(0.1, 0.02), decay_rate=0.5, decay_steps=10, min_lr=0.015)
    used = LRScheduleTestCase.train(schedule, 50)
    assert [used[step] for step in (0, 10, 20, 30, 40)] == [
        [0.1, 0.02],
        [0.05, 0.015],
        [0.025, 0.015],
        [0.015, 0.015],
        [0.015, 0.015],
    ]


@pytest.mark.parametrize("schedule_class", [InverseSqrtLR, StepDecayLR, CosineRestartsLR])
def test_curve_without_end_in_steps_needs_no_horizon(schedule_class):
    lengths = {StepDecayLR: {"decay_steps": 30}, CosineRestartsLR: {"cycle_steps": 30}}.get(schedule_class, {})
    schedule = schedule_class(sgd(0.1), warmup=10, **lengths)
    assert not schedule.needs_max_steps
    LRScheduleTestCase.train(schedule, 100)


def test_copies_and_pickles():
    schedule = WarmupStableDecayLR(sgd(0.1), 100)
    LRScheduleTestCase.train(schedule, 30)
    for twin in (copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule.state_dict()))):
        state = twin if isinstance(twin, dict) else twin.state_dict()
        assert state == {"last_epoch": 30}


def test_not_an_optimizer():
    with pytest.raises(TypeError, match="optimizer"):
        CosineLR([0.1], 100)


def test_needs_torch_alone():
    code = "import sys, lightning_hpo.lr_schedules; print(sorted({'lightning', 'optuna'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


@pytest.mark.parametrize("schedule_class", LR_SCHEDULES.values())
def test_the_command_line_offers_the_arguments_of_the_base_class_too(schedule_class):
    jsonargparse = pytest.importorskip("jsonargparse")
    parser = jsonargparse.ArgumentParser()
    parser.add_class_arguments(schedule_class, "lr", skip={"optimizer"})
    given = parser.parse_args(["--lr.warmup", "0.2", "--lr.min_lr_ratio", "0.1", "--lr.initial_lr", "0.01"]).lr
    schedule = schedule_class(sgd(0.1), **given.clone(with_meta=False).as_dict())
    schedule.bind(100)
    assert schedule.lr_at(0) == 0.01
    assert schedule.lr_at(20) == 0.1
    assert schedule.lr_at(10_000) >= 0.01 * (1 - 1e-12)
