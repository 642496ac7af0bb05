"""What is recorded is what was trained, and best.* name one trial at one step: with real Trainers."""

import contextlib
import math
from dataclasses import dataclass

import lightning.pytorch as pl
import optuna
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping
from optuna.pruners import MedianPruner, NopPruner
from optuna.storages import InMemoryStorage
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import (
    ASHATuner,
    BayesianTuner,
    HyperbandTuner,
    Job,
    Objective,
    OptunaTuner,
    RandomTuner,
    Tuner,
    checkpoints,
)
from lightning_hpo.__main__ import main
from lightning_hpo.records import spent

CPU = {"accelerator": "cpu", "logger": False}
SPACE = {"x": "uniform(0, 1)", "width": "int(1, 6)"}


class Data(pl.LightningDataModule):
    """8 batches in an epoch."""

    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(16.0)), batch_size=2)

    def val_dataloader(self):
        return DataLoader(TensorDataset(torch.arange(2.0)), batch_size=2)


class Net(pl.LightningModule):
    """Its score is ``x`` and what its weights still lack; ``width`` shapes them, ``steps`` counts all that was done."""

    steps: list = []

    def __init__(self, x=0.5, width=1):
        super().__init__()
        self.save_hyperparameters()
        self.weights = torch.nn.Parameter(torch.zeros(width))

    def lacking(self):
        return ((self.weights - 1) ** 2).mean()

    def training_step(self, batch, batch_idx):
        self.steps.append(self.hparams.x)
        return self.lacking()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.hparams.x + self.lacking())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.fixture(autouse=True)
def steps(monkeypatch):
    monkeypatch.setattr(Net, "steps", [])
    return Net.steps


def options(tmp_path, **more):
    trainer = {**CPU, **more.pop("trainer", {})}
    return {"monitor": "val_loss", "root": tmp_path, "name": "s", "verbose": False, "trainer": trainer, **more}


TUNERS = {
    "random": lambda **o: RandomTuner(SPACE, max_steps=27, n_trials=2, **o),
    "bayesian": lambda **o: BayesianTuner(SPACE, max_steps=27, n_trials=2, **o),
    "median": lambda **o: BayesianTuner(SPACE, max_steps=30, n_trials=2, median_stopping=True, **o),
    "hyperband": lambda **o: HyperbandTuner(SPACE, max_steps=27, min_steps=9, **o),
    "asha": lambda **o: ASHATuner(SPACE, max_steps=27, min_steps=9, **o),
    "optuna": lambda **o: OptunaTuner(SPACE, max_steps=27, n_trials=2, pruner=NopPruner(), **o),
}
EVERY = pytest.mark.parametrize("make", TUNERS.values(), ids=TUNERS)


def assert_one_answer(result, path):
    """The study, best.yaml, best.ckpt and the model that is built from them are of one trial at one step."""
    row = result.rows[result.best_trial]
    assert dict(row.params) == dict(result.best_params)
    assert row.values[max(row.values)] == result.best_score
    saved = torch.load(path / "best.ckpt", weights_only=True)
    assert saved["global_step"] == max(row.values)
    assert saved["lightning_hpo"]["trial"] == result.best_trial
    assert saved["lightning_hpo"]["params"] == dict(result.best_params)
    assert yaml.safe_load((path / "best.yaml").read_text())["model"] == dict(result.best_params)
    trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
    metrics = trainer.validate(result.best_model(), datamodule=Data(), verbose=False)
    assert metrics[0]["val_loss"] == pytest.approx(result.best_score, abs=1e-6)
    assert main(["show", str(path)]) == 0


class Stops(pl.Callback):
    """Ends a fit in the middle of an epoch."""

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 13:
            trainer.should_stop = True


