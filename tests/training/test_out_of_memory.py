"""Out of memory: a trial goes on with smaller batches and more of them, at the same place, to the same weights."""

import resource

import lightning.pytorch as pl
import pytest
import torch

from lightning_hpo import HyperbandTuner, OptunaTuner, RandomTuner, StudyMismatchError
from lightning_hpo.samplers import GaussianProcessSampler
from tests.support.small import Data, Net
from tests.training.test_tuners import CPU, recorded

FITS = 64  # samples times width
SPACE = {"data.batch_size": "choice(4, 8, 12, 16)", "hidden": "choice(4, 8)"}


class Heavy(Net):
    """No dropout, so that a batch and its parts train alike; a training step needs memory for samples times width."""

    fits: float = FITS
    from_step = 0

    def __init__(self, lr=0.1, hidden=8, step_log=None):
        super().__init__(lr, hidden, dropout=0.0, step_log=step_log)

    def training_step(self, batch, batch_idx):
        if len(batch[0]) * self.hparams.hidden > self.fits and self.global_step >= self.from_step:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(batch, batch_idx)


class Roomy(Heavy):
    fits = 10**9


class Late(Heavy):
    """Memory is short from the 30th step, within the second epoch, behind a checkpoint at the 28th."""

    from_step = 30


class HeavyInValidation(Roomy):
    def validation_step(self, batch, batch_idx):
        if len(batch[0]) > 50:
            raise RuntimeError("MPS backend out of memory (MPS allocated: 18.01 GiB, max allowed: 18.13 GiB)")
        super().validation_step(batch, batch_idx)


class ValData(Data):
    def val_dataloader(self):
        loader = super().val_dataloader()
        return torch.utils.data.DataLoader(loader.dataset, batch_size=self.hparams.batch_size)


def options(root, **more):
    return {"monitor": "val_loss", "root": root, "verbose": False, "trainer": CPU, "on_oom": "halve", **more}


def notes(result):
    return [trial.user_attrs.get("micro_batch") for trial in result.study.trials]


@pytest.mark.parametrize("budget", [{"max_steps": 40}, {"max_epochs": 1.5}, {"max_samples": 450}])
def test_a_search_ends_with_the_same_best_as_one_with_enough_memory(tmp_path, budget):
    def search(model, name):
        tuner = RandomTuner(SPACE, n_trials=4, seed=1, **budget, **options(tmp_path, name=name))
        return tuner.fit(model, datamodule=Data)

    tight, roomy = search(Heavy, "tight"), search(Roomy, "roomy")
    assert {row.state for row in tight.rows} == {"complete"}
    assert [row.params for row in tight.rows] == [row.params for row in roomy.rows]
    assert [list(row.values) for row in tight.rows] == [list(row.values) for row in roomy.rows]
    assert [row.global_steps for row in tight.rows] == [row.global_steps for row in roomy.rows]
    for row, other in zip(tight.rows, roomy.rows, strict=True):
        assert row.score == pytest.approx(other.score, rel=2e-2)  # parts of a shorter last batch weigh differently
    assert tight.best_params == roomy.best_params
    sizes = [row.params["data.batch_size"] for row in tight.rows]
    parts = [-(-size * row.params["hidden"] // FITS) for size, row in zip(sizes, tight.rows, strict=True)]
    assert [note and note["batch_size"] for note in notes(tight)] == [
        size // count if count > 1 else None for size, count in zip(sizes, parts, strict=True)
    ]
    assert any(notes(tight))
    assert notes(roomy) == [None] * 4
    assert "micro-batches of" in (tmp_path / "tight" / "report.html").read_text()


def test_goes_on_at_the_same_place_in_the_epoch(tmp_path):
    """Each sample of the epoch is seen once, and the weights are those of whole batches up to rounding."""
    seen = {}

    def search(model, name):
        class Noting(model):  # type: ignore[valid-type]  # one of two
            def training_step(self, batch, batch_idx):
                loss = super().training_step(batch, batch_idx)
                seen.setdefault(name, []).append((self.global_step, batch[0].sum(1)))
                return loss

        tuner = RandomTuner(
            {"lr": "choice(0.1)"}, n_trials=1, max_steps=60, checkpoint_every=7, **options(tmp_path, name=name)
        )
        return tuner.fit(Noting, datamodule=Data)

    late, roomy = search(Late, "late"), search(Roomy, "roomy")
    assert notes(late) == [{"batch_size": 8, "accumulate_grad_batches": 2, "val_batch_size": 16}]
    for step in range(60):
        parts = {name: torch.cat([images for at, images in batches if at == step]) for name, batches in seen.items()}
        # The check and the steps behind the checkpoint at 28 are trained twice.
        assert torch.equal(parts["late"][-16:].sort().values, parts["roomy"][-16:].sort().values), step
    weights = [result.best_model().net[0].weight for result in (late, roomy)]
    assert torch.allclose(*weights, atol=1e-5)
    assert torch.load(late.best_checkpoint, weights_only=True)["datamodule_hyper_parameters"]["batch_size"] == 16


def test_promoted_and_killed_trials_keep_their_parts(tmp_path):
    """A trial that was promoted trains on in parts, and so equals one job."""
    space = {"data.batch_size": "choice(12, 16)", "lr": "loguniform(0.01, 0.3)"}

    def search(name, **more):
        return HyperbandTuner(
            space, max_steps=36, min_steps=4, eta=3, total_steps=60, **options(tmp_path, name=name, **more)
        ).fit(Heavy, datamodule=Data)

    whole = search("whole", checkpoint_every=1000)
    promoted = [row for row in whole.rows if len(row.values) > 1]
    assert promoted
    assert None not in notes(whole)
    assert recorded(search("often", checkpoint_every=1)) == recorded(whole)


def test_validation_is_split_by_itself(tmp_path):
    tuner = RandomTuner({"data.batch_size": "choice(200)"}, n_trials=1, max_steps=2, **options(tmp_path, name="s"))
    result = tuner.fit(HeavyInValidation, datamodule=ValData)
    assert notes(result)[0]["batch_size"] == 200
    assert notes(result)[0]["val_batch_size"] == 50
    other = RandomTuner({"data.batch_size": "choice(200)"}, n_trials=1, max_steps=2, **options(tmp_path, name="t"))
    assert other.fit(Roomy, datamodule=ValData).best_score == pytest.approx(result.best_score, rel=1e-5)


@pytest.mark.parametrize("on_oom", ["fail", "halve"])
def test_a_trial_that_fits_into_memory_in_no_part_fails(tmp_path, on_oom):
    """A sampler takes such trials for infeasible, and goes elsewhere."""

    class Wide(Heavy):
        fits = 4.5

    space = {"lr": "uniform(0.01, 0.3)", "hidden": "int(2, 8)", "data.batch_size": "choice(1)"}
    sampler = GaussianProcessSampler(seed=0, n_startup_trials=5)
    more = options(tmp_path, name="s", on_oom=on_oom, max_failed=99)
    with pytest.warns(UserWarning, match="the check before training was out of memory"):
        result = RandomTuner(space, max_steps=2, n_trials=20, sampler=sampler, **more).fit(Wide, datamodule=Data)
    failed = [row.params["hidden"] > 4 for row in result.rows]
    assert [row.state == "failed" for row in result.rows] == failed
    assert "OutOfMemoryError" in result.study.trials[failed.index(True)].user_attrs["failure"]
    assert sum(failed[10:]) <= 3  # more than half of the space does not fit


class Limited(pl.LightningModule):
    """A real shortage: the address space of the worker process is limited, and a wide layer does not fit."""

    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, before[1]))
        try:
            return self.layer(batch).repeat(1, 2**23).mean() * 0 + self.layer(batch).mean()
        finally:
            resource.setrlimit(resource.RLIMIT_AS, before)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


