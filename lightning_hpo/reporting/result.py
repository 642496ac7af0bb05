"""The answer of a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from lightning_hpo import checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.records import Row
from lightning_hpo.reporting.notebook import Figures, dataframe, plot, summary
from lightning_hpo.reporting.report import write_report
from lightning_hpo.reporting.run_view import Run, read_run, view_run

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import pandas as pd
    import plotly.graph_objects as go


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

    def dataframe(self) -> "pd.DataFrame":
        """All trials as a pandas DataFrame: state, step, value, seconds, ``params_<name>``; secrets are masked.

        Raises:
            ModuleNotFoundError: without pandas; the message has the install line.
        """
        return dataframe(self._run())

    def plot(self, *names: str) -> "Figures | go.Figure":
        """Draw the figures of the report with plotly; a notebook shows them.

        Args:
            names: of the figures, such as ``"curves"`` or ``"importance"``. Default: all.

        Returns:
            The figure of one name; of several, or of none, name -> figure.

        Raises:
            ValueError: if the search has no figure of a name; the message lists what it has.
        """
        return plot(self._run(), *names)

    def _repr_html_(self) -> str:
        """Show the best trials in a notebook."""
        return summary(self._run())

    def _run(self) -> Run:
        return view_run(self.study, self.folder or Path(self.study.study_name))

    def report(self, path: str | Path) -> Path:
        """Write a page about the search that needs nothing else to be read: figures, failures, trials.

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
