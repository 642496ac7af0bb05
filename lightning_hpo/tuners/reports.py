"""Jobs whose trials report their validations to the study while they train, and end where Optuna's pruner says so."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import optuna
from optuna.pruners import BasePruner
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage

from lightning_hpo.records import Outcome, Task, Work
from lightning_hpo.training.trial_report import TrialReport


@dataclass(frozen=True)
class StoredTrials:
    """Trials of a study by their number, from any process."""

    storage: BaseStorage
    name: str
    pruner: BasePruner

    def __call__(self, number: int) -> optuna.Trial:
        """Return a running trial; its parameters are there already, so no sampler is asked."""
        study = optuna.load_study(
            study_name=self.name, storage=self.storage, sampler=RandomSampler(), pruner=self.pruner
        )
        return optuna.Trial(study, study.get_trials(deepcopy=False)[number]._trial_id)  # noqa: SLF001  # no public name


@dataclass(frozen=True)
class ReportingWork:
    """Carries out a job whose trial reports its validations, and is stopped where the pruner says so.

    Args:
        work: that takes callbacks.
        trial: a trial of the study by its number; None on a rank that does not report.
        monitor: metric to report.
    """

    work: Callable[..., Outcome]
    trial: Callable[[int], optuna.Trial | None]
    monitor: str

    def __call__(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        """Carry out the job."""
        assert task.job.trial is not None
        if task.job.confirms is not None:  # it trains to its end
            return self.work(task, should_pause)
        report = TrialReport(self.trial(task.job.trial), self.monitor)
        outcome = self.work(task, should_pause, callbacks=[report])
        pruned = outcome.score is not None and report.ends_at(outcome)
        return replace(outcome, pruned=pruned, validations={**report.validations, **outcome.validations})


def reporting(work: Callable[..., Outcome], study: optuna.Study, storage: BaseStorage, monitor: str) -> Work:
    """Return work whose trials report to a study, and ask its pruner."""
    return ReportingWork(work, StoredTrials(storage, study.study_name, study.pruner), monitor)


def along(work: Callable[..., Outcome], monitor: str) -> Work:
    """Return the same work for a rank that does not report: rank 0 does, and says whether to stop."""
    return ReportingWork(work, _no_trial, monitor)


def _no_trial(number: int) -> None:  # noqa: ARG001  # called like the trials of a study
    return None
