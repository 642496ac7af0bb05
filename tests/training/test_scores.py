"""How the validations of a trial make its score: the same for rungs, pruners, populations, the result and best.ckpt."""

import math
import os
import signal

import lightning.pytorch as pl
import optuna
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from optuna.pruners import BasePruner

from lightning_hpo import (
    HPOCLI,
    ASHATuner,
    BayesianTuner,
    HyperbandTuner,
    Objective,
    OptunaTuner,
    PopulationBasedTraining,
    PopulationTuner,
    RandomTuner,
)
from lightning_hpo.errors import SearchFailedError, StudyMismatchError
from lightning_hpo.lineage import lineage
from lightning_hpo.training.make_trainer import quiet_and_seeded
from tests.cli.test_cli import QUIET as QUIET_FLAGS
from tests.cli.test_cli import Batches, Plain
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net

CPU = {"accelerator": "cpu", "logger": False}
EVERY_4 = {**CPU, "val_check_interval": 4}
LR = {"lr": "loguniform(1e-2, 1)"}
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def wave(step):
    """A metric that goes up and down."""
    return float(step * 7 % 11)


class Waves(Net):
    """Logs the wave, and dies after so many batches as the environment says."""

    def validation_step(self, batch, batch_idx):
        super().validation_step(batch, batch_idx)
        self.log("wave", wave(self.global_step))

    def on_train_batch_end(self, *_):
        left = int(os.environ.get("BATCHES_LEFT", "0")) - 1
        os.environ["BATCHES_LEFT"] = str(left)
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def noisy(lr, step):
    """A metric that is lower for a smaller learning rate, but for each ninth step, where it is the other way round."""
    return math.log(lr) * (-1 if step % 9 == 0 else 1)


