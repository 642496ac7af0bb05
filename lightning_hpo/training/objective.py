"""``Trainer.fit`` as a function of a job: build, restore, apply the parameters, train to a step, validate there, save.

The Trainer always gets the full budget as ``max_steps`` and is stopped early at a smaller rung. So every LR schedule,
the user's own included, has the full budget as its horizon in each rung, and its checkpoint can be continued.
"""

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
from lightning_hpo.schedulers.units import Unit, read_budget
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
from lightning_hpo.training.checkpoint_io import SealedCheckpointIO
from lightning_hpo.training.directions import Directions
from lightning_hpo.training.folds import FoldSetup, build_fold
from lightning_hpo.training.make_trainer import make_trainer, quiet_and_seeded
from lightning_hpo.training.name_checks import NameCheck, UnusedNames, fold_checks
from lightning_hpo.training.plain_fit import written
from lightning_hpo.training.random_state import one_thread
from lightning_hpo.training.ranks import ranks_of
from lightning_hpo.training.run_to_step import RunToStep, finished_outcome, is_cut_at_its_end
from lightning_hpo.training.scores import Scores
from lightning_hpo.training.trainer import TrialTrainer
from lightning_hpo.training.trial_info import scores_of_folds, trial_info, trial_of
from lightning_hpo.training.trial_report import TrialReport
from lightning_hpo.training.value_builder import ValueBuilder


@dataclass(frozen=True)
class ObjectiveOptions:
    """What an objective is asked for beside its arguments: by a tuner, or in a loop of your own with ``also``.

    Args:
        unit: of the budget, if the scheduler counts parts of the unit that the budget was given in.
        mode: whether lower or higher values of the metric are better; None goes by the study, or the metric's name.
        also: further metrics that must be logged in validation: those of several objectives.
        constraints: metrics that must be logged in validation, and are at most 0 in a feasible trial.
        folds: number of folds that each trial is trained on; 0 trains on all data.
        halves: whether a trial that is out of memory goes on with smaller batches.
        check_on_one: whether the check uses one device although trials use several, which only workers have.
        check_names: called with builder, space and parameters; makes what checks the names of the space.
        attached: loggers and callbacks of each trial.
    """

    unit: Unit | None = None
    mode: Mode | None = None
    also: Sequence[str] = ()
    constraints: Sequence[str] = ()
    folds: int = 0
    halves: bool = False
    check_on_one: bool = False
    check_names: Callable[..., NameCheck] = UnusedNames
    attached: Attachments = field(default_factory=Attachments)


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
        options: what a tuner asks for besides; in a loop of your own, the further metrics of several objectives.

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
        options: ObjectiveOptions = ObjectiveOptions(),
    ) -> None:
        if checkpoint_every < 1:
            raise ValueError(f"`checkpoint_every` must be an int >= 1, got {checkpoint_every!r}.")
        self.space = SearchSpace({}) if callable(space) else parse_space(space)
        self._suggest_from = space if callable(space) else self.space
        self.options = options
        self.key = Key.new()
        self.monitor = monitor
        self.rule = ScoreRule.read(score)
        """That makes the score of a trial."""
        self.mode = options.mode
        """Whether lower or higher values are better; the study says it where the options do not."""
        budget = read_budget({"steps": max_steps, "epochs": max_epochs, "samples": max_samples})
        self.unit = options.unit or budget.unit
        """Of the budget."""
        self.max_steps = budget.full
        """The full budget, as a scheduler counts it in the unit."""
        self.seed = seed
        builder = model if isinstance(model, Builder) else CallableBuilder(model, data, trainer)
        self.builder = ValueBuilder(builder, self.space)
        self._every, self._root, self._stop_on_nan = checkpoint_every, root, stop_on_nan
        self.builder.check_space(self.space)

    def __call__(self, trial: optuna.Trial) -> float | tuple[float, ...]:
        """Train an Optuna trial to the full budget, so that ``study.optimize(objective)`` works.

        Every validation is reported, and the trial ends where the study's pruner says so. In a study with several
        objectives, which Optuna does not prune, ``options.also`` names the metrics after the first.

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
        return outcome.score if single else tuple(outcome.metrics[name] for name in (self.monitor, *self.options.also))

    @property
    def work(self) -> Work:
        """Carries out a job: :meth:`run`, again with smaller batches where that is wanted."""
        return partial(micro_batches.in_parts, self.run) if self.options.halves else self.run

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
            TooLargeError: if ``options.halves``, and the trial is out of memory but can be split further.
            KeyError: if the monitored metric is not logged.
            ParameterMismatchError: if a hyperparameter does not take effect.
            RuntimeError: if another thread of this process trains a trial.
        """
        assert task.job.trial is not None
        with one_thread(), quiet_and_seeded(self.seed, task.job.trial, task.job.seed), _naming(task.params):
            begin, saved, is_own, parts = _begin(task, self.key, parts)
            target, fold, earlier = task.job.fit_steps, task.job.fold, task.job.max_steps - task.job.fit_steps
            whole, scores = build_fold(self.builder, task.params, fold, self.options.folds), self.scores(task)
            notes = parts.note(whole)
            outcome = finished_outcome(saved, target, scores) if is_own and saved else None
            if outcome is not None:  # a kill fell between the end of the job and its record
                return replace(outcome, notes=notes)
            components = micro_batches.split(whole, parts, saved)
            start = 0 if saved is None else int(saved["global_step"])
            own = self.options.attached.attach(components, trial_of(task, saved))
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
                callbacks=[*([] if fold is None else [FoldSetup(fold, self.options.folds)]), *callbacks],
                saved=saved,
                max_steps=self.max_steps,
                unit=self.unit,
            )
            trainer.parts, trainer.val_parts, trainer.scores, trainer.fold = parts.train, parts.val, scores, fold
            progress.follow(trainer, scores)
            try:
                with (
                    micro_batches.splitting(whole, parts, trainer) if self.options.halves else contextlib.nullcontext()
                ):
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
        fold = 0 if self.options.folds else None
        return self.builder.build_model({**params, **fold_arguments(self.builder, fold, self.options.folds)})

    def check(self, params: Mapping[str, Any] | None = None) -> int | None:
        """Fit a batch and validate a batch, as a trial does: mistakes show before the first step.

        Args:
            params: to build with; the middle of the space by default.

        Returns:
            Optimizer steps of the full budget with these parameters; None if the device has no room for the check.

        Raises:
            ValueError: if model or data cannot be built with parameters of the space, an argument of the Trainer
                contradicts the budget, or the monitored metric is not logged in validation.
            MisconfigurationException: if Lightning, or a callback, refuses the combination.
            UnreadableStateError: if a checkpoint could not be read back.
            ParameterMismatchError: if the module holds another value than it was given, whatever that is.
        """
        params = self.middle() if params is None else params
        with _naming(params), _wrong_call():
            ranks = 1 if self.options.check_on_one else ranks_of(self.builder.distributed_arguments).size
            run = call_apart if ranks == 1 else call  # a copy of this process would not be in the group
            fitted = micro_batches.unless_out_of_memory(
                partial(run, partial(micro_batches.in_parts, _fit_one_batch, self, params))
            )
            if fitted is None:
                return None
            logged, messages, steps = fitted
            for message in messages:
                warnings.warn(message, stacklevel=2)
            validate_logged(logged, self.options.constraints, (self.monitor, *self.options.also))
            return steps

    def end_trial(self, folder: Path, row: Row, identity: Mapping[str, Any]) -> None:
        """Let the loggers of a trial, or of its folds, say how it has ended: complete, pruned or failed."""
        assert row.state != "running"
        with warnings_only(*CHATTY):
            for fold, score in scores_of_folds(row, self.options.folds):
                info = trial_info(folder, row.params, identity, row.step, fold)
                self.options.attached.end(info, score, row.global_step, row.state)

    def middle(self) -> dict[str, Any]:
        """Return parameters in the middle of the space; from a function of a trial, those of a random trial."""
        if self._suggest_from is self.space:
            return self.space.middle()
        with warnings_only("optuna"):
            return suggest(optuna.create_study(sampler=RandomSampler(seed=self.seed)).ask(), self._suggest_from)

    def _outcome(self, job: RunToStep, trainer: TrialTrainer) -> Outcome:
        if job.paused:
            return Outcome(None, trainer.place()["step"], values=job.scores.values, ended=PAUSED)
        validate_logged(job.scores.metrics, self.options.constraints, (self.monitor, *self.options.also))
        place: dict[str, Any] = trainer.place(ended=job.ended != BUDGET)
        return Outcome(**job.scores.outcome(place["step"]), values=job.scores.values, ended=job.ended, **place)


