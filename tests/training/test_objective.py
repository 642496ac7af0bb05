"""Jobs as real fits: exact continuation, the horizon, parameters that take effect, and errors before training."""

import functools
import math
import random
from dataclasses import dataclass, field

import lightning.pytorch as pl
import numpy as np
import optuna
import pytest
import torch
from torch import nn

from lightning_hpo import Job, Objective, WarmupCosineLR
from lightning_hpo.checkpoints import load, save
from lightning_hpo.errors import failure_text
from lightning_hpo.records import CHECKPOINT
from lightning_hpo.training.objective import Task
from tests.support.small import Data, Net, digits

CPU = {"accelerator": "cpu"}
SPACE = {"lr": "loguniform(1e-3, 1)"}
R = 60  # optimizer steps; an epoch has 25


def objective(model=Net, data=Data, space=SPACE, monitor="val_loss", max_steps=R, **trainer):
    return Objective(model, space, data=data, monitor=monitor, max_steps=max_steps, trainer={**CPU, **trainer})


def run(path, cuts, params=None, **options):
    """Train trial 0 to each cut in turn, with a new objective each time; return the last outcome and checkpoint."""
    outcome = None
    for step in cuts:
        task = Task(Job(step, trial=0), params or {"lr": 0.1}, path)
        outcome = objective(**options).run(task)
    return outcome, load(path / CHECKPOINT)


def same_weights(one, other):
    return all(torch.equal(one["state_dict"][name], other["state_dict"][name]) for name in one["state_dict"])


class Noisy(torch.utils.data.Dataset):
    """Draws from every global generator for each sample."""

    def __len__(self):
        return len(digits()[0])

    def __getitem__(self, index):
        image, label = digits()[0][index]
        return image + 0.1 * torch.randn(64) + 0.1 * float(np.random.rand()) + 0.1 * random.random(), label


class NoisyData(Data):
    def train_dataloader(self):
        loader = super().train_dataloader()
        return torch.utils.data.DataLoader(Noisy(), batch_size=16, shuffle=True, num_workers=loader.num_workers)


class TestTwoJobsEqualOneJob:
    CASES = {
        "shuffled": {},
        "own generator": {"data": functools.partial(Data, own_generator=True)},
        "random data": {"data": NoisyData},
        "accumulated": {"accumulate_grad_batches": 3},
        "validated often": {"val_check_interval": 5},
    }

    @pytest.mark.parametrize("case", CASES)
    def test_cut_anywhere(self, tmp_path, case):
        options = self.CASES[case]
        whole, checkpoint = run(tmp_path / "whole", [R], **options)
        for cut in (1, 7, 24, 25, 26, 40, 50, 59):
            outcome, other = run(tmp_path / str(cut), [cut, R], **options)
            assert same_weights(checkpoint, other), cut
            assert outcome == whole
            assert other["epoch"] == checkpoint["epoch"]

    def test_every_cut_in_a_row(self, tmp_path):
        whole, checkpoint = run(tmp_path / "whole", [R])
        run(tmp_path / "cut", range(1, R + 1, 3))
        outcome, other = run(tmp_path / "cut", [R])
        assert same_weights(checkpoint, other)
        assert outcome == whole

    @pytest.mark.parametrize("data", [Data, NoisyData])
    def test_with_loader_workers(self, tmp_path, data):
        options = {"data": functools.partial(data, num_workers=2), "max_steps": 40}
        _, checkpoint = run(tmp_path / "whole", [40], **options)
        _, other = run(tmp_path / "cut", [17, 40], **options)
        assert same_weights(checkpoint, other)

    def test_another_trial_has_other_random_numbers(self, tmp_path):
        one = objective().run(Task(Job(5, trial=0), {"lr": 0.1}, tmp_path / "0"))
        other = objective().run(Task(Job(5, trial=1), {"lr": 0.1}, tmp_path / "1"))
        assert one.score != other.score

    def test_the_callers_random_numbers_are_untouched(self, tmp_path):
        def drawn(before):
            torch.manual_seed(0)
            np.random.seed(0)
            random.seed(0)
            np.random.randn(), random.gauss(0, 1)  # each keeps the second of two numbers for the next call
            before()
            return float(torch.rand(1)), np.random.randn(), random.gauss(0, 1)

        job = functools.partial(objective().run, Task(Job(5, trial=0), {"lr": 0.1}, tmp_path))
        assert drawn(job) == drawn(lambda: None)

    def test_a_pause_saves_where_it_is(self, tmp_path):
        whole, checkpoint = run(tmp_path / "whole", [R])
        calls = iter(range(1000))
        outcome = objective().run(Task(Job(R, trial=0), {"lr": 0.1}, tmp_path / "cut"), lambda: next(calls) == 12)
        assert (outcome.score, outcome.step) == (None, 13)
        again, other = run(tmp_path / "cut", [R])
        assert again == whole
        assert same_weights(checkpoint, other)

    def test_killed_after_the_last_save_and_before_the_value_was_recorded(self, tmp_path):
        first, _ = run(tmp_path, [20])
        again, checkpoint = run(tmp_path, [20])
        assert again == first
        assert checkpoint["global_step"] == 20
        first, _ = run(tmp_path, [R])
        assert run(tmp_path, [R])[0] == first

    def test_a_damaged_checkpoint_costs_the_steps_since_the_one_before(self, tmp_path, caplog):
        whole, checkpoint = run(tmp_path / "whole", [R])
        run(tmp_path / "cut", [10, 20])
        last = tmp_path / "cut" / CHECKPOINT
        last.write_bytes(last.read_bytes()[:-3])
        again, other = run(tmp_path / "cut", [R])
        assert again == whole
        assert same_weights(checkpoint, other)
        assert "is damaged" in caplog.text


