"""A plain ``fit -c best.yaml`` gives the score of the trial back, bit for bit."""

from functools import partial

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, GradientAccumulationScheduler
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset, random_split

from lightning_hpo import ASHATuner, CosineLR, PopulationTuner, RandomTuner, replay
from tests.support.small import digits


class Stream(IterableDataset):
    """Images without a length, with noise from numpy."""

    def __iter__(self):
        for image, label in zip(*digits()[0].tensors, strict=True):
            yield image + 0.01 * np.random.rand(), label  # as users' datasets draw


class Images(pl.LightningDataModule):
    """7 batches of 16 in an epoch."""

    def __init__(self, size: int = 16, stream: bool = False, workers: int = 0, split: bool = False, own: bool = False):
        super().__init__()
        self.save_hyperparameters()

    def setup(self, stage):
        self.train: Dataset = TensorDataset(*(tensor[:112] for tensor in digits()[0].tensors))
        if self.hparams.split:
            self.train, _ = random_split(TensorDataset(*digits()[0].tensors), [112, 288])

    def train_dataloader(self):
        if self.hparams.stream:
            return DataLoader(Stream(), batch_size=self.hparams.size)
        generator = torch.Generator().manual_seed(1) if self.hparams.own else None
        options = {"num_workers": self.hparams.workers, "generator": generator}
        return DataLoader(self.train, batch_size=self.hparams.size, shuffle=True, **options)

    def val_dataloader(self):
        return DataLoader(digits()[1], batch_size=100)


class Module(pl.LightningModule):
    """Dropout, and what else its arguments say."""

    def __init__(self, lr: float = 0.1, kind: str = "", schedule: str = "", norm: bool = False):
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = kind not in ("manual", "two")
        hidden = nn.BatchNorm1d(8) if norm else nn.Tanh()
        self.net = nn.Sequential(nn.Linear(64, 8), hidden, nn.Dropout(0.3), nn.Linear(8, 10))
        self.noise = 0.1

    def training_step(self, batch, batch_idx):
        scores = self.net(batch[0] + self.noise * torch.randn_like(batch[0]))
        loss = nn.functional.cross_entropy(scores.float(), batch[1])
        if not self.automatic_optimization:
            for optimizer in [self.optimizers()] if self.hparams.kind == "manual" else self.optimizers():
                optimizer.zero_grad()
            self.manual_backward(loss)
            for optimizer in [self.optimizers()] if self.hparams.kind == "manual" else self.optimizers():
                optimizer.step()
        return loss

    def validation_step(self, batch, batch_idx):
        noise = torch.randn_like(batch[0]) if self.hparams.kind == "noisy validation" else 0.0
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0] + noise), batch[1]))

    def configure_optimizers(self):
        first, last = self.net[0].parameters(), self.net[3].parameters()
        if self.hparams.kind == "two":
            return [torch.optim.SGD(first, self.hparams.lr), torch.optim.Adam(last, 0.01)]
        optimizer = torch.optim.SGD(self.parameters(), self.hparams.lr, momentum=0.9)
        schedules = torch.optim.lr_scheduler
        match self.hparams.schedule:
            case "epochs":  # asks how long training is
                return [optimizer], [schedules.CosineAnnealingLR(optimizer, T_max=self.trainer.max_epochs)]
            case "one cycle":
                steps = self.trainer.estimated_stepping_batches
                made = schedules.OneCycleLR(optimizer, self.hparams.lr, total_steps=steps)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": made, "interval": "step"}}
            case "plateau":
                plateau = schedules.ReduceLROnPlateau(optimizer, patience=0, threshold=1.0)
                return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_loss"}}
            case "ours":
                return [optimizer], [CosineLR(optimizer)]
        return optimizer


class Annealed(Module):
    """Validations change how it trains."""

    def on_validation_epoch_end(self):
        self.noise *= 0.5


