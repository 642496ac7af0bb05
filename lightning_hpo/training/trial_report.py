"""Reports a running fit to an Optuna trial and stops it there if Optuna's pruner says so."""

from typing import Any

import lightning.pytorch as pl
import optuna
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_hpo.records import Outcome
from lightning_hpo.schedulers.units import Pace
from lightning_hpo.training.scores import require_logged

PRUNED_AT = "pruned_at"  # user attribute of a trial: step at which it was decided to end it


class TrialReport(pl.Callback):
    """Reports every validation to a trial, at its optimizer step, and asks the Trainer to stop if it is to be pruned.

    A pruned fit ends as a finished one does: end hooks run, loggers finish, ``ModelCheckpoint`` saves. Afterwards
    :meth:`raise_if_pruned` tells Optuna. Under DDP one process asks Optuna and decides for all: give the trial to rank
    0 and None to the others.

    A trial that is continued from a checkpoint repeats validations. They are not reported again, and the pruner is not
    asked again about those after which the trial went on, so it ends where an uninterrupted trial would.

    Args:
        trial: to report to; None on every rank but 0.
        monitor: name of a metric that the module logs in validation. Log it with ``sync_dist=True`` under DDP, or the
            value of rank 0 counts.

    Raises:
        ValueError: if the study has several objectives, which Optuna cannot prune.
        MisconfigurationException: at a validation in which the metric is not logged.

    Example::

        def objective(trial):
            report = TrialReport(trial, "val_loss")
            trainer = Trainer(max_steps=1000, callbacks=[report])
            trainer.fit(Net(trial.suggest_float("lr", 1e-5, 1e-1, log=True)), Data())
            report.raise_if_pruned()
            return trainer.callback_metrics["val_loss"].item()
    """

    def __init__(self, trial: optuna.Trial | None, monitor: str) -> None:
        if trial is not None and len(trial.study.directions) > 1:
            raise ValueError("`trial` belongs to a study with several objectives, which Optuna can neither report to "
                             "nor prune: leave TrialReport out.")  # fmt: skip
        self._trial = trial
        self._monitor = monitor
        self._reported: set[int] | None = None
        self.validations: dict[int, float] = {}
        """Step of the study -> monitored metric, where a tuner's ``score`` makes another number of it."""
        self.pruned = False

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report, and stop if told to."""
        if trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        require_logged(self._monitor, metrics)
        stop = trainer.is_global_zero and self._report(trainer, float(metrics[self._monitor]))
        self.pruned = trainer.strategy.broadcast(stop)
        if self.pruned:
            trainer.should_stop = True

    def raise_if_pruned(self) -> None:
        """Raise ``optuna.TrialPruned`` if the fit was stopped for that; call it after ``fit``, on every rank."""
        if self.pruned:
            raise optuna.TrialPruned

    def _report(self, trainer: pl.Trainer, value: float) -> bool:
        if self._trial is None:
            raise MisconfigurationException("TrialReport needs the trial on rank 0.")
        known = self._known_steps()
        pace: Pace | None = getattr(trainer, "pace", None)  # of a tuner whose budget is in epochs or samples
        step = trainer.global_step if pace is None else pace.reached(trainer.global_step)
        scores: Any = getattr(trainer, "scores", None)  # of a tuner, or an Objective
        score = value if scores is None else scores.preview(trainer.global_step, value)
        if pace is not None and step == 0:
            return False  # within the first epoch, of which the study has no step
        if scores is not None and not scores.by_last:
            self.validations.setdefault(step, value)  # a repeated one too: it may have been lost by a kill
        if step not in known:
            self._trial.report(score, step)
            known.add(step)
        elif step < max(known):
            return False  # it went on from there
        if not self._is_marked and self._trial.should_prune():
            # The reason of the end, should a kill come before it.
            self._trial.set_user_attr(PRUNED_AT, trainer.global_step)
        return self._is_marked

    def ends_at(self, outcome: Outcome) -> bool:
        """Whether the trial was to be pruned where a job has ended, also by a process that has died since."""
        step = outcome.step if outcome.global_step is None else outcome.global_step
        return self.pruned or (self._trial is not None and self._trial.user_attrs.get(PRUNED_AT) == step)

    @property
    def _is_marked(self) -> bool:
        return self._trial is not None and PRUNED_AT in self._trial.user_attrs

    def _known_steps(self) -> set[int]:
        """Return the steps at which the study has a value, those of an earlier process included."""
        if self._reported is None:
            assert self._trial is not None
            trials = self._trial.study.get_trials(deepcopy=False)
            self._reported = set(trials[self._trial.number].intermediate_values)
        return self._reported

    def state_dict(self) -> dict[str, Any]:
        """Return what the study is told at the end only."""
        return {"validations": self.validations} if self.validations else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what a process that has died was to tell."""
        self.validations = {**state_dict["validations"], **self.validations}
