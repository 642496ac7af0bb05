"""Fine-tuning: a network that knows the digits 0 to 4 learns 5 to 9 from 100 images.

``python examples/finetuning.py``: about a minute. When the backbone is unfrozen, and with which learning rate, are
hyperparameters; Lightning's BaseFinetuning does the rest.
"""

import argparse
import functools
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import BaseFinetuning
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_hpo import HyperbandTuner


def digits(labels: range, rows: slice) -> TensorDataset:
    """Images of some labels, which are counted from 0."""
    images, targets = load_digits(return_X_y=True)
    chosen = [index for index, label in enumerate(targets) if label in labels][rows]
    inputs = torch.tensor(images[chosen] / 16, dtype=torch.float32)
    return TensorDataset(inputs, torch.tensor(targets[chosen]) - labels[0])


@functools.cache  # trained once in a process; a real backbone would be loaded from a file
def pretrained() -> dict[str, torch.Tensor]:
    """Weights of a backbone that tells 0, 1, 2, 3 and 4 apart."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone, head = make_backbone(), nn.Linear(32, 5)
        optimizer = torch.optim.AdamW([*backbone.parameters(), *head.parameters()], lr=3e-3)
        inputs, targets = digits(range(5), slice(None)).tensors
        for _ in range(150):
            optimizer.zero_grad()
            nn.functional.cross_entropy(head(backbone(inputs)), targets).backward()
            optimizer.step()
    return backbone.state_dict()


def make_backbone() -> nn.Sequential:
    """Two layers, 32 features."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())


class Unfreeze(BaseFinetuning):
    """Trains the head alone, and from an epoch on the backbone too; when and how fast, the module's hparams say."""

    def freeze_before_training(self, pl_module: L.LightningModule) -> None:
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module: L.LightningModule, epoch: int, optimizer: torch.optim.Optimizer) -> None:
        at, lr = pl_module.hparams.unfreeze_at, pl_module.hparams.backbone_lr
        if epoch == at:
            self.unfreeze_and_add_param_group(pl_module.backbone, optimizer, lr=lr)


class FineTuned(L.LightningModule):
    """A pretrained backbone under a new head."""

    def __init__(self, lr: float = 1e-2, backbone_lr: float = 1e-3, unfreeze_at: int = 3) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone, self.head = make_backbone(), nn.Linear(32, 5)
        self.backbone.load_state_dict(pretrained())

    def train_dataloader(self) -> DataLoader:
        return DataLoader(digits(range(5, 10), slice(100)), 20, shuffle=True)

    def val_dataloader(self) -> DataLoader:
        return DataLoader(digits(range(5, 10), slice(100, None)), 1000)

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        scores = self.head(self.backbone(batch[0]))
        self.log("val_acc", (scores.argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.head.parameters(), lr=self.hparams.lr)

    def configure_callbacks(self) -> list[L.Callback]:
        return [Unfreeze()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-epochs", type=int, default=18)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    space = {
        "lr": "loguniform(1e-3, 1e-1)",
        "backbone_lr": "loguniform(1e-4, 1e-1)",
        "unfreeze_at": f"int(1, {max(arguments.max_epochs // 2, 2)})",
    }
    result = HyperbandTuner(
        space,
        monitor="val_acc",
        mode="max",
        max_epochs=arguments.max_epochs,
        min_epochs=max(arguments.max_epochs // 9, 1),
        root=arguments.root,
        name="finetuning",
        trainer={"accelerator": "cpu"},
    ).fit(FineTuned)
    print(f"best val_acc {result.best_score:.3f} with {dict(result.best_params)}")


if __name__ == "__main__":
    main()