class Average(EMAWeightAveraging):
    def __init__(self):
        super().__init__(decay=0.9)


CPU = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
STOP = EarlyStopping("val_loss", patience=1, min_delta=10.0)
CASES = {
    "dropout": (Module, {}, {}, {}),
    "batch norm": (Module, {"norm": True}, {}, {}),
    "end of an epoch": (Module, {}, {}, {"max_steps": 14}),
    "within the first epoch": (Module, {}, {}, {"max_steps": 5}),
    "epochs": (Module, {"schedule": "one cycle"}, {}, {"max_epochs": 2}),
    "no length": (Module, {}, {"stream": True}, {}),
    "limited stream": (Module, {}, {"stream": True}, {"trainer": {"limit_train_batches": 5}}),
    "random split": (Module, {}, {"split": True}, {}),
    "own generator": (Module, {}, {"own": True}, {}),
    "loader workers": (Module, {}, {"stream": True, "workers": 1}, {"max_steps": 8}),
    "manual": (Module, {"kind": "manual"}, {}, {}),
    "two optimizers": (Module, {"kind": "two"}, {}, {"max_steps": 18}),
    "cosine by epochs": (Module, {"schedule": "epochs"}, {}, {}),
    "one cycle": (Module, {"schedule": "one cycle"}, {}, {}),
    "plateau": (Module, {"schedule": "plateau"}, {}, {}),
    "our schedule": (Module, {"schedule": "ours"}, {}, {}),
    "annealed by validations": (Annealed, {}, {}, {"trainer": {"val_check_interval": 3}}),
    "noisy validation": (Module, {"kind": "noisy validation"}, {}, {"trainer": {"check_val_every_n_epoch": 2}}),
    "early stopping": (Module, {}, {}, {"max_steps": 40, "callbacks": [STOP]}),
    "its callback in trainer": (Module, {}, {}, {"max_steps": 40, "trainer": {"callbacks": [STOP]}}),
    "average": (Module, {}, {}, {"trainer": {"callbacks": [Average()]}}),
    "accumulation": (Module, {}, {}, {"trainer": {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1}}),
    "accumulation schedule": (Module, {}, {}, {"callbacks": GradientAccumulationScheduler({1: 2})}),
    "double": (Module, {}, {}, {"trainer": {"precision": "bf16-mixed"}}),
}


def answered(make, tmp_path, module, model, data):
    """Search, then fit with best.yaml: both scores, and the result."""
    options = {"monitor": "val_loss", "root": tmp_path, "name": "r", "verbose": False, "seed": 3}
    options["trainer"] = {**CPU, **make.keywords.get("trainer", {})}
    tuner = make({"lr": "loguniform(0.01, 0.3)", "data.size": "choice(16)"}, **options)
    result = tuner.fit(partial(module, **model), datamodule=partial(Images, **data))
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    args = ["fit", "-c", str(tmp_path / "r" / "best.yaml"), *quiet]
    cli = LightningCLI(module, Images, args=args, save_config_callback=None)
    return result, float(cli.trainer.callback_metrics["val_loss"])


@pytest.mark.parametrize("case", CASES)
def test_a_plain_fit_gives_the_score_back(tmp_path, case):
    module, model, data, options = CASES[case]
    if "max_epochs" not in options:
        options = {"max_steps": 17, **options}
    result, plain = answered(partial(RandomTuner, n_trials=1, **options), tmp_path, module, model, data)
    assert plain == result.best_score
    text = (tmp_path / "r" / "best.yaml").read_text()
    followed = case in ("plateau", "annealed by validations", "early stopping", "its callback in trainer", "average")
    assert ("lightning_hpo.TrialValidation" in text) is followed
    assert ("lightning_hpo" in text) is (followed or case == "our schedule")
    if "early" in case or "its callback" in case:
        assert result.rows[0].ended
        assert result.rows[0].step < 40
    seed = yaml.safe_load(text)["seed_everything"]
    saved = torch.load(result.best_checkpoint, weights_only=True)
    assert seed == saved["lightning_hpo"]["seed"] == result.study.trials[0].user_attrs["seed"] == result.rows[0].seed


