"""Random combinations of loaders, optimizers, Trainer arguments and callbacks, and counts of what really trains."""

import collections
from dataclasses import dataclass, field
from typing import Any

import lightning.pytorch as pl
import torch
from hypothesis import assume
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import DataLoader, IterableDataset


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
        made: Any = pl.LightningDataModule()
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
    # Lightning itself refuses a share of an epoch where validations belong to no epoch; test_properties tests that.
    if made.trainer.get("check_val_every_n_epoch", 1) is None:
        assume(not isinstance(made.trainer.get("val_check_interval"), float))
    # A stream that ends before its limit, and before a step is made, trains for ever in Lightning; so has this.
    limits = {"limit_train_batches", "overfit_batches"}
    schedules = [callback for callback in made.callbacks if callback[0] is GradientAccumulationScheduler]
    assume(made.data.sized or limits.isdisjoint(names) or not (schedules or "accumulate_grad_batches" in names))
    return made