class TestRecordedStep:
    @EVERY
    @pytest.mark.parametrize(
        ("trainer", "end", "why"),
        [
            ({"max_epochs": 1}, 8, "max_epochs=1"),
            ({"callbacks": [Stops()]}, 13, "stopped by"),
            ({"callbacks": [EarlyStopping("val_loss", min_delta=9.0, patience=1)]}, 16, "EarlyStopping"),
        ],
        ids=["max_epochs", "callback", "EarlyStopping"],
    )
    def test_is_where_the_trainer_stood_and_says_why(self, tmp_path, make, trainer, end, why):
        result = make(**options(tmp_path, trainer=trainer)).fit(Net, datamodule=Data)
        over = [trial for trial in result.study.trials if "ended" in trial.user_attrs]
        assert over
        for trial in over:
            assert trial.state.name == "COMPLETE"
            assert max(trial.intermediate_values) == end
            assert trial.value == trial.intermediate_values[end]
            assert trial.user_attrs["ended"].startswith(why)
            assert f"step {end}" in trial.user_attrs["ended"]
        assert not [trial for trial in result.study.trials if trial.state.name in ("FAIL", "RUNNING")]
        assert max(max(row.values) for row in result.rows) == end
        assert spent(result.rows) == sum(max(row.values) for row in result.rows)
        assert_one_answer(result, tmp_path / "s")
        report = (tmp_path / "s" / "report.html").read_text()
        assert f"{spent(result.rows):,} optimizer steps" in report
        assert over[0].user_attrs["ended"] in report

    @EVERY
    def test_counts_what_was_trained(self, tmp_path, steps, make, capsys):
        result = make(**options(tmp_path, trainer={"max_epochs": 2}, verbose=True)).fit(Net, datamodule=Data)
        trained = [x for x in steps if x != 0.5]  # without the check before training, in the middle of the space
        assert spent(result.rows) == len(trained)
        assert max(max(row.values) for row in result.rows) == 16
        assert f"[{len(trained):,} steps" in capsys.readouterr().out

    def test_the_epochs_of_a_trial_may_be_in_the_space(self, tmp_path):
        space = {**SPACE, "trainer.max_epochs": "int(1, 3)"}
        tuner = HyperbandTuner(space, max_steps=27, min_steps=9, **options(tmp_path))
        result = tuner.fit(Net, datamodule=Data)
        for row in result.rows:
            assert max(row.values) <= 8 * row.params["trainer.max_epochs"]
            assert (row.ended is not None) == (max(row.values) == 8 * row.params["trainer.max_epochs"])
        assert main(["show", str(tmp_path / "s")]) == 0

    @pytest.mark.parametrize(
        ("trainer", "end"),
        [
            ({"max_epochs": 1}, 8),
            ({"callbacks": [EarlyStopping("val_loss", min_delta=9.0, patience=1)]}, 16),
        ],
        ids=["max_epochs", "EarlyStopping"],
    )
    def test_of_a_trial_that_ends_by_itself_at_exactly_a_rung(self, tmp_path, trainer, end):
        tuner = ASHATuner(SPACE, max_steps=32, min_steps=8, eta=2, n_trials=5, **options(tmp_path, trainer=trainer))
        assert max(max(row.values) for row in tuner.fit(Net, datamodule=Data).rows) == end

    def test_total_steps_counts_trained_steps(self, tmp_path, steps):
        tuner = RandomTuner(
            SPACE, max_steps=100, n_trials=50, total_steps=40, **options(tmp_path, trainer={"max_epochs": 1})
        )
        assert len(tuner.fit(Net, datamodule=Data).rows) == 5

    def test_several_objectives(self, tmp_path):
        class Two(Net):
            def validation_step(self, batch, batch_idx):
                super().validation_step(batch, batch_idx)
                self.log("width", float(self.hparams.width))

        several = options(tmp_path, trainer={"max_epochs": 1}) | {"monitor": ("val_loss", "width")}
        result = OptunaTuner(SPACE, max_steps=27, n_trials=3, mode="min", **several).fit(Two, datamodule=Data)
        assert [dict(row.values) for row in result.rows] == [{8: trial.values[0]} for trial in result.study.trials]
        assert_one_answer(result, tmp_path / "s")

    def test_a_finished_trial_is_finished_for_the_next_call_too(self, tmp_path, steps):
        make = lambda: TUNERS["asha"](**options(tmp_path, trainer={"max_epochs": 1}))  # noqa: E731
        first = make().fit(Net, datamodule=Data)
        count = len(steps)
        again = make().fit(Net, datamodule=Data)
        assert len(steps) == count
        assert [row.values for row in again.rows] == [row.values for row in first.rows]


@dataclass(frozen=True)
class Forking:
    """The first trial trains for 6 steps; two others go on from it."""

    max_steps: int = 12

    def next(self, rows):
        if not rows:
            return Job(6)
        if rows[0].values and len(rows) < 3:
            return Job(12, parent=0, params={"x": 0.1 * len(rows), "width": rows[0].params["width"]})
        return None


