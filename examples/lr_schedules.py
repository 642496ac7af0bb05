"""Train on handwritten digits with three LR schedules; the schedule and its shape are ordinary hyperparameters.

    python examples/lr_schedules.py

In a search space they are entries like any other:
``{"lr_schedule": "choice(cosine, linear_warmup_cosine, step)", "warmup": "uniform(0, 0.3)"}``.
"""

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader, TensorDataset, random_split

from lightning_hpo.callbacks import LRSchedule
from lightning_hpo.lr_schedules import make_lr_schedule


class Digits(LightningDataModule):
    """1797 images of 8 x 8 pixels, 1437 of them for training."""

    def __init__(self, batch_size: int = 64) -> None:
        super().__init__()
        images, labels = load_digits(return_X_y=True)
        data = TensorDataset(torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels))
        self.train, self.val = random_split(data, [0.8, 0.2], torch.Generator().manual_seed(0))
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return shuffled training batches."""
        return DataLoader(self.train, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Return validation batches."""
        return DataLoader(self.val, 360)


class Classifier(LightningModule):
    """A small multilayer perceptron."""

    def __init__(
        self,
        lr: float = 0.1,  # read from hparams
        lr_schedule: str = "linear_warmup_cosine",
        warmup: float = 0.1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10))

    def training_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> torch.Tensor:
        """Return the loss of a batch."""
        images, labels = batch
        return torch.nn.functional.cross_entropy(self.net(images), labels)

    def validation_step(self, batch: tuple[torch.Tensor, ...], batch_idx: int) -> None:
        """Log the accuracy."""
        images, labels = batch
        self.log("val_acc", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> tuple[list[torch.optim.Optimizer], list[torch.optim.lr_scheduler.LRScheduler]]:
        """Return SGD and the schedule; LRSchedule() in the Trainer gives it the horizon and steps it per update."""
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        return [optimizer], [make_lr_schedule(self.hparams["lr_schedule"], optimizer, warmup=self.hparams["warmup"])]


def main(max_steps: int = 300) -> dict[str, float]:
    """Train once with each schedule; return the validation accuracies."""
    accuracies = {}
    for name in ("cosine", "linear_warmup_cosine", "step"):
        seed_everything(0, verbose=False)
        trainer = Trainer(
            max_steps=max_steps,
            callbacks=[LRSchedule()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        model = Classifier(lr_schedule=name)
        trainer.fit(model, datamodule=Digits())
        accuracies[name] = trainer.validate(model, datamodule=Digits(), verbose=False)[0]["val_acc"]
        print(f"{name:>20}: val_acc {accuracies[name]:.3f}")
    return accuracies


if __name__ == "__main__":
    main()
