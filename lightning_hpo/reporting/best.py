"""The files of the best trial: ``best.ckpt`` and ``best.yaml``."""

import contextlib
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_hpo.atomic import atomic_write, replacing
from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.origin import difference, outline
from lightning_hpo.records import BEST_CHECKPOINT, CHECKPOINT, Mode, Row, reach
from lightning_hpo.reporting.best_so_far import BestSoFar
from lightning_hpo.reporting.console import over_folds
from lightning_hpo.reporting.events import Event, JobEnded, SearchEnded, StudyRead
from lightning_hpo.reporting.fit_config import fit_config, replay_config
from lightning_hpo.schedulers.units import STEPS, Unit
from lightning_hpo.space import SearchSpace, split_name
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.trial_folders import identity_of
from lightning_hpo.text import one_line

_CHECKPOINTS = (BEST_CHECKPOINT, CHECKPOINT)


class BestFiles:
    """Keeps ``best.ckpt`` and ``best.yaml`` true, and removes checkpoints that nobody needs; an observer.

    Args:
        folder: of the run.
        study_id: of the study.
        config: makes ``best.yaml`` of a trial's parameters and the full budget.
        mode: whether lower or higher scores are better.
        max_steps: full budget of a trial.
        keep_checkpoints: keep those of trials that are neither best nor to be continued.
        complete_only: only a trial with the full budget is an answer, as in a population.
        unit: of the budget.
        monitor: metric that is the score of a module; None in a search over a function.
        fold_arguments: of a fold, what a config must hold so that a fit trains on it.
        texts: of a population, name -> distribution as text.
    """

    def __init__(
        self,
        folder: RunFolder,
        study_id: str,
        config: Callable[[Mapping[str, Any], int], Mapping[str, Any]],
        *,
        mode: Mode,
        max_steps: int,
        keep_checkpoints: bool,
        complete_only: bool = False,
        unit: Unit = STEPS,
        monitor: str | None = None,
        texts: Mapping[str, str] | None = None,
        fold_arguments: Callable[[int], Mapping[str, int]] = lambda fold: {},  # noqa: ARG005  # a name for the reader
    ) -> None:
        self._fold_arguments = fold_arguments
        self._texts = dict(texts or {})
        self._monitor = monitor
        self._folder = folder
        self._unit = unit
        self._complete_only = complete_only
        self._study_id = study_id
        self._config = config
        self._max_steps = max_steps
        self._keep_checkpoints = keep_checkpoints
        self._written: tuple[int, float, int, int] | None = None  # best trial, how far it got, its step and the files'
        self._mode, self._best = mode, BestSoFar(mode)
        self._running: set[int] = set()  # numbers of running trials
        self._again: set[int] = set()  # numbers of confirmations

    def on(self, event: Event) -> None:
        """Bring the files up to date with the rows."""
        if not isinstance(event, StudyRead | JobEnded | SearchEnded):
            return
        best, fresh = self._best.update(event.rows)
        if not fresh and isinstance(event, StudyRead):
            return
        before = self._written
        is_answer = best is not None and not (self._complete_only and best.state != "complete")
        stands = None if best is None else (best.number, reach(best), best.global_step, best.checkpoint_step)
        if best is not None and is_answer and stands != before:
            config, lines = self._config_of(best, event.rows)
            write_answer(
                best,
                identity_of(self._study_id, best.number, best.params),
                self._saved(self._folder.trial(best.home)),
                config,
                best_checkpoint=self._folder.best_checkpoint,
                best_params=self._folder.best_params,
                lines=lines,
            )
            self._written = stands
        if not self._keep_checkpoints:
            self._running -= {row.number for row in fresh}
            self._running |= {row.number for row in fresh if row.state == "running"}
            self._again |= {row.number for row in fresh if row.confirms is not None}
            former = set() if before is None else {before[0]}
            if looked_at := ({row.number for row in fresh} | former | self._again) - self._running:
                used = {event.rows[number].home for number in self._running}
                used |= set() if isinstance(event, SearchEnded) else self._again  # one of them will be the best
                used |= set() if best is None else {best.home}
                for home in {event.rows[number].home for number in looked_at} - used:
                    self._drop(home)

    def _config_of(self, row: Row, rows: Sequence[Row]) -> tuple[Mapping[str, Any], Sequence[str]]:
        """Config of a trial with its full budget, and lines for people."""
        config = self._budgeted(row)
        found = None if self._monitor is None else outline(self._folder.trial(row.home) / CHECKPOINT)
        if self._monitor is not None and row.full_steps is None and not self._unit.is_steps:
            return config, (f"trial {row.number} was trained by another program",)
        if found is None or found.get("global_step") != row.global_step:
            return config, ()
        steps = [step for step, _ in row.scored_from] or [row.global_step]
        where = f"at step {', '.join(map(str, steps))} of trial {row.number}"
        score = f"{self._monitor} = {row.score} {where}"
        if self._complete_only:
            from lightning_hpo.study.lineage import phases_of, schedule  # noqa: PLC0415  # loads torch

            phases = phases_of(row.number, rows)
            schedules = {name: schedule(phases, name) for name in row.params}
            if (trained := sum(phase.steps for phase in phases)) != row.full_steps:  # a copy of a member that was ahead
                trainer = {name: value for name, value in config["trainer"].items() if name != "max_epochs"}
                config = {**config, "trainer": {**trainer, "max_steps": trained}}
            made, lines = replay_config(config, schedules, self._texts, score)
            return made if row.seed is None else {**made, "seed_everything": row.seed}, lines
        note = dict(found.get("callbacks", {}).get("RunToStep", {}).get("fit") or {})
        if note and row.scored_from:  # its other validations count too
            note["followed"] = True
        if row.folds:
            score, note = self._of_fold(row, where, note)
        is_earlier = row.checkpoint_step < row.global_step
        keep = {"monitor": self._monitor, "mode": self._mode} if is_earlier else None
        return fit_config(config, row.seed, note, score, keep)

    def _of_fold(self, row: Row, where: str, note: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Text of the score, and the note of a fit that a config with the last fold gives back; else an empty one."""
        fold = len(row.folds) - 1
        if not self._fold_arguments(fold):  # the data module is told by methods
            return f"{self._monitor} = {row.score} {where}, {over_folds(row)}", {}
        whole = f"which has {row.score} {over_folds(row)}"
        return f"{self._monitor} = {row.folds[-1]} on fold {fold} {where}, {whole}", note

    def _budgeted(self, row: Row) -> Mapping[str, Any]:
        """Config of a trial with its full budget: ``max_epochs`` if that is whole, else ``max_steps``."""
        params = {**row.params, **(self._fold_arguments(len(row.folds) - 1) if row.folds else {})}
        epochs: Any = self._unit.number(self._max_steps)
        if row.full_steps is None and (self._monitor is None or self._unit.is_steps):
            return self._config(params, epochs)  # of a function, which is given the number
        config = self._config(params, row.full_steps or 0)
        trainer = config.get("trainer", {})
        if row.full_steps is None:  # of another program: how many steps its budget was is not known
            trainer["max_steps"] = -1
        if self._unit.name == "epochs" and isinstance(epochs, int) and trainer.pop("max_steps", None) is not None:
            trainer["max_epochs"] = epochs
        return config

    def _saved(self, folder: Path) -> list[Path]:
        """Checkpoints of a trial; the one before the best is right if a kill fell before the new best was recorded."""
        best, last = (folder / name for name in _CHECKPOINTS)
        return [best, checkpoints.previous_of(best), last]

    def _drop(self, number: int) -> None:
        folder = self._folder.trial(number)
        if folder.is_dir() and self._folder.holds(folder):
            for name in _CHECKPOINTS:
                checkpoints.remove(folder / name)


def write_answer(
    best: Row,
    identity: Mapping[str, Any],
    saved: Sequence[Path],
    config: Mapping[str, Any],
    *,
    best_checkpoint: Path,
    best_params: Path,
    lines: Sequence[str] = (),
) -> None:
    """Make ``best.ckpt`` and ``best.yaml`` name one trial at one step.

    A checkpoint of another trial or step is never kept as the best one: without the right one (a disk was full when it
    was to be saved) there is none, and a warning says so.

    Args:
        best: the best trial.
        identity: of the trial, as its checkpoints carry it.
        saved: checkpoints of the trial; they need not exist, and may be of other steps than the score.
        config: for ``best.yaml``.
        best_checkpoint: where ``best.ckpt`` is.
        best_params: where ``best.yaml`` is.
        lines: for people, above the config.
    """
    found = [path for path in (*saved, best_checkpoint) if path.exists()]  # an old one may carry no identity
    right = next((path for path in found if difference(path, identity, best.checkpoint_step) is None), None)
    if right is not None and right != best_checkpoint:
        keep_best(right, best_checkpoint)
    elif right is None and found:
        best_checkpoint.unlink(missing_ok=True)
        warnings.warn(
            f"trial {best.number} is best at step {best.checkpoint_step}, but its checkpoint of that step is not there "
            f"({saved[-1].parent}), so there is no {best_checkpoint.name}",
            stacklevel=2,
        )
    write_best(config, best_params, lines)


def write_best(config: Mapping[str, Any], path: Path, lines: Sequence[str] = ()) -> None:
    """Write a config as YAML below comments, without a moment in which the file is not whole."""
    comments = "".join(f"# {one_line(line)}\n" for line in lines)
    atomic_write(path, comments + yaml.safe_dump(dict(config), sort_keys=False))


def keep_best(checkpoint: Path, path: Path) -> None:
    """Give the best trial's checkpoint a second name, without a moment in which neither is there."""
    fresh = path.with_name(f".{path.name}.tmp")
    fresh.unlink(missing_ok=True)
    try:
        os.link(checkpoint, fresh)
    except OSError:  # a file system without hard links
        with checkpoint.open("rb") as source, replacing(path) as copy:
            shutil.copyfileobj(source, copy)
        return
    fresh.replace(path)
    fresh.unlink(missing_ok=True)  # a rename leaves both names if they were one file already


def disagreement(
    best: Row,
    identity: Mapping[str, Any],
    best_checkpoint: Path,
    best_params: Path,
    space: SearchSpace | None = None,
) -> str | None:
    """Say how the files of the best trial differ from the study; None if they agree or are not there."""
    if best_checkpoint.exists() and (what := difference(best_checkpoint, identity, best.checkpoint_step)) is not None:
        return f"{best_checkpoint.name} {what}"
    config: Any = None
    with contextlib.suppress(OSError, yaml.YAMLError):  # the file is missing, or somebody else has written it
        config = yaml.safe_load(best_params.read_text(encoding="utf-8"))
    for name, value in (best.params if space is None else space.plain(best.params)).items():
        if any(other.startswith(f"{name}.") for other in best.params):
            continue  # a part of it has a name of its own
        found = _look_up(config, split_name(name))
        if found and found[0] != value:
            return f"{best_params.name} has another {name!r} than the best trial, {best.number}"
    return None


def _look_up(config: Any, path: Sequence[str]) -> list[Any]:
    """Return the value at a path of a config in a list; an empty list if the config has another form."""
    if not path:
        return [config]
    if not isinstance(config, Mapping):
        return []
    head, *rest = path
    for key, left in ((head, rest), (head.partition(".")[0], [head.partition(".")[2], *rest])):
        if key in config and all(left):
            return _look_up(config[key], left)
    return _look_up(config["init_args"], path) if "init_args" in config else []
