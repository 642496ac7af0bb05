"""A member of a population as a callback: trains job by job, each validated and saved at its last optimizer step.

Batches, epochs and accumulation do not matter for where a job ends: at its last step Lightning is told to validate
after this batch. Where something at the end of an epoch follows a metric of validation, as ReduceLROnPlateau mostly
does, there is a validation at each such end too, as in a plain Trainer.

A member trains to the end of the search. A callback that asks to stop it is answered at the end of the job: the member
then copies another one (see :mod:`lightning_hpo.schedulers.population`).

A job ends when all hooks of its last validation have run; at the end of an epoch, when all hooks of the epoch have run
too. Between two jobs nothing has to be made up for, so a fit may be suspended there, or left and continued from its
checkpoint. A copy takes place at the next ``on_train_batch_start``: earlier, Lightning still steps schedules by the
metrics of the member's own weights.
"""

import errno
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import lightning.pytorch as pl
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_hpo.checkpoints.origin import STAMP
from lightning_hpo.records import CHECKPOINT, Outcome, Task
from lightning_hpo.space import SearchSpace
from lightning_hpo.study.population_folder import storage_error
from lightning_hpo.text import is_secret
from lightning_hpo.training.hyperparameters import Hyperparameters
from lightning_hpo.training.lr_schedule import bind_to_steps
from lightning_hpo.training.random_state import rng_state, set_rng_state
from lightning_hpo.training.rebuild import Rebuild
from lightning_hpo.training.resumable import Point, Resumable
from lightning_hpo.training.scores import Scores, require_logged
from lightning_hpo.training.state_transfer import State, capture, restart_early_stopping, transplant
from lightning_hpo.training.trainer import STEP_HOOKS, JobCallback, epoch_ends, leave_fit, without_hooks

_KEPT_OF_OUTCOME = (
    "score", "step", "metrics", "stopped", "global_step", "full_steps", "scored_from", "validations",
)  # fmt: skip
NEVER = sys.maxsize
"""Batches between validations, as an argument of the Trainer: it validates when the member says so."""

HandOver: TypeAlias = Callable[[Outcome, Callable[[], State]], tuple[Task, State | None] | None]
"""Called when a job has ended, with its outcome and how to get at the member's state; returns the next job and the
state to go on from (None: its own). Without a next job, the fit is left."""


class _Patient:
    """Mixed into a Trainer's class: notes that a callback asked it to stop, and trains on."""

    stop_wanted = False

    @property
    def should_stop(self) -> bool:
        return False

    @should_stop.setter
    def should_stop(self, value: bool) -> None:
        self.stop_wanted = self.stop_wanted or bool(value)


def train_to_the_end(trainer: pl.Trainer) -> None:
    """Keep a Trainer from stopping before ``max_steps``; it stays an instance of its class."""
    kind = type(trainer)
    trainer.__class__ = type(kind.__name__, (_Patient, kind), {"__module__": kind.__module__})


