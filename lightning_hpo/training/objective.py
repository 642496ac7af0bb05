"""``Trainer.fit`` as a function of a job: build, restore, apply the parameters, train to a step, validate there, save.

The Trainer always gets the full budget as ``max_steps`` and is stopped early at a smaller rung. So every LR schedule,
the user's own included, has the full budget as its horizon in each rung, and its checkpoint can be continued.
"""

import contextlib
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from operator import call
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import optuna
from optuna.samplers import RandomSampler

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.checkpoints.origin import STAMP
from lightning_hpo.errors import UNFORESEEN, WRONG_CALL, exit_code
from lightning_hpo.quiet import CHATTY, warnings_only
from lightning_hpo.records import BEST_CHECKPOINT, BUDGET, CHECKPOINT, PAUSED, Mode, Outcome, Row, Task, Work, never
from lightning_hpo.schedulers import Job
from lightning_hpo.schedulers.direction import as_study, direction
from lightning_hpo.schedulers.scores import ScoreRule
from lightning_hpo.schedulers.units import read_budget
from lightning_hpo.space import SearchSpace, Space, parse_space, suggest
from lightning_hpo.study.progress import ProgressFile
from lightning_hpo.study.rows import ENDED, SEED, trial_seed
from lightning_hpo.study.trial_folders import identity_of, settle, study_id
from lightning_hpo.text import listed
from lightning_hpo.training import micro_batches
from lightning_hpo.training.apart import call_apart
from lightning_hpo.training.attachments import Attachments, keep_states
from lightning_hpo.training.builder import Builder, fold_arguments
from lightning_hpo.training.callable_builder import CallableBuilder
from lightning_hpo.training.check import fit_one_batch, validate_logged
from lightning_hpo.training.directions import Directions
from lightning_hpo.training.folds import FoldSetup, build_fold
from lightning_hpo.training.make_trainer import make_trainer, quiet_and_seeded
from lightning_hpo.training.name_checks import NameCheck, UnusedNames, fold_checks
from lightning_hpo.training.plain_fit import written
from lightning_hpo.training.plugins import SealedCheckpointIO
from lightning_hpo.training.ranks import ranks_of
from lightning_hpo.training.run_to_step import RunToStep, finished_outcome, is_cut_at_its_end
from lightning_hpo.training.scores import Scores
from lightning_hpo.training.trainer import TrialTrainer
from lightning_hpo.training.trial_info import scores_of_folds, trial_info, trial_of
from lightning_hpo.training.trial_report import TrialReport
from lightning_hpo.training.value_builder import ValueBuilder