class Hooks(pl.Callback):
    def __init__(self, calls):
        self.calls = calls

    def __deepcopy__(self, memo):
        return Hooks(self.calls)

    def on_validation_end(self, trainer, pl_module):
        self.calls.append(("validation", trainer.global_step))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.calls.append(("lr", trainer.optimizers[0].param_groups[0]["lr"]))

    def on_train_end(self, trainer, pl_module):
        self.calls.append("train end")

    def on_fit_end(self, trainer, pl_module):
        self.calls.append("fit end")


class TestJob:
    @pytest.mark.parametrize("step", [1, 8, 25, 30, R])
    def test_validates_exactly_at_its_last_step_once_and_ends_normally(self, tmp_path, step):
        calls = []
        outcome, checkpoint = run(tmp_path, [step], callbacks=[Hooks(calls)], check_val_every_n_epoch=None)
        validations = [call[1] for call in calls if call[0] == "validation"]
        assert validations[-1] == step
        assert validations.count(step) == 1
        assert calls[-2:] == ["train end", "fit end"]
        assert checkpoint["global_step"] == outcome.step == step

    def test_accumulation_counts_optimizer_steps(self, tmp_path):
        outcome, checkpoint = run(tmp_path, [8], accumulate_grad_batches=4)
        assert outcome.step == checkpoint["global_step"] == 8

    def test_the_horizon_is_the_full_budget_in_every_rung(self, tmp_path):
        whole, parts = [], []
        run(tmp_path / "whole", [R], callbacks=[Hooks(whole)])
        run(tmp_path / "parts", [7, 20, R], callbacks=[Hooks(parts)])
        rates = [[call[1] for call in calls if call[0] == "lr"] for calls in (whole, parts)]
        assert rates[0] == rates[1]
        assert len(rates[0]) == R

    def test_metrics_are_kept_once_per_step(self, tmp_path):
        run(tmp_path, [10, 20], log_every_n_steps=1)
        lines = (tmp_path / "metrics.csv").read_text().splitlines()
        assert lines[0] == "step,metric,value"
        steps = [int(line.split(",")[0]) for line in lines if ",train_loss," in line]
        assert steps == list(range(20))

    def test_checkpoint_opens_in_plain_lightning(self, tmp_path):
        _, checkpoint = run(tmp_path, [10], {"lr": 0.25})
        model = Net.load_from_checkpoint(tmp_path / CHECKPOINT)
        assert model.hparams.lr == 0.25
        assert torch.equal(model.state_dict()["net.0.weight"], checkpoint["state_dict"]["net.0.weight"])

    def test_works_as_an_optuna_objective(self):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
        study.optimize(
            objective(space={**SPACE, "hidden": "logint(4, 8)", "data.batch_size": "choice(16, 32)"}, max_steps=5), 2
        )
        assert [trial.state.name for trial in study.trials] == ["COMPLETE", "COMPLETE"]
        assert set(study.best_params) == {"lr", "hidden", "data.batch_size"}


def one_parameter(schedule):
    class OneParameter(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
            return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule(optimizer), "interval": "step"}}

    return OneParameter