@without_hooks(*STEP_HOOKS, "on_validation_batch_end")
class MemberJob(JobCallback):
    """Trains a member for one job after the other; applies hyperparameters, and takes over what a job copies.

    Args:
        task: the first job.
        copied: state that it begins with, in place of the member's own; see
            :mod:`lightning_hpo.training.state_transfer`.
        space: name -> distribution of the hyperparameters.
        scores_of: makes the scores of the trial of a job.
        rebuild: how to build the module again.
        should_pause: asked before each batch; True leaves the fit.
        hand_over: see :data:`HandOver`.
    """

    def __init__(
        self,
        task: Task,
        copied: State | None,
        space: SearchSpace,
        *,
        scores_of: Callable[[Task], Scores],
        rebuild: Rebuild,
        should_pause: Callable[[], bool],
        hand_over: HandOver,
    ) -> None:
        self._task = task
        self._copied = copied
        self._space = space
        self._scores_of, self._scores = scores_of, scores_of(task)
        self._rebuild = rebuild
        self._should_pause = should_pause
        self._hand_over = hand_over
        self._resumable = Resumable()  # called from here: each callback of a Trainer costs time in every step
        self._effects: Hyperparameters | None = None
        self._params: dict[str, Any] = dict(task.params)  # that training has now
        self._restored: dict[str, Any] | None = None
        self._begins = True  # whether the job's own hyperparameters are to be applied
        self._step = 0
        self._ends = False  # whether the job's last step is done, and its end not yet
        self._metrics_before: set[str] = set()
        self._validated: set[str] = set()  # names of metrics that validation logs
        self._has_followers = False  # whether something may follow a metric of validation
        self._judged: Outcome | None = None  # by the job's last validation
        self._saved: dict[str, Any] = {}
        self.outcome: Outcome | None = None
        """Of the last job that has ended."""
        self.paused = False
        self.is_over = False
        """Whether no job is left: the fit was left after one, or the member's last one has ended."""

    @property
    def values(self) -> Mapping[int, float]:
        """The score of the last job that has ended."""
        ended = self.outcome
        return {} if ended is None or ended.score is None else {ended.step: ended.score}

    @property
    def is_bound(self) -> bool:
        """Whether it is known where each hyperparameter takes effect."""
        return self._effects is not None

    def state_dict(self) -> dict[str, Any]:
        """What a continuation needs beyond Lightning's own checkpoint, and what another member copies from it."""
        return {"params": self._params, "validated": sorted(self._validated), **self._saved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as the member that wrote the checkpoint."""
        self._restored = state_dict
        self._validated = set(state_dict["validated"])

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Say whose checkpoint it is."""
        checkpoint[STAMP] = {**self._task.identity, "seed": self._task.job.seed}

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set Lightning's progress to where the checkpoint was taken."""
        self._resumable.load(checkpoint["callbacks"][self.state_key]["resume"], checkpoint["loops"]["fit_loop"])

    # Hooks, after those of the user's callbacks

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find where each hyperparameter takes effect; a batch size must be there before the first loader is made."""
        require_whole_weights(trainer)
        self._effects = Hyperparameters(self._space, trainer, pl_module, self._rebuild)
        if self._restored is not None:
            self._params = dict(self._restored["params"])
            if self._restored["resume"]["point"] == "epoch":
                self._params |= self._effects.of_epoch(self._task.params)
        self._effects.apply(self._params)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put everything back, and apply the hyperparameters over restored ones."""
        self._resumable.on_train_start(trainer, pl_module)
        bind_to_steps(trainer, trainer.max_steps)
        self._step = trainer.global_step
        self._has_followers = any(_followers(trainer))
        if self._restored is not None:
            self._bound().restored(self._restored["params"])
        self._bound().apply(self._params)
        if self._restored is not None:
            self._bound().prepare(self._task.params)
            self._restored = None
        else:  # a fit that continues has logged them where they began
            log_hyperparameters(trainer, self._params, None, 0)

    def after_start(self) -> None:
        """Put back what hooks at the start of training may have reset."""
        self._resumable.begin(hparams=False)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read back what takes effect with an epoch."""
        self._bound().on_epoch_start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin the job: take over what it copies, and apply its hyperparameters."""
        # Of several ranks the one that may pause decides for all.
        if trainer.strategy.reduce_boolean_decision(self._should_pause(), all=False):
            self.paused = True
            leave_fit()
        if not self._begins:
            return
        copied, self._copied, self._begins = self._copied, None, False
        if copied is not None:
            transplant(copied, trainer, pl_module)
        if copied is not None or self._params != dict(self._task.params):
            self._params = dict(self._task.params)
            self._bound().apply(self._params, copied=copied is not None)
            row = trainer.fit_loop.epoch_loop._batches_that_stepped  # noqa: SLF001  # as Lightning does
            log_hyperparameters(trainer, self._params, self._task.job.parent, row)

    def after_batch(self, trainer: Any, outputs: Any) -> None:
        """Ask for a validation where the job ends, and wherever something follows a metric of one."""
        before, self._step = self._step, trainer.global_step
        if before < trainer.steps_of(self._task.job.max_steps) <= self._step:
            self._ends = True
            self._resumable.before_validation()
        followed = False
        if self._has_followers:  # a rank may have logged what another has not, and all of them validate together
            followed = _is_followed(trainer, self._validated, stepped=self._step > before)
            followed = trainer.strategy.reduce_boolean_decision(followed, all=False)
        validate = self._ends or followed
        trainer.val_check_batch = 1 if validate else NEVER
        self._resumable.on_batch_end(trainer, may_validate=validate or trainer.is_last_batch)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what training has logged, and its random numbers."""
        self._metrics_before = set(trainer.callback_metrics)
        self._resumable.on_validation_start(trainer)

    def on_validation_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Continue with the random numbers of training, and note the score."""
        self._resumable.on_validation_end(trainer)
        if trainer.sanity_checking:
            return
        self._validated |= set(trainer.callback_metrics) - self._metrics_before
        self._scores.note(trainer.global_step, trainer.callback_metrics)
        if self._ends:
            self._bound().read_back(self._params)
            require_logged(self._scores.monitor, self._scores.metrics)
            place = trainer.place()
            self._judged = Outcome(**self._scores.outcome(place["step"]), **place)

    def after_validation(self, trainer: Any) -> None:
        """End the job, unless an epoch is to end first."""
        self._scores.keep_best(trainer, lambda: self._saved.update(resume=self._resumable.state_of_module(trainer)))
        self._saved = {}
        if self._ends and (not epoch_ends(trainer) or self._step >= trainer.max_steps):
            self._end(trainer, "validated")

    def on_train_epoch_end(self, trainer: Any, pl_module: pl.LightningModule) -> None:
        """Let Lightning end a restarted epoch as any."""
        self._resumable.on_train_epoch_end(trainer)
        trainer.validate_pace()

    # Called before the hooks of the user's callbacks

    def before_epoch(self, trainer: Any) -> None:
        """End a job between two epochs; what the next one changes about the data takes effect with the epoch."""
        if self._ends:
            self._end(trainer, "epoch")

    def _end(self, trainer: Any, point: Point) -> None:
        """Save, hand the outcome over, and go on with the next job."""
        module, judged = trainer.lightning_module, self._judged
        assert judged is not None
        self._ends = False
        stopped, trainer.stop_wanted = trainer.stop_wanted, False
        if stopped:  # it trains on, as a copy or as what it was
            restart_early_stopping(trainer)
        self.outcome = replace(judged, stopped=stopped)
        ended = {name: getattr(self.outcome, name) for name in _KEPT_OF_OUTCOME}
        self._save(
            trainer,
            {"resume": self._resumable.state(trainer, point), "ended": ended, "state": capture(trainer, module)},
        )
        self.is_over = self._step >= trainer.max_steps
        if self.is_over:
            return
        following = self._hand_over(self.outcome, lambda: capture(trainer, module))
        if following is None:
            self.is_over = True
            leave_fit()
        self._task, self._copied = following
        self._scores, self._begins = self._scores_of(self._task), True
        if self._bound().prepare(self._task.params) and point == "epoch":
            _make_loaders(trainer)

    def _save(self, trainer: pl.Trainer, state: dict[str, Any]) -> None:
        file = self._task.folder / CHECKPOINT
        self._saved, failed = state, None
        try:
            if not file.parent.is_dir():
                raise FileNotFoundError(errno.ENOENT, "the folder of the member is gone: it was deleted or moved")
            trainer.save_checkpoint(file)
        except OSError as error:
            failed = error
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where other ranks of the member are waiting
        finally:
            self._saved = {}
        if trainer.strategy.reduce_boolean_decision(failed is not None, all=False):
            failed = failed or OSError("another rank of the member failed to write it")
            raise storage_error("no checkpoint could be saved", file, failed) from failed

    def _bound(self) -> Hyperparameters:
        assert self._effects is not None
        return self._effects


def require_whole_weights(trainer: pl.Trainer) -> None:
    """Raise MisconfigurationException for a strategy that gives no process the whole weights of a member."""
    if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
        kind = type(trainer.strategy).__name__
        raise MisconfigurationException(f"a population needs whole weights in every process, got {kind}; use DDP.")


def log_hyperparameters(trainer: Any, params: Mapping[str, Any], parent: int | None, step: int) -> None:
    """Log the hyperparameters that are numbers and no secrets, and the trial that was copied."""
    numbers = {
        f"pbt/{name}": float(value)
        for name, value in params.items()
        if isinstance(value, int | float) and not is_secret(name, value)
    }
    if parent is not None:
        numbers["pbt/parent"] = float(parent)
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=step)


