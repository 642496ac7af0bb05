"""A whole population from one script."""

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, Literal, Unpack

from lightning_hpo import checkpoints
from lightning_hpo.callbacks.round_member import NEVER, train_to_the_end
from lightning_hpo.errors import SearchFailedError, explained
from lightning_hpo.quiet import CHATTY, warnings_only
from lightning_hpo.records import best_row
from lightning_hpo.reporting.best import write_answer
from lightning_hpo.reporting.events import SearchEnded
from lightning_hpo.reporting.result import Result
from lightning_hpo.schedulers import FullBudget, Job
from lightning_hpo.schedulers.explore import Explore
from lightning_hpo.schedulers.population import Donor, Rules
from lightning_hpo.space import Space
from lightning_hpo.study.fingerprint import label
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.trial_folders import study_id
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.name_checks import ChangeableNames, build_of
from lightning_hpo.training.objective import Objective
from lightning_hpo.training.plugins import SealedCheckpointIO
from lightning_hpo.training.ranks import ranks_of
from lightning_hpo.training.trial_fit import JobCallback, make_trainer, quiet_and_seeded
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.options import DEFAULTS, Options, validate_names
from lightning_hpo.tuners.rounds import Rounds
from lightning_hpo.tuners.run import Run, Target, open_folder, open_run

# Of the options that tuners share; the others are about trials that start and end one by one.
_TAKEN = ("monitor", "mode", "seed", "name", "storage", "root", "trainer", "verbose", "allow_changed")
_RHYTHM = ("val_check_interval", "check_val_every_n_epoch")
# Arguments of a Trainer that say when a fit ends, with the values that say nothing.
_ENDS: Mapping[str, tuple[Any, ...]] = {
    "max_steps": (None, -1), "min_steps": (None, 0), "max_epochs": (None, -1), "min_epochs": (None, 0),
    "max_time": (None,), "fast_dev_run": (False, 0),
}  # fmt: skip