class Objective:
    """Trains a LightningModule as a job asks, and returns the monitored metric.

    Args:
        model: class of the module, or any callable that returns a module; called with the ``model.`` parameters. Or a
            :class:`~lightning_hpo.training.builder.Builder`, which brings data and Trainer arguments too.
        space: dotted name -> distribution (see :mod:`lightning_hpo.space`), or a function of an Optuna trial that
            returns name -> value.
        data: class of the data module, or any callable that returns a data module; called with the ``data.``
            parameters. None if the module brings its own loaders.
        monitor: name of a metric that the module logs in validation.
        max_steps, max_epochs, max_samples: the full budget of a trial, as exactly one of these. It is also the horizon
            of its LR schedules.
        trainer: more arguments for every ``Trainer``. Callbacks and loggers in it are copied for each job.
        seed: with the trial's number, it seeds everything random in a trial.
        checkpoint_every: save each time so many steps are done; a kill costs no more than these. Default 25.
        root: folder for the trials of ``study.optimize``; None uses a temporary folder.
        stop_on_nan: end a trial at its first training loss that is NaN or infinite, as failed with ``diverged at step
            s``. Off by default: under automatic mixed precision a single overflow is harmless. Losses on a CPU are
            checked after every step, on other devices before each checkpoint and validation.
        score: what the validations of a trial make its score: ``"last"``, ``"best"`` or ``"mean(k)"``, as for tuners.

    Raises:
        TypeError: if ``model`` or ``data`` is an instance, not a class or function.
        ValueError: if the space names an argument that does not exist (the nearest is suggested), or for a ``score``.
    """

    def __init__(
        self,
        model: Callable[..., pl.LightningModule] | Builder,
        space: Space | Callable[[optuna.Trial], Mapping[str, Any]],
        *,
        monitor: str,
        max_steps: int | None = None,
        max_epochs: float | None = None,
        max_samples: int | None = None,
        data: Callable[..., pl.LightningDataModule] | None = None,
        trainer: Mapping[str, Any] | None = None,
        seed: int = 0,
        checkpoint_every: int = 25,
        root: str | Path | None = None,
        stop_on_nan: bool = False,
        score: str = "last",
    ) -> None:
        if checkpoint_every < 1:
            raise ValueError(f"`checkpoint_every` must be an int >= 1, got {checkpoint_every!r}.")
        self.space = SearchSpace({}) if callable(space) else parse_space(space)
        self._suggest_from = space if callable(space) else self.space
        self.also: tuple[str, ...] = ()
        """More metrics that must be logged in validation."""
        self.halves, self.folds = False, 0
        """Whether a trial that is out of memory goes on with smaller batches; folds that it is trained on."""
        self.constraints: Sequence[str] = ()
        """Metrics that must be logged in validation and are at most 0 in a feasible trial."""
        self.key = Key.new()
        self.check_names: Callable[..., NameCheck] = UnusedNames
        """Called with builder, space and parameters; the callback checks the names of the space before training."""
        self.monitor = monitor
        self.rule = ScoreRule.read(score)
        """That makes the score of a trial."""
        self.mode: Mode | None = None
        """Whether lower or higher values are better; None goes by the study, or the name of the metric."""
        budget = read_budget({"steps": max_steps, "epochs": max_epochs, "samples": max_samples})
        self.unit = budget.unit
        """Of the budget."""
        self.max_steps = budget.full
        """The full budget, as a scheduler counts it in the unit."""
        self.checked_steps: int | None = None
        """Optimizer steps of the full budget in the trial that was checked, where the budget is in another unit."""
        self.check_on_one = False
        """Whether the check is on one device, although trials train on several: in workers, which are not there yet."""
        self.seed = seed
        builder = model if isinstance(model, Builder) else CallableBuilder(model, data, trainer)
        self.builder = ValueBuilder(builder, self.space)
        self._every, self._root, self._stop_on_nan = checkpoint_every, root, stop_on_nan
        self.attached = Attachments()
        """Loggers and callbacks of each trial."""
        self.builder.check_space(self.space)

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Train an Optuna trial to the full budget, so that ``study.optimize(objective)`` works.

        Every validation is reported, and the trial ends where the study's pruner says so. In a study with several
        objectives, which Optuna does not prune, :attr:`also` names the metrics after the first.

        Raises:
            optuna.TrialPruned: if the pruner ended the trial.
        """
        params = suggest(trial, self._suggest_from)
        study = trial.study if isinstance(trial, optuna.Trial) else None  # a FixedTrial has none
        single = study is None or len(study.directions) == 1
        report = TrialReport(trial, self.monitor) if study is not None and single else None
        identity = {} if study is None else identity_of(study_id(study), trial.number, trial.params)
        if study is not None:
            self.mode = as_study(study.directions[0].name, self.monitor, self.mode)
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(self._root or temporary) / f"{trial.number:04d}"
            settle(folder, identity)
            job = Job(self.max_steps, trial=trial.number, seed=trial_seed(self.seed, trial.number))
            trial.set_user_attr(SEED, job.seed)
            task = Task(job, params, folder, identity=identity)
            outcome = self.work(task, never, [] if report is None else [report])  # type: ignore[call-arg]  # more than Work
        if report is not None and report.ends_at(outcome) and not outcome.is_whole(self.max_steps):
            raise optuna.TrialPruned
        if (ended := outcome.early_end(self.max_steps)) is not None:
            trial.set_user_attr(ENDED, ended)
        assert outcome.score is not None
        return outcome.score if single else tuple(outcome.metrics[name] for name in (self.monitor, *self.also))

    @property
    def work(self) -> Work:
        """Carries out a job: :meth:`run`, again with smaller batches where that is wanted."""
        return partial(micro_batches.in_parts, self.run) if self.halves else self.run

    def run(
        self,
        task: Task,
        should_pause: Callable[[], bool] = never,
        callbacks: Sequence[pl.Callback] = (),
        parts: micro_batches.MicroBatches = micro_batches.WHOLE,
    ) -> Outcome:
        """Carry out a job.

        Args:
            task: the job, continued from its folder's checkpoint if there is one.
            should_pause: asked after every optimizer step; True saves a checkpoint and returns without a score. Each
                question (after validation batches too) shows that the job makes progress.
            callbacks: more callbacks, for this job only. If a callback stops the Trainer, the trial ends there.
            parts: into which batches are split.

        Raises:
            TooLargeError: if :attr:`halves`, and the trial is out of memory but can be split further.
            KeyError: if the monitored metric is not logged.
            ParameterMismatchError: if a hyperparameter does not take effect.
            RuntimeError: if another thread of this process trains a trial.
        """
        assert task.job.trial is not None
        with _alone(), quiet_and_seeded(self.seed, task.job.trial, task.job.seed), _naming(task.params):
            begin, saved, is_own, parts = _begin(task, self.key, parts)
            target, fold, earlier = task.job.fit_steps, task.job.fold, task.job.max_steps - task.job.fit_steps
            whole, scores = build_fold(self.builder, task.params, fold, self.folds), self.scores(task)
            notes = parts.note(whole)
            outcome = finished_outcome(saved, target, scores) if is_own and saved else None
            if outcome is not None:  # a kill fell between the end of the job and its record
                return replace(outcome, notes=notes)
            components = micro_batches.split(whole, parts, saved)
            start = 0 if saved is None else int(saved["global_step"])
            own = self.attached.attach(components, trial_of(task, saved))
            progress = ProgressFile(task.folder, task.job.trial, start, target, should_pause, earlier=earlier)
            job = RunToStep(
                target,
                task.folder / CHECKPOINT,
                every=self._every,
                scores=scores,
                should_pause=progress.pause_wanted,
                stop_on_nan=self._stop_on_nan,
                identity={**task.identity, "seed": task.job.seed, **({} if fold is None else {"fold": fold})},
                forked=begin is not None and not is_own,
                attached=[text for text in map(written, own) if text is not None],
            )
            trainer = make_trainer(
                components,
                task.folder,
                job,
                SealedCheckpointIO(begin, saved, self.key),
                callbacks=[*([] if fold is None else [FoldSetup(fold, self.folds)]), *callbacks],
                saved=saved,
                max_steps=self.max_steps,
                unit=self.unit,
            )
            trainer.parts, trainer.val_parts, trainer.scores, trainer.fold = parts.train, parts.val, scores, fold
            progress.follow(trainer, scores)
            try:
                with micro_batches.splitting(whole, parts, trainer) if self.halves else contextlib.nullcontext():
                    trainer.fit(components.module, datamodule=components.data, ckpt_path=begin, weights_only=True)
            except SystemExit:
                if not job.paused:  # Lightning leaves with SystemExit on SIGTERM, also after we have saved
                    raise
            progress.close()
            keep_states(own, task.folder, self.key)
            return replace(self._outcome(job, trainer), notes=notes)

    def scores(self, task: Task) -> Scores:
        """Return the score of a trial as it is before a job."""
        mode = self.mode or direction(self.monitor, None if self.rule.name == "best" else "min")
        return Scores(self.monitor, self.rule, mode, task)

    def use_key(self, key: Key) -> None:
        """Sign checkpoints with the key of a run, and recognise the files of the run by it."""
        self.key = key

    def build_model(self, params: Mapping[str, Any]) -> pl.LightningModule:
        """Build an untrained module with the ``model.`` parameters."""
        fold = 0 if self.folds else None
        return self.builder.build_model({**params, **fold_arguments(self.builder, fold, self.folds)})

    def check(self, params: Mapping[str, Any] | None = None) -> None:
        """Fit a batch and validate a batch, as a trial does: mistakes show before the first step.

        Args:
            params: to build with; the middle of the space by default.

        Raises:
            ValueError: if model or data cannot be built with parameters of the space, an argument of the Trainer
                contradicts the budget, or the monitored metric is not logged in validation.
            MisconfigurationException: if Lightning, or a callback, refuses the combination.
            UnreadableStateError: if a checkpoint could not be read back.
            ParameterMismatchError: if the module holds another value than it was given, whatever that is.
        """
        params = self.middle() if params is None else params
        with _naming(params), _wrong_call():
            alone = self.check_on_one or ranks_of(self.builder.distributed_arguments).size == 1  # no group to copy
            fitted = micro_batches.unless_out_of_memory(
                partial(call_apart if alone else call, partial(micro_batches.in_parts, _fit_one_batch, self, params))
            )
            if fitted is None:
                return
            logged, messages, steps = fitted
            self.checked_steps = None if self.unit.is_steps else steps
            for message in messages:
                warnings.warn(message, stacklevel=2)
            validate_logged(logged, self.constraints, (self.monitor, *self.also))

    def end_trial(self, folder: Path, row: Row, identity: Mapping[str, Any]) -> None:
        """Let the loggers of a trial, or of its folds, say how it has ended: complete, pruned or failed."""
        assert row.state != "running"
        with warnings_only(*CHATTY):
            for fold, score in scores_of_folds(row, self.folds):
                info = trial_info(folder, row.params, identity, row.step, fold)
                self.attached.end(info, score, row.global_step, row.state)

    def middle(self) -> dict[str, Any]:
        """Return parameters in the middle of the space; from a function of a trial, those of a random trial."""
        if self._suggest_from is self.space:
            return self.space.middle()
        with warnings_only("optuna"):
            return suggest(optuna.create_study(sampler=RandomSampler(seed=self.seed)).ask(), self._suggest_from)

    def _outcome(self, job: RunToStep, trainer: TrialTrainer) -> Outcome:
        if job.paused:
            return Outcome(None, trainer.place()["step"], values=job.scores.values, ended=PAUSED)
        validate_logged(job.scores.metrics, self.constraints, (self.monitor, *self.also))
        place: dict[str, Any] = trainer.place(ended=job.ended != BUDGET)
        return Outcome(**job.scores.outcome(place["step"]), values=job.scores.values, ended=job.ended, **place)


def _fit_one_batch(
    objective: Objective, params: Mapping[str, Any], parts: micro_batches.MicroBatches
) -> tuple[dict[str, float], list[str], int]:
    """Return what the check logs, sentences to warn with, and the optimizer steps of a full budget."""
    with quiet_and_seeded(objective.seed, 0), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fold = objective.folds - 1 if objective.folds else None  # the one that too few parts of the data lack
        params = {**params, **fold_arguments(objective.builder, fold, objective.folds)}
        names = objective.check_names(objective.builder, objective.space, params)
        whole = build_fold(objective.builder, params, fold, objective.folds)
        checks, directions = [names], Directions(objective.monitor, objective.mode)
        if objective.folds:
            checks += fold_checks(objective.builder, objective.space, params, whole, objective.folds)
        if objective.check_on_one and ranks_of(objective.builder.distributed_arguments).size > 1:
            whole.trainer.update(devices=1, num_nodes=1, strategy="auto")
        loader = micro_batches.validate_components(whole) if objective.halves else None
        components = micro_batches.split(whole, parts)
        objective.attached.attach(components, trial_info(folder, params, {}, 0, fold), logging=False)
        more = [*checks, directions, *([] if fold is None else [FoldSetup(fold, objective.folds)])]
        with micro_batches.splitting(whole, parts) if objective.halves else contextlib.nullcontext():
            logged, steps = fit_one_batch(
                components, folder, objective.max_steps, objective.key, more, unit=objective.unit
            )
        if loader is not None:
            micro_batches.validate_loader(whole, loader)
        return logged, [*directions.warnings, *(text for check in checks for text in check.unused)], steps


def _begin(
    task: Task, key: Key, parts: micro_batches.MicroBatches
) -> tuple[Path | None, dict[str, Any] | None, bool, micro_batches.MicroBatches]:
    """Return the checkpoint that a job begins from, its content, whether it is the trial's own, and micro-batches."""
    task.folder.mkdir(parents=True, exist_ok=True)
    checkpoints.remove_leftovers(task.folder / BEST_CHECKPOINT)
    own, saved = checkpoints.read_newest(task.folder / CHECKPOINT, key)
    if own is not None and saved is not None and _fold_of(saved) == task.job.fold and is_cut_at_its_end(saved):
        own.unlink()  # no record says that the job came to its end, so it comes there again
        own, saved = checkpoints.read_newest(task.folder / CHECKPOINT, key)
    begin = own or task.source
    if own is None and begin is not None:
        saved = checkpoints.load(begin, key=key)
    parts = parts.at_least(micro_batches.parts_of(saved))
    if saved is not None and _fold_of(saved) != task.job.fold:  # of the fold before, which is recorded
        return None, None, False, parts
    return begin, saved, own is not None, parts


def _fold_of(saved: Mapping[str, Any]) -> int | None:
    fold: int | None = saved.get(STAMP, {}).get("fold")
    return fold


@contextlib.contextmanager
def _wrong_call() -> Iterator[None]:
    """Give any error of the check the exit code of a wrong call: the same command can only fail again."""
    try:
        yield
    except Exception as error:
        if exit_code(error) == UNFORESEEN:
            error.exit_code = WRONG_CALL  # type: ignore[attr-defined]  # read by errors.exit_code
        raise


_TRAINS = threading.RLock()  # a trial may train others inside, in its own thread


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second thread: both would draw from the same random numbers, and no trial could be repeated.

    Raises:
        RuntimeError: if another thread trains.
    """
    if not _TRAINS.acquire(blocking=False):
        raise RuntimeError(
            "another thread of this process trains a trial, and both would draw from the same random numbers: "
            "use `n_jobs=1`, or OptunaTuner(workers=2) for two trials at a time in processes of their own"
        )
    try:
        yield
    finally:
        _TRAINS.release()


@contextlib.contextmanager
def _naming(params: Mapping[str, Any]) -> Iterator[None]:
    """Add the parameters to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"with the parameters {listed(params)}")
        raise
