"""What only a CUDA device can show; skipped without one."""

import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging

from lightning_hpo import HyperbandTuner, PopulationTuner, RandomTuner, checkpoints
from tests.support.idioms import Counts, Data, Net, Plateau, R
from tests.training.test_exact import run
from tests.training.test_shards import trained

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).parents[2]
ON_GPU = {"accelerator": "gpu", "devices": 1, "deterministic": True}
SPACE = {"lr": "loguniform(1e-2, 1)"}


class Tuned(Net):
    def __init__(self, lr=0.1, width=8):
        super().__init__()
        self.save_hyperparameters()
        self.pad = torch.nn.Linear(6, width)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr, momentum=0.9)


@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "bf16-mixed"])
@pytest.mark.parametrize("model", [Net, Counts, Plateau])
def test_a_trial_that_is_cut_equals_one_that_is_not(tmp_path, model, precision):
    trainer = {**ON_GPU, "precision": precision}
    whole, one = run(tmp_path / "whole", [R], model, Data, trainer)
    cut, other = run(tmp_path / "cut", [3, 10, R], model, Data, trainer, crash=(2,), every=2)
    assert (cut.score, cut.step) == (whole.score, whole.step)
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=0, atol=0)
    if precision == "16-mixed":
        assert other["MixedPrecision"] == one["MixedPrecision"]  # the scaler's state


def test_weight_averages_on_the_gpu(tmp_path):
    trainer = {**ON_GPU, "callbacks": [EMAWeightAveraging(decay=0.8)]}
    whole, _ = run(tmp_path / "whole", [R], Net, Data, trainer)
    cut, _ = run(tmp_path / "cut", [4, R], Net, Data, trainer)
    assert cut.score == whole.score


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_a_population_copies_on_the_gpu_and_continues(tmp_path, precision):
    def tuner(name, **options):
        return PopulationTuner(
            SPACE, population_size=4, interval=4, max_steps=12, monitor="val_loss", root=tmp_path, name=name,
            trainer={**ON_GPU, "precision": precision, **options}, verbose=False,
        )  # fmt: skip

    class Dies(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == 6:
                raise KeyboardInterrupt

    whole = tuner("whole").fit(Tuned, datamodule=Data)
    with pytest.raises(KeyboardInterrupt):
        tuner("cut", callbacks=[Dies()]).fit(Tuned, datamodule=Data)
    cut = tuner("cut").fit(Tuned, datamodule=Data)
    assert [(row.params, row.values, row.parent) for row in cut.rows] == [
        (row.params, row.values, row.parent) for row in whole.rows
    ]
    assert any(row.parent is not None for row in whole.rows)


def test_a_promoted_trial_continues_and_the_best_model_scores_as_recorded(tmp_path):
    result = HyperbandTuner(
        SPACE, max_steps=12, min_steps=3, eta=2, monitor="val_loss", root=tmp_path, trainer=ON_GPU, verbose=False
    ).fit(Tuned, datamodule=Data)
    assert {row.state for row in result.rows} <= {"complete", "pruned"}

    class Validated(Data):
        def setup(self, stage):
            super().setup("fit")

    trainer = pl.Trainer(**ON_GPU, logger=False, enable_progress_bar=False)
    metrics = trainer.validate(result.best_model(), datamodule=Validated(), verbose=False)
    assert metrics[0]["val_loss"] == pytest.approx(result.best_score, abs=1e-6)


def test_two_workers_share_one_card(tmp_path):
    result = RandomTuner(
        SPACE, max_steps=6, n_trials=4, workers=2, monitor="val_loss", root=tmp_path, trainer=ON_GPU, verbose=False
    ).fit(Tuned, datamodule=Data)
    assert [row.state for row in result.rows] == ["complete"] * 4
    assert checkpoints.load(result.best_checkpoint)["global_step"] == 6


def test_memory_is_returned_between_trials(tmp_path):
    seen = []

    class Wide(Tuned):
        def __init__(self, lr=0.1, width=4_000_000):
            super().__init__(lr, width)
            seen.append(torch.cuda.memory_allocated())

    RandomTuner(
        SPACE, max_steps=2, n_trials=6, monitor="val_loss", root=tmp_path, trainer=ON_GPU, verbose=False
    ).fit(Wide, datamodule=Data)  # fmt: skip
    assert max(seen[2:]) <= seen[1] + 2**20


def in_a_process(folder, script, *arguments):
    """A fork cannot use the card."""
    command = [sys.executable, script, *map(str, arguments)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("kind", ["fsdp", "fsdp_sharded", "fsdp2", "fsdp2_sharded"])
def test_sharded_strategies_are_cut_and_restored(tmp_path, kind):
    run = trained(tmp_path, kind, 1, in_a_process)
    checkpoints.verify(run / "best.ckpt")


class HalfACard(Tuned):
    """A training step needs a twelfth of the card for each sample."""

    def training_step(self, batch, batch_idx):
        share = torch.cuda.mem_get_info()[1] // 12
        loss = super().training_step(batch, batch_idx)
        torch.empty(len(batch[0]) * share, dtype=torch.int8, device=self.device)
        return loss


class Sixteen(pl.LightningDataModule):
    def __init__(self, batch_size=16):
        super().__init__()
        self.batch_size = batch_size

    @staticmethod
    def data(count):
        return torch.utils.data.TensorDataset(torch.ones(count, 6), torch.zeros(count, dtype=torch.long))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(self.data(64), batch_size=self.batch_size)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(self.data(4), batch_size=4)


def test_a_real_shortage_of_memory_halves_the_batch(tmp_path):
    result = RandomTuner(
        SPACE, max_steps=3, n_trials=1, monitor="val_loss", root=tmp_path, trainer=ON_GPU, verbose=False, on_oom="halve"
    ).fit(HalfACard, datamodule=Sixteen)
    assert result.study.trials[0].user_attrs["micro_batch"]["batch_size"] in (4, 8)
    assert result.rows[0].step == 3
