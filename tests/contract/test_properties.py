"""Whatever the Trainer is given: what is recorded is what was trained, and a cut job equals one that is not."""

import collections
import contextlib
import os
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from optuna.storages import InMemoryStorage
from torch.utils.data import DataLoader, IterableDataset

from lightning_hpo import HyperbandTuner, Job, Objective, checkpoints
from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import BUDGET, CHECKPOINT, PAUSED, Task, spent
from lightning_hpo.training.make_trainer import quiet_and_seeded

EXAMPLES = int(os.environ.get("HPO_EXAMPLES", "60"))
"""Random modules of each test; more of them look further."""
PROPERTY = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)


class Counting(torch.optim.SGD):
    """Counts the steps of all optimizers of a trial, as nobody else does."""

    steps = collections.Counter()
    x = None

    def step(self, closure=None):
        loss = super().step(closure)
        Counting.steps[self.x] += 1
        return loss


class Net(pl.LightningModule):
    """One linear layer; ``optimizers`` None is automatic optimization."""

    def __init__(self, x=0.5, optimizers=None, dropout=0.0):
        super().__init__()
        self.x, self.number, self.dropout = x, optimizers, dropout
        self.automatic_optimization = optimizers is None
        self.layer = torch.nn.Linear(2, 1)
        torch.nn.init.constant_(self.layer.weight, 0.1)
        torch.nn.init.constant_(self.layer.bias, 0.1)

    def training_step(self, batch, batch_idx):
        inputs = torch.nn.functional.dropout(batch, self.dropout)
        loss = (self.layer(inputs) - self.x).square().mean()
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        for optimizer in () if self.automatic_optimization else self.listed(self.optimizers()):
            optimizer.zero_grad()
            self.manual_backward((self.layer(inputs) - self.x).square().mean())
            optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", (self.layer(batch) - self.x).square().mean())

    def configure_optimizers(self):
        made = [Counting(self.parameters(), lr=0.05 * (n + 1), momentum=0.5) for n in range(self.number or 1)]
        for optimizer in made:
            optimizer.x = self.x
        return made if len(made) > 1 else made[0]

    @staticmethod
    def listed(optimizers):
        return optimizers if isinstance(optimizers, list) else [optimizers]


class Rows(torch.utils.data.Dataset):
    def __init__(self, count):
        self.values = torch.linspace(-1, 1, 2 * count).view(count, 2)

    def __len__(self):
        return len(self.values)

    def __getitem__(self, index):
        return self.values[index]


class Stream(IterableDataset):
    def __init__(self, count):
        self.values = torch.linspace(-1, 1, 2 * count).view(count, 2)

    def __iter__(self):
        return iter(self.values)


@dataclass
class Data:
    """Builds the data module.

    Args:
        batches: in an epoch.
        sized: whether the loader has a length.
        shuffle: whether its order is random.
        validation: batches of the validation.
    """

    batches: int
    sized: bool
    validation: int
    shuffle: bool = False

    def __call__(self):
        made = pl.LightningDataModule()
        rows = (Rows if self.sized else Stream)(2 * self.batches)
        made.train_dataloader = lambda: DataLoader(rows, batch_size=2, shuffle=self.sized and self.shuffle)
        made.val_dataloader = lambda: DataLoader(Rows(self.validation), batch_size=1)
        return made


class Spy(pl.Callback):
    """Notes what really happens: the optimizer steps at each validation, and its value."""

    seen: list = []
    values: dict = {}  # by the step that the Trainer gives

    def __deepcopy__(self, memo):
        return self

    def on_validation_end(self, trainer, module):
        if not trainer.sanity_checking:
            value = trainer.callback_metrics.get("val_loss")
            self.values[trainer.global_step] = value if value is None else float(value)
            self.seen.append((module.x, Counting.steps[module.x], None if value is None else float(value)))


class At(pl.Callback):
    """Acts in a hook, from a step on."""

    def __init__(self, hook, step):
        self.wants = (hook, step)

    def on_train_batch_start(self, trainer, *_):
        self.look(trainer, "on_train_batch_start")

    def on_train_batch_end(self, trainer, *_):
        self.look(trainer, "on_train_batch_end")

    def on_validation_end(self, trainer, *_):
        self.look(trainer, "on_validation_end")

    def on_train_epoch_start(self, trainer, *_):
        self.look(trainer, "on_train_epoch_start")

    def on_train_epoch_end(self, trainer, *_):
        self.look(trainer, "on_train_epoch_end")

    def look(self, trainer, hook):
        if hook == self.wants[0] and trainer.global_step >= self.wants[1]:
            self.act(trainer)

    def __repr__(self):
        return f"{type(self).__name__}{self.wants}"


