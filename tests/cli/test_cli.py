"""The command line: `tune` in this process."""

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from lightning_hpo import HPOCLI, HyperbandTuner, RandomTuner
from lightning_hpo.training.config_builder import ConfigBuilder
from lightning_hpo.training.objective import Objective
from tests.support.small import Data, Net

QUIET = ["--trainer.accelerator", "cpu", "--trainer.logger", "false"]


class Plain(Net):
    """Optimizer and LR schedule are the command line's."""

    def __init__(self, hidden: int = 16, dropout: float = 0.2, kind: str = "relu", step_log: str | None = None):
        super().__init__(0.1, hidden, dropout)
        self.save_hyperparameters()

    configure_optimizers = pl.LightningModule.configure_optimizers


class Batches(Data):
    def __init__(self, batch_size: int = 16, own_generator: bool = False, num_workers: int = 0):
        super().__init__(batch_size)


def tune(tmp_path, *arguments, cli=HPOCLI):
    tuner = ["--tuner", "RandomTuner", "--tuner.max_steps", "6", "--tuner.n_trials", "2", "--tuner.monitor", "val_loss"]
    place = ["--tuner.root", str(tmp_path), "--tuner.name", "s", "--optimizer", "SGD", "--optimizer.lr", "0.1"]
    return cli(Plain, Batches, args=["tune", *QUIET, *tuner, *place, *arguments])


class TestTune:
    def test_every_kind_of_path_takes_effect(self, tmp_path):
        names = ["optimizer.lr", "optimizer.init_args.momentum", "model.hidden", "data.batch_size"]
        names += ["trainer.accumulate_grad_batches", "lr_scheduler.gamma"]
        texts = ["loguniform(1e-3, 1)", "uniform(0.5, 0.9)", "int(4, 9)", "choice(16, 32)", "int(1, 3)"]
        texts += ["uniform(0.5, 1)"]
        flags = [part for name, text in zip(names, texts, strict=True) for part in (f"--space.{name}", text)]
        result = tune(tmp_path, *flags, "--lr_scheduler", "ExponentialLR", "--lr_scheduler.gamma", "1").result
        assert set(result.best_params) == set(names)
        model = result.best_model()
        assert model.hparams.hidden == result.best_params["model.hidden"] == model.net[0].out_features
        checkpoint = torch.load(result.best_checkpoint, weights_only=True)
        group = checkpoint["optimizer_states"][0]["param_groups"][0]
        assert group["initial_lr"] == result.best_params["optimizer.lr"]
        assert group["momentum"] == result.best_params["optimizer.init_args.momentum"]
        assert checkpoint["hyper_parameters"]["hidden"] == result.best_params["model.hidden"]
        assert checkpoint["lr_schedulers"][0]["gamma"] == result.best_params["lr_scheduler.gamma"]
        best = yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())
        assert best["trainer"]["accumulate_grad_batches"] == result.best_params["trainer.accumulate_grad_batches"]
        assert best["trainer"]["max_steps"] == 6
        assert best["data"]["batch_size"] == result.best_params["data.batch_size"]
        assert "lightning_hpo" not in str(best)

    def test_a_module_that_reads_hparams_is_searched(self, tmp_path):
        """A second instantiation through a LightningCLI alone keeps the hparams of the first."""

        class Reads(Net):
            def __init__(self, lr: float = 0.1, step_log: str | None = None):
                super().__init__(lr)
                self.save_hyperparameters()

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)

        args = ["tune", *QUIET, "--tuner", "RandomTuner", "--tuner.max_steps", "2", "--tuner.n_trials", "3"]
        args += ["--tuner.monitor", "val_loss", "--tuner.root", str(tmp_path), "--tuner.name", "s"]
        args += ["--tuner.keep_checkpoints", "true", "--space.model.lr", "loguniform(1e-3, 1)"]
        result = HPOCLI(Reads, Batches, args=args).result
        for row in result.rows:
            checkpoint = torch.load(tmp_path / "s" / "trials" / f"{row.number:04d}" / "last.ckpt", weights_only=True)
            assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == row.params["model.lr"]
            assert checkpoint["hyper_parameters"]["lr"] == row.params["model.lr"]

    def test_flags_add_to_a_file_and_a_file_to_a_config(self, tmp_path):
        (tmp_path / "space.yaml").write_text("optimizer.lr: loguniform(1e-3, 1)\nmodel.hidden: int(4, 8)\n")
        flags = ["--space.model.dropout", "uniform(0, 0.5)", "--space.model.hidden=int(4, 5)"]
        result = tune(tmp_path, "--space", str(tmp_path / "space.yaml"), *flags).result
        assert set(result.best_params) == {"optimizer.lr", "model.hidden", "model.dropout"}
        assert result.best_params["model.hidden"] in (4, 5)
        (tmp_path / "tune.yaml").write_text("space:\n  model: {hidden: 'int(4, 8)'}\n")
        other = tune(tmp_path, "-c", str(tmp_path / "tune.yaml"), *flags[:2], "--tuner.name", "t").result
        assert set(other.best_params) == {"model.hidden", "model.dropout"}

    def test_dry_run_prices_and_writes_nothing(self, tmp_path, capsys):
        assert tune(tmp_path, "--space.model.hidden", "int(4, 8)", "--dry-run").result is None
        out = capsys.readouterr().out
        assert "in all: 2 trials, 2 jobs, 12 optimizer steps" in out
        assert "expected: 0 min" in out
        assert not list(tmp_path.iterdir())

    def test_another_config_is_another_study(self, tmp_path, capsys):
        space = ["--space.model.hidden", "int(4, 8)"]
        tune(tmp_path, *space)
        capsys.readouterr()
        assert len(tune(tmp_path, *space, "--tuner.n_trials", "3").result.rows) == 3
        assert "trial    0 @" not in capsys.readouterr().out
        with pytest.raises(SystemExit) as left:
            tune(tmp_path, *space, "--optimizer.lr", "0.2")
        assert left.value.code == 2
        assert 'was "lr": 0.1' in capsys.readouterr().err

    def test_help_and_print_config(self, capsys):
        for flags, text in [(["--help"], "loguniform(low, high)"), (["--print_config"], "accumulate_grad_batches: 1")]:
            with pytest.raises(SystemExit) as left:
                HPOCLI(Plain, Batches, args=["tune", *flags])
            assert left.value.code == 0
            assert text in " ".join(capsys.readouterr().out.split())


