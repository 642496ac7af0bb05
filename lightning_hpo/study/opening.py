"""Opening the study of a run: made, or continued after a comparison of its settings."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.exceptions import DuplicatedStudyError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection

from lightning_hpo.errors import StudyInUseError, StudyMismatchError
from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import Mode
from lightning_hpo.study.comparison import compare, differences
from lightning_hpo.study.journal import open_journal
from lightning_hpo.study.locks import Lock
from lightning_hpo.study.rows import FINGERPRINT
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.study.storage_errors import readable, renamed_text, sqlite_url
from lightning_hpo.study.trial_folders import study_id

PLACE = "lightning_hpo_folder"  # of a study that is not in its run folder: the folder whose lock was held last


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
        names = optuna.get_all_study_names(journal)
        if names and folder.name not in names:
            raise StudyMismatchError(f"{renamed_text(folder.path, names)}, or choose another `name`.")
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