class TestParametersTakeEffect:
    """A fork continues its parent's checkpoint with other parameters; Lightning alone trains on with the old ones."""

    SCHEDULES = {
        "none": None,
        "cosine": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, R),
        "step": lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 30),
        "lambda": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
        "one cycle": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, optimizer.defaults["lr"], R),
        "sequential": lambda optimizer: torch.optim.lr_scheduler.SequentialLR(
            optimizer,
            [
                torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=10),
                torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, R - 10),
            ],
            [10],
        ),
    }

    @pytest.mark.parametrize("name", SCHEDULES)
    def test_the_learning_rate_of_a_fork(self, tmp_path, name):
        schedule = self.SCHEDULES[name]
        model = Net if schedule is None else one_parameter(schedule)
        parent, fork = [], []
        run(tmp_path / "parent", [40], {"lr": 0.1}, model=model, callbacks=[Hooks(parent)])
        run(tmp_path / "parent 20", [20], {"lr": 0.1}, model=model)
        task = Task(Job(40, trial=1, parent=0), {"lr": 0.01}, tmp_path / "fork", tmp_path / "parent 20" / CHECKPOINT)
        objective(model=model, callbacks=[Hooks(fork)]).run(task)
        rates = [[call[1] for call in calls if call[0] == "lr"] for calls in (parent, fork)]
        assert len(rates[1]) == 20
        assert rates[1] == pytest.approx([rate / 10 for rate in rates[0][20:]], rel=1e-9)

    def test_weight_decay_and_momentum_of_a_fork(self, tmp_path):
        seen = []

        class Decayed(Net):
            def __init__(self, decay=0.0, momentum=0.5):
                super().__init__()
                self.save_hyperparameters()

            def configure_optimizers(self):
                return torch.optim.SGD(
                    self.parameters(), lr=0.01, weight_decay=self.hparams.decay, momentum=self.hparams.momentum
                )

            def on_train_batch_start(self, batch, batch_idx):
                group = self.optimizers().param_groups[0]
                seen.append((group["weight_decay"], group["momentum"]))

        space = {"decay": "uniform(0, 1)", "momentum": "uniform(0, 1)"}
        options = {"model": Decayed, "space": space, "max_steps": 10}
        run(tmp_path / "parent", [5], {"decay": 0.5, "momentum": 0.1}, **options)
        task = Task(
            Job(10, trial=1), {"decay": 0.25, "momentum": 0.2}, tmp_path / "fork", tmp_path / "parent" / CHECKPOINT
        )
        objective(**options).run(task)
        assert seen == [(0.5, 0.1)] * 5 + [(0.25, 0.2)] * 5