class Stops(At):
    """Wants the end of the fit."""

    def act(self, trainer):
        trainer.should_stop = True


class Killed(Exception):
    pass


class Fails(At):
    """Ends the job as a kill does."""

    def act(self, trainer):
        raise Killed


class Asked:
    """Wants a pause at the n-th question."""

    def __init__(self, left):
        self.left = left

    def __call__(self):
        self.left -= 1
        return self.left <= 0

    def __repr__(self):
        return f"Asked({self.left})"


HOOKS = (
    "on_train_batch_start",
    "on_train_batch_end",
    "on_validation_end",
    "on_train_epoch_start",
    "on_train_epoch_end",
)


@dataclass
class Case:
    """What a user may combine."""

    data: Data
    optimizers: int | None
    trainer: dict
    callbacks: list = field(default_factory=list)

    def arguments(self, *more):
        made = [kind(*args, **kwargs) for kind, args, kwargs in self.callbacks]
        fixed = {"accelerator": "cpu", "logger": False, "callbacks": [*made, *more]}
        return {**self.trainer, **fixed}


few = st.integers(1, 4)
ARGUMENTS = {
    "max_epochs": few,
    "min_epochs": few,
    "min_steps": st.integers(1, 12),
    "limit_train_batches": st.one_of(st.integers(1, 6), st.sampled_from([0.5, 1.0])),
    "limit_val_batches": st.sampled_from([1, 2, 0.5, 1.0]),
    "val_check_interval": st.one_of(st.integers(1, 8), st.sampled_from([0.25, 0.5, 1.0])),
    "check_val_every_n_epoch": st.sampled_from([None, 1, 2, 3]),
    "accumulate_grad_batches": st.integers(1, 3),
    "reload_dataloaders_every_n_epochs": st.integers(0, 2),
    "fast_dev_run": st.sampled_from([False, True, 3]),
    "overfit_batches": st.sampled_from([0, 1, 2, 0.5]),
    "max_time": st.sampled_from([{"seconds": 0}, {"days": 1}]),
    "num_sanity_val_steps": st.integers(0, 2),
}
CALLBACKS = st.one_of(
    st.builds(
        lambda patience, delta: (EarlyStopping, ("val_loss",), {"patience": patience, "min_delta": delta}),
        st.integers(0, 2), st.sampled_from([0.0, 9.0]),
    ),
    st.sampled_from([{0: 2, 1: 1}, {0: 1, 1: 3}, {1: 2}]).map(
        lambda plan: (GradientAccumulationScheduler, (), {"scheduling": plan})
    ),
    st.sampled_from(
        [{}, {"monitor": "val_loss", "save_top_k": 2}, {"every_n_train_steps": 2}, {"every_n_epochs": 2}]
    ).map(lambda given: (ModelCheckpoint, (), given)),
    st.builds(lambda hook, step: (Stops, (hook, step), {}), st.sampled_from(HOOKS), st.integers(0, 12)),
)  # fmt: skip


