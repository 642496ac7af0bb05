"""A trial that is cut anywhere and continued equals one that is not, in the idioms of other people's modules."""

import contextlib
import warnings
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    ModelCheckpoint,
)
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_hpo import checkpoints
from lightning_hpo.records import CHECKPOINT, Task
from lightning_hpo.schedulers import Job
from lightning_hpo.training.metrics_file import METRICS
from lightning_hpo.training.objective import Objective
from tests.support.idioms import (
    BATCHES,
    Backbone,
    Counts,
    Data,
    Endless,
    EvaluatesOnly,
    HarderEachEpoch,
    Keeps,
    LeavesEpochs,
    MetricOfValidation,
    Metrics,
    Net,
    NetOfTwo,
    Plateau,
    PlateauOfSome,
    PlateauOfTraining,
    PlateauPerStep,
    R,
    Raises,
    Steps,
    Streams,
    TwoLoaders,
    TwoOptimizers,
    Unfreezes,
    Workers,
    rows,
)
from tests.support.random_cases import Asked

# What Lightning says of `overfit_batches` with a loader that shuffles, and of ReduceLROnPlateau without its score.
pytestmark = pytest.mark.filterwarnings("ignore:You requested to overfit", "ignore:ReduceLROnPlateau conditioned on")


def run(folder, stops, model, data, trainer, *, crash=(), pause=(), every=3):
    objective = Objective(
        model, lambda trial: {}, data=data, monitor="val_loss", max_steps=R, trainer=trainer, checkpoint_every=every
    )
    for target in stops:
        for asks in pause:
            objective.run(Task(Job(target, trial=0), {}, folder), Asked(asks))
        for step in crash:
            with pytest.raises(RuntimeError, match="killed"):
                objective.run(Task(Job(target, trial=0), {}, folder), callbacks=[Crash(step)])
        outcome = objective.run(Task(Job(target, trial=0), {}, folder))
    saved = checkpoints.load(folder / CHECKPOINT)
    return outcome, saved


def logged(folder):
    """Rows that loggers are given."""
    return sorted((folder / METRICS).read_text().splitlines())


def means(folder):
    """Means over epochs: none is of an epoch that a rung has cut."""
    return [row for row in logged(folder) if "_epoch," in row]


def test_a_killed_trial_has_the_same_files_of_a_model_checkpoint(tmp_path):
    """No second version of one, and none that an uninterrupted trial has removed."""

    def files(name, crash):
        callback = ModelCheckpoint(monitor="val_loss", save_top_k=2, save_last=True)
        run(tmp_path / name, [R], Net, Data, {"callbacks": [callback], "val_check_interval": 2}, crash=crash, every=4)
        loaded = {file.name: checkpoints.load(file) for file in (tmp_path / name / "checkpoints").iterdir()}
        return {name: content["state_dict"] for name, content in loaded.items() if "previous" not in name}

    whole, cut = files("whole", ()), files("cut", (3, 7, 11, 15, 19))
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)


