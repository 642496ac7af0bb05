"""A population that is cut anywhere and continued equals one that is not, with hyperparameters that its data read."""

from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_hpo import PopulationTuner
from tests.support import idioms

SPACE = {"lr": "loguniform(1e-3, 1)", "data.cutoff": "uniform(0.1, 2)"}


class Data(idioms.Data):
    """Reads its hyperparameter at each batch."""

    def __init__(self, cutoff: float = 1.0) -> None:
        super().__init__()
        self.save_hyperparameters()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return batch[0].clamp(max=self.hparams["cutoff"]), batch[1]


class Net(idioms.Net):
    """Its learning rate is a hyperparameter."""

    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        optimizer.param_groups[0]["lr"] = self.hparams["lr"]
        return optimizer


class Cuts(pl.Callback):
    """Cuts the search at its n-th batch."""

    batches, at = 0, 0

    def on_train_batch_start(self, *args: Any) -> None:
        Cuts.batches += 1
        if Cuts.batches == Cuts.at:
            raise KeyboardInterrupt


def tune(root, name):
    options = {"population_size": 3, "interval": 4, "max_steps": 16, "monitor": "val_loss", "verbose": False}
    trainer = {"accelerator": "cpu", "callbacks": [Cuts()]}
    result = PopulationTuner(SPACE, root=root, name=name, trainer=trainer, **options).fit(Net, datamodule=Data)
    return [(row.params, row.parent, row.values, row.state) for row in result.rows]


@pytest.mark.parametrize("at", [9, 20, 26])
def test_a_cut_population_whose_data_read_their_hyperparameters(tmp_path, at):
    Cuts.at = 0
    whole = tune(tmp_path, "whole")
    assert len({params["data.cutoff"] for params, *_ in whole}) > 3  # copies change it
    Cuts.batches, Cuts.at = 0, at
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path, "cut")
    Cuts.at = 0
    assert tune(tmp_path, "cut") == whole
