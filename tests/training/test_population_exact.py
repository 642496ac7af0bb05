"""Populations of modules as people write them: what is recorded, who copies, and what an error leaves behind."""

import itertools
import math

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler, Timer
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_hpo import checkpoints
from lightning_hpo.errors import SearchFailedError
from lightning_hpo.schedulers.population import truncate
from lightning_hpo.study.lineage import lineage
from lightning_hpo.tuners.population import PopulationTuner
from tests.support.idioms import Manual

ACTIONS = []  # called with the module after each batch; a study notices if the module's own code changes


def rows(count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, generator=generator)
    return TensorDataset(x, (x[:, 0] - x[:, 1] * x[:, 2] > 0).long())


class Data(pl.LightningDataModule):
    def __init__(self, batch_size=16, count=120):
        super().__init__()
        self.batch_size, self.count = batch_size, count

    def train_dataloader(self):
        return DataLoader(rows(self.count, 0), batch_size=self.batch_size, shuffle=True)

    def val_dataloader(self):
        return DataLoader(rows(48, 1), batch_size=48)


class Uneven(Data):
    """15 batches in an epoch."""

    def __init__(self, batch_size=16):
        super().__init__(batch_size, 240)


class Stream(IterableDataset):
    def __iter__(self):
        yield from itertools.islice(iter(rows(300, 0)), 17 * 8)


class StreamData(Data):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=8)


class Net(pl.LightningModule):
    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 2))

    def loss(self, batch):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def on_train_batch_end(self, outputs, batch, batch_idx):
        for action in ACTIONS:
            action(self)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=self.hparams.lr)


class Two(Manual, Net):
    """Two optimizers, each of which counts."""

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=self.hparams.lr) for layer in (self.net[0], self.net[2])]


@pytest.fixture(autouse=True)
def _no_actions():
    ACTIONS.clear()
    yield
    ACTIONS.clear()


SPACE = {"lr": "loguniform(1e-3, 1e-1)"}
SIZE, INTERVAL, STEPS = 3, 6, 24


class Judged(pl.Callback):
    """Notes where each Trainer stands in each validation."""

    seen: list = []

    def on_validation_end(self, trainer, pl_module):
        if trainer.default_root_dir[-3:].isdigit():  # not the check before training
            self.seen.append((trainer.default_root_dir[-3:], trainer.global_step))


def tune(root, model=Net, data=Data, space=SPACE, trainer=None, **options):
    arguments = {"population_size": SIZE, "interval": INTERVAL, "max_steps": STEPS, "monitor": "val_loss", "seed": 1}
    given = {"accelerator": "cpu", "logger": False, **(trainer or {})}
    tuner = PopulationTuner(space, root=root, name="run", trainer=given, **{"verbose": False, **arguments, **options})
    return tuner.fit(model, datamodule=data)


def steps_of(result):
    """Steps with a score of each member, in order."""
    found = {}
    for segment in lineage(result):
        found.setdefault(segment.member, []).extend(segment.values)
    return {member: sorted(steps) for member, steps in found.items()}


def history(result):
    return [(row.params, dict(row.values), row.parent, row.state) for row in result.rows], [
        segment.notes() for segment in lineage(result)
    ]


def validated(result, data=Data):
    trainer = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    return trainer.validate(result.best_model(), datamodule=data(), verbose=False)[0]["val_loss"]


