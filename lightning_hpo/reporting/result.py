"""The answer of a search."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.checkpoints.shards import weights_of
from lightning_hpo.records import Confirmation, Row, ranked
from lightning_hpo.reporting.report import draw_parts, summary_lines, table, write_report
from lightning_hpo.reporting.run import Run
from lightning_hpo.reporting.run_view import read_run, view_run
from lightning_hpo.text import masked, nearest

if TYPE_CHECKING:
    import lightning.pytorch as pl
    import pandas as pd
    import plotly.graph_objects as go


_ROWS = 10  # of the table in a notebook


class Figures(dict[str, "go.Figure"]):
    """Figures of a report by name; a notebook shows all of them."""

    def show(self) -> None:
        """Show every figure the way plotly is set up to."""
        for figure in self.values():
            figure.show()

    def _ipython_display_(self) -> None:
        self.show()


@dataclass(frozen=True)
class Result:
    """The answer of a search.

    Args:
        best_params: name as in the space -> value, of the best trial.
        best_score: its score at the last step that it has a value at: the monitored metric there, or what the tuner's
            ``score`` makes of its validations; with ``confirm``, the mean of the best configuration.
        best_checkpoint: the checkpoint that the score came from; None for a search over a plain function, or if it was
            not saved.
        best_trial: its number.
        study: everything that was recorded; opens in Optuna's own tools.
        rows: all trials.
        build: makes a module from parameters, or None for a search over a plain function.
        complete: gives a module what a checkpoint of a trial holds beside the weights.
        folder: of the run, if its study is there.
        confirmed: the configurations that were confirmed, best first, with mean, standard deviation, number of scores,
            what the search had seen and by how much that was too good; empty without ``confirm``.
        again: trains the answer once more.
        callbacks_of: returns the callbacks of a trial; None for a search over a plain function.
    """

    best_params: Mapping[str, Any]
    best_score: float
    best_checkpoint: Path | None
    best_trial: int
    study: optuna.Study
    rows: Sequence[Row] = field(repr=False)
    build: "Callable[[Mapping[str, Any]], pl.LightningModule] | None" = field(default=None, repr=False)
    complete: "Callable[[pl.LightningModule, Mapping[str, Any]], None] | None" = field(default=None, repr=False)
    folder: Path | None = None
    confirmed: Sequence[Confirmation] = ()
    again: "Callable[[Result, int | None, Mapping[str, Any]], Result] | None" = field(default=None, repr=False)
    callbacks_of: "Callable[[int], list[pl.Callback]] | None" = field(default=None, repr=False)

    def trials(self) -> list[Row]:
        """All trials in order of their number."""
        return list(self.rows)

    def retrain(self, *, seed: int | None = None, **changes: Any) -> "Result":
        """Train the answer once more, in a run folder ``<name>-again-<seed>`` beside that of the search.

        The same call again continues after an interrupt, and returns what is there after the end.

        Args:
            seed: of everything random in the trial; that of the best trial gives its score again. Default: a seed that
                no trial of the search has had.
            **changes: another budget (``max_steps``, ``max_epochs`` or ``max_samples``), and parameters by their names
                in the space; ``lr=0.1`` is enough for ``model.lr``, and ``**{"model.lr": 0.1}`` is the whole name.

        Returns:
            A result of one trial.

        Raises:
            RuntimeError: if this is not the result of a tuner's ``fit`` or ``optimize``.
            TypeError, ValueError: for a change that cannot be made; nothing has trained then.
        """
        if self.again is None:
            raise RuntimeError("only the result that fit() or optimize() has returned can be trained again.")
        return self.again(self, seed, changes)

    def dataframe(self) -> "pd.DataFrame":
        """All trials as a pandas DataFrame: state, step, value, seconds, ``params_<name>``; secrets are masked.

        Raises:
            ModuleNotFoundError: without pandas; the message has the install line.
        """
        try:
            import pandas as pd  # noqa: PLC0415  # an extra
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError("dataframe() needs pandas: pip install 'lightning-hpo-suite[pandas]'") from error
        run = self._run()
        return pd.DataFrame([_record(run, row) for row in run.rows]).set_index("trial")

    def plot(self, *names: str) -> "Figures | go.Figure":
        """Draw the figures of the report with plotly; a notebook shows them.

        Args:
            names: of the figures, such as ``"curves"`` or ``"importance"``. Default: all.

        Returns:
            The figure of one name; of several, or of none, name -> figure.

        Raises:
            ValueError: if the search has no figure of a name; the message lists what it has.
        """
        import plotly.graph_objects as go  # noqa: PLC0415  # loaded where something is drawn

        parts = {name: part for name, part in draw_parts(self._run()).items() if part.figure is not None}
        for name in names:
            if name not in parts:
                known = ", ".join(parts)
                raise ValueError(f"there is no figure {name!r}; this search has {known}.{nearest(name, parts)}")
        figures = Figures()
        for name in names or parts:
            figures[name] = go.Figure(parts[name].figure).update_layout(title=parts[name].title)
        return figures[names[0]] if len(names) == 1 else figures

    def _repr_html_(self) -> str:
        """Show the best trials in a notebook."""
        run = self._run()
        best = {row.number for row in ranked(run.rows, run.mode)[:_ROWS]}
        lines = "".join(f"<p>{line}</p>" for line in summary_lines(run))
        return lines + table(run, [row for row in run.rows if row.number in best])

    def _run(self) -> Run:
        return view_run(self.study, self.folder or Path(self.study.study_name))

    def report(self, path: str | Path) -> Path:
        """Write a page about the search that needs nothing else to be read: figures, failures, trials.

        Args:
            path: of the HTML file.

        Raises:
            RuntimeError: if the study is not in the run folder's own journal.
        """
        if self.folder is None:
            raise RuntimeError("there is no run folder with a study of its own to report on.")
        return write_report(read_run(self.folder), path)

    def callbacks(self, number: int) -> "list[pl.Callback]":
        """Return the callbacks of a trial that ``callbacks=`` has made, as they were at the end of its last job.

        They are made anew and get the state that their ``state_dict`` had then. What else a callback leaves behind
        belongs into the folder of the trial. The members of a population have one set of callbacks each.

        Args:
            number: of the trial.

        Raises:
            RuntimeError: if the tuner has no ``callbacks``, or the search was over a plain function.
            ValueError: if there is no such trial.
        """
        if self.callbacks_of is None:
            raise RuntimeError("there are no callbacks: the search was over a plain function.")
        return self.callbacks_of(number)

    def best_model(self) -> "pl.LightningModule":
        """Build the module with the best parameters and load the best checkpoint into it, as Lightning would.

        Its ``configure_model`` and ``on_load_checkpoint`` are called, and its ``strict_loading`` holds. Then it gets
        what Lightning leaves out: attributes and non-persistent buffers that had changed in training, such as an
        annealed temperature, so that a validation gives the score of the best trial.

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
        module.load_state_dict(weights_of(saved), strict=module.strict_loading)
        if self.complete is not None:
            self.complete(module, saved)
        return module.train(mode=False)


def _record(run: Run, row: Row) -> Mapping[str, Any]:
    trial = run.trials[row.number]
    return {
        "trial": row.number,
        "state": row.state,
        "step": row.step,
        "value": row.values[row.step] if row.values else None,
        "ended": row.ended,
        "feasible": row.feasible,
        **({"spread": row.spread} if row.folds else {}),
        **{f"constraints_{name}": value for name, value in trial.constraints.items()},
        "parent": row.parent,
        "confirms": row.confirms,
        "seed": row.seed,
        "start": row.start,
        "seconds": None if trial.duration is None else trial.duration.total_seconds(),
        **{f"params_{name}": masked(name, row.params.get(name)) for name in run.distributions},
    }
