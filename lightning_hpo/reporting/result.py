"""The answer of a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from lightning_hpo import checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.records import Row
from lightning_hpo.reporting.report import write_report
from lightning_hpo.reporting.run_view import read_run

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True)
class Result:
    """The answer of a search.

    Args:
        best_params: name as in the space -> value, of the best trial.
        best_score: its value of the monitored metric, at the last step that it has a value at.
        best_checkpoint: its checkpoint at that step; None for a search over a plain function, or if it was not saved.
        best_trial: its number.
        study: everything that was recorded; opens in Optuna's own tools.
        rows: all trials.
        build: makes a module from parameters, or None for a search over a plain function.
        folder: of the run, if its study is there.
    """

    best_params: Mapping[str, Any]
    best_score: float
    best_checkpoint: Path | None
    best_trial: int
    study: optuna.Study
    rows: Sequence[Row] = field(repr=False)
    build: "Callable[[Mapping[str, Any]], pl.LightningModule] | None" = field(default=None, repr=False)
    folder: Path | None = None

    def trials(self) -> list[Row]:
        """All trials in order of their number."""
        return list(self.rows)

    def report(self, path: str | Path) -> Path:
        """Write a page about the search that needs nothing else to be read: curves, parameters, failures.

        Args:
            path: of the HTML file.

        Raises:
            RuntimeError: if the study is not in the run folder's own database.
        """
        if self.folder is None:
            raise RuntimeError("there is no run folder with a study of its own to report on.")
        return write_report(read_run(self.folder), path)

    def best_model(self) -> "pl.LightningModule":
        """Build the module with the best parameters and load the best checkpoint into it, as Lightning would.

        Its ``configure_model`` and ``on_load_checkpoint`` are called, and its ``strict_loading`` holds.

        Raises:
            RuntimeError: if the search had no model, or its best checkpoint was not saved.
            DamagedCheckpointError: if the checkpoint is damaged, or holds objects and was written by another run.
        """
        if self.build is None:
            raise RuntimeError("there is no best model: the search was over a plain function.")
        if self.best_checkpoint is None:
            raise RuntimeError(f"there is no best model: the checkpoint of trial {self.best_trial} was not saved.")
        module = self.build(self.best_params)
        saved = checkpoints.load(self.best_checkpoint, key=Key.of(self.best_checkpoint.parent))
        module.configure_model()
        module.on_load_checkpoint(saved)
        module.load_state_dict(saved["state_dict"], strict=module.strict_loading)
        return module.train(mode=False)