class TestErrorsBeforeTraining:
    @pytest.mark.parametrize(
        ("space", "words"),
        [
            ({"learning_rate": "uniform(0, 1)"}, ["'learning_rate'", "Net has no argument", "lr, hidden"]),
            ({"hiden": "int(1, 2)"}, ["Did you mean 'hidden'"]),
            ({"data.batchsize": "int(1, 2)"}, ["'data.batchsize'", "Did you mean 'batch_size'"]),
            (
                {"trainer.gradient_clip_vall": "uniform(0, 1)"},
                ["argument 'gradient_clip_vall'. Did you mean 'gradient_clip_val'? It takes accel", "more."],
            ),
            ({"trainer.max_steps": "int(1, 2)"}, ["it is the budget"]),
            ({"optimizer.lr": "uniform(0, 1)"}, ["'optimizer.lr'", "must start with model, trainer, data"]),
        ],
    )
    def test_unknown_names(self, space, words):
        with pytest.raises(ValueError) as caught:
            objective(space=space)
        assert all(word in str(caught.value) for word in words)

    def test_instances_are_refused(self):
        with pytest.raises(TypeError, match="pass `Net` itself"):
            objective(model=Net())
        with pytest.raises(TypeError, match="pass `Data` itself"):
            objective(data=Data())
        with pytest.raises(TypeError, match="`model` must be a class or function"):
            objective(model=3)

    def test_unknown_trainer_argument(self):
        with pytest.raises(ValueError, match="Did you mean 'precision'"):
            objective(precison="16-mixed")
        with pytest.raises(ValueError, match="both give a value for 'trainer.gradient_clip_val'"):
            objective(space={"trainer.gradient_clip_val": "uniform(0, 1)"}, gradient_clip_val=1.0)

    def test_a_metric_that_is_not_logged(self):
        with pytest.raises(ValueError, match=r"'val_los' is not logged in validation; logged there: val_acc, val_loss"):
            objective(monitor="val_los").check()

    def test_a_model_that_refuses_a_value(self, tmp_path):
        with pytest.raises(ValueError, match=r"`model` cannot be built with hidden=18\.0: TypeError: "):
            objective(space={"hidden": "uniform(4, 32)"}).check()
        with pytest.raises(ValueError, match=r"`datamodule` cannot be built with batch_sizes=3: TypeError: ") as caught:
            objective().run(Task(Job(1, trial=0), {"lr": 0.1, "data.batch_sizes": 3}, tmp_path))
        assert "with the parameters lr=0.1, data.batch_sizes=3" in failure_text(caught.value)

    def test_a_training_loader_that_cannot_be_made_or_read(self):
        class NoLoader(Data):
            def train_dataloader(self):
                raise FileNotFoundError("no such images")

        class NoBatch(Data):
            def train_dataloader(self):
                return torch.utils.data.DataLoader(["a text"], collate_fn=int)

        class Inside(Net):
            """Brings its own loaders, set up for fit only."""

            def setup(self, stage):
                self.data = {"fit": NoBatch}[stage]()

            def train_dataloader(self):
                return [self.data.train_dataloader()]

            def val_dataloader(self):
                return self.data.val_dataloader()

        with pytest.raises(FileNotFoundError, match="no such images") as caught:
            objective(data=NoLoader).check()
        assert caught.value.__notes__[0].startswith("with the parameters lr=")
        with pytest.raises(TypeError, match="int"):
            objective(data=NoBatch).check()
        with pytest.raises(TypeError, match="int"):
            objective(model=Inside, data=None).check()

    def test_something_else_than_a_module(self):
        with pytest.raises(TypeError, match="must build a"):
            objective(model=lambda lr: nn.Linear(1, 1)).check()

    def test_checkpoint_interval(self):
        with pytest.raises(ValueError, match="`checkpoint_every` must be an int >= 1, got 0"):
            Objective(Net, SPACE, data=Data, monitor="val_loss", max_steps=R, checkpoint_every=0)


def test_a_checkpoint_of_another_trial_is_not_touched_by_a_fork(tmp_path):
    run(tmp_path / "parent", [10])
    before = (tmp_path / "parent" / CHECKPOINT).read_bytes()
    task = Task(Job(20, trial=1), {"lr": 0.01}, tmp_path / "fork", tmp_path / "parent" / CHECKPOINT)
    outcome = objective().run(task)
    assert math.isfinite(outcome.score)
    assert (tmp_path / "parent" / CHECKPOINT).read_bytes() == before
    save({"x": 1}, tmp_path / "fork" / CHECKPOINT)


def test_our_schedules_get_the_full_budget_as_horizon(tmp_path):
    """Unbound in the module, without LRSchedule: the rungs of a trial lie on one curve, and forks on a scaled one."""

    class Scheduled(Net):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
            return [optimizer], [WarmupCosineLR(optimizer, warmup=0.1)]

    curve = WarmupCosineLR(torch.optim.SGD([torch.zeros(1)], lr=0.1), R, warmup=0.1).simulate()
    parts, fork = [], []
    run(tmp_path / "parts", [7, 20], {"lr": 0.1}, model=Scheduled, callbacks=[Hooks(parts)])
    task = Task(Job(40, trial=1, parent=0), {"lr": 0.05}, tmp_path / "fork", tmp_path / "parts" / CHECKPOINT)
    objective(model=Scheduled, callbacks=[Hooks(fork)]).run(task)
    assert [call[1] for call in parts if call[0] == "lr"] == pytest.approx(curve[:20], rel=1e-12)
    assert [call[1] for call in fork if call[0] == "lr"] == pytest.approx([lr / 2 for lr in curve[20:40]], rel=1e-12)


@dataclass
class Settings:
    widths: list = field(default_factory=lambda: [8])


class WithDefaults(Net):
    def __init__(self, given={}, settings=Settings()):  # noqa: B006, B008  # as people write it
        super().__init__()
        self.given, self.settings = given, settings


def test_default_arguments_that_training_may_change_are_each_trials_own():
    objective = Objective(WithDefaults, lambda trial: {}, data=Data, monitor="val_loss", max_steps=4)
    first = objective.build_model({})
    first.given["step"] = 1
    first.settings.widths.append(16)
    second = objective.build_model({})
    assert (second.given, second.settings.widths) == ({}, [8])