class TestMistakes:
    @pytest.mark.parametrize(
        ("flags", "text"),
        [
            (["--space.model.hiden", "int(4, 8)"], "Did you mean 'model.hidden'?"),
            (["--space.hidden", "int(4, 8)"], "Did you mean 'model.hidden'?"),
            (["--space.optimizer.lrr", "uniform(0, 1)"], "Did you mean 'optimizer.lr'?"),
            (["--space.modell.hidden", "int(4, 8)"], "Did you mean 'model.hidden'?"),
            (["--space.model.hidden", "uniform(4, 8)"], "'model.hidden' with the value 4.0"),
            (["--space.model.hidden", "choice(4, a)"], "'model.hidden' with the value 'a'"),
            (["--space.model.kind", "choice(1, 2)"], "'model.kind' with the value 1"),
            (["--space.model.hidden", "unifrm(4, 8)"], "uniform"),
            (["--space.trainer.max_steps", "int(4, 8)"], "the tuner's own"),
            (["--space.trainer.acumulate_grad_batches", "int(1, 2)"], "'trainer.accumulate_grad_batches'"),
            (["--space.lr_scheduler.gamma", "uniform(0, 1)"], "'lr_scheduler.gamma'"),
            (["--space.model.hidden", "int(4, 8)", "--tuner.monitor", "val_lss"], "Did you mean 'val_loss'?"),
            (["--tuner.max_stps", "4"], "--tuner.max_stps is no option of RandomTuner. Did you mean 'max_steps'?"),
            (["--tuner.n_trials", "many"], "--tuner.n_trials must be int, got many."),
            (
                ["--space.model.hidden", "int(4, 8)", "--tuner.trial_timeout", "soon"],
                "`trial_timeout` must be a number of seconds, or a text such as '8h' or '1h30m', got 'soon'",
            ),
            (["--tuner.max_retries", "often"], "--tuner.max_retries must be int, got often."),
            (["--tuner.mode", "most"], "--tuner.mode must be one of 'min', 'max' or None, got most."),
            (["--space.model.hidden", "int(4, 8)", "--ckpt_path", "last"], "`ckpt_path`"),
            ([], "`space` is empty"),
        ],
    )
    def test_before_training_with_exit_code_2(self, tmp_path, capsys, flags, text, monkeypatch):
        steps, own = [], Plain.training_step  # the check's own batch stays in its own process
        monkeypatch.setattr(Plain, "training_step", lambda *given: steps.append(given) or own(*given))
        with pytest.raises(SystemExit) as left:
            tune(tmp_path, *flags)
        assert left.value.code == 2
        assert text in capsys.readouterr().err
        assert not list(tmp_path.glob("*/trials/*"))

    def test_failed_trials_and_a_folder_that_cannot_be_used(self, tmp_path, capsys, monkeypatch):
        (tmp_path / "file").touch()
        with pytest.raises(SystemExit) as left:
            tune(tmp_path / "file", "--space.model.hidden", "int(4, 8)")
        assert left.value.code == 4
        # In the second batch: the check before training has one.
        monkeypatch.setattr(Plain, "on_train_batch_start", lambda self, batch, batch_idx: 1 / (1 - batch_idx))
        with pytest.raises(SystemExit) as left:
            tune(tmp_path, "--space.model.hidden", "int(4, 8)", "--tuner.max_failed", "2")
        assert left.value.code == 3
        assert "ZeroDivisionError" in capsys.readouterr().err


