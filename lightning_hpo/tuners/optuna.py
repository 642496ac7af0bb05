"""Optuna's samplers, pruners, storages and studies over a LightningModule or a function."""

import math
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.pruners import BasePruner, MedianPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.storages import BaseStorage, InMemoryStorage
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.errors import ParameterMismatchError, RankLostError, StudyMismatchError, explained, failure_text
from lightning_hpo.executors.pool import Executor
from lightning_hpo.records import CHECKPOINT, Mode, Outcome, Row, Task, Work, best_row
from lightning_hpo.reporting.best import write_answer
from lightning_hpo.reporting.console import spent
from lightning_hpo.samplers.keyed import KeyedSampler
from lightning_hpo.schedulers import FullBudget, Job
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.fingerprint import label, settings
from lightning_hpo.study.run_folder import RunFolder, open_study
from lightning_hpo.study.table import ENDED, FAILURE, STEP, attach, read_rows
from lightning_hpo.study.trial_folders import belongs, identity_of, settle, study_id
from lightning_hpo.text import say
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.objective import Objective, suggest
from lightning_hpo.training.trial_report import TrialReport
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.options import refuse_unknown
from lightning_hpo.tuners.run import Session, Subject

Define: TypeAlias = Callable[[optuna.Trial], Mapping[str, Any]]


