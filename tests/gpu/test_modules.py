"""Modules in the idioms of GPU users: cut and continued, copied, moved to a machine without a GPU."""

import os
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_hpo import HyperbandTuner, PopulationTuner, RandomTuner
from lightning_hpo.training.random_state import rng_state, set_rng_state
from tests.gpu.test_gpu import ON_GPU, ROOT, SPACE, Tuned
from tests.support.idioms import Data, Manual, Net, R
from tests.training.test_exact import run

pytestmark = pytest.mark.gpu


class Compiled(Net):
    def __init__(self):
        super().__init__()
        self.net.compile()


class CompiledInside(Net):
    """Its weights have other names than those of the module that is compiled."""

    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net)  # type: ignore[assignment]


class Fused(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02, fused=True)


class Capturable(Net):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.02, capturable=True)


class OnTheCard(Net):
    """A tensor, random numbers and a stream of its own, on the card and outside of Lightning's checkpoint."""

    def on_fit_start(self):
        self.level = torch.ones(1, device=self.device)
        self.random = torch.Generator(self.device).manual_seed(3)
        self.stream = torch.cuda.Stream()

    def training_step(self, batch, batch_idx):
        self.level += 0.1 * torch.rand(1, device=self.device, generator=self.random)
        return super().training_step(batch, batch_idx) * self.level


class OwnScaler(Manual, Net):
    """Mixed precision by hand."""

    def __init__(self):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cuda", init_scale=2.0**17, growth_interval=3)

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        with torch.autocast("cuda", torch.float16):
            loss = self.loss(batch)
        self.scaler.scale(loss).backward()
        self.scaler.step(optimizer)
        self.scaler.update()
        self.log("train_loss", loss)


class Pinned(Data):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(
            self.train, batch_size=8, shuffle=True, pin_memory=True, num_workers=1, persistent_workers=True
        )


CASES = {
    "compiled": (Compiled, Data, {}),
    "compiled inside": (CompiledInside, Data, {}),
    "a fused optimizer": (Fused, Data, {}),
    "a fused optimizer under mixed precision": (Fused, Data, {"precision": "16-mixed"}),
    "an optimizer for graphs": (Capturable, Data, {}),
    "state on the card": (OnTheCard, Data, {}),
    "a scaler of its own": (OwnScaler, Data, {}),
    "half precision": (Net, Data, {"precision": "bf16-true"}),
    "pinned memory": (Net, Pinned, {}),
    "one rank of nccl": (Net, Data, {"strategy": "ddp"}),
    "benchmarks of cudnn": (Net, Data, {"benchmark": True, "deterministic": False}),
}


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("case", CASES)
def test_a_trial_that_is_cut_equals_one_that_is_not(tmp_path, case):
    model, data, trainer = CASES[case]
    trainer = {**ON_GPU, **trainer}
    whole, one = run(tmp_path / "whole", [R], model, data, trainer)
    cut, other = run(tmp_path / "cut", [3, 10, R], model, data, trainer, crash=(2,), every=2)
    assert (cut.score, cut.step) == (whole.score, whole.step)
    torch.testing.assert_close(other["state_dict"], one["state_dict"], rtol=0, atol=0)
    torch.testing.assert_close(other["optimizer_states"], one["optimizer_states"], rtol=0, atol=0)


def test_random_numbers_of_the_card_are_put_back_also_with_fewer_cards():
    torch.rand(1, device="cuda")
    state = rng_state()
    numbers = torch.rand(4, device="cuda")
    state["devices"]["cuda"].append(state["devices"]["cuda"][0])  # of a machine with one more
    set_rng_state(state)
    torch.testing.assert_close(torch.rand(4, device="cuda"), numbers, rtol=0, atol=0)


class Adam(Tuned):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.hparams.lr / 10, fused=True)


@pytest.mark.parametrize("model", [Tuned, Adam])
def test_a_population_is_the_same_in_two_workers_on_one_card(tmp_path, model):
    def rows(name, **options):
        tuner = PopulationTuner(
            SPACE, population_size=4, interval=4, max_steps=12, monitor="val_loss", root=tmp_path, name=name,
            trainer=ON_GPU, verbose=False, **options,
        )  # fmt: skip
        return [(row.params, row.values, row.parent) for row in tuner.fit(model, datamodule=Data).rows]

    assert rows("workers", workers=2, synchronous=True) == rows("here")


