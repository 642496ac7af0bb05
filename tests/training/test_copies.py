"""What a member takes along when it copies another one, and data that follow the new values."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.utils.data import DataLoader

from lightning_hpo.study.lineage import lineage
from lightning_hpo.training.state_transfer import capture, transplant
from lightning_hpo.tuners.population import PopulationTuner
from tests.training.test_binding import BATCHES, INTERVAL, QUIET, Base


class SelfTuned(torch.optim.SGD):
    """Keeps an estimated step size and a sum in its groups, as Prodigy and schedule-free optimizers do."""

    def __init__(self, params, lr, d0=1e-3):
        super().__init__(params, lr=lr)
        self.defaults.update(d=d0, weight_sum=0.0)
        for group in self.param_groups:
            group.update(d=d0, weight_sum=0.0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["d"] *= 1.1
            group["weight_sum"] += group["lr"]
        return super().step(closure)


class Keeps(Base):
    def __init__(self, lr=0.01):
        super().__init__()
        self.lr = lr
        self.build()
        self.register_buffer("average", torch.zeros(4), persistent=False)
        self.queue = torch.zeros(4)

    def configure_optimizers(self):
        return SelfTuned(self.parameters(), lr=self.lr)

    def loss(self, batch):
        if self.training:
            self.average = 0.9 * self.average + batch[0].mean(0) + self.lr
            self.queue = self.queue + 1 + self.lr
        return super().loss(batch)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["queue"] = self.queue

    def on_load_checkpoint(self, checkpoint):
        self.queue = checkpoint["queue"]


def one(model, steps, lr):
    torch.manual_seed(0)
    module = model(lr)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    model.training_step = lambda self, batch, batch_idx: self.loss(batch)
    trainer = pl.Trainer(max_steps=steps, max_epochs=-1, **options, **QUIET)
    trainer.fit(module)
    return trainer, module


def test_a_copy_takes_along_what_is_in_no_state_dict():
    (donor, source), (member, target) = one(Keeps, 5, 0.02), one(Keeps, 3, 0.01)
    transplant(capture(donor, source), member, target)
    assert torch.equal(target.average, source.average)
    assert torch.equal(target.queue, source.queue)
    own, other = (trainer.optimizers[0].param_groups[0] for trainer in (member, donor))
    assert (own["d"], own["weight_sum"]) == (other["d"], other["weight_sum"])
    assert own["lr"] == 0.01  # applied by the hyperparameters
    assert target.average.data_ptr() != source.average.data_ptr()
    assert target.queue.data_ptr() != source.queue.data_ptr()
    assert member.global_step == 3  # clocks are its own


class KeepsItsLoss(Base):
    """Keeps its loss, which has a weight, in the checkpoint, and with its hyperparameters; reads both back."""

    def __init__(self, lr=0.01):
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.build()
        self.criterion = nn.PReLU(init=lr)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def loss(self, batch):
        return super().loss(batch) + self.criterion(torch.tensor([-1.0])).sum()

    def on_save_checkpoint(self, checkpoint):
        checkpoint["criterion"] = self.criterion
        checkpoint["hyper_parameters"]["criterion"] = self.criterion
        checkpoint["loops"]["fit_loop"]["epoch_progress"]["current"]["completed"] += 0
        checkpoint["seen"] = len(checkpoint["optimizer_states"]), len(checkpoint["lr_schedulers"])

    def on_load_checkpoint(self, checkpoint):
        assert checkpoint["hyper_parameters"]["criterion"] is checkpoint["criterion"]
        assert checkpoint["hyper_parameters"]["lr"] in (0.01, 0.02)
        assert checkpoint["seen"] == (1, 0)
        self.criterion = checkpoint["criterion"]


def test_hooks_of_a_checkpoint_see_what_lightning_shows_them_and_the_optimizer_still_trains_every_parameter():
    (donor, source), (member, target) = one(KeepsItsLoss, 5, 0.02), one(KeepsItsLoss, 3, 0.01)
    state = capture(donor, source)
    assert set(state["added"]) == {"criterion", "hyper_parameters", "seen"}
    transplant(state, member, target)
    assert torch.equal(target.criterion.weight, source.criterion.weight)
    assert target.criterion.weight.data_ptr() != source.criterion.weight.data_ptr()
    trained = {id(parameter) for parameter in member.optimizers[0].param_groups[0]["params"]}
    assert trained == {id(parameter) for parameter in target.parameters()}


class Workers(Base):
    """The dataset's noise is searched; workers that live on must not keep the old one."""

    SPACE = {"data.noise": "uniform(0, 1)"}

    def __init__(self):
        super().__init__()
        self.build()

    def effects(self):
        return None

    def training_step(self, batch, batch_idx):
        self.note([float(batch[2][0])])
        return self.loss(batch)

    train_dataloader = pl.LightningModule.train_dataloader
    val_dataloader = pl.LightningModule.val_dataloader


class Noisy(torch.utils.data.Dataset):
    def __init__(self, noise):
        self.noise = noise

    def __len__(self):
        return 8 * BATCHES

    def __getitem__(self, index):
        return torch.full((4,), index / 50), torch.tensor(0.1), torch.tensor(self.noise)


class NoisyData(pl.LightningDataModule):
    def __init__(self, noise=0.5):
        super().__init__()
        self.noise = noise

    def setup(self, stage):
        self.train = Noisy(self.noise)

    def on_hyperparameters(self, hparams):
        self.train.noise = hparams["noise"]

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8, num_workers=1, persistent_workers=True)

    def val_dataloader(self):
        return DataLoader(Noisy(0.0), batch_size=48)


class ReadByLoader(pl.LightningDataModule):
    """Without a hook: ``train_dataloader`` reads the attribute."""

    def __init__(self, noise=0.5):
        super().__init__()
        self.noise = noise

    def train_dataloader(self):
        return DataLoader(Noisy(self.noise), batch_size=8, num_workers=1, persistent_workers=True)

    val_dataloader = NoisyData.val_dataloader


class ReadInSetup(ReadByLoader):
    def setup(self, stage):
        self.train = Noisy(self.noise)

    def train_dataloader(self):
        return DataLoader(self.train, batch_size=8)


def test_data_that_would_not_follow_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"'data.noise' changes nothing.*data module, or define on_hyp"):
        test_workers_that_live_on_get_the_new_value_with_the_next_epoch(ReadInSetup, tmp_path)


@pytest.mark.parametrize("data", [NoisyData, ReadByLoader])
def test_workers_that_live_on_get_the_new_value_with_the_next_epoch(data, tmp_path):
    Workers.seen = {}
    tuner = PopulationTuner(
        Workers.SPACE, monitor="val_loss", root=tmp_path, name="run", verbose=False, trainer=QUIET, explore="all",
        population_size=2, interval=INTERVAL, max_steps=2 * INTERVAL, seed=3,
    )  # fmt: skip
    segments = lineage(tuner.fit(Workers, datamodule=data))
    assert len(segments) > 2
    assert {member for member, _ in Workers.seen} == {0, 1}
    for (member, step), effective in Workers.seen.items():
        (segment,) = [
            segment for segment in segments if segment.member == member and segment.start <= step < segment.stop
        ]
        assert effective == pytest.approx([segment.params["data.noise"]]), (member, step)