class Steady(Waves):
    """Without an LR schedule, whose length a resumed fit would keep."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Calm(Waves):
    """Draws no random numbers while it trains, so that a plain fit trains the same."""

    def __init__(self, lr=0.1):
        super().__init__(lr, dropout=0.0)


class Ordered(Data):
    """Shuffles by a generator of its own."""

    def __init__(self):
        super().__init__(own_generator=True)


class Noisy(Waves):
    def validation_step(self, batch, batch_idx):
        self.log("noisy", noisy(self.hparams.lr, self.global_step))


class Diverges(Net):
    """Its metric is a number at steps 4 and 8 only."""

    def validation_step(self, batch, batch_idx):
        self.log("wave", wave(self.global_step) if self.global_step in (4, 8) else math.nan)


def recorded(result):
    """All that a study holds of the scores."""
    return [(row.params, row.values, row.validations, row.scored_from, row.state) for row in result.trials()]


def validated(result, monitor):
    """The metric of the best model, validated anew."""
    trainer = pl.Trainer(**CPU, **QUIET)
    return trainer.validate(result.best_model(), Data(), verbose=False)[0][monitor]


def same_weights(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def plain_fit(result, max_steps, *callbacks):
    """The best trial as a plain fit with a ModelCheckpoint: its best score and the weights in its file."""
    keep = ModelCheckpoint(result.best_checkpoint.parent / "plain", monitor="val_loss", save_top_k=1)
    trainer = pl.Trainer(**EVERY_4, **QUIET, max_steps=max_steps, callbacks=[*callbacks, keep])
    with quiet_and_seeded(0, result.best_trial, result.rows[result.best_trial].seed):
        trainer.fit(Calm(**result.best_params), Ordered())
    return float(keep.best_model_score), torch.load(keep.best_model_path, weights_only=True)["state_dict"]


class TestBest:
    def test_is_that_of_a_model_checkpoint_through_kills_and_promotions(self, tmp_path):
        def search(name, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {"monitor": "val_loss", "root": tmp_path, "trainer": EVERY_4, "verbose": False}
            return ASHATuner(
                {"lr": "loguniform(0.3, 3)"}, max_steps=24, min_steps=8, n_trials=3, score="best", name=name,
                checkpoint_every=3, **options,
            ).fit(Calm, datamodule=Ordered)  # fmt: skip

        whole = search("whole")
        for after in (9, 20, 14):
            child = in_a_child(lambda after=after: search("killed", after))
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        result = search("killed")
        assert recorded(result) == recorded(whole)
        row = result.trials()[result.best_trial]
        assert row.values[24] < row.validations[24]  # a validation before the end is the best one
        saved = torch.load(result.best_checkpoint, weights_only=True)
        assert saved["global_step"] == row.scored_from[0][0] < 24
        assert validated(result, "val_loss") == result.best_score == row.scored_from[0][1]
        score, weights = plain_fit(result, 24)
        assert score == result.best_score
        assert same_weights(weights, saved["state_dict"])

    def test_with_early_stopping_is_what_lightning_users_know(self, tmp_path):
        stopping = EarlyStopping("val_loss", patience=2, check_on_train_epoch_end=False)
        options = {"monitor": "val_loss", "root": tmp_path, "trainer": {**EVERY_4, "callbacks": [stopping]}}
        space = {"lr": "uniform(2, 3)"}
        tuner = RandomTuner(space, max_steps=100, n_trials=1, score="best", name="s", verbose=False, **options)
        result = tuner.fit(Calm, datamodule=Ordered)
        row = result.trials()[0]
        assert row.ended == f"EarlyStopping at step {row.step}"
        assert result.best_score < row.validations[row.step]
        score, weights = plain_fit(result, 100, EarlyStopping("val_loss", patience=2, check_on_train_epoch_end=False))
        assert score == result.best_score
        assert same_weights(weights, result.best_model().state_dict())

    def test_a_rung_that_is_best_stays_the_best(self, tmp_path):
        options = {"monitor": "wave", "mode": "max", "root": tmp_path, "trainer": CPU, "verbose": False}
        tuner = ASHATuner(LR, max_steps=9, min_steps=3, n_trials=3, score="best", name="r", **options)
        result = tuner.fit(Waves, datamodule=Data)
        promoted = result.trials()[result.best_trial]
        assert promoted.values == {3: wave(3), 9: wave(3)}  # only rungs are validated: 10 and 8
        assert promoted.validations == {3: wave(3), 9: wave(9)}
        assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 3
        assert validated(result, "val_loss") != 0
        kept = sorted(path.parent.name for path in tmp_path.glob("r/trials/*/best.ckpt"))
        assert kept == [f"{promoted.number:04d}"]  # those of other trials are removed

    def test_ignores_what_is_not_finite(self, tmp_path):
        options = {"monitor": "wave", "mode": "min", "root": tmp_path, "trainer": EVERY_4, "verbose": False}
        result = RandomTuner(LR, max_steps=12, n_trials=1, score="best", name="b", **options).fit(
            Diverges, datamodule=Data
        )
        assert (result.best_score, result.trials()[0].scored_from) == (wave(8), ((8, wave(8)),))
        with pytest.raises(SearchFailedError, match="no trial succeeded"):
            RandomTuner(LR, max_steps=2, n_trials=1, score="best", name="n", **options).fit(Diverges, datamodule=Data)

    def test_of_an_objective_in_a_study_of_optuna(self, tmp_path):
        study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
        objective = Objective(
            Waves, LR, data=Data, monitor="wave", max_steps=10, trainer=EVERY_4, score="best", root=tmp_path
        )
        study.optimize(objective, n_trials=1)
        assert study.best_value == min(map(wave, (4, 8, 10)))
        assert study.best_trial.intermediate_values == {4: wave(4), 8: wave(8), 10: wave(8)}


class TestMean:
    def test_of_a_noisy_metric_promotes_the_trial_that_is_good_on_average(self, tmp_path):
        def search(score, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {"monitor": "noisy", "mode": "min", "root": tmp_path, "name": score[:4], "checkpoint_every": 3}
            tuner = ASHATuner(
                LR, max_steps=27, min_steps=9, n_trials=3, score=score, trainer={**CPU, "val_check_interval": 3},
                verbose=False, **options,
            )  # fmt: skip
            return tuner.fit(Noisy, datamodule=Data)

        child = in_a_child(lambda: search("mean(3)", 8))
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        result = search("mean(3)")
        for row in result.trials():
            for step, value in row.values.items():
                last = [noisy(row.params["lr"], at) for at in (step - 6, step - 3, step)]
                assert value == pytest.approx(sum(last) / 3)
                assert row.validations[step] == pytest.approx(last[-1])
        lucky = search("last")
        assert math.log(result.best_params["lr"]) < math.log(lucky.best_params["lr"])
        assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 27

    def test_with_a_nan_fails_the_trial(self, tmp_path):
        options = {"monitor": "wave", "mode": "min", "root": tmp_path, "trainer": EVERY_4, "verbose": False}
        with pytest.raises(SearchFailedError, match="no trial succeeded"):
            RandomTuner(LR, max_steps=12, n_trials=1, score="mean(2)", name="n", **options).fit(
                Diverges, datamodule=Data
            )


def asha(**options):
    return ASHATuner(LR, max_steps=9, min_steps=3, n_trials=3, trainer=EVERY_4, **options)


def population(**options):
    return PopulationTuner(LR, population_size=2, interval=5, max_steps=20, trainer=CPU, **options)


TUNERS = {
    "hyperband": lambda **options: HyperbandTuner(LR, max_steps=9, min_steps=3, trainer=EVERY_4, **options),
    "asha": asha,
    "random": lambda **options: RandomTuner(LR, max_steps=10, n_trials=2, trainer=EVERY_4, **options),
    "bayesian": lambda **options: BayesianTuner(LR, max_steps=10, n_trials=2, trainer=EVERY_4, **options),
    "optuna": lambda **options: OptunaTuner(LR, max_steps=10, n_trials=2, trainer=EVERY_4, **options),
    "epochs": lambda **options: OptunaTuner(
        LR, max_epochs=2, n_trials=1, trainer={**CPU, "limit_train_batches": 6, "val_check_interval": 2}, **options
    ),
    "population": population,
}


class TestTuners:
    @pytest.mark.parametrize(
        ("tuner", "score"),
        [*((name, "best") for name in TUNERS), *((name, "mean(2)") for name in ("asha", "epochs", "population"))],
    )
    def test_have_one_rule_for_values_and_answer(self, tmp_path, tuner, score):
        options = {"monitor": "wave", "mode": "max", "seed": 2, "root": tmp_path, "name": "s", "verbose": False}
        result = TUNERS[tuner](score=score, **options).fit(Waves, datamodule=Data)
        rows = result.trials()
        row = rows[result.best_trial]
        steps, values = zip(*row.scored_from, strict=True)
        assert values == tuple(map(wave, steps))
        assert result.best_score == row.score == sum(values) / len(values)
        saved = torch.load(result.best_checkpoint, weights_only=True)
        assert saved["global_step"] == steps[-1] == row.checkpoint_step
        assert score == "best" or steps[-1] == row.global_step
        for row in rows:
            per = 1 if row.full_steps is None else 6  # optimizer steps of a count
            assert row.validations == {step: wave(step * per) for step in row.values}
            if score == "best":
                ordered = [row.values[step] for step in sorted(row.values)]
                assert ordered == sorted(ordered)  # it never gets worse
                assert all(row.values[step] >= row.validations[step] for step in row.values)
        page = (tmp_path / "s" / "report.html").read_text()
        assert f"wave ({score})" in page

    def test_a_pruner_goes_by_the_score(self, tmp_path):
        class Worse(BasePruner):
            """Prunes where a value is worse than the one before."""

            def prune(self, study, trial):
                values = [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)]
                return values != sorted(values, reverse=True)

        def search(score):
            tuner = OptunaTuner(
                LR, max_steps=20, n_trials=1, pruner=Worse(), score=score, monitor="wave", mode="min", root=tmp_path,
                name=score, trainer=EVERY_4, verbose=False,
            )  # fmt: skip
            return tuner.fit(Waves, datamodule=Data).trials()[0]

        assert (search("last").state, search("last").step) == ("pruned", 12)
        assert (search("best").state, search("best").values[20]) == ("complete", wave(8))

    def test_a_kill_keeps_what_a_pruned_search_has_seen(self, tmp_path):
        def search(name, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {"monitor": "wave", "mode": "min", "root": tmp_path, "trainer": EVERY_4, "verbose": False}
            tuner = OptunaTuner(
                LR, max_steps=20, n_trials=2, checkpoint_every=3, score="mean(2)", name=name, seed=1, **options
            )
            return tuner.fit(Waves, datamodule=Data)

        whole = recorded(search("whole"))
        child = in_a_child(lambda: search("killed", 31))
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert recorded(search("killed")) == whole

    def test_a_killed_population_equals_the_uninterrupted_one(self, tmp_path):
        def search(name, after=0):
            os.environ["BATCHES_LEFT"] = str(after)
            options = {"monitor": "val_loss", "root": tmp_path, "trainer": CPU, "verbose": False}
            tuner = PopulationTuner(
                LR, population_size=3, interval=4, max_steps=16, score="best", name=name, seed=1, **options
            )
            return tuner.fit(Waves, datamodule=Data)

        whole = search("whole")
        for after in (14, 5):
            child = in_a_child(lambda after=after: search("killed", after))
            assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        result = search("killed")
        assert recorded(result) == recorded(whole)
        assert any(row.parent is not None for row in result.trials())
        for row in result.trials():  # a copy begins with no score of its own
            assert all(step > row.start for step, _ in row.scored_from)
        assert validated(result, "val_loss") == result.best_score

    @pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch")
    def test_the_callback_of_a_population_goes_by_it_also_when_resumed(self, tmp_path):
        def train(max_steps, ckpt_path=None):
            pbt = PopulationBasedTraining(
                tmp_path / "pbt", LR, member=0, population_size=2, interval=5, monitor="wave", score="mean(2)"
            )
            options = {"val_check_interval": 5, "check_val_every_n_epoch": None, "enable_checkpointing": False}
            trainer = pl.Trainer(**CPU, **QUIET, **options, max_steps=max_steps, callbacks=[pbt])
            trainer.fit(Steady(), Data(), ckpt_path=ckpt_path)
            return trainer

        train(10).save_checkpoint(tmp_path / "10.ckpt")
        train(20, tmp_path / "10.ckpt")
        (alone,) = lineage(tmp_path / "pbt")
        seen = [wave(step) for step in (5, 10, 15, 20)]
        assert alone.values == {5: seen[0], **{5 * k + 5: (seen[k - 1] + seen[k]) / 2 for k in (1, 2, 3)}}
        with pytest.raises(ValueError, match=r"wave \(mean\(2\)\)"):
            PopulationBasedTraining(
                tmp_path / "pbt", LR, member=1, population_size=2, interval=5, monitor="wave"
            ).folder.join(0, None)

    def test_a_worker_process_hands_everything_over(self, tmp_path):
        options = {"monitor": "wave", "mode": "max", "root": tmp_path, "name": "w", "verbose": False}
        result = asha(score="best", isolate=True, **options).fit(Waves, datamodule=Data)
        row = result.trials()[result.best_trial]
        assert (row.values, row.scored_from) == ({3: wave(3), 9: wave(3)}, ((3, wave(3)),))
        assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 3

    def test_a_study_keeps_its_rule(self, tmp_path):
        options = {"monitor": "wave", "mode": "min", "root": tmp_path, "name": "k", "verbose": False}
        asha(score="best", **options).fit(Waves, datamodule=Data)
        with pytest.raises(StudyMismatchError, match="best"):
            asha(**options).fit(Waves, datamodule=Data)

    def test_from_flags_and_yaml(self, tmp_path):
        init = {"max_steps": 10, "n_trials": 1, "monitor": "val_loss", "root": str(tmp_path), "score": "mean(2)"}
        config = {
            "space": {"optimizer.lr": "loguniform(1e-3, 1)"},
            "tuner": {"class_path": "lightning_hpo.RandomTuner", "init_args": init},
        }
        (tmp_path / "tune.yaml").write_text(yaml.safe_dump(config))
        flags = ["--tuner.score", "best", "--trainer.val_check_interval", "4", *QUIET_FLAGS]
        made = ["--optimizer", "SGD", "--optimizer.lr", "1"]
        result = HPOCLI(Plain, Batches, args=["tune", "-c", str(tmp_path / "tune.yaml"), *flags, *made]).result
        assert len(result.trials()[0].scored_from) == 1  # the flag is stronger than the file
