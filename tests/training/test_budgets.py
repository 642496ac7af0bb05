"""Budgets in epochs and samples: equal data at equal rungs, the right horizon in each trial, continued exactly."""

import os
import signal
from collections import Counter
from fractions import Fraction

import lightning.pytorch as pl
import optuna
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from optuna.pruners import BasePruner
from optuna.storages import InMemoryStorage
from torch.utils.data import DataLoader, IterableDataset

from lightning_hpo import (
    HPOCLI,
    ASHATuner,
    BayesianTuner,
    FullBudget,
    HyperbandTuner,
    Objective,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Tuner,
)
from lightning_hpo.errors import SearchFailedError, StudyMismatchError
from lightning_hpo.lineage import lineage, replay
from lightning_hpo.schedulers.units import Pace, Unit
from tests.cli.test_cli import QUIET, Batches, Plain
from tests.faults.scripts import Script
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net

OPTIMIZER = ["--optimizer", "SGD", "--optimizer.lr", "0.1"]
CPU = {"accelerator": "cpu", "logger": False}
LR = {"lr": "loguniform(1e-2, 1)"}
SIZES = {**LR, "data.batch_size": "choice(16, 24, 40)"}
SAMPLES = 400  # in an epoch of Data


class Spy(Net):
    """Counts the samples of each trial, and notes the horizon that its LR schedule was given."""

    seen: Counter[str] = Counter()
    horizons: dict[str, set[tuple[int, int]]] = {}

    def training_step(self, batch, batch_idx):
        self.seen[self._folder] += len(batch[1])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        lengths = self.trainer.max_steps, self.trainer.max_epochs
        assert self.trainer.estimated_stepping_batches == lengths[0]
        self.horizons.setdefault(self._folder, set()).add(lengths)
        return super().configure_optimizers()

    @property
    def _folder(self):
        return self.trainer.default_root_dir


class Killed(Net):
    """Its process dies after so many batches as the environment says."""

    def on_train_batch_end(self, *_):
        left = int(os.environ["BATCHES_LEFT"]) - 1
        os.environ["BATCHES_LEFT"] = str(left)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture(autouse=True)
def fresh(monkeypatch):
    monkeypatch.setenv("BATCHES_LEFT", "0")
    Spy.seen.clear()
    Spy.horizons.clear()


def values(rows):
    return [(dict(row.params), dict(row.values), row.state, row.ended, dict(row.global_steps)) for row in rows]


@st.composite
def paces(draw):
    batch, batches = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    samples = (batches - 1) * batch + draw(st.integers(1, batch))
    unit = draw(st.sampled_from([Unit("samples"), Unit("epochs"), Unit("epochs", 4), Unit("epochs", 10)]))
    factors = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=3)))
    return Pace(unit, batches, factors, batch, samples, draw(st.integers(1, 2)))


class TestPace:
    @given(paces(), st.integers(1, 300))
    def test_a_budget_is_reached_at_its_step_and_not_before(self, pace, count):
        step = pace.steps(count)
        assert pace.position(step - pace.optimizers) < count <= pace.position(step)

    @given(paces(), st.integers(1, 12))
    def test_equals_a_walk_through_the_batches(self, pace, epochs):
        step = had = 0
        for epoch in range(epochs):
            factor = pace.accumulation[min(epoch, len(pace.accumulation) - 1)]
            for batch in range(1, pace.batches + 1):
                if batch % factor == 0 or batch == pace.batches:
                    step += pace.optimizers
                    of_epoch = Fraction(batch, pace.batches) * pace.unit.parts
                    done = min(batch * pace.batch, pace.samples)
                    had = (
                        epoch * pace.samples + done
                        if pace.unit.name == "samples"
                        else epoch * pace.unit.parts + of_epoch
                    )
                    assert pace.position(step) == had