def test_ranks_on_the_cpu_need_no_second_card(tmp_path):
    options = {"max_steps": 2, "n_trials": 1, "monitor": "val_loss", "root": tmp_path, "verbose": False}
    trainer = {"accelerator": "cpu", "strategy": "ddp_find_unused_parameters_true"}
    tuner = RandomTuner(SPACE, **options, isolate=True, devices_per_trial=2, trainer=trainer)
    assert [row.state for row in tuner.fit(Tuned, datamodule=Data).rows] == ["complete"]
    if torch.cuda.device_count() == 1:
        tuner = RandomTuner(SPACE, **options, isolate=True, devices_per_trial=2, name="gpu")
        with pytest.raises((MisconfigurationException, ValueError), match="(?i)gpu"):
            tuner.fit(Tuned, datamodule=Data)
        assert not (tmp_path / "gpu").exists()


SEARCH = """
import sys
import lightning.pytorch as pl
from lightning_hpo import HyperbandTuner
from tests.gpu.test_gpu import Tuned
from tests.support.idioms import Data

class Dies(pl.Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 7:
            raise KeyboardInterrupt

if __name__ == "__main__":
    root, name, accelerator, dies, workers = sys.argv[1:]
    tuner = HyperbandTuner(
        {"lr": "loguniform(1e-2, 1)"}, max_steps=12, min_steps=3, eta=2, monitor="val_loss", root=root, name=name,
        trainer={"accelerator": accelerator}, callbacks=[Dies()] if dies == "dies" else [], verbose=False,
        checkpoint_every=2, workers=int(workers), allow_changed=True,
    )
    try:
        result = tuner.fit(Tuned, datamodule=Data)
    except KeyboardInterrupt:
        sys.exit(7)
    import torch
    print("used", torch.cuda.is_initialized(), [row.state for row in result.rows], result.best_model().device)
"""


def search(folder, *arguments, hidden=False):
    (folder / "script.py").write_text(SEARCH)
    environment = {**os.environ, **({"CUDA_VISIBLE_DEVICES": ""} if hidden else {})}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), environment.get("PYTHONPATH", "")])
    command = [sys.executable, str(folder / "script.py"), str(folder), *arguments]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment, cwd=ROOT)
    return done.returncode, done.stdout, done.stderr


def test_a_search_that_began_on_a_card_goes_on_without_one_and_back(tmp_path):
    code, out, err = search(tmp_path, "moves", "auto", "dies", "1")
    assert code == 7, out + err
    code, out, err = search(tmp_path, "moves", "auto", "lives", "1", hidden=True)
    assert code == 0, err
    assert "complete" in out
    assert "failed" not in out
    code, _, err = search(tmp_path, "other", "cpu", "dies", "1", hidden=True)
    assert code == 7, err
    code, out, err = search(tmp_path, "other", "auto", "lives", "1")
    assert code == 0, err
    assert "failed" not in out


def test_a_search_in_workers_takes_no_memory_of_the_card_for_itself(tmp_path):
    code, out, err = search(tmp_path, "workers", "auto", "lives", "2")
    assert code == 0, err
    assert "used False" in out
    assert "failed" not in out


def test_a_member_that_waits_costs_the_memory_of_its_state(tmp_path):
    """Members of a population stay on the card between their jobs."""
    peak = []

    class Large(Tuned):
        def __init__(self, lr=0.1, width=2_000_000):
            super().__init__(lr, width)

        def on_train_start(self):
            peak.append(torch.cuda.memory_allocated())

    PopulationTuner(
        SPACE, population_size=4, interval=2, max_steps=4, monitor="val_loss", root=tmp_path, trainer=ON_GPU,
        verbose=False,
    ).fit(Large, datamodule=Data)  # fmt: skip
    one = sum(parameter.numel() * parameter.element_size() for parameter in nn.Linear(6, 2_000_000).parameters())
    assert max(peak) <= 4 * 3.1 * one  # weights, gradients, momentum


def test_a_hyperband_search_with_pinned_loaders_and_statistics_of_the_card(tmp_path):
    result = HyperbandTuner(
        SPACE, max_steps=12, min_steps=3, eta=2, monitor="val_loss", root=tmp_path, verbose=False, logger="csv",
        trainer={"callbacks": [pl.callbacks.DeviceStatsMonitor()]},
    ).fit(Tuned, datamodule=Pinned)  # fmt: skip
    assert "failed" not in {row.state for row in result.rows}
