"""The fit of a population's member, from its first job or from a checkpoint: the work of a population."""

import errno
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.origin import STAMP
from lightning_hpo.errors import JobError, StorageError
from lightning_hpo.records import BEST_CHECKPOINT, CHECKPOINT, PAUSED, Outcome, Task
from lightning_hpo.space import split_name
from lightning_hpo.study.population_folder import storage_error
from lightning_hpo.study.progress import ProgressFile
from lightning_hpo.study.trial_folders import identity_in
from lightning_hpo.training.attachments import keep_states
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO
from lightning_hpo.training.make_trainer import make_trainer, quiet_and_seeded
from lightning_hpo.training.member_job import NEVER, HandOver, MemberJob, kept_in, train_to_the_end
from lightning_hpo.training.name_checks import build_of
from lightning_hpo.training.objective import Objective
from lightning_hpo.training.rebuild import Effect, Rebuild
from lightning_hpo.training.state_transfer import State
from lightning_hpo.training.trial_info import Trial, first_row, trial_info

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE}  # nothing that a member did


class MemberFits:
    """Trains members of a population with model, data, space and metric of an objective.

    A member's step, place in the data, clocks and random numbers are its own, in every trial that it trains; a trial
    that copies takes over weights and all that belongs to them from its parent.
    """

    def __init__(self, objective: Objective) -> None:
        self._objective = objective
        self._effects: dict[str, Effect] = {}  # of the hyperparameters; the same for all members

    def __call__(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        """Carry out one job, from the member's checkpoint if there is one, and leave the fit."""
        return self.train(task, None, should_pause, lambda _outcome, _state: None)

    def train(self, task: Task, copied: State | None, should_pause: Callable[[], bool], hand_over: HandOver) -> Outcome:
        """Carry out a job, and all that :data:`~lightning_hpo.training.member_job.HandOver` gives after it.

        Args:
            task: the first job; the member's checkpoint is in its folder.
            copied: state to begin with, from memory; None reads it from ``task.source``, if the job is the first one of
                a trial that copies.
            should_pause: asked before each batch; True leaves the fit, and the job is to be done again.
            hand_over: called at the end of every job but the member's last one.

        Returns:
            Outcome of the last job that was begun.

        Raises:
            StorageError: if a disk is full or gone.
            JobError: if the fit ended before the job.
        """
        own, saved, ended = self._read(task)
        if ended is not None:
            return ended
        copied = self._copied(task, saved) if copied is None else copied
        params = task.params if saved is None else dict(kept_in(saved)["params"])
        objective = self._objective
        start = 0 if saved is None else int(saved["global_step"])
        assert task.job.trial is not None
        progress = ProgressFile(task.folder, task.job.trial, start, task.job.max_steps, should_pause)

        def handed_over(outcome: Outcome, state: Callable[[], State]) -> tuple[Task, State | None] | None:
            following = hand_over(outcome, state)
            if following is not None and (trial := following[0].job.trial) is not None:
                progress.next_job(trial, following[0].job.max_steps, (outcome.step, outcome.score))
            return following

        whole = build_of(objective.builder)
        of_data = any(split_name(name)[0] == "data" for name in objective.space)

        def build(params: Mapping[str, Any]) -> tuple[pl.LightningModule, pl.LightningDataModule | None]:
            """Leave the data module out where no hyperparameter is its own: many read files when they are built."""
            return whole(params) if of_data or not job.is_bound else (objective.builder.build_model(params), None)

        job = MemberJob(
            task,
            copied,
            objective.space,
            scores_of=objective.scores,
            rebuild=Rebuild(build, params, effects=self._effects),
            should_pause=progress.pause_wanted,
            hand_over=handed_over,
        )
        try:
            with quiet_and_seeded(objective.seed, task.member, task.job.seed, alone=False):
                built = objective.builder.build(params)
                own_callbacks = objective.options.attached.attach(built, _first_trial(task, first_row(saved)))
                trainer = make_trainer(
                    built,
                    task.folder,
                    job,
                    SealedCheckpointIO(own, saved, objective.key),
                    saved=saved,
                    max_steps=objective.max_steps,
                    unit=objective.unit,
                    check_val_every_n_epoch=None,
                    val_check_interval=NEVER,
                )
                train_to_the_end(trainer)
                progress.follow(trainer, job)
                trainer.fit(built.module, datamodule=built.data, ckpt_path=own, weights_only=True)
        except Exception as error:
            if (disk := _disk_error(error, task.folder)) is not None:
                raise disk from error
            if not job.is_over or job.outcome is None:
                error.ends_search = isinstance(error, MisconfigurationException)  # type: ignore[attr-defined]  # read by the loop
                raise
            text = f"member {task.member} had come to its end when its Trainer failed: {type(error).__name__}: {error}"
            return replace(job.outcome, remark=text)
        progress.close()
        keep_states(own_callbacks, task.folder, objective.key)
        if job.paused:
            return Outcome(None, trainer.global_step, ended=PAUSED)
        if not job.is_over or job.outcome is None:
            raise JobError(
                f"its fit ended before the decision after step {trainer.global_step}, though `max_steps` is more"
            )
        return job.outcome

    def _read(self, task: Task) -> tuple[Path | None, dict[str, Any] | None, Outcome | None]:
        """Return the member's checkpoint, its content, and the outcome of the job if only its record is due."""
        file, key = task.folder / CHECKPOINT, self._objective.key
        checkpoints.remove_leftovers(task.folder / BEST_CHECKPOINT)
        own, saved = checkpoints.read_newest(file, key)
        ended = _ended_before(saved, task)
        if own is None or ended is None or ended.step < self._objective.max_steps:
            return own, saved, ended
        # The last hooks and rows of the member are due too, so it comes to its end again, from the checkpoint before.
        return *checkpoints.read_newest(checkpoints.previous_of(own), key), None

    def _copied(self, task: Task, saved: Mapping[str, Any] | None) -> State | None:
        """State that the first job of a trial copies from its parent's checkpoint; None if it copies none."""
        here = None if saved is None else _trial_of(saved)
        if task.source is None or here in (task.job.trial, task.job.parent):
            return None
        _, source = checkpoints.read_newest(task.source, self._objective.key)
        if source is None:
            raise JobError(f"trial {task.job.parent} has no intact checkpoint to copy from")
        state: State = kept_in(source)["state"]
        return state


def _ended_before(saved: Mapping[str, Any] | None, task: Task) -> Outcome | None:
    """Outcome of a job that a checkpoint of its own trial was saved at the end of."""
    if saved is None or _trial_of(saved) != task.job.trial:
        return None
    outcome = Outcome(**kept_in(saved)["ended"])
    return outcome if outcome.step >= task.job.max_steps else None


def _first_trial(task: Task, start: int) -> Trial:
    """The first trial of a member, whose loggers and callbacks are the member's."""
    first = identity_in(task.folder) or {**task.identity, "trial": task.member, "params": task.params}
    return trial_info(task.folder, first["params"], first, start)


def _trial_of(saved: Mapping[str, Any]) -> int | None:
    """Number of the trial that a checkpoint is of."""
    number: int | None = saved.get(STAMP, {}).get("trial")
    return number


def _disk_error(error: BaseException, folder: Path) -> StorageError | None:
    """Return the error of a disk that is behind an error; None if the disk is not to blame."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, StorageError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _FULL:
            return storage_error("the run folder cannot be used", Path(cause.filename or folder), cause)
        cause = cause.__cause__ or cause.__context__
    return None