def _fit_one_batch(
    objective: Objective, params: Mapping[str, Any], parts: micro_batches.MicroBatches
) -> tuple[dict[str, float], list[str], int]:
    """Return what the check logs, sentences to warn with, and the optimizer steps of a full budget."""
    options = objective.options
    with quiet_and_seeded(objective.seed, 0), tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        fold = options.folds - 1 if options.folds else None  # the one that too few parts of the data lack
        params = {**params, **fold_arguments(objective.builder, fold, options.folds)}
        names = options.check_names(objective.builder, objective.space, params)
        whole = build_fold(objective.builder, params, fold, options.folds)
        checks, directions = [names], Directions(objective.monitor, objective.mode)
        if options.folds:
            checks += fold_checks(objective.builder, objective.space, params, whole, options.folds)
        if options.check_on_one and ranks_of(objective.builder.distributed_arguments).size > 1:
            whole.trainer.update(devices=1, num_nodes=1, strategy="auto")
        loader = micro_batches.validate_components(whole) if options.halves else None
        components = micro_batches.split(whole, parts)
        options.attached.attach(components, trial_info(folder, params, {}, 0, fold), logging=False)
        more = [*checks, directions, *([] if fold is None else [FoldSetup(fold, options.folds)])]
        with micro_batches.splitting(whole, parts) if options.halves else contextlib.nullcontext():
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
        # No record says that the job came to its end, so it comes there again, from the checkpoint before.
        own, saved = checkpoints.read_newest(checkpoints.previous_of(own), key)
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


@contextlib.contextmanager
def _naming(params: Mapping[str, Any]) -> Iterator[None]:
    """Add the parameters to an error."""
    try:
        yield
    except Exception as error:
        error.add_note(f"with the parameters {listed(params)}")
        raise