def test_the_steps_of_a_parent_count_once(tmp_path, steps):
    result = Tuner(SPACE, Forking(), **options(tmp_path, keep_checkpoints=True)).fit(Net, datamodule=Data)
    trained = [x for x in steps if x != 0.5]
    assert spent(result.rows) == len(trained) == 18
    assert [row.start for row in result.rows] == [0, 6, 6]
    assert_one_answer(result, tmp_path / "s")


def failing(error, above, from_step):
    """A module whose trials with a good ``x`` fail on their way to the second rung."""

    class Fails(Net):
        def on_train_batch_start(self, batch, batch_idx):
            if error and self.global_step > from_step and self.hparams.x < above:
                raise RuntimeError("boom")

        def validation_step(self, batch, batch_idx):
            super().validation_step(batch, batch_idx)
            if not error and self.global_step > from_step and self.hparams.x < above:
                self.log("val_loss", math.nan)

    return Fails


class TestBestFilesAndStudyAgree:
    @pytest.mark.parametrize("error", [True, False], ids=["raises", "NaN"])
    @pytest.mark.parametrize("above", [0.5, 2.0], ids=["some", "all"])
    @pytest.mark.parametrize("make", [ASHATuner, HyperbandTuner])
    def test_a_trial_that_fails_at_a_later_rung_keeps_its_score(self, tmp_path, make, error, above):
        tuner = make(SPACE, max_steps=9, min_steps=1, **options(tmp_path, max_failed=1000))
        result = tuner.fit(failing(error, above, 1), datamodule=Data)
        failed = [row for row in result.rows if row.state == "failed" and row.values]
        assert failed
        if above > 1:
            best = min((row for row in result.rows if row.values), key=lambda row: row.values[max(row.values)])
            assert result.best_trial == best.number
            assert best in failed
        else:
            assert result.rows[result.best_trial].state == "complete"
        assert_one_answer(result, tmp_path / "s")

    def test_a_lost_best_checkpoint_is_made_again_or_missed(self, tmp_path):
        make = lambda: TUNERS["asha"](**options(tmp_path))  # noqa: E731
        result = make().fit(Net, datamodule=Data)
        best = tmp_path / "s" / "best.ckpt"
        for name in ("best.ckpt", "best.yaml"):  # as if the process had died before it could write them
            (tmp_path / "s" / name).unlink()
        assert_one_answer(make().fit(Net, datamodule=Data), tmp_path / "s")
        best.unlink()
        last = tmp_path / "s" / "trials" / f"{result.best_trial:04d}" / "last.ckpt"
        checkpoints.save({**checkpoints.load(last), "global_step": 9}, last)
        with pytest.warns(UserWarning, match="its checkpoint of that step is not there"):
            again = make().fit(Net, datamodule=Data)
        assert again.best_checkpoint is None
        with pytest.raises(RuntimeError, match=f"checkpoint of trial {again.best_trial} was not saved"):
            again.best_model()

    def test_show_compares_the_files_with_the_study(self, tmp_path, capsys):
        result = TUNERS["random"](**options(tmp_path, keep_checkpoints=True)).fit(Net, datamodule=Data)
        path = tmp_path / "s"
        other = next(row.number for row in result.rows if row.number != result.best_trial)
        right = checkpoints.load(path / "best.ckpt")
        checkpoints.save(checkpoints.load(path / "trials" / f"{other:04d}" / "last.ckpt"), path / "best.ckpt")
        assert main(["show", str(path)]) == 4
        assert f"best.ckpt is of trial {other}, not of trial {result.best_trial}" in capsys.readouterr().err
        checkpoints.save({**right, "global_step": 5}, path / "best.ckpt")
        assert main(["show", str(path)]) == 4
        assert "best.ckpt is of step 5, not of step 27" in capsys.readouterr().err
        checkpoints.save(right, path / "best.ckpt")
        assert main(["show", str(path)]) == 0
        config = yaml.safe_load((path / "best.yaml").read_text())
        config["model"]["x"] += 0.1
        (path / "best.yaml").write_text(yaml.safe_dump(config))
        assert main(["show", str(path)]) == 4
        assert "best.yaml has another 'x'" in capsys.readouterr().err
        TUNERS["random"](**options(tmp_path, keep_checkpoints=True)).fit(Net, datamodule=Data)
        assert main(["show", str(path)]) == 0

    @pytest.mark.parametrize("pruner", [NopPruner(), MedianPruner(n_startup_trials=2)], ids=["", "pruned"])
    def test_an_infeasible_trial_is_never_best_before_a_feasible_one(self, tmp_path, pruner):
        class Limited(Net):
            def validation_step(self, batch, batch_idx):
                super().validation_step(batch, batch_idx)
                self.log("too_good", 0.4 - self.hparams.x)

        make = lambda n: OptunaTuner(  # noqa: E731
            SPACE, max_steps=24, n_trials=n, constraints=["too_good"], pruner=pruner, **options(tmp_path)
        )
        result = make(8).fit(Limited, datamodule=Data)
        assert min(row.params["x"] for row in result.rows) < 0.4 < result.best_params["x"]
        assert result.best_trial == result.study.best_trial.number
        assert all(row.feasible == (row.params["x"] >= 0.4) for row in result.rows)
        assert_one_answer(result, tmp_path / "s")

    def test_a_fit_under_way_has_no_score_yet(self, tmp_path):
        """A trial that was killed after a good report is not the best before it has ended."""
        study = optuna.create_study(study_name="s", storage=f"sqlite:///{tmp_path}/s.db", pruner=NopPruner())
        tuner = OptunaTuner(SPACE, max_steps=24, n_trials=2, study=study, **options(tmp_path))
        result = tuner.fit(Net, datamodule=Data)
        under_way = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        under_way.report(-1.0, 999)
        failed = study.ask({"x": optuna.distributions.FloatDistribution(0, 1)})
        failed.report(-1.0, 999)
        study.tell(failed, state=optuna.trial.TrialState.FAIL)
        tuner = OptunaTuner(SPACE, max_steps=24, n_trials=2, study=study, **options(tmp_path))
        assert tuner.fit(Net, datamodule=Data).best_trial == result.best_trial


