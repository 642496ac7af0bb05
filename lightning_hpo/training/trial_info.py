"""A trial as factories of loggers and callbacks see it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_hpo.records import Row, Task
from lightning_hpo.text import masked


@dataclass(frozen=True)
class Trial:
    """What factories of loggers and callbacks are given; in a population, the first trial of a member.

    Args:
        number: of the trial in its study.
        params: of the trial; for loggers without the values of secrets.
        folder: of the trial, where a callback may keep files.
        name: of the trial, such as ``digits-0007``.
        study: name of the run folder.
        id: that no other trial has, in any study.
        start: step at which this job begins, as loggers count; 0 for a new trial.
        fold: that the job trains on; each fold has a ``name`` and an ``id`` of its own. None without folds.
    """

    number: int
    params: Mapping[str, Any]
    folder: Path
    name: str
    study: str
    id: str
    start: int = 0
    fold: int | None = None

    def without_secrets(self) -> "Trial":
        """Return it without the values of secrets."""
        return replace(self, params={name: masked(name, value) for name, value in self.params.items()})


def trial_info(
    folder: Path, params: Mapping[str, Any], identity: Mapping[str, Any], start: int = 0, fold: int | None = None
) -> Trial:
    """Describe a trial in its folder ``runs/<name>/trials/<number>``, with the identity that its checkpoints carry."""
    study = folder.parent.parent.name
    number = int(identity.get("trial", 0))
    of_fold = "" if fold is None else f"-fold{fold}"
    name, own = f"{study}-{number:04d}{of_fold}", f"{str(identity.get('study', study))[:16]}-{number}{of_fold}"
    return Trial(number, params, folder, name, study, own, start, fold)


def trial_of(task: Task, saved: Mapping[str, Any] | None) -> Trial:
    """Describe the trial of a task, which goes on from the content of a checkpoint, or begins."""
    return trial_info(task.folder, task.params, task.identity, first_row(saved), task.job.fold)


def first_row(saved: Mapping[str, Any] | None) -> int:
    """Return the step of the first row that loggers are given by a job: Lightning counts batches for them.

    Of several optimizers each counts in ``global_step``, but a batch once here. The job goes on from ``saved``, the
    content of a checkpoint, if there is one.
    """
    if saved is None:
        return 0
    rows: int = saved["loops"]["fit_loop"]["epoch_loop.state_dict"]["_batches_that_stepped"]
    return rows + (resume_in(saved).get("point") != "epoch")  # inside one, the last batch is counted a moment later


def resume_in(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what the callback of a job has put into a checkpoint for the next job; nothing of other checkpoints."""
    states = [saved.get("callbacks", {}).get(name) for name in ("RunToStep", "MemberJob")]
    found: Mapping[str, Any] = next((state["resume"] for state in states if state and "resume" in state), {})
    return found


def scores_of_folds(row: Row, folds: int) -> list[tuple[int | None, float | None]]:
    """Return each fold that an ended trial had begun, and its score; without folds, None and the score of the trial.

    A trial that has failed has no score on the fold that it was in.
    """
    if not folds:
        return [(None, row.score)]
    failed = [(len(row.folds), None)] if row.state == "failed" and len(row.folds) < folds else []
    return [*enumerate(row.folds), *failed]
