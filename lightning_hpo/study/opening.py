"""Opening the study of a run: made or continued, and compared with the settings that it was begun with."""

import contextlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.errors import StudyInUseError, StudyMismatchError
from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import Mode
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.space import parse_space
from lightning_hpo.study.fingerprint import differences
from lightning_hpo.study.journal import open_journal
from lightning_hpo.study.locks import Lock
from lightning_hpo.study.rows import FINGERPRINT, OWNER, SEED
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.storage_errors import readable, sqlite_url
from lightning_hpo.study.trial_folders import study_id
from lightning_hpo.text import hide_passwords

CHANGES = "lightning_hpo_changes"
PLACE = "lightning_hpo_folder"  # of a study that is not in its run folder: the folder whose lock was held last
_MAY_CHANGE = {"space", "code", "sampler"}  # if the user says so; other settings decide what a value means


def open_study(
    folder: RunFolder,
    storage: str | BaseStorage | None,
    mode: Mode | Sequence[Mode],
    fingerprint: Mapping[str, Any],
    sampler: BaseSampler | None = None,
    *,
    allow_changed: bool = False,
    shared: bool = False,
) -> tuple[optuna.Study, BaseStorage]:
    """Open the study of a run, or create it.

    Args:
        folder: of the run; the study has its name.
        storage: Optuna storage or its URL; None is a journal in the folder.
        mode: direction of the study, or one for each objective.
        fingerprint: settings of the search, as JSON; stored with a new study, compared with an old one.
        sampler: that the returned study has.
        allow_changed: continue although code or space differ, and write down from which trial on.
        shared: whether other processes may be at work on the study, so that one without a trial is not replaced.

    Raises:
        StudyMismatchError: naming each difference.
        StudyInUseError: if another process works on the study from another folder.
        StorageError: if the storage is damaged or cannot be used.
    """

    def opened(storage: BaseStorage) -> optuna.Study:
        return _opened(folder, storage, mode, fingerprint, sampler, allow_changed=allow_changed, shared=shared)

    if storage is None:
        _refuse_first_edition(folder)
        journal = open_journal(folder.study_file, opened)
        return opened(journal), journal
    with readable(folder.path):
        storage = RDBStorage(storage) if isinstance(storage, str) else storage
    study = opened(storage)
    _claim_place(study, folder.path)
    return study, storage


def _opened(
    folder: RunFolder,
    storage: BaseStorage,
    mode: Mode | Sequence[Mode],
    fingerprint: Mapping[str, Any],
    sampler: BaseSampler | None,
    *,
    allow_changed: bool,
    shared: bool,
) -> optuna.Study:
    """Load the study of a run from its storage, or make it there, and compare its settings."""
    with readable(folder.path):
        study = _study(storage, folder.name, mode, sampler)
        directions = ["min" if direction is StudyDirection.MINIMIZE else "max" for direction in study.directions]
        begun = bool(study.get_trials(deepcopy=False))
        noted = study.user_attrs
    asked = [mode] if isinstance(mode, str) else list(mode)
    if FINGERPRINT in noted and not begun and not shared and differences(noted[FINGERPRINT], fingerprint):
        # A mistake was found before the first trial: nothing is lost, and the corrected call starts anew.
        optuna.delete_study(study_name=folder.name, storage=storage)
        study = _study(storage, folder.name, mode, sampler)
        noted, directions = {}, [*map(str, asked)]
    if FINGERPRINT not in noted and directions != asked:
        raise StudyMismatchError(f"the study {folder.name!r} has the directions {directions}, but `mode` is {asked}.")
    if FINGERPRINT in noted:
        compare(
            f"the study in {folder.path}", "Choose another `name`", study, fingerprint, allow_changed=allow_changed
        )  # fmt: skip
    elif begun:
        raise StudyMismatchError(
            f"the study {folder.name!r} was not made by lightning_hpo: choose another `name`, or "
            "continue it by `OptunaTuner(study=optuna.load_study(...))`."
        )
    else:
        study.set_user_attr(FINGERPRINT, dict(fingerprint))
    study_id(study)  # made while nobody else opens the study
    return study


def _refuse_first_edition(folder: RunFolder) -> None:
    """Refuse a run whose study is an SQLite file, as the first edition of this package kept it."""
    file = folder.first_edition
    if file.exists() and not folder.study_file.exists():
        raise StudyMismatchError(
            f"{folder.path} holds a run of an earlier version, whose study is {file.name}: choose another `name`, "
            f"begin anew with `overwrite=True`, or go on with it by `storage={sqlite_url(file)!r}`."
        )


def _claim_place(study: optuna.Study, path: Path) -> None:
    """Refuse a study that is at work in another folder, as two folders have two locks and two sets of checkpoints."""
    before = study.user_attrs.get(PLACE, str(path))
    if before != str(path) and (Path(before) / "lock").exists():
        lock = Lock(Path(before) / "lock")
        if not lock.take():
            raise StudyInUseError(
                f"the study {study.study_name!r} is in use in {before}, by a process that uses its storage from "
                "another `root`: give all of them the same `root`"
            )
        lock.free()
    if study.user_attrs.get(PLACE) != str(path):
        study.set_user_attr(PLACE, str(path))


def _study(
    storage: BaseStorage, name: str, mode: Mode | Sequence[Mode], sampler: BaseSampler | None = None
) -> optuna.Study:
    with contextlib.suppress(KeyError):  # there is none yet
        return optuna.load_study(study_name=name, storage=storage, sampler=sampler)
    modes = (mode,) if isinstance(mode, str) else mode
    directions = [StudyDirection.MINIMIZE if name == "min" else StudyDirection.MAXIMIZE for name in modes]
    with contextlib.suppress(DuplicatedStudyError), warnings_only("optuna"):
        storage.create_new_study(directions, name)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler)


