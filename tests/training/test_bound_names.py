"""Names of a population's space: refused if they move nothing, bound where it is certain."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_hpo.callbacks.population import PopulationBasedTraining
from lightning_hpo.study.lineage import lineage
from tests.training.test_binding import (
    INTERVAL,
    QUIET,
    Adversarial,
    Attention,
    Base,
    Cyclic,
    FixedGroupFirst,
    check_what_is_in_effect,
    population,
)


def names_nothing(lr_used):
    class Ignores(Base):
        SPACE = {"lr": "loguniform(1e-3, 1e-1)", "momentum": "uniform(0, 0.9)"}

        def __init__(self, lr=0.01, momentum=0.9):
            super().__init__()
            self.save_hyperparameters()
            self.momentum = momentum
            self.build()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=self.hparams.lr if lr_used else 0.01, momentum=0.9)

        def effects(self):
            raise AssertionError("must not train")

    return Ignores


@pytest.mark.parametrize(("lr_used", "name"), [(True, "'momentum' changes nothing"), (False, "'lr' changes nothing")])
def test_a_name_that_moves_nothing_is_refused_before_training(lr_used, name, tmp_path):
    with pytest.raises(MisconfigurationException, match=name):
        population(names_nothing(lr_used), tmp_path)


class Initial(Base):
    SPACE = {"std": "uniform(0.1, 1)"}

    def __init__(self, std=0.1):
        super().__init__()
        self.build()
        nn.init.normal_(self.net[0].weight, std=std)

    def effects(self):
        raise AssertionError("must not train")


def test_what_only_sets_initial_weights_is_refused(tmp_path):
    with pytest.raises(MisconfigurationException, match="only the initial weights"):
        population(Initial, tmp_path)


class Hooked(Base):
    SPACE = {"noise": "uniform(0, 1)"}

    def __init__(self, noise=0.1):
        super().__init__()
        self.build()

    def on_hyperparameters(self, hparams):
        self.noise = hparams["noise"]

    def effects(self):
        return [self.noise]

    @staticmethod
    def right(step, noise):
        return [noise]


class Deaf(Hooked):
    def on_hyperparameters(self, hparams):
        self.calls = getattr(self, "calls", 0) + 1


def test_a_hook_that_ignores_a_name_is_noticed(tmp_path):
    check_what_is_in_effect(Hooked, tmp_path / "a")
    with pytest.raises(MisconfigurationException, match="on_hyperparameters.* changes nothing with it"):
        population(Deaf, tmp_path / "b")


def member_of_one_folder(module, space, tmp_path):
    pbt = PopulationBasedTraining(tmp_path / "pbt", space, member=0, population_size=2, interval=INTERVAL)
    options = {"enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": INTERVAL}
    trainer = pl.Trainer(
        max_steps=4, max_epochs=-1, callbacks=[pbt], default_root_dir=tmp_path / "0", **options, **QUIET
    )
    trainer.fit(module)
    (segment,) = lineage(tmp_path / "pbt")
    return segment.params


class NoDecayFirst(FixedGroupFirst):
    def configure_optimizers(self):
        return torch.optim.AdamW(
            [{"params": [self.net[0].bias], "weight_decay": 0.0}, {"params": [self.net[0].weight]}],
            weight_decay=self.wd,
        )


def test_without_saved_hparams_only_what_is_certain_is_bound(tmp_path):
    NoDecayFirst.seen = {}
    params = member_of_one_folder(NoDecayFirst(), {"weight_decay": "loguniform(1e-4, 1e-2)"}, tmp_path / "a")
    assert set(map(tuple, NoDecayFirst.seen.values())) == {(0.0, params["weight_decay"])}
    with pytest.raises(MisconfigurationException, match=r"'lr'.*self.save_hyperparameters\(\) in its __init__"):
        member_of_one_folder(Cyclic(), {"lr": "loguniform(1e-4, 1e-2)"}, tmp_path / "b")
    with pytest.raises(MisconfigurationException, match=r"'dropout'.*self.save_hyperparameters\(\) in its __init__"):
        member_of_one_folder(Attention(), {"dropout": "uniform(0, 0.5)"}, tmp_path / "c")


def test_with_saved_hparams_a_module_is_built_again(tmp_path):
    Adversarial.seen = {}
    params = member_of_one_folder(Adversarial(), Adversarial.SPACE, tmp_path)
    assert list(Adversarial.seen.values()) == [pytest.approx(Adversarial.right(0, **params))] * 4