class Numbers(pl.LightningDataModule):
    def __init__(self, batch_size=16):
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(32, 1), batch_size=self.batch_size)

    def val_dataloader(self):
        return torch.utils.data.DataLoader(torch.ones(4, 1))


def test_of_a_worker_with_a_limit(tmp_path):
    more = options(tmp_path, name="s", isolate=True)
    result = RandomTuner({"lr": "choice(0.1)"}, max_steps=2, n_trials=1, **more).fit(Limited, datamodule=Numbers)
    assert notes(result)[0]["batch_size"] in (4, 8)
    assert result.rows[0].step == 2


class Fixed(Data):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(super().train_dataloader().dataset, batch_size=10)


class Without(pl.LightningDataModule):
    train_dataloader, val_dataloader = Fixed.train_dataloader, Data.val_dataloader


@pytest.mark.parametrize(
    ("data", "trainer", "message"),
    [
        (Fixed, {}, "the batch size of Fixed, 16, got DataLoader with 10"),
        (Without, {}, "Without has no `self.batch_size`"),
        (Data, {"strategy": "ddp", "devices": 2}, "in 2 processes, but `on_oom` is 'halve'"),
        (Data, {"check_val_every_n_epoch": None}, "counts batches across epochs"),
        (Data, {"callbacks": [pl.callbacks.GradientAccumulationScheduler({0: 2})]}, "GradientAccumulationScheduler"),
    ],
)
def test_what_is_refused_before_training(tmp_path, data, trainer, message):
    more = options(tmp_path, name="s") | {"trainer": CPU | trainer}
    with pytest.raises(ValueError, match=message):
        RandomTuner({"lr": "choice(0.1)"}, max_steps=2, n_trials=1, **more).fit(Net, datamodule=data)


def test_wrong_arguments(tmp_path):
    with pytest.raises(ValueError, match="`on_oom` must be 'fail' or 'halve', got 'half'"):
        RandomTuner({"lr": "choice(0.1)"}, max_steps=2, n_trials=1, **options(tmp_path, on_oom="half"))
    with pytest.raises(ValueError, match="`on_oom` is for Trainers"):
        OptunaTuner({"lr": "choice(0.1)"}, max_steps=2, n_trials=1, **options(tmp_path) | {"trainer": None}).optimize(
            lambda job, params: 0.0
        )
    first, then = (
        RandomTuner({"lr": "choice(0.1)"}, max_steps=2, n_trials=1, **options(tmp_path, name="s", on_oom=on_oom))
        for on_oom in ("fail", "halve")
    )
    first.fit(Net, datamodule=Data)
    with pytest.raises(StudyMismatchError, match="on_oom"):
        then.fit(Net, datamodule=Data)