@st.composite
def cases(draw, shuffle=False):
    names = draw(st.lists(st.sampled_from(sorted(ARGUMENTS)), max_size=3, unique=True))
    made = Case(
        Data(draw(st.integers(1, 6)), draw(st.sampled_from([True, True, False])), draw(st.integers(1, 2)), shuffle),
        draw(st.sampled_from([None, None, None, 1, 2])),
        {name: draw(ARGUMENTS[name]) for name in names},
        draw(st.lists(CALLBACKS, max_size=2, unique_by=lambda one: one[0])),
    )
    # Lightning itself refuses a share of an epoch where validations do not belong to epochs: tested below.
    if made.trainer.get("check_val_every_n_epoch", 1) is None:
        assume(not isinstance(made.trainer.get("val_check_interval"), float))
    # A stream that ends before its limit, and before a step is made, trains for ever in Lightning: tested below.
    limits = {"limit_train_batches", "overfit_batches"}
    schedules = [one for one in made.callbacks if one[0] is GradientAccumulationScheduler]
    assume(made.data.sized or limits.isdisjoint(names) or not (schedules or "accumulate_grad_batches" in names))
    return made


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Nothing here asks what a power cut leaves, or what the check does to the process."""
    apart = mock.patch("lightning_hpo.training.objective.call_apart", lambda function: function())
    with apart, mock.patch("os.fsync"), warnings.catch_warnings(), warnings_only("lightning.pytorch", "optuna"):
        warnings.simplefilter("ignore")
        yield


def start_counting():
    Counting.steps.clear()
    Spy.seen.clear()
    Spy.values.clear()


@contextlib.contextmanager
def watched():
    """A folder, with all counts at zero."""
    start_counting()
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def objective(case, max_steps, every=3, dropout=0.0):
    return Objective(
        lambda: Net(optimizers=case.optimizers, dropout=dropout), lambda trial: {}, data=case.data, monitor="val_loss",
        max_steps=max_steps, trainer=case.arguments(Spy()), checkpoint_every=every,
    )  # fmt: skip


def run(objective, target, folder, *more):
    return objective.run(Task(Job(target, trial=0), {}, folder), *more)


def plain(case, max_steps, folder):
    """The step and the weights at which Lightning alone ends; None if it refuses."""
    trainer = pl.Trainer(
        **{"num_sanity_val_steps": 0, **case.arguments(), "max_steps": max_steps, "default_root_dir": folder},
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    if trainer.fast_dev_run:  # takes the place of max_steps, also where that is less
        trainer.fit_loop.epoch_loop.max_steps = min(trainer.max_steps, max_steps)
    module = Net(optimizers=case.optimizers)
    try:
        with quiet_and_seeded(0, 0):
            trainer.fit(module, datamodule=case.data())
    except Exception:
        return None
    return trainer.global_step, module.state_dict()


def refused(case, checked):
    """Whether the combination is refused; then the text names what is at fault."""
    try:
        checked()
    except Exception as error:
        kinds = [kind.__name__ for kind, _, _ in case.callbacks]
        names = [*case.trainer, *kinds, "accumulate_grad_batches", "should_stop"]
        if "overfit_batches" in names:  # is set as these, says Lightning
            names += ["limit_train_batches", "limit_val_batches"]
        if not any(name in str(error) for name in names):
            raise
        return True
    return False


@settings(PROPERTY, max_examples=EXAMPLES)
@given(cases(), st.integers(1, 14))
def test_an_outcome_is_what_was_trained(case, max_steps):
    with watched() as folder:
        made = objective(case, max_steps)
        if refused(case, made.check):
            alone = plain(case, max_steps, folder)  # refuses it too, or trains nothing
            assert alone is None or alone[0] == 0
            return
        start_counting()
        outcome = run(made, max_steps, folder / "0")
        assert outcome.step == Counting.steps[0.5]
        noted = {step: value for _, step, value in Spy.seen}
        assert outcome.values == noted
        assert outcome.score == noted[outcome.step]
        if outcome.ended == BUDGET:
            assert max_steps <= outcome.step < max_steps + (case.optimizers or 1)
        else:
            assert str(outcome.step) in outcome.ended
        saved = checkpoints.load(folder / "0" / CHECKPOINT, key=made.key)
        assert saved["global_step"] == outcome.step
        alone = plain(case, max_steps, folder)
        if alone is not None:  # EarlyStopping of Lightning alone may miss its metric
            assert outcome.step == alone[0]
            torch.testing.assert_close(dict(saved["state_dict"]), dict(alone[1]), rtol=0, atol=0)


@settings(PROPERTY, max_examples=EXAMPLES // 2)
@given(cases(), st.sampled_from([(2, 6, 3), (1, 3, 3), (4, 8, 2), (3, 9, 3)]))
def test_a_study_is_what_was_trained(case, budget):
    least, most, eta = budget
    with watched() as folder:
        tuner = HyperbandTuner(
            {"x": "uniform(0, 1)"}, max_steps=most, min_steps=least, eta=eta, monitor="val_loss", root=folder, name="s",
            storage=InMemoryStorage(), trainer=case.arguments(Spy()), checkpoint_every=3, verbose=False,
        )  # fmt: skip
        tested = tuner.objective(lambda x: Net(x, case.optimizers), datamodule=case.data)
        if refused(case, tested.check):
            return
        with mock.patch("lightning_hpo.training.objective.Objective.check"):
            start_counting()
            result = tuner.fit(lambda x: Net(x, case.optimizers), datamodule=case.data)
        assert spent(result.rows) == Counting.steps.total()
        for row in result.rows:
            seen = {step: value for x, step, value in Spy.seen if x == row.params["x"]}
            assert all(seen[step] == value for step, value in row.values.items())
            assert (row.ended is None) == (row.step >= most or row.state == "pruned")


def cut_and_continued(objective, targets, folder, cuts):
    """The last outcome of a job that is cut again and again."""
    for target in targets:
        ended = PAUSED
        while ended == PAUSED:
            asked = cuts.pop(0) if cuts else None
            task = Task(Job(target, trial=0), {}, folder)
            more = {} if asked is None else {"should_pause": asked} if callable(asked) else {"callbacks": [asked]}
            with contextlib.suppress(Killed):
                outcome = objective.run(task, **more)
                ended = outcome.ended
        if outcome.finished_early:
            break
    return outcome


CUTS = st.one_of(st.integers(1, 9).map(Asked), st.builds(Fails, st.sampled_from(HOOKS), st.integers(0, 12)))


@settings(PROPERTY, max_examples=EXAMPLES)
@given(
    cases(shuffle=True),
    st.lists(st.integers(1, 14), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(1, 5),
    st.lists(CUTS, max_size=4),
)
def test_a_cut_job_equals_one_that_is_not(case, targets, every, cuts):
    with watched() as folder:
        whole = objective(case, targets[-1], every=100, dropout=0.3)
        if refused(case, whole.check):
            return
        one = run(whole, targets[-1], folder / "whole")
        cut = objective(case, targets[-1], every, dropout=0.3)
        start_counting()
        other = cut_and_continued(cut, targets, folder / "cut", list(cuts))
        assert (other.score, other.step, other.ended) == (one.score, one.step, one.ended)
        assert Spy.values.items() >= one.values.items()
        ours, theirs = (
            checkpoints.load(folder / name / CHECKPOINT, key=made.key)
            for name, made in (("whole", whole), ("cut", cut))
        )
        assert ours["epoch"] == theirs["epoch"] or other.finished_early
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            torch.testing.assert_close(theirs[part], ours[part], rtol=0, atol=0)
        for key, state in ours["callbacks"].items():
            if "RunToStep" not in key and "ModelCheckpoint" not in key and "Timer" not in key:
                assert theirs["callbacks"][key] == state


def test_an_epoch_without_a_step_ends_the_trial(tmp_path):
    case = Case(Data(1, False, 1), None, {"overfit_batches": 2, "accumulate_grad_batches": 3})
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches"):
        run(objective(case, 3), 3, tmp_path)


def test_a_dev_run_that_ends_at_exactly_a_rung_is_finished(tmp_path):
    made = objective(Case(Data(4, True, 1), 2, {"fast_dev_run": 3}), 9)
    for target in (3, 9):
        outcome = run(made, target, tmp_path)
        assert (outcome.step, outcome.ended) == (4, "fast_dev_run ended at step 4")


@pytest.mark.parametrize("epochs", [1, 2])
def test_loaders_that_are_made_anew_each_few_epochs_go_on_exactly(tmp_path, epochs):
    case = Case(Data(2, False, 1, shuffle=True), None, {"reload_dataloaders_every_n_epochs": epochs})
    scores = set()
    for targets in ((7,), (2, 5, 7), (1, 4, 6, 7)):
        made = objective(case, 7, every=1, dropout=0.3)
        for target in targets:
            last = run(made, target, tmp_path / str(len(targets)))
        scores.add(last.score)
    assert len(scores) == 1


@pytest.mark.parametrize(
    "trainer", [{"fast_dev_run": 3}, {"limit_train_batches": 3, "max_epochs": 1}, {"max_epochs": 1}]
)
def test_a_loader_without_length_goes_on_at_its_place(tmp_path, trainer):
    made = objective(Case(Data(2, False, 1, shuffle=True), None, trainer), 3)
    for target in (1, 2, 3):
        last = run(made, target, tmp_path / "rungs")
    whole = run(made, 3, tmp_path / "whole")
    assert (last.step, last.score, last.ended is None) == (2, whole.score, False)


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"limit_val_batches": 0.5}, "limit_val_batches"),
        ({"max_time": {"seconds": 0}}, "max_time"),
        ({"val_check_interval": 0.25, "check_val_every_n_epoch": None}, "val_check_interval"),
    ],
)
def test_what_can_only_fail_shows_in_the_check(trainer, says):
    with pytest.raises(Exception, match=says):
        objective(Case(Data(4, True, 1), None, trainer), 9).check()
