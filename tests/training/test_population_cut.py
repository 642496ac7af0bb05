"""A population that is cut anywhere and continued equals one that is not, with hyperparameters that its data read."""

import os
import signal
from typing import Any

import lightning.pytorch as pl
import pytest

from lightning_hpo import PopulationTuner
from lightning_hpo.study.rows import read_rows
from tests.faults.test_kill import in_a_child
from tests.support import idioms
from tests.support.studies import study_of

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
    """Cuts the search at its n-th batch, or behind the last checkpoint of a member."""

    batches, at, at_end = 0, 0, False

    def on_train_batch_start(self, *args: Any) -> None:
        Cuts.batches += 1
        if Cuts.batches == Cuts.at:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if Cuts.at_end and trainer.global_step == trainer.max_steps:
            os.kill(os.getpid(), signal.SIGKILL)


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


def test_a_member_that_is_killed_behind_its_last_checkpoint_has_all_rows(tmp_path):
    def logged(name):
        return [
            sorted(file.read_text().splitlines()) for file in sorted((tmp_path / name).glob("trials/*/metrics.csv"))
        ]

    Cuts.at, Cuts.at_end = 0, False
    whole = tune(tmp_path, "whole")
    Cuts.at_end = True
    child = in_a_child(lambda: tune(tmp_path, "cut"))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    Cuts.at_end = False
    assert tune(tmp_path, "cut") == whole
    assert logged("cut") == logged("whole")


def test_a_kept_checkpoint_of_a_parent_that_a_killed_process_has_left_is_removed(tmp_path):
    Cuts.at, Cuts.at_end = 0, False
    tune(tmp_path, "r")
    row = next(row for row in read_rows(study_of(tmp_path / "r")) if row.parent is not None)
    home = tmp_path / "r" / "trials" / f"{row.home:04d}"
    kept, left = home / f"parent.{row.number}.ckpt", next(home.glob("*.ckpt"))
    kept.write_bytes(left.read_bytes())
    tune(tmp_path, "r")
    assert not kept.exists()