@pytest.mark.parametrize(
    ("model", "data", "trainer", "space"),
    [
        (Net, Uneven, {"accumulate_grad_batches": 4}, SPACE),
        (Net, Data, {"callbacks": [GradientAccumulationScheduler({0: 3, 2: 1, 4: 2})]}, SPACE),
        (Net, StreamData, {"accumulate_grad_batches": 3}, SPACE),
        (Net, Data, {"limit_train_batches": 2}, SPACE),
        (Net, Data, {"accumulate_grad_batches": 4}, {**SPACE, "data.batch_size": "choice(8, 16, 40)"}),
        (Two, Data, {}, SPACE),
    ],
    ids=["accumulation", "accumulation that changes", "no length", "short epochs", "batch size", "two optimizers"],
)
def test_a_member_is_judged_at_the_last_step_of_each_interval_and_nowhere_else(tmp_path, model, data, trainer, space):
    Judged.seen = []
    callbacks = [*trainer.get("callbacks", ()), Judged()]
    result = tune(tmp_path, model, data, space, {**trainer, "callbacks": callbacks})
    asked = list(range(INTERVAL, STEPS + 1, INTERVAL))
    assert steps_of(result) == dict.fromkeys(range(SIZE), asked)
    assert sorted(Judged.seen) == [(f"{member:03d}", step) for member in range(SIZE) for step in asked]
    assert any(segment.parent is not None for segment in lineage(result))
    assert all(row.state in ("complete", "pruned") for row in result.rows)
    saved = checkpoints.load(result.best_checkpoint)
    assert (saved["global_step"], saved["lightning_hpo"]["trial"]) == (STEPS, result.best_trial)
    assert saved["lightning_hpo"]["params"] == result.best_params
    assert validated(result, data) == pytest.approx(result.best_score, abs=1e-6)
    Judged.seen = []
    again = tune(tmp_path, model, data, space, {**trainer, "callbacks": callbacks})
    assert history(again) == history(result)
    assert Judged.seen == []


def test_an_interval_that_a_batch_passes_over_ends_at_the_step_behind(tmp_path):
    result = tune(tmp_path, Two, interval=5, max_steps=15)
    assert steps_of(result) == {member: [6, 10, 16] for member in range(SIZE)}
    assert all(row.state in ("complete", "pruned") for row in result.rows)
    assert sum(row.state == "complete" for row in result.rows) == SIZE
    assert checkpoints.load(result.best_checkpoint)["global_step"] == 16
    assert history(tune(tmp_path, Two, interval=5, max_steps=15)) == history(result)


class StopsIn(pl.Callback):
    """Asks to stop one member in one of the hooks, once."""

    def __init__(self, hook, member):
        self.asked, self.member = False, member
        setattr(self, hook, self.ask)

    def ask(self, trainer, *_):
        own = trainer.default_root_dir.endswith(f"{self.member:03d}")
        if own and trainer.global_step >= 8 and not self.asked:
            self.asked = True
            trainer.should_stop = True


@pytest.mark.parametrize(
    "hook",
    ["on_train_batch_start", "on_train_batch_end", "on_train_epoch_end", "on_validation_start", "on_validation_end"],
)
def test_a_member_that_a_callback_stops_goes_on_as_a_copy(tmp_path, hook):
    """Here the second best one at step 12, which goes on as it is unless it is stopped."""
    whole = tune(tmp_path / "whole", population_size=5)
    scores = {segment.member: segment.values[12] for segment in lineage(whole) if 12 in segment.values}
    member = sorted(scores, key=scores.get)[1]
    assert not [segment for segment in lineage(whole) if (segment.member, segment.start) == (member, 12)]
    callbacks = {"callbacks": [StopsIn(hook, member)]}
    result = tune(tmp_path / "stopped", trainer=callbacks, population_size=5)
    (copied,) = [segment for segment in lineage(result) if (segment.member, segment.start) == (member, 12)]
    assert lineage(result)[copied.parent].member != member
    assert steps_of(result) == {member: [6, 12, 18, 24] for member in range(5)}
    assert history(tune(tmp_path / "stopped", trainer=callbacks, population_size=5)) == history(result)


class Stale(Net):
    """Three of five members never learn."""

    def configure_callbacks(self):
        return [EarlyStopping("val_loss", patience=1)]

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * float(self.trainer.default_root_dir[-1] not in "123")


def test_early_stopping_of_the_module_makes_a_member_copy(tmp_path):
    result = tune(tmp_path, Stale, population_size=5, max_steps=30, quantile=0.2)
    assert steps_of(result) == {member: [6, 12, 18, 24, 30] for member in range(5)}
    copied = {segment.member for segment in lineage(result) if segment.start == 12}
    assert len(copied & {1, 2, 3}) >= 2  # the share of losers is one, and one has copied before
    assert sum(row.state == "complete" for row in result.rows) == 5


