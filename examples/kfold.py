"""Cross-validation: 5 stratified folds of scikit-learn's 178 wines, where the score of a single split is mostly luck.

``python examples/kfold.py``: about a minute. A configuration that is hopeless after two folds is not trained further.
"""

import argparse
from pathlib import Path

import lightning as L
import torch
from sklearn.datasets import load_wine
from sklearn.model_selection import StratifiedKFold
from torch import nn
from torch.utils.data import TensorDataset

from lightning_hpo import BayesianTuner, KFold

FOLDS = 5
INPUTS, LABELS = load_wine(return_X_y=True)


class Classifier(L.LightningModule):
    """A small network for 13 measurements of a wine, which it scales itself."""

    def __init__(self, lr: float = 1e-2, *, hidden: int = 16, dropout: float = 0.0, weight_decay: float = 0.0) -> None:
        super().__init__()
        self.save_hyperparameters()
        scale = nn.BatchNorm1d(13, affine=False, momentum=None)
        self.net = nn.Sequential(scale, nn.Linear(13, hidden), nn.ReLU(), nn.Dropout(dropout), nn.Linear(hidden, 3))

    def training_step(self, batch: list[torch.Tensor], batch_idx: int) -> torch.Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[torch.Tensor], batch_idx: int) -> None:
        self.log("val_loss", nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), self.hparams.lr, weight_decay=self.hparams.weight_decay)


SPACE = {
    "lr": "loguniform(1e-4, 1e-1)",
    "hidden": "logint(4, 64)",
    "dropout": "uniform(0, 0.6)",
    "weight_decay": "loguniform(1e-4, 1)",
}


def wines() -> KFold:
    """Return the wines in parts with the same share of each of the three cultivars."""
    cut = StratifiedKFold(FOLDS, shuffle=True, random_state=0).split(INPUTS, LABELS)
    parts = torch.empty(len(LABELS), dtype=torch.long)
    for part, (_, validated) in enumerate(cut):
        parts[validated] = part
    data = TensorDataset(torch.tensor(INPUTS, dtype=torch.float32), torch.tensor(LABELS))
    return KFold(data, batch_size=32, folds=FOLDS, parts=parts.tolist(), drop_last=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--max-epochs", type=int, default=10)
    parser.add_argument("--n-trials", type=int, default=25)
    parser.add_argument("--root", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    result = BayesianTuner(
        SPACE,
        monitor="val_loss",
        max_epochs=arguments.max_epochs,
        n_trials=arguments.n_trials,
        n_startup_trials=min(10, arguments.n_trials),
        folds=FOLDS,
        root=arguments.root,
        name="kfold",
        trainer={"accelerator": "cpu"},
    ).fit(Classifier, datamodule=wines())
    best, fits = result.rows[result.best_trial], sum(len(row.folds) for row in result.rows)
    print(f"best val_loss {best.score:.3f} ± {best.spread:.3f} over {len(best.folds)} folds: "
          f"{', '.join(f'{score:.3f}' for score in best.folds)}")  # fmt: skip
    print(f"{fits} fits of {FOLDS * len(result.rows)}")


if __name__ == "__main__":
    main()
