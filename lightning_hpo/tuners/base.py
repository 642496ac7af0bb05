"""Tuners: a scheduler and a sampler over a LightningModule or a function, with everything kept in a run folder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.storages import BaseStorage

from lightning_hpo.errors import explained
from lightning_hpo.executors.pool import InProcess, WorkerProcesses
from lightning_hpo.executors.worker import refuse_daemonic
from lightning_hpo.interrupts import Interrupts
from lightning_hpo.records import FunctionWork, Mode, Row, Work
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.result import Result
from lightning_hpo.samplers.adapter import Asker
from lightning_hpo.schedulers import Bracket, Coverage, FullBudget, Job, Scheduler
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.fingerprint import fingerprint, label, settings
from lightning_hpo.study.leases import Claims, turn
from lightning_hpo.study.run_folder import RunFolder, open_study
from lightning_hpo.study.table import TrialTable, read_rows
from lightning_hpo.study.trial_folders import settle, study_id
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.ranks import Ranks, ranks_of
from lightning_hpo.tuners.options import Options, refuse_unknown, refuse_wrong
from lightning_hpo.tuners.run import Session, Subject, conduct
from lightning_hpo.tuners.search import Limits, Search

if TYPE_CHECKING:
    import lightning.pytorch as pl
    from lightning.pytorch.cli import LightningCLI

    from lightning_hpo.training.objective import Objective

_POLL = 0.5  # seconds between looks at what the other processes of a shared study have done


class Tuner:
    """Searches a space with any scheduler and any Optuna sampler.

    Everything is kept in ``root/name``. The same call again continues where it stopped; a finished study only returns
    its result. With one worker, an interrupted and continued search equals the uninterrupted one.

    Args:
        space: dotted name -> distribution, as text or Optuna's (see :mod:`lightning_hpo.space`).
        scheduler: which trial gets how many steps.
        monitor: metric that the module logs in validation. Needed by :meth:`fit`.
        mode: whether a lower (``"min"``) or a higher (``"max"``) value is better. Default: ``"min"``; it must be given
            for a metric of which, by its name, more is better, such as ``val_acc``.
        sampler: where to look next; any Optuna sampler. Default: random.
        seed: of everything random.
        name: of the run folder and the study. Default: made from the tuner's and the model's name.
        storage: an Optuna storage or its URL. Default: SQLite in the run folder. What keeps a second process away is a
            lock in ``root/name``, so processes that use one storage need the same ``root``.
        root: folder of all runs.
        trainer: more arguments for every ``Trainer``. Callbacks and loggers in it are copied for each job. A trial that
            they end below its budget (EarlyStopping, ``max_epochs``, ``max_time``) is finished with its score there.
        checkpoint_every: save within a job each time so many optimizer steps are done.
        keep_checkpoints: keep those of trials that are neither best nor to be continued.
        workers: jobs at a time. 1 runs them in this process, more in worker processes of their own.
        devices_per_trial: devices of each Trainer. With worker processes more than 1 is refused by :meth:`fit`; under
            :meth:`optimize` each worker sees so many GPUs of its own.
        timeout: start no new job after so many seconds.
        total_steps: start no new job once so many optimizer steps are recorded. Jobs at work then come to their end, so
            more is spent: at most one job of each worker, fewer than ``workers * max_steps`` steps.
        max_failed: give up after so many failed trials in a row; or, as a float below 1 such as 0.5, when that share of
            at least ten ended trials has failed. With ``shared``, each process counts its own row of failures.
        trial_timeout: fail a trial that makes no progress (no optimizer step, no validation batch) for so many seconds
            of this machine's monotonic clock: ``no progress for T s``. A call of a function given to :meth:`optimize`
            shows no progress, so there it is the time of the whole call. Only a worker process can be stopped (SIGTERM,
            10 s later SIGKILL). In this process (one worker and not ``isolate``) the stacks of all threads are printed
            and the process exits with code 1; the same command continues. Default: wait for ever.
        max_retries: how often a job whose worker process died (out of memory, a crash in native code) or hung is
            started again, from its last checkpoint, before its trial counts as failed. Default 0: what kills a process
            once mostly does so again. Exceptions are never retried.
        stop_on_nan: fail a trial at its first non-finite training loss, ``diverged at step s``
            (see :class:`~lightning_hpo.training.objective.Objective`).
        isolate: run jobs in a worker process also when ``workers`` is 1, so that a crash or a hang of a trial ends that
            trial only. Model, data or function must then be importable by name.
        allow_changed: continue a study although the code of the model or data, the space, or the sampler is not what it
            was begun with (see :mod:`lightning_hpo.study.code_identity`); a warning says what, and the study keeps a
            note. Trials outside a new range no longer count for the sampler. By default that is an error; another
            function given to :meth:`optimize` always is a warning.
        shared: let several processes work on the study: start the same call in each, on one machine or on several that
            see ``root`` on a file system with working locks. They make exactly the planned trials together; a process
            that dies leaves its trial to the others. By default a second process is refused.
        verbose: print the plan, a line per job and a table.

    Raises:
        TypeError, ValueError: for an argument that is wrong, with its value and what is accepted.
    """

    def __init__(
        self,
        space: Space,
        scheduler: Scheduler,
        *,
        monitor: str | None = None,
        mode: Mode | None = None,
        sampler: BaseSampler | None = None,
        seed: int = 0,
        name: str | None = None,
        storage: str | BaseStorage | None = None,
        root: str | Path = "runs",
        trainer: Mapping[str, Any] | None = None,
        checkpoint_every: int = 25,
        keep_checkpoints: bool = False,
        workers: int = 1,
        devices_per_trial: int = 1,
        timeout: float | None = None,
        total_steps: int | None = None,
        max_failed: float = 5,
        trial_timeout: float | None = None,
        max_retries: int = 0,
        stop_on_nan: bool = False,
        isolate: bool = False,
        allow_changed: bool = False,
        shared: bool = False,
        verbose: bool = True,
    ) -> None:
        with explained(None):
            refuse_wrong(
                {
                    "sampler": sampler, "seed": seed, "timeout": timeout, "total_steps": total_steps,
                    "max_failed": max_failed, "trial_timeout": trial_timeout, "workers": workers,
                    "devices_per_trial": devices_per_trial, "max_retries": max_retries,
                }
            )  # fmt: skip
            self.mode: Mode = direction(monitor, mode)
            if getattr(scheduler, "mode", self.mode) != self.mode:
                raise ValueError(f"`mode` is {self.mode!r} for the tuner and {scheduler.mode!r} for its scheduler.")  # type: ignore[attr-defined]  # checked by getattr
            self.space = parse_space(space)
        self.scheduler = scheduler
        self.monitor = monitor
        self.seed = seed
        self._sampler = sampler or RandomSampler()
        self._name = name
        self._storage = storage
        self._study_in_folder = storage is None
        self._root = root
        self._trainer = {"devices": devices_per_trial, **(trainer or {})}
        self._workers = workers
        self._devices_per_trial = devices_per_trial
        self._checkpoint_every = checkpoint_every
        self._keep_checkpoints = keep_checkpoints
        self._limits = Limits(timeout=timeout, total_steps=total_steps, max_failed=max_failed)
        self._trial_timeout = trial_timeout
        self._max_retries = max_retries
        self._stop_on_nan = stop_on_nan
        self._isolate = isolate
        self._allow_changed = allow_changed
        self._shared = shared
        self._verbose = verbose
        self._builder: Builder | None = None

    @classmethod
    def from_cli(cls, cli: "LightningCLI", space: Space, **options: Any) -> Self:
        """Make a tuner for the model, data and Trainer of a ``LightningCLI``, and call ``fit()`` on it.

        Args:
            cli: made with ``run=False``; your own subclass keeps its links and defaults.
            space: path in the CLI's config -> distribution, e.g. ``optimizer.lr``.
            **options: other arguments of this tuner. Trainer arguments come from the CLI.

        Example:
            ``HyperbandTuner.from_cli(MyCLI(Net, Data, run=False), {"model.lr": "loguniform(1e-5, 1e-1)"},
            monitor="val_loss", max_steps=900).fit()``
        """
        from lightning_hpo.training.config_builder import ConfigBuilder  # noqa: PLC0415  # needs the extra [cli]

        if "trainer" in options:
            raise TypeError("`trainer` is given by the CLI's config; set it there.")
        tuner = cls(space, **options)
        tuner._builder = ConfigBuilder(cli)
        return tuner

    def plan(self) -> Sequence[Bracket]:
        """Brackets, rungs, trials and steps of the search, as data; empty if the scheduler has no plan."""
        make = getattr(self.scheduler, "plan", None)
        return () if make is None else make()

    @property
    def plan_covers(self) -> Coverage:
        """What :meth:`plan` counts: all that happens, the least that happens, or the least of one of endless rounds."""
        covers: Coverage = getattr(self.scheduler, "plan_covers", "all")
        return covers

    def planned_steps(self) -> int:
        """Optimizer steps that are expected at most; 0 if that is not known."""
        steps = 0 if self.plan_covers == "round" else sum(bracket.steps for bracket in self.plan())
        total = self._limits.total_steps
        return steps if total is None else min(steps or total, total)

    def fit(
        self,
        model: "Callable[..., pl.LightningModule] | Builder | None" = None,
        *,
        datamodule: "Callable[..., pl.LightningDataModule] | None" = None,
    ) -> Result:
        """Search over a LightningModule.

        Args:
            model: the class of the module, or a function that returns a new one. Not needed after :meth:`from_cli`.
            datamodule: the class of the data module, or a function that returns a new one. None if the module brings
                its own loaders.

        Raises:
            TypeError, ValueError: before the first training step, if model, data, space or metric do not fit together.
            StudyMismatchError: if the run folder holds a study with other settings.
            StorageError: if the run folder or its study cannot be used.
            SearchFailedError: if no trial succeeded, or ``max_failed`` in a row did not.
            StudyPaused: after Ctrl-C, SIGTERM or SIGHUP; everything is saved.
        """
        with explained(None):
            objective = self.objective(model, datamodule=datamodule)
            parts = [model or self._builder, datamodule]
            return self._search(
                Subject(objective.run, parts, objective.check, objective.builder, objective.use_key, self.space.deliver)
            )

    def objective(
        self,
        model: "Callable[..., pl.LightningModule] | Builder | None" = None,
        *,
        datamodule: "Callable[..., pl.LightningDataModule] | None" = None,
        space: Callable[[optuna.Trial], Mapping[str, Any]] | None = None,
    ) -> "Objective":
        """Return what :meth:`fit` runs for each job.

        Args:
            model: as for :meth:`fit`.
            datamodule: as for :meth:`fit`.
            space: instead of the tuner's own.
        """
        from lightning_hpo.training.objective import Objective  # noqa: PLC0415  # loads Lightning, which a function needs not

        model = self._builder if model is None else model
        if model is None:
            raise TypeError("`model` is missing: give the class of a LightningModule, or a function that returns one.")
        if self.monitor is None:
            raise ValueError("`monitor` is missing: name a metric that the module logs in validation, e.g. 'val_loss'.")
        return Objective(
            model,
            self.space if space is None else space,
            data=datamodule,
            monitor=self.monitor,
            max_steps=self.scheduler.max_steps,
            trainer=self._trainer,
            seed=self.seed,
            checkpoint_every=self._checkpoint_every,
            stop_on_nan=self._stop_on_nan,
        )

    def optimize(self, function: Callable[[Job, Mapping[str, Any]], float]) -> Result:
        """Search over any function, without Lightning.

        Args:
            function: called with a job (``job.trial`` is the trial's number, ``job.max_steps`` the budget to reach)
                and the trial's parameters; returns the score.
        """
        with explained(None):
            deliver = self.space.deliver
            return self._search(Subject(FunctionWork(function, deliver), [function], deliver=deliver))

    def _search(self, subject: Subject) -> Result:
        ranks = Ranks() if subject.builder is None else ranks_of(subject.builder.surroundings)
        if ranks.size > 1:
            self._refuse_ranks(ranks.size)
        if self._workers > 1 or self._isolate:
            refuse_daemonic(self._workers)
        asked = self._fingerprint(subject)  # now: what trains may change what its code holds
        default = "-".join(label(one) for one in (type(self), subject.parts[0]))
        return conduct(
            RunFolder(self._root, default if self._name is None else self._name),
            Console(self.monitor or "score", self.mode, verbose=self._verbose),
            subject,
            mode=self.mode,
            opened=lambda folder: self._open(folder, asked),
            loop=self._loop,
            conclude=self._conclude,
            read=lambda study: read_rows(study, at=self.scheduler.max_steps),
            study_in_folder=self._study_in_folder,
            ranks=ranks,
            along=self._along(subject),
            shared=self._shared,
        )

    def _refuse_ranks(self, size: int) -> None:
        """Raise ValueError if this tuner cannot search over trials that train in several processes each."""
        if self._workers > 1 or self._isolate:
            raise ValueError(
                f"`workers` is {self._workers} and `isolate` {self._isolate}, but each trial trains in {size} "
                "processes (`devices_per_trial`, or `devices` and `num_nodes` of `trainer`), which a worker process "
                "cannot start: leave both out, or train each trial on one device."
            )

    def _along(self, subject: Subject) -> Work:
        """What another rank than the first does for a job."""
        return subject.work

    def _open(self, folder: RunFolder, fingerprint: Mapping[str, Any]) -> tuple[optuna.Study, BaseStorage]:
        return open_study(
            folder, self._storage, self.mode, fingerprint, self._sampler, allow_changed=self._allow_changed
        )

    def _loop(self, session: Session, subject: Subject) -> Sequence[Row]:
        """Search in an opened run, to its end or a pause, and return all trials."""
        run = session.folder.path
        claims = Claims(run / "trials") if self._shared else None
        table = TrialTable(session.study, session.storage, claims)

        @contextmanager
        def own_turn() -> Iterator[None]:
            with turn(run):
                table.refresh()
                yield

        self._announce(session, self.space, table.rows)
        if subject.check is not None and self.scheduler.next(table.rows) is not None:
            subject.check()
        released = nullcontext() if claims is None else closing(claims)
        with released, self._executor(subject.work, session.interrupts) as executor:
            Search(
                scheduler=self.scheduler,
                table=table,
                asker=Asker(
                    self._sampler,
                    self.space,
                    mode=self.mode,
                    seed=self.seed,
                    study_notes=table.study_notes,
                    random_share=self._random_share,
                    rungs=sorted({rung.max_steps for bracket in self.plan() for rung in bracket.rungs}),
                ),
                space=self.space,
                study_id=study_id(session.study),
                folder=session.folder,
                executor=executor,
                limits=self._limits,
                console=session.console,
                mode=self.mode,
                planned=self.planned_steps(),
                keep_checkpoints=self._keep_checkpoints,
                converged=lambda: self._converged(session.study),
                settle=settle if subject.builder else lambda *_: None,  # a function keeps nothing in a folder
                config=self.space.config if subject.builder is None else subject.builder.config,
                turn=own_turn if self._shared else nullcontext,
                poll=_POLL if self._shared else None,
            ).run(session.interrupts.pause_wanted)
        return table.rows

    def _announce(self, session: Session, space: Mapping[str, BaseDistribution], rows: Sequence[Row]) -> None:
        self.say_plan(session.console, f"{type(self).__name__} in {session.folder.path}", space, rows)

    def say_plan(
        self, console: Console, title: str, space: Mapping[str, BaseDistribution], rows: Sequence[Row]
    ) -> None:
        """Print what is about to happen."""
        console.plan(title, space, self.plan(), rows, covers=self.plan_covers, stops=self._limits.texts())

    def _random_share(self, steps: int) -> float:
        """Share of the trials judged first at ``steps`` that are drawn at random, not by the sampler."""
        return 0.0

    def _converged(self, study: optuna.Study) -> bool:
        """Whether no more trials are worth starting; asked before each new one."""
        return False

    def _conclude(self, session: Session) -> None:
        """Add to what is printed and kept at the end."""

    def _executor(self, work: Work, interrupts: Interrupts) -> InProcess | WorkerProcesses:
        if self._workers == 1 and not self._isolate:
            return InProcess(work, interrupts.pause_wanted, trial_timeout=self._trial_timeout)
        processes = WorkerProcesses(
            work,
            self._workers,
            self._devices_per_trial,
            trial_timeout=self._trial_timeout,
            max_retries=self._max_retries,
        )
        interrupts.listeners.append(processes.pause)
        return processes

    def _fingerprint(self, subject: Subject) -> dict[str, Any]:
        asked = {"monitor": self.monitor, "mode": self.mode, "seed": self.seed, "sampler": settings(self._sampler)}
        return fingerprint(
            self.space, self.scheduler, subject.parts, self._code(subject), trains=subject.builder is not None, **asked
        )

    def _code(self, subject: Subject) -> Sequence[Any]:
        """Classes and functions whose code is part of what was measured."""
        return [code for one in subject.parts for code in (one.code if isinstance(one, Builder) else (one,))]


class RandomTuner(Tuner):
    """Random search at the full budget, or any other sampler through ``sampler=``.

    Args:
        space: as for :class:`Tuner`.
        max_steps: budget of every trial, in optimizer steps.
        n_trials: trials in all, those of an earlier call included.
        **options: as for :class:`Tuner`.
    """

    def __init__(self, space: Space, *, max_steps: int, n_trials: int, **options: Unpack[Options]) -> None:
        with explained(None):
            refuse_unknown(type(self), options)
            super().__init__(space, FullBudget(max_steps, n_trials), **options)
