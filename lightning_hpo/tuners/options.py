"""The options that all tuners share: flat keywords for people, grouped and checked for the code that uses them."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from lightning_hpo.executors.ray import RayExecutor
from lightning_hpo.executors.submitit_executor import SubmititExecutor
from lightning_hpo.records import Mode
from lightning_hpo.schedulers.confirmed import read_confirm
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.schedulers.scores import ScoreRule
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.study.remote import is_url, validate_root
from lightning_hpo.text import require_bool, require_int
from lightning_hpo.tuners.beginning import Beginning
from lightning_hpo.tuners.limits import Limits, seconds
from lightning_hpo.tuners.remedies import unknown_argument, validate_trainer

Group = TypeVar("Group")


class Options(TypedDict, total=False):
    """Keywords that all tuners share.

    Args:
        monitor: metric that the module logs in validation. Needed by ``fit``.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better. Default: ``"min"``; it must be given
            for a metric of which, by its name, more is better, such as ``val_acc``.
        constraints: logged metrics that must be <= 0, such as ``["too_big"]``; a text is a list of one. A feasible
            trial is better than any infeasible one, in rungs and populations too (see ``docs/limits.md``). A function
            has none.
        score: how the validations of a trial make the score that rungs, pruners, populations and the result go by:
            ``"last"``, the one at exactly the step where the trial stands; ``"best"``, the best one so far, whose
            weights ``best.ckpt`` then has; ``"mean(k)"``, the mean of the last ``k``, e.g. ``"mean(3)"``.
        sampler: where to look next; any Optuna sampler. Default: random.
        seed: of everything random.
        name: of the run folder and the study. Default: made from the tuner's and the model's name.
        storage: an Optuna storage or its URL. Default: the journal ``study.journal`` in the run folder. What keeps a
            second process away is a lock in ``root/name``, so processes that use one storage need the same ``root``.
        root: folder of all runs; or a URL of fsspec, ``"s3://bucket/runs"``, where the run is copied to while it is at
            work in ``runs/<name>`` here, and where the same call finds it on another machine (``docs/cluster.md``).
        trainer: more arguments for every ``Trainer``. Callbacks in it are copied for each job; loggers of a known class
            have a run for each trial, others are copied (``docs/watching.md``). A trial that it ends below its budget
            (EarlyStopping, ``max_epochs``, ``max_time``) is finished with its score there.
        checkpoint_every: save within a job each time so many optimizer steps are done.
        keep_checkpoints: keep those of trials that are neither best nor to be continued.
        workers: jobs at a time. 1 runs them in this process, more in worker processes of their own.
        devices_per_trial: devices of each Trainer. A worker sees so many GPUs of its own, and starts the other ranks of
            its trials itself.
        timeout: start no new job after so many seconds, or a text such as ``"8h"``, ``"30m"`` or ``"1h30m"``.
        total: start no new job once so many optimizer steps, epochs or samples, as the budget is in, are recorded. Jobs
            at work then come to their end, so more is spent: at most one job of each worker.
        total_steps: the same, for a budget in optimizer steps.
        max_failed: give up after so many failed trials in a row; or, as a float below 1 such as 0.5, when that share of
            at least ten ended trials has failed. With ``shared``, each process counts its own row of failures.
        trial_timeout: fail a trial that makes no progress (no optimizer step, no validation batch) for so many seconds
            of this machine's monotonic clock: ``no progress for T s``. A call of a function given to ``optimize``
            shows no progress, so there it is the time of the whole call. Only a worker process can be stopped (SIGTERM,
            10 s later SIGKILL). In this process (one worker and not ``isolate``) the stacks of all threads are printed
            and the process exits with code 1; the same command continues. Default: wait for ever.
        max_retries: how often a job whose worker died or hung is started again, from its last checkpoint, before
            its trial counts as failed. Default 0: what kills a process once mostly does so again. Exceptions never are.
        stop_on_nan: fail a trial at its first non-finite training loss, ``diverged at step s`` (see ``Objective``).
        on_oom: what becomes of a trial that is out of memory. ``"fail"`` fails it, and samplers that learn from
            failures keep away. ``"halve"`` continues it from its last checkpoint with half the batch size and twice the
            ``accumulate_grad_batches``, and again, down to 1 (see ``docs/limits.md``). The data module (or a model with
            loaders of its own) must read ``self.batch_size`` or ``self.hparams.batch_size``.
        folds: cross-validation: each trial is trained on so many folds of the data, one after the other, and its value
            is the mean of their scores. A trial that is hopeless after two folds is stopped. The data are
            ``KFold(dataset)``, or say themselves what a fold is (see ``docs/folds.md``). A function finds its fold as
            ``job.fold``.
        isolate: run jobs in a worker process also when ``workers`` is 1, so that a crash or a hang of a trial ends that
            trial only. Model, data or function must then be importable by name.
        allow_changed: continue a study although the code of the model or data, the space, or the sampler is not what it
            was begun with (see :mod:`lightning_hpo.study.code_identity`); a warning says what, and the study keeps a
            note. Trials outside a new range no longer count for the sampler. By default that is an error; another
            function given to ``optimize`` always is a warning.
        overwrite: begin anew where the run folder holds a study already. The old folder is renamed, not deleted. A
            call that is to continue after an interrupt must leave it out.
        shared: let several processes work on the study: start the same call in each, on one machine or on several that
            see ``root`` on a file system with working locks. They make exactly the planned trials together; a process
            that dies leaves its trial to the others. By default a second process is refused.
        verbose: print the plan, how the search stands, and a table: as a live view on a terminal; elsewhere, in CI and
            with ``"lines"`` as plain lines, one for each job. False prints nothing.
        logger: ``"tensorboard"``, ``"csv"``, ``"wandb"`` or ``"mlflow"``, or a function of a
            :class:`~lightning_hpo.training.trial_info.Trial` that returns Lightning loggers: one run for each trial.
        callbacks: more of them for every Trainer, copied for each job; or a function of the trial that returns some.
        confirm: after the search, train so many of the best configurations again at the full budget, with 5 other seeds
            each; ``(3, 8)`` are three configurations and eight seeds. The answer is the best by its mean. ``total`` and
            ``total_steps`` include what that takes; after a ``timeout`` it still comes. See ``docs/trust.md``.
        start: configurations to try first, ``[{"lr": 1e-3}, ...]``, of which the sampler fills what is missing; or
            ``"defaults"``: the default values of the module's arguments, or the values of a CLI's config
            (``docs/spaces.md``). Members of a population begin with them.
        from_run: folder of another run, ``"runs/earlier"``. The sampler learns from its finished trials too, where
            their names and values belong to this space; they are copied once, and are no trials of this study.
        executor: in place of ``workers``: a number, a ``RayExecutor`` for a Ray cluster, or a ``SubmititExecutor`` for
            jobs of SLURM (``docs/cluster.md``).
    """

    monitor: str | None
    mode: Mode | None
    constraints: Sequence[str] | str
    score: str
    sampler: BaseSampler | None
    seed: int
    name: str | None
    storage: str | BaseStorage | None
    root: str | Path
    trainer: Mapping[str, Any] | None
    checkpoint_every: int
    keep_checkpoints: bool
    workers: int
    devices_per_trial: int
    timeout: float | str | None
    total: float | None
    total_steps: int | None
    max_failed: int | float
    trial_timeout: float | str | None
    max_retries: int
    stop_on_nan: bool
    on_oom: Literal["fail", "halve"]
    folds: int | None
    isolate: bool
    allow_changed: bool
    overwrite: bool
    shared: bool
    verbose: bool | Literal["lines"]
    logger: str | Callable[[Any], Any] | None
    callbacks: Any
    confirm: int | tuple[int, int] | None
    start: Sequence[Mapping[str, Any]] | Literal["defaults"] | None
    from_run: str | Path | None
    executor: int | RayExecutor | SubmititExecutor | None


@dataclass(frozen=True)
class Goal:
    """What is searched for; several metrics make a search with several objectives, of which the first ranks trials.

    Args:
        monitor: metric that the module logs in validation, or several.
        mode: whether lower or higher values are better, or one for each metric; None is ``"min"``, unless the name of a
            metric suggests otherwise.
        sampler: that proposes trials; None is the tuner's default.
        seed: of everything random.
        constraints: logged metrics that must be <= 0 in a feasible trial.
        confirm: how many configurations are confirmed, or that and with how many seeds; the pair, once it is made.
        folds: of the data that each trial is trained on; None for a single fit.
        trial_seed: of every trial, in place of those that ``seed`` gives.
        score: how the validations of a trial make its score; see :class:`Options`.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    monitor: str | Sequence[str] | None = None
    mode: Mode | Sequence[Mode] | None = None
    sampler: BaseSampler | None = None
    seed: int = 0
    constraints: Sequence[str] | str = ()
    confirm: int | Sequence[int] | None = None
    folds: int | None = None
    trial_seed: int | None = None
    score: str = "last"

    def __post_init__(self) -> None:
        object.__setattr__(self, "confirm", read_confirm(self.confirm))
        if self.sampler is not None and not isinstance(self.sampler, BaseSampler):
            raise TypeError(f"`sampler` must be an Optuna sampler, got {self.sampler!r}.")
        require_int("seed", self.seed, 0)
        object.__setattr__(self, "constraints", _names("constraints", self.constraints))
        modes = self._given_modes
        if len(modes) != len(self.monitors) or not modes:
            raise ValueError(f"`mode` must be one of 'min', 'max', or one for each `monitor`, got {self.mode!r}.")
        if self.confirm is not None and len(modes) > 1:
            raise ValueError("`confirm` needs a search with one `monitor`: of several there is no best configuration.")
        if self.folds is not None and len(modes) > 1:
            raise ValueError("`folds` needs a search with one `monitor`, of which the mean over folds is taken.")
        object.__setattr__(self, "mode", [*map(direction, self.monitors, modes)])
        object.__setattr__(self, "score", str(ScoreRule.read(self.score)))
        if self.score != "last" and len(modes) > 1:
            raise ValueError(f"`score` must be 'last' where `monitor` names several metrics, got {self.score!r}.")
        if self.score == "best" and self.constraints:
            raise ValueError(
                "`constraints` are judged at the last validation, and with `score`='best' the answer is another one: "
                "give 'last' or 'mean(k)'."
            )

    def settings(self) -> dict[str, Any]:
        """Return what must not change while a study goes on, the sampler aside, as plain values."""
        several = len(self.modes) > 1
        monitor, mode = (list(named) if several else named[0] for named in (self.monitors, self.modes))
        rule = {} if self.score == "last" else {"score": self.score}
        limits = {"constraints": list(self.constraints)} if self.constraints else {}
        return {"monitor": monitor, "mode": mode, "seed": self.seed, **rule, **limits}

    def validate_function(self) -> None:
        """Raise ValueError for what needs the validations of a module, before a search over a plain function."""
        if self.constraints:
            raise ValueError("`constraints` name logged metrics, which a plain function has not: use fit().")
        if self.score != "last":
            raise ValueError(
                f"`score` is {self.score!r}, but a function returns one number for each job, and that is its score: "
                "leave it out, or use fit()."
            )

    @property
    def label(self) -> str:
        """Name of the score."""
        return ScoreRule.read(self.score).label(self.monitors[0] or "score")

    @property
    def monitors(self) -> tuple[str | None, ...]:
        """All metrics; one None without any."""
        return (self.monitor,) if isinstance(self.monitor, str | None) else tuple(self.monitor)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Direction of each metric."""
        return tuple(self.mode)  # type: ignore[arg-type]  # resolved in __post_init__

    @property
    def _given_modes(self) -> tuple[Mode | None, ...]:
        return (self.mode,) * len(self.monitors) if isinstance(self.mode, str | None) else tuple(self.mode)


@dataclass(frozen=True)
class RunOptions:
    """Where a search keeps everything, and who may work on it; see :class:`Options`.

    Raises:
        ValueError: for ``overwrite`` where a run folder cannot be moved away, and for a URL that cannot be the root.
    """

    name: str | None = None
    root: str | Path = "runs"
    storage: str | BaseStorage | None = None
    allow_changed: bool = False
    overwrite: bool = False
    shared: bool = False
    verbose: bool | Literal["lines"] = True

    def __post_init__(self) -> None:
        for name in ("allow_changed", "overwrite", "shared"):
            require_bool(name, getattr(self, name))
        require_bool("verbose", self.verbose, "lines")
        validate_root(self.root)
        if is_url(self.root) and (self.shared or self.storage is not None):
            other, reason = ("shared", "needs locks") if self.shared else ("storage", "has the study elsewhere")
            raise ValueError(f"`root` is a URL, which has files only, and `{other}` {reason}: give a folder.")
        if self.overwrite and (self.shared or self.storage is not None):
            other = "shared" if self.shared else "storage"
            raise ValueError(
                f"`overwrite` moves a run folder away, which `{other}` does not allow: choose a new `name`."
            )


@dataclass(frozen=True)
class TrialOptions:
    """How a trial trains and what it keeps; see :class:`Options`."""

    trainer: Mapping[str, Any] | None = None
    checkpoint_every: int = 25
    keep_checkpoints: bool = False
    stop_on_nan: bool = False
    on_oom: Literal["fail", "halve"] = "fail"
    logger: str | Callable[[Any], Any] | None = None
    callbacks: Any = None

    def validate_no_trainer(self) -> None:
        """Raise ValueError for what only a Trainer can have, before a search over a plain function."""
        for name in ("logger", "callbacks", "on_oom"):
            if getattr(self, name) not in (None, "fail"):
                raise ValueError(f"`{name}` is for Trainers, and a function has none: leave it out, or use fit().")

    def __post_init__(self) -> None:
        validate_trainer(self.trainer)
        for name in ("keep_checkpoints", "stop_on_nan"):
            require_bool(name, getattr(self, name))
        if self.on_oom not in ("fail", "halve"):
            raise ValueError(f"`on_oom` must be 'fail' or 'halve', got {self.on_oom!r}.")

    @property
    def single_process(self) -> str:
        """Why a trial cannot train in several processes; empty if it can."""
        return "" if self.on_oom == "fail" else "`on_oom` is 'halve', which one of them cannot do alone: leave it out"


@dataclass(frozen=True)
class WorkerOptions:
    """Where jobs run; see :class:`Options`.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    workers: int = 1
    devices_per_trial: int = 1
    isolate: bool = False
    trial_timeout: float | None = None
    max_retries: int = 0
    executor: int | RayExecutor | SubmititExecutor | None = None

    def __post_init__(self) -> None:
        require_bool("isolate", self.isolate)
        object.__setattr__(self, "workers", _workers(self.executor, self.workers))
        object.__setattr__(self, "trial_timeout", seconds("trial_timeout", self.trial_timeout))
        for name, least in (("workers", 1), ("devices_per_trial", 1), ("max_retries", 0)):
            require_int(name, getattr(self, name), least)

    @property
    def in_process(self) -> bool:
        """Whether jobs run in this process."""
        return self.workers == 1 and not self.isolate and not isinstance(self.executor, RayExecutor | SubmititExecutor)