class TestEpochs:
    def test_equal_samples_at_equal_rungs_and_the_horizon_of_each_trial(self, tmp_path, capsys):
        make = HyperbandTuner(
            SIZES, max_epochs=4, min_epochs=1, eta=2, monitor="val_loss", root=tmp_path, name="f", trainer=CPU, seed=3
        )
        result = make.fit(Spy, datamodule=Data)
        rows = result.trials()
        assert {row.params["data.batch_size"] for row in rows} == {16, 24, 40}
        assert {step for row in rows for step in row.values} == {1, 2, 4}
        for row in rows:
            folder, per_epoch = (
                str(tmp_path / "f" / "trials" / f"{row.number:04d}"),
                -(-SAMPLES // row.params["data.batch_size"]),
            )
            assert Spy.seen[folder] == SAMPLES * row.step
            assert Spy.horizons[folder] == {(4 * per_epoch, 4)}
            assert dict(row.global_steps) == {step: step * per_epoch for step in row.values}
        shown = capsys.readouterr().out
        assert "trials @ epochs" in shown
        assert "optimizer steps" not in shown
        best = yaml.safe_load((tmp_path / "f" / "best.yaml").read_text())
        assert best["trainer"]["max_epochs"] == 4
        page = (tmp_path / "f" / "report.html").read_text()
        assert " epochs</p>" in page
        assert "optimizer step" not in page
        saved = torch.load(result.best_checkpoint, weights_only=True)
        assert saved["global_step"] == rows[result.best_trial].global_step
        assert result.best_model().hparams.lr == result.best_params["lr"]

    def test_a_search_killed_at_any_step_equals_the_uninterrupted_one(self, tmp_path):
        def search(name, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {"monitor": "val_loss", "root": tmp_path, "trainer": CPU, "checkpoint_every": 3, "verbose": False}
            space = {"lr": "loguniform(1e-2, 1)", "data.batch_size": "choice(80, 150)"}
            tuner = HyperbandTuner(space, max_epochs=4, min_epochs=1, eta=2, name=name, **options)
            return tuner.fit(Killed, datamodule=Data).trials()

        whole = search("whole")
        for after in (7, 2, 20, 13):
            child = in_a_child(lambda after=after: search("killed", after))
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert values(search("killed")) == values(whole)

    def test_a_part_of_an_epoch(self, tmp_path, capsys):
        tuner = ASHATuner(
            SIZES, max_epochs=1, min_epochs=0.25, eta=2, n_trials=8, monitor="val_loss", root=tmp_path, trainer=CPU
        )
        rows = tuner.fit(Spy, datamodule=Data).trials()
        assert {step for row in rows for step in row.values} == {1, 2, 4}  # quarters of an epoch
        for row in rows:
            for step, at in row.global_steps.items():
                batches = -(-SAMPLES // row.params["data.batch_size"])
                assert (at - 1) * 4 < step * batches <= at * 4
        assert "@ 0.25 " in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("trainer", "per_epoch"),
        [
            ({"accumulate_grad_batches": 4}, [7, 7]),
            ({"limit_train_batches": 10}, [10, 10]),
            ({"limit_train_batches": 0.5, "accumulate_grad_batches": 5}, [3, 3]),
            ({"callbacks": [GradientAccumulationScheduler({0: 1, 1: 5})]}, [25, 5]),
        ],
    )
    def test_what_the_trainer_is_told_counts(self, tmp_path, trainer, per_epoch):
        options = {"monitor": "val_loss", "root": tmp_path, "trainer": {**CPU, **trainer}}
        result = Tuner(LR, _Rungs(2, 1), unit="epochs", **options).fit(Net, datamodule=Data)
        assert dict(result.trials()[0].global_steps) == {1: per_epoch[0], 2: sum(per_epoch)}

    def test_each_manual_optimizer_counts(self, tmp_path):
        result = RandomTuner(
            {"lr": "loguniform(1e-3, 1e-2)"}, max_epochs=2, n_trials=1, monitor="val_loss", root=tmp_path, trainer=CPU
        ).fit(Pair, datamodule=Data)
        assert dict(result.trials()[0].global_steps) == {2: 100}
        assert Pair.horizon == 100

    def test_a_manual_optimizer_that_skips_batches_needs_a_budget_in_steps(self, tmp_path):
        class Seldom(Pair):
            def training_step(self, batch, batch_idx):
                if batch_idx % 2 == 0:
                    super().training_step(batch, batch_idx)

        options = {"monitor": "val_loss", "root": tmp_path, "trainer": CPU, "max_failed": 1}
        with pytest.raises(SearchFailedError, match=r"after epoch 1 26 optimizer steps are done, not 50.*`max_steps`"):
            RandomTuner(LR, max_epochs=2, n_trials=1, **options).fit(Seldom, datamodule=Data)

    def test_epochs_that_change_their_length_need_a_budget_in_steps(self, tmp_path):
        class Growing(Data):
            def train_dataloader(self):
                epoch = self.trainer.current_epoch
                return DataLoader(super().train_dataloader().dataset, batch_size=16 if epoch == 0 else 40)

        trainer = {**CPU, "reload_dataloaders_every_n_epochs": 1}
        options = {"monitor": "val_loss", "root": tmp_path, "trainer": trainer, "max_failed": 1}
        with pytest.raises(SearchFailedError, match="an epoch had 25 batches and has 10 now.*give `max_steps`"):
            RandomTuner(LR, max_epochs=2, n_trials=1, **options).fit(Net, datamodule=Growing)

    def test_early_stopping_within_an_epoch(self, tmp_path):
        class Worse(Net):
            def validation_step(self, batch, batch_idx):
                self.log("val_loss", float(self.global_step))

        stops = EarlyStopping("val_loss", patience=3)
        trainer = {**CPU, "callbacks": [stops], "val_check_interval": 5}
        row = (
            RandomTuner(LR, max_epochs=3, n_trials=1, monitor="val_loss", root=tmp_path, trainer=trainer)
            .fit(Worse, datamodule=Data)
            .trials()[0]
        )
        assert (row.state, row.values, row.global_steps) == ("complete", {1: 20.0}, {1: 20})
        assert row.ended == "EarlyStopping at step 20"


class _Rungs(FullBudget):
    """One trial, judged at each count."""

    def next(self, rows):
        from lightning_hpo import Job

        row = rows[0] if rows else None
        if row is None:
            return Job(1)
        return Job(row.step + 1, trial=0) if row.idle and row.step < self.max_steps else None


class Pair(Net):
    """Two optimizers, each of which steps at every batch."""

    horizon = 0

    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            optimizer.zero_grad()
            self.manual_backward(nn_loss(self.net(batch[0]), batch[1]))
            optimizer.step()

    def configure_optimizers(self):
        Pair.horizon = self.trainer.max_steps
        first, last = list(self.net[0].parameters()), list(self.net[3].parameters())
        return [torch.optim.SGD(first, self.hparams.lr), torch.optim.SGD(last, self.hparams.lr)]


nn_loss = torch.nn.functional.cross_entropy


class TestSamples:
    def test_equal_samples_up_to_a_batch(self, tmp_path, capsys):
        rows = (
            HyperbandTuner(
                SIZES,
                max_samples=1000,
                min_samples=250,
                eta=2,
                monitor="val_loss",
                root=tmp_path,
                name="f",
                trainer=CPU,
            )
            .fit(Spy, datamodule=Data)
            .trials()
        )
        for row in rows:
            seen = Spy.seen[str(tmp_path / "f" / "trials" / f"{row.number:04d}")]
            assert seen == row.step
            rung = max(rung for rung in (250, 500, 1000) if rung <= row.step)
            assert row.step - rung < row.params["data.batch_size"]
        assert "@ 250  " in capsys.readouterr().out

    def test_best_yaml_has_the_steps_of_the_best_trial(self, tmp_path):
        options = {"monitor": "val_loss", "root": tmp_path, "name": "f", "trainer": CPU}
        RandomTuner({"data.batch_size": "choice(24)"}, max_samples=1000, n_trials=1, **options).fit(
            Net, datamodule=Data
        )
        # 17 steps of 400 samples, twice, and 200 more
        assert yaml.safe_load((tmp_path / "f" / "best.yaml").read_text())["trainer"]["max_steps"] == 2 * 17 + 9


RANKS = """
import sys
import torch
torch.set_num_threads(1)
from lightning_hpo import RandomTuner
from tests.support.small import Data, Net

if __name__ == "__main__":
    trainer = {"strategy": "ddp", "accelerator": "cpu", "devices": 2}
    tuner = RandomTuner({"lr": "loguniform(1e-3, 1)"}, max_samples=432, n_trials=1, monitor="val_loss",
                        root=sys.argv[1], name="f", trainer=trainer)
    print("steps", tuner.fit(Net, datamodule=Data).trials()[0].global_steps)
"""


def test_the_samples_of_all_ranks_count(tmp_path):
    (tmp_path / "script.py").write_text(RANKS)
    code, out, err = Script(tmp_path, tmp_path / "script.py", tmp_path).end()
    assert code == 0, err
    assert "steps {432: 14}" in out  # 13 steps of 2 x 16 in an epoch of 400, and 1 more


class Asked(BasePruner):
    """Notes the step at which it is asked, and stops every second trial at its second epoch."""

    steps: dict[int, list[int]] = {}

    def prune(self, study, trial):
        self.steps.setdefault(trial.number, []).append(trial.last_step)
        return trial.number % 2 == 1 and trial.last_step == 2


class TestOptuna:
    def test_pruners_are_asked_at_epochs(self, tmp_path):
        Asked.steps.clear()
        options = {"monitor": "val_loss", "root": tmp_path, "name": "f"}
        rows = (
            OptunaTuner(SIZES, max_epochs=3, n_trials=4, pruner=Asked(), trainer=CPU, **options)
            .fit(Spy, datamodule=Data)
            .trials()
        )
        assert Asked.steps == {0: [1, 2, 3], 1: [1, 2], 2: [1, 2, 3], 3: [1, 2]}
        assert [row.state for row in rows] == ["complete", "pruned"] * 2
        for row in rows:
            assert Spy.seen[str(tmp_path / "f" / "trials" / f"{row.number:04d}")] == SAMPLES * row.step

    def test_validations_within_an_epoch(self, tmp_path):
        Asked.steps.clear()
        trainer = {**CPU, "val_check_interval": 10}  # of 25 batches
        rows = (
            OptunaTuner(
                LR, max_epochs=3, n_trials=2, pruner=Asked(), trainer=trainer, monitor="val_loss", root=tmp_path
            )
            .fit(Net, datamodule=Data)
            .trials()
        )
        assert sorted(rows[0].values) == [1, 2, 3]
        assert rows[0].global_steps == {3: 75}
        assert rows[1].state == "pruned"
        assert sorted(rows[1].values) == [1, 2]
        assert rows[1].global_step == 60

    def test_an_objective_of_optunas_own_study(self, tmp_path):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0), pruner=Asked())
        objective = Objective(Spy, SIZES, data=Data, monitor="val_loss", max_epochs=2, trainer=CPU, root=tmp_path)
        study.optimize(objective, 1)
        assert list(study.trials[0].intermediate_values) == [1, 2]
        assert sum(Spy.seen.values()) == 2 * SAMPLES