def kept_in(saved: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a member's checkpoint keeps: its ``params``, how its job ``ended``, and the ``state`` to copy."""
    kept: dict[str, Any] = saved["callbacks"][MemberJob.__qualname__]
    return kept


def _make_loaders(trainer: Any) -> None:
    """Make the training loaders again, at the start of an epoch for which Lightning has made its own already."""
    loop = trainer.fit_loop
    before = rng_state()
    loop._combined_loader = None  # noqa: SLF001  # Lightning has no public name for it
    loop.setup_data()
    for loader in loop._combined_loader.flattened:  # noqa: SLF001  # as above
        _set_sampler_epoch(loader, loop.epoch_progress.current.processed)
    set_rng_state(before)


def _is_followed(trainer: Any, validated: set[str], *, stepped: bool) -> bool:
    """Whether something that comes after this batch reads a metric that only a validation gives."""
    last = trainer.is_last_batch or trainer.fit_loop.batch_idx + 1 == trainer.num_training_batches
    followed = (*_followed_by_schedules(trainer, stepped=stepped, last=last), *_followed_by_callbacks(trainer, last))
    return any(name in validated or name not in trainer.callback_metrics for name in followed)


def _followers(trainer: Any) -> Iterator[Any]:
    """Schedules and callbacks that may follow a metric."""
    yield from (config for config in trainer.lr_scheduler_configs if config.reduce_on_plateau)
    yield from (callback for callback in trainer.callbacks if isinstance(callback, EarlyStopping | ModelCheckpoint))


def _followed_by_schedules(trainer: pl.Trainer, *, stepped: bool, last: bool) -> Iterator[str]:
    """Metrics of the plateau schedules that Lightning steps after this batch."""
    for config in trainer.lr_scheduler_configs:
        if config.reduce_on_plateau and config.monitor and trainer.lightning_module.automatic_optimization:
            by_epoch = config.interval == "epoch"
            count, due = (trainer.current_epoch, last) if by_epoch else (trainer.fit_loop.batch_idx, stepped)
            if due and (count + 1) % config.frequency == 0:
                yield config.monitor


def _followed_by_callbacks(trainer: pl.Trainer, last: bool) -> Iterator[str]:
    """Metrics of the callbacks that were told to look at the end of an epoch of training."""
    for callback in trainer.callbacks if last else ():  # type: ignore[attr-defined]  # set by Trainer
        looks = (isinstance(callback, EarlyStopping) and callback._check_on_train_epoch_end) or (  # noqa: SLF001  # no public name
            isinstance(callback, ModelCheckpoint) and callback._save_on_train_epoch_end  # noqa: SLF001  # as above
        )
        if looks and callback.monitor:
            yield callback.monitor