@pytest.mark.parametrize("reason", [{"patience": 1, "min_delta": 9.0}, {"patience": 3, "divergence_threshold": 0.01}])
def test_a_population_that_early_stopping_stops_as_a_whole_comes_to_its_end(tmp_path, reason):
    result = tune(tmp_path, trainer={"callbacks": [EarlyStopping("val_loss", **reason)]})
    assert steps_of(result) == {member: [6, 12, 18, 24] for member in range(SIZE)}
    assert [segment.member for segment in lineage(result) if segment.start == 6]
    assert checkpoints.load(result.best_checkpoint)["global_step"] == STEPS


def test_a_goal_that_a_member_reaches_is_not_thrown_away(tmp_path):
    whole = tune(tmp_path / "whole")
    first = {segment.member: segment.values[6] for segment in lineage(whole) if 6 in segment.values}
    best = min(first, key=first.get)
    goal = {"callbacks": [EarlyStopping("val_loss", stopping_threshold=first[best] + 1e-6)]}
    result = tune(tmp_path / "goal", trainer=goal)
    assert not [segment for segment in lineage(result) if (segment.member, segment.start) == (best, 6)]


@pytest.mark.parametrize("callbacks", [[], [EarlyStopping("val_loss")]], ids=["", "EarlyStopping"])
def test_a_member_whose_score_is_no_number_copies(tmp_path, callbacks):
    def spoil(module):
        if module.trainer.default_root_dir.endswith("001") and module.trainer.global_step == 8:
            torch.nn.utils.vector_to_parameters(torch.full((110,), torch.nan), module.parameters())

    ACTIONS.append(spoil)
    result = tune(tmp_path, trainer={"callbacks": callbacks})
    assert steps_of(result) == {member: [6, 12, 18, 24] for member in range(SIZE)}
    (copied,) = [segment for segment in lineage(result) if (segment.member, segment.start) == (1, 12)]
    assert lineage(result)[copied.parent].member != 1
    assert all(map(math.isfinite, copied.values.values()))


@pytest.mark.parametrize("at", [3, 9, 20])
def test_a_population_without_a_living_member_has_no_result(tmp_path, at):
    def fail(module):
        if module.trainer.global_step == at:
            raise RuntimeError("out of luck")

    ACTIONS.append(fail)
    for _ in range(2):  # the second time, nothing would fail
        with pytest.raises(SearchFailedError, match=r"no member of the population came to step 24"):
            tune(tmp_path)
        ACTIONS.clear()
    assert not (tmp_path / "run" / "best.ckpt").exists()


def test_a_fit_that_ends_early_without_a_reason_is_a_failure(tmp_path):
    def end(module):
        if module.trainer.default_root_dir.endswith("001"):
            module.trainer.fit_loop.epoch_loop.max_steps = 10

    ACTIONS.append(end)
    result = tune(tmp_path)
    (failed,) = [row for row in result.rows if row.state == "failed"]
    assert "its fit ended before" in result.study.trials[failed.number].user_attrs["failure"]


@pytest.mark.parametrize(
    "argument",
    [{"max_epochs": 3}, {"min_epochs": 1}, {"min_steps": 5}, {"max_time": "00:01:00:00"}, {"fast_dev_run": 1}],
)
def test_what_would_end_members_at_other_steps_is_refused(tmp_path, argument):
    (name,) = argument
    with pytest.raises(ValueError, match=f"`trainer` has the argument '{name}'.*to `max_steps`=24: leave it out"):
        tune(tmp_path, trainer=argument)
    assert not list(tmp_path.iterdir())


def test_a_timer_that_has_run_out_ends_no_member(tmp_path):
    result = tune(tmp_path, trainer={"callbacks": [Timer({"milliseconds": 30})]})
    assert steps_of(result) == {member: [6, 12, 18, 24] for member in range(SIZE)}


