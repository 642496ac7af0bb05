"""A whole population from one script."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Unpack

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from lightning_hpo import checkpoints
from lightning_hpo.building import Builder
from lightning_hpo.callbacks.member import Member
from lightning_hpo.callbacks.resumable import Resumable
from lightning_hpo.console import Console
from lightning_hpo.interrupts import StudyPaused, pausing_signals
from lightning_hpo.objective import _CHATTY, _TRAINER_DEFAULTS, METRICS, Objective, _own_random_numbers
from lightning_hpo.population import Donor, Explore, Rules
from lightning_hpo.quiet import warnings_only
from lightning_hpo.results import Result, best_row, keep_best, write_best
from lightning_hpo.rounds import Rounds
from lightning_hpo.runs import RunFolder, open_study
from lightning_hpo.schedulers import FullBudget
from lightning_hpo.search import SearchFailedError
from lightning_hpo.space import Space
from lightning_hpo.trainer_plugins import MetricsFile, SealedCheckpointIO
from lightning_hpo.trials import TrialTable
from lightning_hpo.tuners import Options, Tuner, label, say_paused

# Of the options that tuners share; the others are about trials that start and end one by one.
_TAKEN = ("monitor", "mode", "seed", "name", "storage", "root", "trainer", "verbose")
_RHYTHM = ("val_check_interval", "check_val_every_n_epoch")


class PopulationTuner(Tuner):
    """Population-Based Training of ``population_size`` members in one process.

    Everything is kept in ``root/name``; the same call continues where it stopped, and a continued run equals the
    uninterrupted one. Every stretch of training with constant hyperparameters is a trial of the study, with its parent.

    Args:
        space: as for :class:`Tuner`, but only of what can change while training (see
            :class:`~lightning_hpo.callbacks.population.PopulationBasedTraining`).
        population_size: members, at least 2.
        interval: optimizer steps between decisions, at least 1.
        max_steps: optimizer steps of every member; a multiple of ``interval``.
        quantile, donor, explore, resample, factor: see :class:`~lightning_hpo.population.Rules`.
        **options: ``monitor``, ``mode``, ``seed``, ``name``, ``storage``, ``root``, ``trainer`` and ``verbose``, as for
            :class:`Tuner`.

    Raises:
        ValueError: naming an argument outside its range.

    Source: Jaderberg et al. 2017, *Population Based Training of Neural Networks*.
    """

    def __init__(
        self,
        space: Space,
        *,
        population_size: int = 8,
        interval: int = 200,
        max_steps: int,
        quantile: float = 0.4,
        donor: Donor = "random-top",
        explore: Literal["losers", "all"] | Explore = "losers",
        resample: float = 0.5,
        factor: float = 1.2,
        **options: Unpack[Options],
    ) -> None:
        if population_size < 2:
            raise ValueError(f"`population_size` must be an int >= 2, got {population_size!r}.")
        if interval < 1:
            raise ValueError(f"`interval` must be an int >= 1, got {interval!r}.")
        if max_steps % interval:
            whole = max(round(max_steps / interval), 1) * interval
            raise ValueError(f"`max_steps` must be a multiple of `interval` {interval}, got {max_steps}; e.g. {whole}.")
        for argument in options:
            if argument not in _TAKEN:
                raise ValueError(f"`{argument}` means nothing for a population; it takes {', '.join(_TAKEN)}.")
        for argument in _RHYTHM:
            if argument in (options.get("trainer") or {}):
                raise ValueError(f"`trainer` has the argument {argument!r}, but members validate at every `interval`.")
        super().__init__(space, FullBudget(max_steps, population_size), **options)
        self.rules = Rules(self.space, self.mode, quantile, donor, explore, resample, factor, self.seed)
        self.interval = interval
        self.population_size = population_size

    def fit(
        self,
        model: Callable[..., pl.LightningModule] | Builder | None = None,
        *,
        datamodule: Callable[..., pl.LightningDataModule] | None = None,
    ) -> Result:
        """Train the population.

        Args:
            model: the class of the module, or a function that returns a new one.
            datamodule: the class of the data module, or a function that returns a new one. None if the module brings
                its own loaders.

        Raises:
            TypeError, ValueError, MisconfigurationException: before any training, if model, data, space and metric do
                not fit together.
            ParameterMismatchError: if a hyperparameter does not take effect.
            SearchFailedError: if no member is left.
            StudyPaused: after Ctrl-C or SIGTERM; everything is saved.
        """
        model = self._builder if model is None else model
        if model is None:
            raise TypeError("`model` is missing: give the class of a LightningModule, or a function that returns one.")
        if self.monitor is None:
            raise ValueError("`monitor` is missing: name a metric that the module logs in validation, e.g. 'val_loss'.")
        subjects = [model, datamodule]
        folder = RunFolder(self._root, "-".join(map(label, (type(self), model))) if self._name is None else self._name)
        trainers = _Trainers(
            model,
            self.space,
            data=datamodule,
            monitor=self.monitor,
            max_steps=self.scheduler.max_steps,
            trainer=self._trainer,
            seed=self.seed,
            interval=self.interval,
            folder=folder.path / "members",
        )
        console = Console(self.monitor, self.mode, verbose=self._verbose)
        with ExitStack() as stack:
            stack.enter_context(folder.readable_errors())
            stack.enter_context(folder.locked())
            study, storage = open_study(folder, self._storage, self.mode, self._fingerprint(subjects, trains=True))
            table = TrialTable(study, storage)
            console.plan(f"{type(self).__name__} in {folder.path}", self.space, self.plan(), table.rows)
            if not table.rows:
                trainers.check()
            interrupts = stack.enter_context(pausing_signals())
            stack.enter_context(warnings_only(*_CHATTY))
            rounds = Rounds(
                table,
                self.rules,
                population_size=self.population_size,
                monitor=self.monitor,
                interval=self.interval,
                max_steps=self.scheduler.max_steps,
                folder=folder.path / "members",
                fit=trainers.fit_member,
                say=console.line,
            )
            stack.callback(rounds.close)
            rounds.run(interrupts.pause_wanted)
            if interrupts.received is not None:
                say_paused(interrupts.received.name, folder)
                raise StudyPaused(128 + interrupts.received)
            console.table(table.rows)
        best = best_row(table.rows, self.mode)
        if best is None:
            raise SearchFailedError(f"no member succeeded; the reasons are with the failed trials in {folder.path}.")
        keep_best(rounds.checkpoint(rounds.lineage.member_of(best.number)), folder.best_checkpoint)
        write_best(trainers.builder.config(best.params, self.scheduler.max_steps), folder.best_params)
        value = best.values[max(best.values)]
        return Result(
            dict(best.params),
            value,
            folder.best_checkpoint,
            best.number,
            study,
            tuple(table.rows),
            trainers.build_model,
        )

    def _fingerprint(self, subjects: Sequence[Any], *, trains: bool) -> dict[str, Any]:
        rules = {name: value for name, value in vars(self.rules).items() if name not in ("space", "mode", "seed")}
        if callable(self.rules.explore):
            rules["explore"] = label(self.rules.explore)
        population = {"population_size": self.population_size, "interval": self.interval, **rules}
        return {**super()._fingerprint(subjects, trains=trains), "population": population}


class _Trainers(Objective):
    """Builds a member's Trainer.

    Args:
        interval: optimizer steps between validations.
        folder: of the members.
        **options: as for :class:`Objective`.
    """

    def __init__(self, *positional: Any, interval: int, folder: Path, **options: Any) -> None:
        super().__init__(*positional, **options)
        self._interval = interval
        self._folder = folder

    def fit_member(self, number: int, params: Mapping[str, Any], member: Member, source: Path | None) -> None:
        """Train a member to the end, continuing a checkpoint if there is one."""
        folder = self._folder / f"{number:03d}"
        with _own_random_numbers(self.seed, number):
            built = self.builder.build(params)
            module, data, arguments = built.module, built.data, {**_TRAINER_DEFAULTS, **built.trainer}
            owner: Any = module if data is None else data
            loaders = owner.train_dataloader
            owner.train_dataloader = lambda: Resumable.follow(loaders())
            callbacks = [*arguments.pop("callbacks", ()), member]
            arguments.setdefault("enable_checkpointing", any(isinstance(one, Checkpoint) for one in callbacks))
            start = 0 if source is None else int(checkpoints.load(source)["global_step"])
            arguments.setdefault("logger", MetricsFile(folder / METRICS, start))
            plugins = [*arguments.pop("plugins", ()), SealedCheckpointIO()]
            trainer = pl.Trainer(
                **arguments,
                callbacks=callbacks,
                plugins=plugins,
                max_steps=self.max_steps,
                default_root_dir=folder,
                check_val_every_n_epoch=None,
                val_check_interval=self._interval * arguments.get("accumulate_grad_batches", 1),
            )
            trainer.fit(module, datamodule=data, ckpt_path=source, weights_only=True)