def compare(
    where: str, remedy: str, study: optuna.Study, asked: Mapping[str, Any], *, allow_changed: bool
) -> None:  # fmt: skip
    """Refuse a study that was made with other settings, or write down that it goes on with these.

    Args:
        where: the study, in words.
        remedy: what to write instead, in words.
        study: with the settings that it was begun with.
        asked: settings of the search.
        allow_changed: go on although code, space or sampler differ.

    Raises:
        StudyMismatchError: naming each difference.
    """
    different = differences(study.user_attrs[FINGERPRINT], asked)
    if not different:
        return
    changed = {*different}
    listed = hide_passwords("; ".join(text for name in sorted(different) for text in different[name]))
    # A function is often the same computation with a counter or a print around it; its change is written down.
    tolerated = _MAY_CHANGE if allow_changed else {"code"} if asked["trains"] is None else set()
    if not changed <= tolerated:
        more = (
            ", or continue all the same with `allow_changed=True`; the study keeps a note of it"
            if changed <= _MAY_CHANGE
            else ""
        )
        raise StudyMismatchError(
            f"{where} was made with other settings: {listed}. "
            f"{remedy}, or go back to the old settings to continue it{more}."
        )
    trials = study.get_trials(deepcopy=False)
    validate_distributions(where, trials, asked["space"])
    warnings.warn(f"from trial {len(trials)} on, {where} has changed: {listed}", stacklevel=2)
    notes = [*study.user_attrs.get(CHANGES, []), {"from_trial": len(trials), "changes": listed}]
    study.set_user_attr(CHANGES, notes)
    study.set_user_attr(FINGERPRINT, dict(asked))


def validate_distributions(
    where: str, trials: Iterable[FrozenTrial], space: Mapping[str, Any], *, may_grow: bool = True
) -> None:  # fmt: skip
    """Refuse a space with another kind of distribution than the trials have, with which Optuna could not go on.

    Args:
        where: the study, in words.
        trials: of the study.
        space: name -> distribution of the search.
        may_grow: whether a choice may have other values than before.

    Raises:
        StudyMismatchError: naming the parameter.
    """
    known = parse_space(space)
    for name, old in (named for trial in trials for named in trial.distributions.items()):
        new = known.get(name, old)
        try:
            if not (may_grow and isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution)):
                check_distribution_compatibility(old, new)
        except ValueError as error:
            raise StudyMismatchError(
                f"{where} cannot take another kind of distribution for {name!r}: it has {old}, not {new} ({error})"
            ) from None  # fmt: skip


def adopt(study: optuna.Study, asked: Mapping[str, Any], *, allow_changed: bool = False) -> None:
    """Compare a study that was given with the settings of a search, and note them in it.

    Args:
        study: with its trials, those of other programs included.
        asked: fingerprint of the search.
        allow_changed: continue although code, space or sampler differ, and write down from which trial on.

    Raises:
        StudyMismatchError: if another search has begun it, or if trials of another program have other kinds of
            parameters, or reports that the pruner of the search would take for those of its own trials.
    """
    where = f"the study {study.study_name!r}"
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
    marks = {OWNER, SEED} if FINGERPRINT in study.user_attrs else {OWNER}  # an Objective in a loop has seeds too
    foreign = [trial for trial in trials if not marks & {*trial.system_attrs, *trial.user_attrs}]
    if begun := FINGERPRINT in study.user_attrs and len(foreign) < len(trials):
        compare(where, "Give another `study`", study, asked, allow_changed=allow_changed)
    validate_distributions(where, foreign, asked["space"], may_grow=False)
    _validate_reports(where, foreign, asked)
    if not begun:  # a call that has failed before its first trial has begun nothing
        study.set_user_attr(FINGERPRINT, dict(asked))


def _validate_reports(where: str, foreign: Sequence[FrozenTrial], asked: Mapping[str, Any]) -> None:
    """Refuse a search that would compare what was reported at a number with what it reports there itself.

    Trials with the same budget that report now and then come to at least half of it, and to no more than it.
    """
    pruner = asked.get("sampler", {}).get("pruner", {}).get("type", "NopPruner")
    prunes = asked["trains"] is not None and isinstance(asked["mode"], str) and pruner != "NopPruner"
    complete = (trial for trial in foreign if trial.state is TrialState.COMPLETE)
    ends = [max(trial.intermediate_values) for trial in complete if trial.intermediate_values]
    steps = {step for trial in foreign for step in trial.intermediate_values}
    if steps and "folds" in asked["scheduler"]:
        raise StudyMismatchError(
            f"{where} has trials of another program with reports, which a search with `folds` would take for means "
            "over folds: give a new study, and add their parameters and values with study.add_trials(...)."
        )
    full, unit = asked["scheduler"]["max_steps"], Unit.from_settings(asked.get("unit"))
    if not prunes or not steps or (min(steps) > 0 and (not ends or full / 2 <= max(ends) <= full)):
        return
    raise StudyMismatchError(
        f"{where} has trials of another program that were reported at the steps {min(steps)} to {max(steps)}, but this "
        f"search reports the end of its trials at {full} ({unit.amount(full)}) and nothing at 0, so {pruner} would "
        "compare different moments of training: give `pruner=optuna.pruners.NopPruner()`, or a budget and reports that "
        "are counted alike."
    )