class TestPopulation:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_decisions_after_epochs(self, tmp_path, workers):
        options = {"monitor": "val_loss", "root": tmp_path, "name": "f", "trainer": CPU, "workers": workers}
        make = PopulationTuner(LR, population_size=3, max_epochs=6, interval=2, seed=1, **options)
        result = make.fit(Net, datamodule=Data)
        rows = result.trials()
        assert {step for row in rows for step in row.values} == {2, 4, 6}
        assert any(row.parent is not None for row in rows)
        for row in rows:
            assert dict(row.global_steps) == {step: 25 * step for step in row.values}
        segments = lineage(result)
        assert {segment.start for segment in segments} <= {0, 50, 100}
        assert all(segment.forked_at in (50, 100) for segment in segments if segment.parent is not None)
        assert replay(result).max_steps == 150
        saved = torch.load(result.best_checkpoint, weights_only=True)
        assert saved["global_step"] == 150

    def test_a_killed_population_equals_the_uninterrupted_one(self, tmp_path):
        def search(name, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {
                "monitor": "val_loss",
                "root": tmp_path,
                "name": name,
                "trainer": {**CPU, "limit_train_batches": 6},
            }
            tuner = PopulationTuner(LR, population_size=3, max_epochs=3, interval=0.5, seed=1, verbose=False, **options)
            return tuner.fit(Killed, datamodule=Data).trials()

        whole = search("whole")
        for after in (5, 11, 20, 3):
            child = in_a_child(lambda after=after: search("killed", after))
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert values(search("killed")) == values(whole)


class TestFunction:
    def test_gets_the_budget_as_a_number(self, tmp_path):
        budgets = set()

        def loss(job, params):
            budgets.add(job.max_steps)
            return params["x"] / job.max_steps

        options = {"root": tmp_path, "storage": InMemoryStorage()}
        tuner = HyperbandTuner({"x": "uniform(0, 1)"}, max_epochs=1, min_epochs=0.25, eta=2, total=7.5, **options)
        rows = tuner.optimize(loss).trials()
        assert budgets == {0.25, 0.5, 1}
        assert 7.5 <= sum(row.step for row in rows) / 4 < 8.5
        assert yaml.safe_load(next(tmp_path.rglob("best.yaml")).read_text())["trainer"]["max_steps"] == 1


class TestCommandLine:
    def test_flags(self, tmp_path, capsys):
        arguments = ["--space.optimizer.lr", "loguniform(1e-3, 1)", "--space.data.batch_size", "choice(40, 80)"]
        tuner = [
            "--tuner.max_epochs",
            "2",
            "--tuner.min_epochs",
            "0.5",
            "--tuner.eta",
            "2",
            "--tuner.monitor",
            "val_loss",
        ]
        place = ["--tuner.root", str(tmp_path), "--tuner.name", "e", *OPTIMIZER]
        found = HPOCLI(
            Plain, Batches, args=["tune", *QUIET, *arguments, "--tuner", "HyperbandTuner", *tuner, *place]
        ).result
        assert {step for row in found.trials() for step in row.values} <= {1, 2, 4}
        best = yaml.safe_load((tmp_path / "e" / "best.yaml").read_text())["trainer"]
        assert (best["max_epochs"], best.get("max_steps", -1)) == (2, -1)

    def test_a_dry_run_from_yaml(self, tmp_path, capsys):
        tuner = {"max_epochs": 4, "n_trials": 3, "monitor": "val_loss", "root": str(tmp_path)}
        config = {
            "space": {"optimizer.lr": "loguniform(1e-3, 1)"},
            "tuner": {"class_path": "lightning_hpo.RandomTuner", "init_args": tuner},
        }
        (tmp_path / "tune.yaml").write_text(yaml.safe_dump(config))
        HPOCLI(Plain, Batches, args=["tune", "-c", str(tmp_path / "tune.yaml"), *QUIET, *OPTIMIZER, "--dry_run"])
        shown = capsys.readouterr().out
        assert "3 trials, 3 jobs, 12 epochs" in shown
        assert "expected: 0 min" in shown


class Endless(IterableDataset):
    def __iter__(self):
        while True:
            yield torch.zeros(64), torch.tensor(0)


class NoLength(Data):
    def train_dataloader(self):
        return DataLoader(Endless(), batch_size=16)


class TwoLoaders(Data):
    def train_dataloader(self):
        return {"a": super().train_dataloader(), "b": super().train_dataloader()}


@pytest.mark.parametrize(
    ("kind", "options", "error", "words"),
    [
        (
            HyperbandTuner, {}, TypeError,
            "is missing: give one of `max_steps`, `max_epochs`, `max_samples`, e.g. max_epochs=9",
        ),
        (
            HyperbandTuner, {"max_steps": 9, "max_epochs": 9}, TypeError,
            "one of `max_steps`, `max_epochs`, `max_samples`; got max_steps=9 and max_epochs=9",
        ),
        (
            HyperbandTuner, {"max_epochs": 9, "min_steps": 1}, TypeError,
            "`min_steps` is in optimizer steps, .* give `min_epochs`",
        ),
        (ASHATuner, {"max_steps": 9, "min_epochs": 1}, TypeError, "`min_epochs` is in epochs, .* give `min_steps`"),
        (
            HyperbandTuner, {"max_epochs": 9, "min_epochs": 10}, ValueError,
            "`min_epochs` must be at most `max_epochs`, got 10 > 9",
        ),
        (RandomTuner, {"max_epochs": 0, "n_trials": 1}, ValueError, "`max_epochs` must be above 0, got 0"),
        (RandomTuner, {"max_epochs": "3", "n_trials": 1}, TypeError, "`max_epochs` must be a number above 0, got '3'"),
        (RandomTuner, {"max_epochs": 0.12345, "n_trials": 1}, ValueError, "may have three decimals"),
        (
            BayesianTuner, {"max_samples": 1.5, "n_trials": 1}, TypeError,
            "`max_samples` must be an int above 0, got 1.5",
        ),
        (OptunaTuner, {"max_epochs": True, "n_trials": 1}, TypeError, "`max_epochs` must be a number"),
        (
            HyperbandTuner, {"max_epochs": 9, "total_steps": 100}, TypeError,
            "`total_steps` is in optimizer steps, .* `total`, in epochs",
        ),
        (
            HyperbandTuner, {"max_steps": 9, "total": 100, "total_steps": 100}, TypeError,
            "either `total` or `total_steps`",
        ),
        (HyperbandTuner, {"max_epochs": 9, "unit": "steps"}, TypeError, "no argument 'unit'"),
        (
            PopulationTuner, {"max_epochs": 9, "interval": 2}, ValueError,
            "`max_epochs` must be a multiple of `interval` 2, got 9",
        ),
        (PopulationTuner, {"max_samples": 900}, TypeError, "`interval` is missing"),
        (
            PopulationTuner, {"max_epochs": 9, "space": SIZES}, ValueError,
            "'data.batch_size', which changes while a member trains",
        ),
        (
            Tuner, {"scheduler": FullBudget(3, 1), "unit": "epoch"}, ValueError,
            "`unit` must be one of 'steps', 'epochs', 'samples'",
        ),
    ],
)  # fmt: skip
def test_a_wrong_budget(kind, options, error, words):
    with pytest.raises(error, match=words):
        kind(**{"space": LR, "monitor": "val_loss", **options})


@pytest.mark.parametrize(
    ("budget", "data", "words"),
    [
        ({"max_epochs": 2}, NoLength, "no known length: give `max_steps` in place of `max_epochs`, or an int"),
        ({"max_samples": 2}, NoLength, "no known length: give `max_steps` in place of `max_samples`"),
        ({"max_samples": 2}, TwoLoaders, "does not say how many are in a batch: give `max_epochs`"),
    ],
)
def test_an_unknown_length_is_refused_before_training(tmp_path, budget, data, words):
    tuner = RandomTuner(LR, **budget, n_trials=1, monitor="val_loss", root=tmp_path, name="f", trainer=CPU)
    with pytest.raises(MisconfigurationException, match=words):
        tuner.fit(Net, datamodule=data)
    assert not list((tmp_path / "f").rglob("*.ckpt"))


def test_a_length_in_place_of_an_unknown_one(tmp_path):
    trainer = {**CPU, "limit_train_batches": 7}
    options = {"monitor": "val_loss", "root": tmp_path, "trainer": trainer}
    rows = RandomTuner(LR, max_epochs=2, n_trials=1, **options).fit(Net, datamodule=NoLength).trials()
    assert dict(rows[0].global_steps) == {2: 14}


def test_a_study_is_not_continued_in_another_unit(tmp_path):
    options = {"n_trials": 1, "monitor": "val_loss", "root": tmp_path, "name": "f", "trainer": CPU}
    RandomTuner(LR, max_steps=2, **options).fit(Net, datamodule=Data)
    with pytest.raises(StudyMismatchError, match="unit"):
        RandomTuner(LR, max_epochs=2, **options).fit(Net, datamodule=Data)


def test_the_module_may_ask_for_the_length_in_setup(tmp_path):
    class Early(Net):
        def setup(self, stage):
            self.length = self.trainer.max_steps

        def on_train_start(self):
            assert self.length == self.trainer.max_steps == 50

    assert isinstance(Early(), pl.LightningModule)
    RandomTuner(LR, max_epochs=2, n_trials=1, monitor="val_loss", root=tmp_path, trainer=CPU).fit(
        Early, datamodule=Data
    )