@pytest.mark.parametrize("given", [{}, {"dirpath": "mine"}])
def test_lightning_warns_of_checkpoints_in_a_folder_of_the_users_own_only(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings(record=True) as said:
        warnings.resetwarnings()  # else the filters of pytest come first
        run(tmp_path / "trials" / "0000", [9, R], Net, Data, {"callbacks": [ModelCheckpoint(**given)]})
    assert any("exists and is not empty" in str(warning.message) for warning in said) == bool(given)


class EndsWithARow(Net):
    def on_train_epoch_end(self):
        self.log("epoch_ended", float(self.current_epoch))


class DiesAtTheEnd(pl.Callback):
    """Ends a trial behind its last validation and checkpoint."""

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.global_step >= R:
            raise RuntimeError("killed")


def test_a_trial_that_is_killed_behind_its_last_checkpoint_has_all_rows_and_files(tmp_path):
    trainer = {"callbacks": [ModelCheckpoint(save_on_train_epoch_end=True, save_top_k=-1)]}
    run(tmp_path / "whole", [R], EndsWithARow, Data, trainer)
    objective = Objective(EndsWithARow, lambda trial: {}, data=Data, monitor="val_loss", max_steps=R, trainer=trainer)
    with pytest.raises(RuntimeError, match="killed"):
        objective.run(Task(Job(R, trial=0), {}, tmp_path / "cut"), callbacks=[DiesAtTheEnd()])
    assert checkpoints.load(tmp_path / "cut" / CHECKPOINT)["global_step"] == R
    run(tmp_path / "cut", [R], EndsWithARow, Data, trainer)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")
    files = [sorted(file.name for file in (tmp_path / name / "checkpoints").iterdir()) for name in ("cut", "whole")]
    assert files[0] == files[1]


def killed_behind_checkpoints(monkeypatch, objective, task, seen):
    """Carry out a job that is killed right behind its checkpoint of each step, once."""
    replace, outcome = Path.replace, None

    def dies(path, target):
        replace(path, target)
        if target.name == CHECKPOINT and (step := checkpoints.load(target)["global_step"]) not in seen:
            seen.add(step)
            raise RuntimeError("killed")

    monkeypatch.setattr(Path, "replace", dies)
    while outcome is None:
        with contextlib.suppress(RuntimeError):
            outcome = objective.run(task)
    monkeypatch.undo()
    return outcome


class StopsItself(Net):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if self.global_step == 13:
            self.trainer.should_stop = True


SELDOM = {"check_val_every_n_epoch": 2}
IMPATIENT = {"callbacks": [EarlyStopping("val_loss", patience=1, min_delta=0.05)], "val_check_interval": 2}


@pytest.mark.parametrize("stops", [[3, 12, R], [R]])
@pytest.mark.parametrize(("model", "trainer"), [(Net, {}), (StopsItself, {}), (Net, IMPATIENT), (Net, SELDOM)])
def test_a_trial_that_is_killed_behind_every_checkpoint_has_all_rows(tmp_path, monkeypatch, model, trainer, stops):
    """The stop at a rung, or where a trial ends itself, brings rows that Lightning logs behind the last batch."""
    trainer = {"log_every_n_steps": 50, **trainer}
    whole, _ = run(tmp_path / "whole", stops, model, Data, trainer, every=1)
    objective = Objective(
        model, lambda trial: {}, data=Data, monitor="val_loss", max_steps=R, trainer=trainer, checkpoint_every=1
    )
    seen = set()
    for stop in stops:
        cut = killed_behind_checkpoints(monkeypatch, objective, Task(Job(stop, trial=0), {}, tmp_path / "cut"), seen)
    assert len(seen) >= whole.step
    assert {f"{min(stop, whole.step) - 1},val_loss" for stop in stops} <= {
        row.rpartition(",")[0] for row in logged(tmp_path / "whole")
    }
    assert (cut.score, cut.step, cut.ended) == (whole.score, whole.step, whole.ended)
    assert logged(tmp_path / "cut") == logged(tmp_path / "whole")


class Iterates(Net):
    """Reads a second loader by itself."""

    def on_fit_start(self):
        self.others = iter(DataLoader(rows(400, 3), batch_size=8, shuffle=True))

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) + self.loss(next(self.others))


def test_an_iterator_that_begins_anew_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="model.*others: a checkpoint holds no position of an iterator"):
        run(tmp_path, [R], Iterates, Data, {}, crash=(7,))


@dataclass
class Stage:
    weight: float


STAGES = [Stage(1.0), Stage(0.5)]


class Holder:
    def __init__(self):
        self.metric = MeanMetric()


class Staged(Net):
    """Replaces an object by another one that all trials share; a metric in a helper object stays the same."""

    def __init__(self):
        super().__init__()
        self.holder = Holder()
        self.stage, self.reduce = STAGES[0], torch.sum
        self.stages = (STAGES[0],)
        self.extra: torch.nn.Module = torch.nn.Identity()

    def on_train_batch_start(self, batch, batch_idx):
        if self.global_step == 3:
            self.stage, self.stages = STAGES[1], (STAGES[1],)

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * self.stage.weight * self.stages[0].weight


def test_an_object_that_all_trials_share_is_not_changed_when_a_trial_goes_on(tmp_path):
    (_, whole), (_, cut) = (
        run(tmp_path / name, [R], Staged, Data, {}, crash=crash) for name, crash in (("whole", ()), ("cut", (7,)))
    )
    torch.testing.assert_close(cut["state_dict"], whole["state_dict"], rtol=0, atol=0)
    assert [stage.weight for stage in STAGES] == [1.0, 0.5]


class Rewires(Staged):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 0 and self.current_epoch == 0:
            self.reduce, self.extra = torch.mean, torch.nn.Tanh()


def test_a_function_that_training_replaces_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match=r"model\.reduce, model\.extra: replaced or made in training"):
        run(tmp_path, [R], Rewires, Data, {}, crash=(7,))


class Countdown:
    """An iterator with a state that a checkpoint holds."""

    left = 1000

    def __iter__(self):
        return self

    def __next__(self):
        self.left -= 1
        return self.left


class Numbered(Net):
    """Weighs its loss by an iterator of its own."""

    def __init__(self):
        super().__init__()
        self.numbers = Countdown()

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * next(self.numbers) / 1000


def test_an_iterator_whose_state_is_kept_goes_on_without_a_warning(tmp_path):
    (_, whole), (_, cut) = (
        run(tmp_path / name, [R], Numbered, Data, {}, crash=crash) for name, crash in (("whole", ()), ("cut", (7,)))
    )
    torch.testing.assert_close(cut["state_dict"], whole["state_dict"], rtol=0, atol=0)