def test_a_score_before_the_end_is_of_the_checkpoint_that_a_plain_fit_keeps(tmp_path):
    options = {"monitor": "val_loss", "mode": "max", "score": "best", "max_steps": 17, "n_trials": 1}
    trainer = {"accelerator": "cpu", "val_check_interval": 3}  # of a falling loss the first validation is the largest
    tuner = RandomTuner({"lr": "choice(0.01)"}, root=tmp_path, name="r", verbose=False, trainer=trainer, **options)
    with pytest.warns(UserWarning, match="its name suggests that lower is better"):
        best = tuner.fit(Module, datamodule=Images).rows[0]
    text = (tmp_path / "r" / "best.yaml").read_text()
    assert text.startswith(f"# val_loss = {best.score} at step 3 of trial 0; ")
    assert "ModelCheckpoint keeps the checkpoint of its step" in text
    args = [
        "fit",
        "-c",
        str(tmp_path / "r" / "best.yaml"),
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.logger=false",
    ]
    saved = LightningCLI(Module, Images, args=args, save_config_callback=None).trainer.checkpoint_callback
    assert float(saved.best_model_score) == best.score
    assert torch.load(saved.best_model_path, weights_only=True)["global_step"] == 3


class Bare(Module):
    """Its optimizer comes from the command line."""

    configure_optimizers = pl.LightningModule.configure_optimizers


@pytest.mark.parametrize(("kind", "synchronous"), [(Module, True), (Bare, True), (Module, False)])
def test_a_population_replays_its_schedule(tmp_path, kind, synchronous):
    """In an asynchronous one, weights of a member that was ahead have trained for more steps than the budget."""
    name = "lr" if kind is Module else "optimizer.lr"
    options = {"population_size": 2, "interval": 4, "max_steps": 12, "explore": "all", "monitor": "val_loss"}
    options |= {"root": tmp_path, "name": "r", "verbose": False, "synchronous": synchronous}
    space = {name: "loguniform(0.01, 0.3)"}
    if kind is Module:
        result = PopulationTuner(space, trainer=CPU, **options).fit(Module, datamodule=Images)
    else:
        args = ["--trainer.accelerator=cpu", "--trainer.logger=false", "--optimizer=SGD"]
        cli = LightningCLI(Bare, Images, args=args, run=False, save_config_callback=None)
        result = PopulationTuner.from_cli(cli, space, **options).fit()
    schedule, steps = replay(result).schedule(name), replay(result).max_steps
    assert len(schedule) > 1
    assert (steps == 12) is synchronous
    text = (tmp_path / "r" / "best.yaml").read_text()
    assert "# it needs the package lightning_hpo" in text
    assert ("ReplayLR" in text) is (kind is Bare)
    rates = []

    class Watch(pl.Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            rates.append(optimizer.param_groups[0]["lr"])

    args = ["fit", "-c", str(tmp_path / "r" / "best.yaml"), "--trainer.enable_progress_bar=false"]
    args += ["--trainer.enable_checkpointing=false", "--trainer.logger=false"]
    LightningCLI(kind, Images, args=args, save_config_callback=None, trainer_defaults={"callbacks": Watch()})
    expected = [next(value for start, value in reversed(schedule) if start <= step) for step in range(steps)]
    assert rates == pytest.approx(expected)


def test_a_promoted_trial(tmp_path):
    make = partial(ASHATuner, max_steps=9, min_steps=3, n_trials=3)
    result, plain = answered(make, tmp_path, Module, {}, {})
    best = result.rows[result.best_trial]
    assert plain == result.best_score
    assert len({row.seed for row in result.rows}) == len(result.rows)
    assert set(best.values) == {3, 9}