class TestFromCLI:
    def test_a_users_own_cli_keeps_its_links(self, tmp_path):
        class Own(LightningCLI):
            def add_arguments_to_parser(self, parser):
                parser.link_arguments("data.batch_size", "model.hidden")
                parser.add_lightning_class_args(pl.callbacks.GradientAccumulationScheduler, "accumulate")

        args = [*QUIET, "--optimizer", "SGD", "--optimizer.lr", "0.1", "--accumulate.scheduling", "{0: 2}"]
        cli = Own(Plain, Batches, run=False, args=args, save_config_callback=None)
        space = {"data.batch_size": "choice(16, 32)", "optimizer.lr": "loguniform(1e-3, 1)"}
        options = {"monitor": "val_loss", "max_steps": 4, "root": tmp_path, "verbose": False}
        result = RandomTuner.from_cli(cli, space, n_trials=3, **options).fit()
        assert result.best_model().net[0].out_features == result.best_params["data.batch_size"]
        assert (tmp_path / "randomtuner-plain").is_dir()
        with pytest.raises(ValueError, match="'optimizer.lr'"):
            HyperbandTuner.from_cli(cli, {"optimizer.lrr": "uniform(0, 1)"}, **options).fit()
        with pytest.raises(TypeError, match="`trainer` is given by the CLI"):
            RandomTuner.from_cli(cli, space, n_trials=3, trainer={}, **options)
        with pytest.raises(TypeError, match="must be a LightningCLI"):
            RandomTuner.from_cli(Plain, space, n_trials=3, **options)

    def test_two_jobs_equal_one_job(self, tmp_path):
        from lightning_hpo.schedulers import Job
        from lightning_hpo.training.objective import Task

        args = [*QUIET, "--optimizer", "AdamW", "--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "3"]
        cli = LightningCLI(Plain, Batches, run=False, args=args, save_config_callback=None)
        space = {"optimizer.lr": "loguniform(1e-3, 1)", "model.hidden": "int(4, 8)"}
        objective = Objective(ConfigBuilder(cli), space, monitor="val_loss", max_steps=40)
        params = {"optimizer.lr": 0.03, "model.hidden": 7}
        whole = objective.run(Task(Job(40, trial=0), params, tmp_path / "whole"))
        for steps in (7, 25, 31, 40):
            parts = objective.run(Task(Job(steps, trial=0), params, tmp_path / "parts"))
        assert parts == whole


class Watched(pl.Trainer):
    """A Trainer of the user's own."""


def test_a_trainer_class_of_the_users_own_is_warned_of():
    args = ["--optimizer", "SGD", "--optimizer.lr", "0.1", *QUIET]
    cli = LightningCLI(Plain, Batches, run=False, args=args, save_config_callback=None, trainer_class=Watched)
    with pytest.warns(UserWarning, match="`trainer_class`=Watched of the CLI is not used in a search"):
        ConfigBuilder(cli)