class Crash(pl.Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step >= self.step:
            raise RuntimeError("killed")


CASES = {
    "plain": (Net, Data, {}),
    "unfreezes in a start hook": (Unfreezes, Data, {}),
    "counts in attributes": (Counts, Data, {}),
    "a torchmetric over an epoch": (Metrics, Data, {}),
    "a torchmetric over a validation": (MetricOfValidation, Data, {"val_check_interval": 2}),
    "back to training in a hook of its own": (EvaluatesOnly, Data, {"val_check_interval": 2}),
    "plateau by a validation": (Plateau, Data, {}),
    "plateau by an epoch's training loss": (PlateauOfTraining, Data, {}),
    "plateau at every step": (PlateauPerStep, Data, {}),
    "plateau by what some batches log": (PlateauOfSome, Data, {"val_check_interval": 2, "log_every_n_steps": 1}),
    "state of many kinds": (Keeps, Data, {}),
    "schedule by max_epochs": (Steps, Data, {}),
    "two optimizers": (TwoOptimizers, Data, {"log_every_n_steps": 1}),
    "backbone finetuning": (Backbone, Data, {"callbacks": [BackboneFinetuning(2, lambda epoch: 1.5)]}),
    "accumulation": (Net, Data, {"accumulate_grad_batches": 2}),
    "accumulation by epoch": (Net, Data, {"callbacks": [GradientAccumulationScheduler({0: 3, 2: 1})]}),
    "weight averages": (Net, Data, {"callbacks": [EMAWeightAveraging(decay=0.8)]}),
    "early stopping, patient": (Net, Data, {"callbacks": [EarlyStopping("val_loss", patience=9, min_delta=0.01)]}),
    "validations inside an epoch": (Plateau, Data, {"val_check_interval": 2}),
    "validations across epochs": (Plateau, Data, {"val_check_interval": 3, "check_val_every_n_epoch": None}),
    "a validation every second epoch": (Plateau, Data, {"check_val_every_n_epoch": 2}),
    "limited epochs": (Counts, Data, {"limit_train_batches": 3}),
    "persistent workers": (Net, Workers, {}),
    "a loader that Lightning makes anew": (Net, Data, {"overfit_batches": BATCHES}),
    "two loaders that Lightning makes anew": (NetOfTwo, TwoLoaders, {"overfit_batches": BATCHES}),
    "two loaders": (NetOfTwo, TwoLoaders, {}),
    "a stream": (Net, Streams, {}),
    "an endless stream": (Net, Endless, {"val_check_interval": 4}),
    "reloaded loaders": (Net, Data, {"reload_dataloaders_every_n_epochs": 1}),
    "loaders by an attribute": (Raises, HarderEachEpoch, {"reload_dataloaders_every_n_epochs": 1}),
    "epochs that a hook leaves": (LeavesEpochs, Data, {"val_check_interval": 2}),
}
CUTS = {
    "inside and at the end of epochs": ([3, BATCHES, 12, R], ()),
    "killed again and again": ([R], (2, 5, 7, 11, 16)),
    "promoted and killed": ([9, R], (4, 8)),
    "paused again and again": ([R], (1, 2, 3, 1, 5, 1, 2, 1)),
}


@pytest.mark.parametrize("cuts", CUTS)
@pytest.mark.parametrize("case", CASES)
def test_a_trial_that_is_cut_equals_one_that_is_not(case, cuts, tmp_path):
    model, data, trainer = CASES[case]
    stops, crash = CUTS[cuts]
    whole, one = run(tmp_path / "whole", [R], model, data, trainer)
    if cuts == "paused again and again":
        outcome, other = run(tmp_path / "cut", stops, model, data, trainer, pause=crash, every=100)
    elif len(stops) > 1 and crash:
        run(tmp_path / "cut", stops[:1], model, data, trainer, crash=crash, every=2)
        outcome, other = run(tmp_path / "cut", stops[1:], model, data, trainer, every=2)
    else:
        outcome, other = run(tmp_path / "cut", stops, model, data, trainer, crash=crash, every=2)
    rows_of = logged if stops == [R] else means  # at other rungs the job itself validates, and logs its last batch
    assert rows_of(tmp_path / "cut") == rows_of(tmp_path / "whole")
    assert outcome.score == whole.score
    assert outcome.step == whole.step == one["global_step"] == other["global_step"]
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(other["optimizer_states"], one["optimizer_states"], rtol=0, atol=0)
    assert other["lr_schedulers"] == one["lr_schedulers"]
    assert {
        key: state for key, state in other["callbacks"].items() if "RunToStep" not in key and "Model" not in key
    } == {key: state for key, state in one["callbacks"].items() if "RunToStep" not in key and "Model" not in key}
