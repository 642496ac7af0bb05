"""The stock LightningCLI with LR schedules by flags or YAML.

python examples/lr_schedules_cli.py fit -c examples/lr_schedules.yaml
python examples/lr_schedules_cli.py fit -c examples/lr_schedules.yaml --lr_scheduler StepDecayLR
"""

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import LightningCLI
from lr_schedules import Classifier, Digits

from lightning_hpo.callbacks import LRSchedule  # noqa: F401  # imported, so that YAML and flags know the short name
from lightning_hpo.lr_schedules import ClosedFormLR  # noqa: F401


class Model(LightningModule):
    """The classifier, with optimizer and schedule left to the command line."""

    def __init__(self, hidden: int = 64) -> None:
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10))

    training_step = Classifier.training_step
    validation_step = Classifier.validation_step


def main(args: list[str] | None = None) -> LightningCLI:
    """Run the command line."""
    return LightningCLI(Model, Digits, args=args, save_config_callback=None)


if __name__ == "__main__":
    main()
