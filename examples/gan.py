"""A GAN with two optimizers (manual optimization): small networks learn to draw scikit-learn's digits.

``python examples/gan.py``: about a minute. The score is the maximum mean discrepancy between generated and real images,
which sees what the two losses of a GAN do not say.
"""

import argparse
import functools
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import HyperbandTuner

NOISE = 8


@functools.cache
def images() -> tuple[torch.Tensor, torch.Tensor]:
    """Images of 64 values between -1 and 1: 1,297 to train on, 500 to compare with."""
    data = torch.tensor(load_digits().data / 8 - 1, dtype=torch.float32)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return data[order[:1297]], data[order[1297:]]


def discrepancy(first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
    """Maximum mean discrepancy with Gaussian kernels of three widths; 0 for the same distribution."""
    total = torch.zeros(())
    for width in (2.0, 4.0, 8.0):
        same, other, cross = (
            torch.exp(-(torch.cdist(a, b) ** 2) / (2 * width**2)).mean()
            for a, b in ((first, first), (second, second), (first, second))
        )
        total = total + same + other - 2 * cross
    return total


class GAN(L.LightningModule):
    """A generator and a discriminator, with a learning rate each."""

    def __init__(self, lr_g: float = 1e-3, lr_d: float = 1e-3, beta1: float = 0.5, hidden: int = 64) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.automatic_optimization = False
        self.generator = nn.Sequential(nn.Linear(NOISE, hidden), nn.ReLU(), nn.Linear(hidden, 64), nn.Tanh())
        self.discriminator = nn.Sequential(nn.Linear(64, hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1))

    def train_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(images()[0]), 64, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(TensorDataset(images()[1]), 500)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        generate, discriminate = self.optimizers()
        drawn = self.generator(torch.randn(len(batch[0]), NOISE, device=self.device))
        softplus = nn.functional.softplus
        loss = softplus(-self.discriminator(batch[0])).mean() + softplus(self.discriminator(drawn.detach())).mean()
        discriminate.zero_grad()
        self.manual_backward(loss)
        discriminate.step()
        loss = softplus(-self.discriminator(drawn)).mean()
        generate.zero_grad()
        self.manual_backward(loss)
        generate.step()

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        noise = torch.randn(500, NOISE, generator=torch.Generator().manual_seed(0)).to(self.device)
        self.log("val_mmd", discrepancy(self.generator(noise), batch[0]))

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        hp = self.hparams
        return [
            torch.optim.Adam(self.generator.parameters(), hp.lr_g, betas=(hp.beta1, 0.999)),
            torch.optim.Adam(self.discriminator.parameters(), hp.lr_d, betas=(hp.beta1, 0.999)),
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-steps", type=int, default=1080, help="steps of both optimizers: two a batch")
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    space = {
        "lr_g": "loguniform(1e-4, 1e-1)",
        "lr_d": "loguniform(1e-4, 1e-1)",
        "beta1": "uniform(0, 0.9)",
        "hidden": [32, 64, 128],
    }
    result = HyperbandTuner(
        space,
        monitor="val_mmd",
        max_steps=arguments.max_steps,
        root=arguments.root,
        name="gan",
        stop_on_nan=True,
        trainer={"accelerator": "cpu"},
    ).fit(GAN)
    model = result.best_model()
    with torch.no_grad():
        drawn = model.generator(torch.randn(4, NOISE, generator=torch.Generator().manual_seed(1)))
    print(f"best val_mmd {result.best_score:.4f}; four drawn digits:")
    for row in torch.cat([*drawn.view(4, 8, 8)], 1):
        print("".join(" .:*#@"[int((value + 1) * 2.99)] * 2 for value in row.tolist()))


if __name__ == "__main__":
    main()
