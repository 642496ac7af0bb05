"""Budgets in epochs and samples: equal data at equal rungs, the right horizon in each trial, continued exactly."""

import os
import signal
from collections import Counter
from fractions import Fraction

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping, GradientAccumulationScheduler
from torch.utils.data import DataLoader

from lightning_hpo import (
    ASHATuner,
    FullBudget,
    HyperbandTuner,
    RandomTuner,
    Tuner,
)
from lightning_hpo.errors import SearchFailedError
from lightning_hpo.schedulers.units import Pace, Unit
from tests.faults.scripts import Script
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net

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
            assert row.global_steps.keys() == row.values.keys()
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