def _workers(executor: Any, workers: int) -> int:
    """Return the number of workers, given both options."""
    if executor is None:
        return workers
    if not isinstance(executor, RayExecutor | SubmititExecutor) and type(executor) is not int:
        raise TypeError(
            f"`executor` must be a number of worker processes, a RayExecutor or a SubmititExecutor, got {executor!r}."
        )
    if workers != 1:
        raise ValueError(f"`executor` is {executor!r} and `workers` {workers}: leave `workers` out.")
    return executor if isinstance(executor, int) else executor.workers


DEFAULTS = {
    field.name: field.default
    for kind in (Goal, RunOptions, TrialOptions, WorkerOptions, Limits, Beginning)
    for field in fields(kind)
}
"""Default of each keyword."""


def group(kind: type[Group], options: Mapping[str, Any]) -> Group:
    """Make a group of options from flat keywords; those of other groups are left out."""
    names = {field.name for field in fields(kind)}  # type: ignore[arg-type]  # each kind is a dataclass
    return kind(**{name: value for name, value in options.items() if name in names})


def arguments_of(kind: type) -> list[str]:
    """Names of the arguments that a tuner takes."""
    variable = inspect.Parameter.VAR_KEYWORD
    own = [name for name, given in inspect.signature(kind).parameters.items() if given.kind is not variable]
    return [*own, *(name for name in Options.__annotations__ if name not in own)]


def validate_names(kind: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError if there is an option that no tuner has."""
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(unknown_argument(kind.__name__, name, arguments_of(kind), options[name]))


def more_settings(trials: TrialOptions, unit: Unit) -> dict[str, Any]:
    """Return what must not change while a study goes on, of trials and budget, without what is at its default."""
    found = {"unit": unit.settings(), "on_oom": None if trials.on_oom == "fail" else trials.on_oom}
    return {name: value for name, value in found.items() if value}


def _names(argument: str, given: Any) -> tuple[str, ...]:
    """Return names of metrics; raise TypeError for anything else. A text is a list of one."""
    names = [given] if isinstance(given, str) else given
    if not (isinstance(names, Sequence) and all(isinstance(name, str) and name for name in names)):
        raise TypeError(f"`{argument}` must be a list of names of logged metrics, such as ['too_big'], got {given!r}.")
    return tuple(dict.fromkeys(names))