class OptunaTuner(Tuner):
    """Any Optuna sampler, pruner, storage or study; trials are pruned within their training.

    Every validation is reported at its optimizer step. A pruned trial ends as a finished one: end hooks run, its
    checkpoint is kept. A trial that a kill has interrupted continues from its checkpoint. Sampling is keyed by the seed
    and the trial's number, so a continued study equals the uninterrupted one; up to rounding, with a sampler that warms
    its search up from memory, as Optuna's ``GPSampler`` does.

    Args:
        space: as for :class:`Tuner`, or a function of a trial that returns name -> value (define-by-run).
        max_steps: budget of a trial that is not pruned, in optimizer steps.
        n_trials: trials in all, those that the study already has included.
        monitor: metric that the module logs in validation; a tuple of several for a multi-objective search, in which
            Optuna prunes nothing. Best of a :class:`Result` is then by the first one; ``result.study.best_trials`` is
            the Pareto front.
        mode: as for :class:`Tuner`, or one for each metric.
        sampler: default ``TPESampler()``, or that of ``study``.
        pruner: default ``MedianPruner()``, or that of ``study``.
        study: to continue, with its storage and its enqueued trials; its directions must be those of ``mode``.
        constraints: names of logged metrics that must be <= 0 in a feasible trial. Feasible trials are better than
            others.
        workers: as for :class:`Tuner`; they report to the study themselves, so it must not be in memory. What the
            sampler knows when it is asked depends on who ended first.
        **options: as for :class:`Tuner`; ``keep_checkpoints`` is True by default.
    """

    def __init__(
        self,
        space: Space | Define,
        *,
        max_steps: int,
        n_trials: int,
        monitor: str | Sequence[str] | None = None,
        mode: Mode | Sequence[Mode] | None = None,
        sampler: BaseSampler | None = None,
        pruner: BasePruner | None = None,
        study: optuna.Study | None = None,
        constraints: Sequence[str] = (),
        keep_checkpoints: bool = True,
        **options: Any,
    ) -> None:
        with explained(None):
            self.monitors = (monitor,) if isinstance(monitor, str | None) else tuple(monitor)
            refuse_unknown(type(self), options)
            modes = (mode,) * len(self.monitors) if isinstance(mode, str | None) else tuple(mode)
            if len(modes) != len(self.monitors) or not modes:
                raise ValueError(f"`mode` must be one of 'min', 'max', or one for each `monitor`, got {mode!r}.")
            self.modes = tuple(map(direction, self.monitors, modes))
            if pruner is not None and not isinstance(pruner, BasePruner):
                raise TypeError(f"`pruner` must be an Optuna pruner, got {pruner!r}.")
            if study is not None and options.get("storage") is not None:
                raise ValueError("`study` has a storage of its own: give either `study` or `storage`.")
            if options.get("shared"):
                raise ValueError("`shared` is not for OptunaTuner: its study has one process that starts trials.")
            self._define = space if callable(space) else None
            stand_in = {"defined_by": CategoricalDistribution((label(space),))}  # so that the study knows its function
            if study is not None and options.get("name") is None:
                options["name"] = study.study_name
            super().__init__(
                stand_in if callable(space) else space,
                FullBudget(max_steps, n_trials),
                monitor=self.monitors[0],
                mode=self.modes[0],
                sampler=sampler,
                keep_checkpoints=keep_checkpoints,
                **options,
            )
            if study is not None:
                directions = [
                    "min" if one is optuna.study.StudyDirection.MINIMIZE else "max" for one in study.directions
                ]
                if directions != list(self.modes):
                    raise StudyMismatchError(
                        f"`study` has the directions {directions}, but `mode` is {list(self.modes)}."
                    )
            self._given_sampler, self._pruner, self._study = sampler, pruner, study
            self._study_in_folder = self._study_in_folder and study is None
            self._constraints = tuple(constraints)

    def objective(self, model: Any = None, *, datamodule: Any = None, space: Define | None = None) -> Objective:
        """Return what :meth:`fit` runs for each trial; the arguments are those of :meth:`fit`."""
        objective = super().objective(model, datamodule=datamodule, space=space or self._define)
        objective.also = (*self.monitors[1:], *self._constraints)
        return objective

    def _open(self, folder: RunFolder, fingerprint: Mapping[str, Any]) -> tuple[optuna.Study, BaseStorage]:
        if self._study is not None:
            study, storage = self._study, self._study._storage  # noqa: SLF001  # a study does not show its storage
            sampler = self._given_sampler or study.sampler
            pruner = self._pruner or study.pruner
        else:
            sampler, pruner = self._given_sampler or TPESampler(), self._pruner or MedianPruner()
            fingerprint = {
                **fingerprint,
                "monitor": list(self.monitors),
                "mode": list(self.modes),
                "sampler": {**settings(sampler), "pruner": settings(pruner)},
            }
            study, storage = open_study(
                folder, self._storage, self.modes, fingerprint, allow_changed=self._allow_changed
            )
        study.sampler = sampler if isinstance(sampler, KeyedSampler) else KeyedSampler(sampler, self.seed)
        study.pruner = pruner
        study_id(study)  # made while nobody else opens the study
        return study, storage

    def _code(self, subject: Subject) -> Sequence[Any]:
        return [*super()._code(subject), self._define]

    def _loop(self, session: Session, subject: Subject) -> Sequence[Row]:
        study, folder = session.study, session.folder
        self._announce(session, {} if self._define else self.space, self._rows(study))
        running: dict[Future[Outcome], optuna.Trial] = {}
        work = subject.work if not self._reports(subject) else self._reporting(subject.work, session, running.values())
        self._show_best(session, self._rows(study), subject.builder)  # a process may have died before it could
        if subject.check is not None and self._left(study, ()):
            subject.check()
        deadline = math.inf if self._limits.timeout is None else time.monotonic() + self._limits.timeout
        total = math.inf if self._limits.total_steps is None else self._limits.total_steps

        def wanted() -> bool:
            numbers = {trial.number for trial in running.values()}
            enough = time.monotonic() >= deadline or spent(self._rows(study)) >= total
            return self._left(study, numbers) and not enough and not session.interrupts.pause_wanted()

        failed = 0
        with self._executor(work, session.interrupts) as executor:
            while True:
                while len(running) < executor.workers and wanted():
                    trial = self._next(study, folder, {trial.number for trial in running.values()})
                    self._start(trial, folder, executor, running)
                if not running:
                    break
                done = wait(running, return_when=FIRST_COMPLETED).done
                for future in sorted(done, key=lambda one: running[one].number):
                    trial = running.pop(future)
                    state = self._end(trial, future, trains=subject.builder is not None)
                    if state is None:  # paused
                        continue
                    rows = self._rows(study)
                    self._show_best(session, rows, subject.builder)
                    row = rows[trial.number]
                    reason = str(_frozen(trial).user_attrs.get(FAILURE, "")).partition("\n")[0]
                    session.console.job(row, row.step, rows, self.planned_steps(), reason)
                    failed = failed + 1 if state is TrialState.FAIL else 0
                    self._limits.refuse_failures(failed, rows, reason)
        return self._rows(study)

    def _reports(self, subject: Subject) -> bool:
        """Whether trials report their validations: Optuna takes no reports in a study with several objectives."""
        return subject.builder is not None and len(self.modes) == 1

    def _reporting(self, work: Work, session: Session, running: Iterable[optuna.Trial]) -> "_Reporting":
        if self._workers == 1 and not self._isolate:
            here = lambda number: next(one for one in running if one.number == number)  # noqa: E731
            return _Reporting(work, here, str(self.monitor))
        if isinstance(session.storage, InMemoryStorage):
            raise ValueError("trials are to train in worker processes, but the study is in the memory of this process: "
                             "give it a storage that others can report to, a file's or a database's.")  # fmt: skip
        return _Reporting(
            work, _Stored(session.storage, session.study.study_name, session.study.pruner), str(self.monitor)
        )

    def _along(self, subject: Subject) -> Work:
        return _Reporting(subject.work, _told_by_rank_0, str(self.monitor)) if self._reports(subject) else subject.work

    def _left(self, study: optuna.Study, at_work: Container[int]) -> bool:
        trials = study.get_trials(deepcopy=False)
        assert isinstance(self.scheduler, FullBudget)
        left_behind = self._study is None and any(
            trial.state is TrialState.RUNNING and trial.number not in at_work for trial in trials
        )
        return left_behind or sum(trial.state is not TrialState.WAITING for trial in trials) < self.scheduler.n_trials

    def _next(self, study: optuna.Study, folder: RunFolder, at_work: Container[int]) -> optuna.Trial:
        """A trial that a kill left behind, or a new one."""
        own = study_id(study)
        for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Others may be at work on a study that was given to us: ours have a folder here, which we hold the lock of.
            ours = self._study is None or belongs(folder.trial(trial.number), identity_of(own, trial.number, None))
            if ours and trial.number not in at_work:
                return attach(study, trial)
        new = study.ask()
        settle(folder.trial(new.number), identity_of(own, new.number, None))
        return new

    def _start(
        self, trial: optuna.Trial, folder: RunFolder, executor: Executor, running: dict[Future[Outcome], optuna.Trial]
    ) -> None:
        waiting: Future[Outcome] = Future()
        running[waiting] = trial  # in this process a job is over before its future is there
        try:
            params = suggest(trial, self._define or self.space)
        except Exception as error:  # noqa: BLE001  # of the user's function; it fails the trial
            waiting.set_exception(error)
            return
        identity = identity_of(study_id(trial.study), trial.number, trial.params)
        settle(folder.trial(trial.number), identity)
        job = Job(self.scheduler.max_steps, trial.number)
        future = executor.submit(Task(job, params, folder.trial(trial.number), identity=identity))
        del running[waiting]
        running[future] = trial

    def _end(self, trial: optuna.Trial, future: Future[Outcome], *, trains: bool) -> TrialState | None:
        """Tell the study what came of a trial; None if it was paused."""
        study = trial.study
        error = future.exception()
        if isinstance(error, ParameterMismatchError | RankLostError):
            raise error
        if isinstance(error, optuna.TrialPruned):  # of a user's function or callback
            study.tell(trial, state=TrialState.PRUNED)
            return TrialState.PRUNED
        try:
            outcome = future.result()
            if outcome.score is None:
                return None
            return self._record(trial, outcome, trains=trains)
        except BaseException as error:  # noqa: BLE001  # it is kept with the trial
            trial.set_user_attr(FAILURE, failure_text(error, trial.params))
            study.tell(trial, state=TrialState.FAIL)
            return TrialState.FAIL

    def _record(self, trial: optuna.Trial, outcome: Outcome, *, trains: bool) -> TrialState:
        """Tell the study the score, at the step where the Trainer stood, and why the trial ended."""
        study, single, full = trial.study, len(self.modes) == 1, self.scheduler.max_steps
        known = _frozen(trial)
        for name in self._constraints:
            if name not in known.constraints:  # a kill can fall between a constraint and the end of the trial
                trial.set_constraint(name, outcome.metrics[name])
        if outcome.pruned and outcome.step < full:
            study.tell(trial, state=TrialState.PRUNED)
            return TrialState.PRUNED
        values: list[Any] = [outcome.score] if single else _several(outcome, self.monitors, trains=trains)
        _refuse_unusable(values)
        if single and outcome.step not in known.intermediate_values:
            trial.report(values[0], outcome.step)
        if not single and outcome.step != full:
            trial.set_user_attr(STEP, outcome.step)
        if (ended := outcome.early_end(full)) is not None:
            trial.set_user_attr(ENDED, ended)
        study.tell(trial, values)
        return TrialState.COMPLETE

    def _rows(self, study: optuna.Study) -> list[Row]:
        return read_rows(study, at=self.scheduler.max_steps)

    def _show_best(self, session: Session, rows: Sequence[Row], builder: Builder | None) -> None:
        best = best_row(rows, self.mode)
        if best is None:
            return
        folder, config = session.folder, self.space.config if builder is None else builder.config
        write_answer(
            best,
            identity_of(study_id(session.study), best.number, best.params),
            folder.trial(best.number) / CHECKPOINT,
            config(best.params, self.scheduler.max_steps),
            best_checkpoint=folder.best_checkpoint,
            best_params=folder.best_params,
        )