class PopulationTuner(Tuner):
    """Population-Based Training of ``population_size`` members in one process.

    Everything is kept in ``root/name``; the same call continues where it stopped, and a continued run equals the
    uninterrupted one. Every stretch of training with constant hyperparameters is a trial of the study, with its parent.

    Members are validated at exactly the last optimizer step of each interval, whatever the epochs, batches and gradient
    accumulation; with several manual optimizers, each of which counts, at the first step at or after it. Where a
    ReduceLROnPlateau (or EarlyStopping, ModelCheckpoint) follows a metric of validation at the end of an epoch, they
    are validated there too, as in a plain Trainer. All members train to ``max_steps``: one that EarlyStopping or
    another callback asks to stop copies a better one at the next decision, as one whose score is NaN does, and goes on.
    An error in a member ends that member; a disk that is full ends the run, and the same call continues it.

    Args:
        space: as for :class:`Tuner`, but only of what can change while training (see
            :class:`~lightning_hpo.callbacks.population.PopulationBasedTraining`).
        population_size: members, at least 2.
        interval: optimizer steps between decisions, at least 1.
        max_steps: optimizer steps of every member; a multiple of ``interval``.
        quantile, donor, explore, resample, factor: see :class:`~lightning_hpo.schedulers.population.Rules`.
        **options: ``monitor``, ``mode``, ``seed``, ``name``, ``storage``, ``root``, ``trainer``, ``verbose`` and
            :class:`Tuner`.

    Raises:
        ValueError: naming an argument outside its range, or one of ``trainer`` that would end members at other steps.

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
        explore: Literal["losers", "all", "pb2"] | Explore = "losers",
        resample: float = 0.5,
        factor: float = 1.2,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            validate_names(type(self), options)
            if population_size < 2:
                raise ValueError(f"`population_size` must be an int >= 2, got {population_size!r}.")
            if interval < 1:
                raise ValueError(f"`interval` must be an int >= 1, got {interval!r}.")
            if max_steps % interval:
                whole = max(round(max_steps / interval), 1) * interval
                raise ValueError(
                    f"`max_steps` must be a multiple of `interval` {interval}, got {max_steps}; e.g. {whole}."
                )
            if options.get("workers", 1) != 1:
                raise ValueError(
                    f"`workers`={options['workers']!r}: all members of a PopulationTuner train in this process, in "
                    "turns. For members in processes of their own, give each Trainer the callback "
                    "PopulationBasedTraining."
                )
            for argument, value in options.items():  # a command line gives options at their default too
                if argument not in _TAKEN and value != DEFAULTS.get(argument, value):
                    raise ValueError(f"`{argument}` means nothing for a population; it takes {', '.join(_TAKEN)}.")
            for argument, value in (options.get("trainer") or {}).items():
                if argument in _RHYTHM:
                    raise ValueError(
                        f"`trainer` has the argument {argument!r}, but members validate at every `interval`."
                    )
                if value not in _ENDS.get(argument, (value,)):
                    raise ValueError(
                        f"`trainer` has the argument {argument!r} ({value!r}), but all members of a population train "
                        f"to `max_steps`={max_steps}: leave it out."
                    )
            super().__init__(space, FullBudget(max_steps, population_size), **options)
            self.rules = Rules(self.space, self.mode, quantile, donor, explore, resample, factor, self.seed)
        self.interval = interval
        self.population_size = population_size

    def objective(self, *arguments: Any, **options: Any) -> Objective:
        """Return what checks that members can be trained, and that their hyperparameters can change meanwhile."""
        objective = super().objective(*arguments, **options)
        objective.check_names = ChangeableNames
        return objective

    def optimize(self, function: Callable[[Job, Mapping[str, Any]], float]) -> Result:
        """Refuse: a plain function has no weights to copy.

        Raises:
            TypeError: always.
        """
        raise TypeError("PopulationTuner copies weights between members, so it takes a LightningModule: use fit().")

    def _search(self, target: Target) -> Result:
        builder = target.builder
        assert builder is not None  # optimize() is refused
        ranks = ranks_of(builder.surroundings)
        if ranks.size > 1:
            raise ValueError(
                f"`trainer` trains each member in {ranks.size} processes, but a PopulationTuner trains all members in "
                "this one; give each Trainer the callback PopulationBasedTraining instead."
            )
        asked = self._fingerprint(target)
        folder = open_folder(self._run, "-".join(label(part) for part in (type(self), target.parts[0])), target)
        steps = self.scheduler.max_steps
        with open_run(self._run, folder, target, self._goal, asked, max_steps=steps, ranks=ranks) as run:
            self.say_plan(run.console, f"{type(self).__name__} in {folder.path}", run.table.rows)
            if target.check is not None and not run.table.rows:
                target.check()
            self._train(run, builder)
            run.raise_if_paused()
            run.console.on(SearchEnded(run.table.rows))
            run.report()
            return run.result()

    def _train(self, run: Run, builder: Builder) -> None:
        folder, key = run.folder.path / "members", run.folder.key()
        table = run.table
        for leftover in folder.glob("*/.*.tmp"):
            leftover.unlink(missing_ok=True)

        def fit_member(number: int, params: Mapping[str, Any], member: JobCallback, source: Path | None) -> None:
            with quiet_and_seeded(self.seed, number):
                built = builder.build(params)
                saved = None if source is None else checkpoints.load(source, key=key)
                trainer = make_trainer(
                    built,
                    folder / f"{number:03d}",
                    member,
                    SealedCheckpointIO(source, saved, key),
                    saved=saved,
                    max_steps=self.scheduler.max_steps,
                    check_val_every_n_epoch=None,
                    val_check_interval=NEVER,
                )
                train_to_the_end(trainer)
                trainer.fit(built.module, datamodule=built.data, ckpt_path=source, weights_only=True)

        with warnings_only(*CHATTY):  # around all members: each restores what it found
            rounds = Rounds(
                table,
                self.rules,
                study=study_id(run.study),
                population_size=self.population_size,
                monitor=str(self.monitor),
                interval=self.interval,
                max_steps=self.scheduler.max_steps,
                folder=folder,
                key=key,
                fit=fit_member,
                build=build_of(builder),
                say=run.console.line,
            )
            with closing(rounds):
                rounds.run(run.interrupts.pause_wanted)
        if not run.interrupts.pause_wanted():
            self._keep_best(rounds, run.folder, builder)

    def _keep_best(self, rounds: Rounds, folder: RunFolder, builder: Builder) -> None:
        """Write the files of the best trial: its member's checkpoint at the step of its score.

        Raises:
            SearchFailedError: if no member came to the end.
        """
        if not any(row.state == "complete" for row in rounds.table.rows):
            raise SearchFailedError(
                f"no member of the population came to step {self.scheduler.max_steps}; the reasons are with the failed "
                f"trials in {folder.path}."
            )
        best = best_row(rounds.table.rows, self.mode)
        assert best is not None  # that one, or a better one
        write_answer(
            best,
            rounds.lineage.identity(best.number),
            rounds.checkpoint_at(rounds.lineage.member_of(best.number), best.step),
            builder.config(best.params, self.scheduler.max_steps),
            best_checkpoint=folder.best_checkpoint,
            best_params=folder.best_params,
        )

    def _fingerprint(self, target: Target) -> dict[str, Any]:
        rules = {name: value for name, value in vars(self.rules).items() if name not in ("space", "mode", "seed")}
        explore = self.rules.explore
        if not isinstance(explore, str):
            rules["explore"] = repr(explore) if is_dataclass(explore) else label(explore)
        population = {"population_size": self.population_size, "interval": self.interval, **rules}
        return {**super()._fingerprint(target), "population": population}
