"""Loaders and data modules that are given as objects: every trial has a copy of its own."""

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import ASHATuner, StudyMismatchError
from tests.support.small import Data, Net, digits

SPACE = {"lr": "loguniform(1e-3, 1)"}


class Counting(Data):
    """It remembers how often it was asked, and what it was set up with."""

    def __init__(self, batch_size=16):
        super().__init__(batch_size, own_generator=True)
        self.asked = 0

    def train_dataloader(self):
        self.asked += 1
        assert self.asked == 1, "another trial has asked"
        return super().train_dataloader()


def search(root, model=Net, *, isolate=False, **data):
    options = {"max_steps": 4, "min_steps": 2, "eta": 2, "n_trials": 2, "isolate": isolate}  # two trials, three jobs
    made = ASHATuner(SPACE, **options, monitor="val_loss", root=root, name="s", verbose=False)
    return [(row.params, row.values) for row in made.fit(model, **data).trials()]


def loaders():
    generator = torch.Generator().manual_seed(3)
    return {
        "train_dataloaders": DataLoader(digits()[0], batch_size=16, shuffle=True, generator=generator),
        "val_dataloaders": DataLoader(digits()[1], batch_size=200),
    }


def test_objects_give_what_the_class_gives(tmp_path):
    expected = search(tmp_path / "class", datamodule=Counting)
    data = Counting()
    assert search(tmp_path / "object", datamodule=data) == expected
    assert data.asked == 0
    given = loaders()
    assert search(tmp_path / "loaders", **given) == expected
    assert type(given["train_dataloaders"]) is DataLoader
    functions = {name: lambda name=name: loaders()[name] for name in given}
    assert search(tmp_path / "functions", **functions) == expected
    assert search(tmp_path / "workers", isolate=True, **given) == expected


def test_data_that_refuse_a_copy_are_shared_and_other_settings_are_another_study(tmp_path):
    class Shared(Data):
        asked = []  # of the class, to be seen

        def __deepcopy__(self, memo):
            return self

        def train_dataloader(self):
            self.asked.append(self)
            return super().train_dataloader()

    data = Shared(32)
    search(tmp_path, datamodule=data)
    assert len({id(module) for module in Shared.asked}) > 1  # hooks of one trial are not those of another
    assert all(module.hparams is data.hparams for module in Shared.asked)
    with pytest.raises(ValueError, match="the code of partial.*Shared.* changed"):
        search(tmp_path, datamodule=Shared(16))


def test_the_data_themselves_are_no_setting(tmp_path):
    def given(noise, batch_size=16):
        inputs, labels = digits()[0].tensors
        train = DataLoader(TensorDataset(inputs + noise, labels), batch_size=batch_size)
        return {**loaders(), "train_dataloaders": train}

    expected = search(tmp_path, **given(0.0))
    assert search(tmp_path, **given(0.1)) == expected
    with pytest.raises(StudyMismatchError, match="code"):
        search(tmp_path, **given(0.0, batch_size=8))


def test_data_that_cannot_be_copied_is_refused(tmp_path):
    with pytest.raises(ValueError, match="which cannot be copied for each trial .*: give a class, or a function"):
        search(tmp_path, train_dataloaders=(batch for batch in []), val_dataloaders=[])
    with pytest.raises(ValueError, match="there is no data: give fit `datamodule=`, or `train_dataloaders=`"):
        search(tmp_path)


class Plateau(Net):
    monitor = "val_los"

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "monitor": self.monitor}}


def test_a_plateau_that_waits_for_an_unknown_metric_is_found_before_training(tmp_path):
    with pytest.raises(ValueError, match="monitor 'val_los', which is not logged; .* Did you mean 'val_loss'?"):
        search(tmp_path, model=Plateau, datamodule=Data)
    Plateau.monitor = "train_loss"
    try:
        assert len(search(tmp_path, model=Plateau, datamodule=Data)) == 2
    finally:
        Plateau.monitor = "val_los"


def test_the_answer_is_trained_again_with_the_same_loaders(tmp_path):
    tuner = ASHATuner(
        SPACE, max_steps=4, min_steps=4, n_trials=2, monitor="val_loss", root=tmp_path, name="s", verbose=False
    )
    result = tuner.fit(Net, **loaders())
    again = result.retrain(seed=result.rows[result.best_trial].seed)
    assert again.best_score == result.best_score