class TestTrialFolders:
    def test_of_a_study_in_memory_that_is_made_anew_under_the_same_name(self, tmp_path, steps):
        def search(name, seed):
            tuner = RandomTuner(
                SPACE, max_steps=5, n_trials=3, seed=seed, storage=InMemoryStorage(),
                **options(tmp_path, name=name, keep_checkpoints=True),
            )  # fmt: skip
            return [(row.params, row.values) for row in tuner.fit(Net, datamodule=Data).rows]

        search("s", 0)
        fresh = search("fresh", 1)
        with pytest.warns(UserWarning, match="files of other trials are moved aside"):
            assert search("s", 1) == fresh
        trials = tmp_path / "s" / "trials"
        assert sum(".other-" in path.name for path in trials.iterdir()) == 3
        assert len([path for path in trials.iterdir() if ".other-" not in path.name]) == 3
        assert main(["show", str(tmp_path / "fresh")]) == 4  # it holds no study

    @EVERY
    def test_of_a_study_file_that_was_moved_away(self, tmp_path, make, steps):
        first = make(**options(tmp_path, keep_checkpoints=True)).fit(Net, datamodule=Data)
        count = len(steps)
        for file in (tmp_path / "s").glob("study.*"):
            file.unlink()
        with pytest.warns(UserWarning, match="files of other trials are moved aside") as told:
            again = make(**options(tmp_path, keep_checkpoints=True)).fit(Net, datamodule=Data)
        assert len({str(warning.message) for warning in told if "moved aside" in str(warning.message)}) == 1
        assert len(steps) == 2 * count
        assert [row.values for row in again.rows] == [row.values for row in first.rows]
        assert_one_answer(again, tmp_path / "s")

    def test_of_an_unknown_trial_is_never_adopted(self, tmp_path):
        folder = tmp_path / "s" / "trials" / "0000"
        folder.mkdir(parents=True)
        (folder / "last.ckpt").write_bytes(b"of somebody else")
        with pytest.warns(UserWarning, match="moved aside"):
            RandomTuner(SPACE, max_steps=2, n_trials=1, **options(tmp_path)).fit(Net, datamodule=Data)
        (aside,) = (tmp_path / "s" / "trials").glob("0000.other-*")
        assert (aside / "last.ckpt").read_bytes() == b"of somebody else"

    def test_of_plain_optuna(self, tmp_path, steps):
        for seed in (0, 1):
            objective = Objective(Net, SPACE, data=Data, monitor="val_loss", max_steps=5, trainer=CPU, root=tmp_path)
            study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
            with pytest.warns(UserWarning, match="moved aside") if seed else contextlib.nullcontext():
                study.optimize(objective, n_trials=2)
            assert len(set(steps)) == 2
            assert len(steps) == 10
            steps.clear()
        assert sorted(path.name[:10] for path in tmp_path.iterdir()) == ["0000", "0000.other", "0001", "0001.other"]