def test_an_error_when_all_is_done_is_said_and_costs_no_score(tmp_path, capsys):
    class Fails(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            if trainer.default_root_dir.endswith("001"):
                raise RuntimeError("out of luck")

    result = tune(tmp_path, trainer={"callbacks": [Fails()]}, verbose=True)
    assert sum(row.state == "complete" for row in result.rows) == SIZE
    assert "member 1 had come to its end when its Trainer failed: RuntimeError: out of luck" in capsys.readouterr().out


class Plateau(Net):
    """A schedule that follows a metric, and how often it was stepped with which value."""

    config = {"monitor": "val_loss"}
    seen: list = []
    validated: dict = {}
    rates: dict = {}  # of every step, with how often the schedule was stepped until then

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, **self.config}}

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        rate, epochs = self.optimizers().param_groups[0]["lr"], self.lr_schedulers().last_epoch
        self.rates[self.trainer.default_root_dir[-3:], self.global_step] = rate, epochs
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def lr_scheduler_step(self, scheduler, metric):
        self.seen.append((self.trainer.default_root_dir[-3:], self.trainer.global_step, float(metric)))
        super().lr_scheduler_step(scheduler, metric)

    def on_validation_end(self):
        where = self.trainer.default_root_dir[-3:], self.trainer.global_step
        self.validated[where] = float(self.trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize("interval", [3, 8, 12])  # epochs of 8 steps
@pytest.mark.parametrize(
    "config",
    [
        {"monitor": "val_loss"},
        {"monitor": "val_loss", "frequency": 2},
        {"monitor": "val_loss", "interval": "step", "frequency": 4},
        {"monitor": "train_loss"},
    ],
    ids=["epoch", "two epochs", "four steps", "training"],
)
def test_a_plateau_schedule_is_stepped_as_in_a_plain_trainer_with_a_value_of_that_step(tmp_path, interval, config):
    Plateau.config, Plateau.seen, Plateau.validated = config, [], {}
    result = tune(tmp_path, Plateau, interval=interval)
    own = [step for folder, step, _ in Plateau.seen if folder == "000"]
    if config["monitor"] == "val_loss":
        assert all(value == Plateau.validated[folder, step] for folder, step, value in Plateau.seen)
    every = {"val_check_interval": 4, "check_val_every_n_epoch": None} if "interval" in config else {}
    Plateau.seen = []
    plain = pl.Trainer(max_steps=STEPS, accelerator="cpu", logger=False, enable_checkpointing=False,
                       enable_progress_bar=False, enable_model_summary=False, **every)  # fmt: skip
    plain.fit(Plateau(), datamodule=Data())
    assert own
    assert own == [step for _, step, _ in Plateau.seen]
    assert all(row.state in ("complete", "pruned") for row in result.rows)


def test_a_reduced_rate_is_no_mismatch_and_a_copy_takes_the_reduction_along(tmp_path):
    """A reduction with each epoch: the rate of a step is the hyperparameter, halved as often as its way was."""
    Plateau.config, Plateau.rates = {"monitor": "val_loss"}, {}
    result = tune(tmp_path, Plateau)
    assert any(segment.parent is not None for segment in lineage(result))
    for segment in lineage(result):
        for step in range(segment.start, segment.stop):
            rate, epochs = Plateau.rates[f"{segment.member:03d}", step]
            assert rate == pytest.approx(segment.params["lr"] * 0.5 ** max(epochs - 1, 0), rel=1e-6)


@pytest.mark.parametrize(
    ("scores", "stopped", "losers", "top"),
    [
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, [], [4], [0]),
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, [1], [1], [0]),  # the share is one
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, [1, 2, 3], [1, 2, 3], [0]),
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, [0], [4], [0]),  # nobody has more to give
        ({0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0, 4: 5.0}, [0, 1, 2, 3, 4], [4], [0]),
        ({0: math.nan, 1: 2.0, 2: 3.0}, [0, 1, 2], [0], [1]),
        ({0: math.nan, 1: 2.0, 2: 3.0}, [2], [2, 0], [1]),
    ],
)
def test_members_that_were_asked_to_stop_rank_last(scores, stopped, losers, top):
    assert truncate(scores, quantile=0.2, stopped=stopped) == (losers, top)