@dataclass(frozen=True)
class _Reporting:
    """Carries out a job whose trial reports its validations to the study, and is stopped where the pruner says so.

    Args:
        work: that takes callbacks.
        trial: a trial of the study by its number; None where another process reports.
        monitor: metric to report.
    """

    work: Callable[..., Outcome]
    trial: Callable[[int], optuna.Trial | None]
    monitor: str

    def __call__(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        assert task.job.trial is not None
        report = TrialReport(self.trial(task.job.trial), self.monitor)
        outcome = self.work(task, should_pause, callbacks=[report])
        return replace(outcome, pruned=outcome.score is not None and report.ends_at(outcome.step))


@dataclass(frozen=True)
class _Stored:
    """Trials of a study, from any process."""

    storage: BaseStorage
    name: str
    pruner: BasePruner

    def __call__(self, number: int) -> optuna.Trial:
        study = optuna.load_study(
            study_name=self.name, storage=self.storage, sampler=RandomSampler(), pruner=self.pruner
        )
        return attach(study, study.get_trials(deepcopy=False)[number])


def _told_by_rank_0(number: int) -> None:
    """Return no trial: rank 0 reports, and says whether to stop."""


def create_optuna_study(
    objective_fn: Callable[[dict[str, Any]], float],
    space: Space,
    n_trials: int = 100,
    *,
    seed: int | None = None,
    storage: str | optuna.storages.BaseStorage | None = None,
    study_name: str | None = None,
) -> optuna.Study:
    """Maximise a function of a config with TPE, and print the best parameters and score.

    Args:
        objective_fn: takes name -> value, returns the score. It may raise ``optuna.TrialPruned``.
        space: as for :class:`Tuner`.
        n_trials: how many configurations to try.
        seed: of the sampler; None draws one.
        storage: an Optuna storage or its URL; None keeps the study in memory.
        study_name: an existing study of this name in ``storage`` is continued.

    Returns:
        The study, with a median pruner.

    Example:
        >>> study = create_optuna_study(lambda config: -(config["x"] - 1) ** 2, {"x": "uniform(0, 2)"}, 3, seed=0)
        ... # doctest: +ELLIPSIS
        Best parameters: {'x': ...}
        Best score: ...
    """
    parsed = parse_space(space)
    study = optuna.create_study(
        direction="maximize",
        sampler=TPESampler(seed=seed),
        pruner=MedianPruner(),
        storage=storage,
        study_name=study_name,
        load_if_exists=study_name is not None,
    )
    study.optimize(lambda trial: objective_fn(parsed.deliver(suggest(trial, parsed))), n_trials=n_trials)
    say(f"Best parameters: {study.best_params}\nBest score: {study.best_value}")
    return study


def _several(outcome: Outcome, monitors: Sequence[str | None], *, trains: bool) -> list[float]:
    if trains:
        return [outcome.metrics[str(name)] for name in monitors]
    values: Any = outcome.score
    return [float(value) for value in values]


def _refuse_unusable(values: Sequence[Any]) -> None:
    for value in values:
        if not math.isfinite(value):
            raise ValueError(f"the score is {value}")


def _frozen(trial: optuna.Trial) -> FrozenTrial:
    return trial.study.get_trials(deepcopy=False)[trial.number]
