"""The folder of one search: its study, its trials, its lock, and what it was started with."""

import contextlib
import difflib
import json
import os
import re
import sqlite3
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, check_distribution_compatibility
from optuna.exceptions import DuplicatedStudyError, StorageInternalError, UpdateFinishedTrialError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from sqlalchemy.exc import SQLAlchemyError

from lightning_hpo.atomic import atomic_write, open_new
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import StorageError, StudyInUseError, StudyMismatchError
from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import Mode
from lightning_hpo.space import parse_space
from lightning_hpo.study.locks import Lock
from lightning_hpo.study.sqlite_file import (
    UNUSABLE,
    check_study_file,
    forget_checksum,
    note_checksum,
    readable,
    sqlite_url,
    unusable,
)
from lightning_hpo.study.trial_folders import study_id
from lightning_hpo.text import hide_passwords

__all__ = ["RunFolder", "StorageError", "StudyInUseError", "StudyMismatchError", "open_study"]

FINGERPRINT = "lightning_hpo"
CHANGES = "lightning_hpo_changes"
PLACE = "lightning_hpo_folder"  # of a study that is not in its run folder: the folder whose lock was held last
_MAY_CHANGE = {"space", "code", "sampler"}  # if the user says so; other settings decide what a value means
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


class RunFolder:
    """Where one search keeps everything.

    Args:
        root: folder of all runs; made if missing.
        name: of this run: 1 to 100 of ``A-Z a-z 0-9 . _ -``, beginning with a letter or digit.

    Raises:
        ValueError: if the name has another form, or ``root`` is ``/`` or the home folder: runs are made and checkpoints
            deleted in it.
        StorageError: if the folder cannot be written.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"`name` must be 1 to 100 of A-Z a-z 0-9 . _ - with a letter or digit first, got {name!r}."
            )
        root = Path(root).resolve()
        if root in (Path(root.anchor), _home()):
            raise ValueError(
                f"`root` must be a folder of its own for runs, e.g. {str(root / 'runs')!r}, got {str(root)!r}."
            )
        self.name = name
        self.path = root / name
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}"
            probe.unlink(missing_ok=True)
            os.close(open_new(probe))
            probe.unlink(missing_ok=True)  # another process that starts may have tidied it away
        except OSError as error:
            raise StorageError(
                error.errno, f"the run folder cannot be written: {error.strerror}", str(self.path)
            ) from None

    @property
    def study_file(self) -> Path:
        """The SQLite file of the study."""
        return self.path / "study.db"

    @property
    def best_checkpoint(self) -> Path:
        """Copy of the best trial's checkpoint."""
        return self.path / "best.ckpt"

    @property
    def best_params(self) -> Path:
        """The best trial's parameters as YAML."""
        return self.path / "best.yaml"

    def key(self) -> Key:
        """Key that the run's checkpoints are signed with; made if missing."""
        return Key.made_in(self.path)

    def trial(self, number: int) -> Path:
        """Folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    def remove_leftovers(self, *, alone: bool) -> None:
        """Delete what killed processes left unfinished.

        Args:
            alone: no other process works on a trial; otherwise each job cleans the folder of its own trial.
        """
        patterns = (".*.tmp", ".writable.*", *(("trials/*/.*.tmp",) if alone else ()))
        for leftover in (file for pattern in patterns for file in self.path.glob(pattern)):
            leftover.unlink(missing_ok=True)

    def note_checksum(self) -> None:
        """Write the checksum of the study's file, if it is in the folder; on a full disk there is none."""
        if self.study_file.exists():
            with contextlib.suppress(OSError, sqlite3.Error):
                note_checksum(self.study_file)

    def holds(self, path: Path) -> bool:
        """Whether a path is within the run folder, symbolic links followed; nothing outside is ever deleted."""
        return path.resolve().is_relative_to(self.path.resolve())

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Turn what a database or a disk raises into a StorageError that names the folder."""
        try:
            yield
        except StorageError:
            raise
        except UpdateFinishedTrialError as error:  # the lock is in the run folder, a study given as storage is not
            raise StudyInUseError(
                f"the study of {self.path} was changed by another process, which uses its storage from another `root`"
            ) from error
        except (StorageInternalError, SQLAlchemyError) as error:
            raise unusable(self.path, error) from error
        except OSError as error:
            where = str(error.filename or self.path)
            gone = isinstance(error, FileNotFoundError) and Path(where).is_relative_to(self.path)
            if error.errno not in UNUSABLE and not gone:
                raise
            raise StorageError(error.errno, f"the run folder cannot be used: {error.strerror}", where) from error

    def set_aside(self) -> Path:
        """Rename the folder, so that a run of its name begins anew; return the new path.

        Raises:
            StudyInUseError: if another process works on the run.
        """
        with self.locked():
            return self.path.rename(_free_name(self.path))

    @contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the run for this process, or together with other processes that share it; the lock dies with it.

        Raises:
            StudyInUseError: if another process holds it, and not both share it.
        """
        owner = self.path / "owner.json"
        lock = Lock(self.path / "lock")
        if not lock.take(together=shared):
            with contextlib.suppress(OSError, ValueError):  # the other one is just starting or leaving
                holder = json.loads(owner.read_text())
                raise StudyInUseError(
                    f"the study in {self.path} is in use by process {holder['pid']} on host {holder['host']}. "
                    "To let several processes work on it, start all of them with `shared=True`"
                )
            raise StudyInUseError(f"the study in {self.path} is in use by another process")
        try:
            atomic_write(owner, json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
            yield
        finally:
            if not shared:
                owner.unlink(missing_ok=True)
            lock.free()


def _free_name(folder: Path) -> Path:
    """Return a name beside a folder that says when the folder was set aside."""
    stamp = time.strftime("%Y%m%dT%H%M%S")
    names = (folder.with_name(f"{folder.name}.old-{stamp}{end}") for end in ("", *map("-{}".format, range(1000))))
    return next(name for name in names if not name.exists())


def open_study(
    folder: RunFolder,
    storage: str | BaseStorage | None,
    mode: Mode | Sequence[Mode],
    fingerprint: Mapping[str, Any],
    sampler: BaseSampler | None = None,
    *,
    allow_changed: bool = False,
) -> tuple[optuna.Study, BaseStorage]:
    """Open the study of a run, or create it.

    Args:
        folder: of the run; the study has its name.
        storage: Optuna storage or its URL; None is a SQLite file in the folder.
        mode: direction of the study, or one for each objective.
        fingerprint: what the search was called with, as JSON; stored with a new study, compared with an old one.
        sampler: that the returned study has.
        allow_changed: continue although code or space differ, and write down from which trial on.

    Raises:
        StudyMismatchError: naming each difference.
        StudyInUseError: if another process works on the study from another folder.
        StorageError: if the study file is empty or no database.
    """
    own = storage is None
    if storage is None:
        file = folder.study_file
        if file.exists():
            check_study_file(file)
        else:
            _make_sqlite(file, folder.name, mode, fingerprint)
        storage = sqlite_url(file)
    with readable(folder.path):
        if isinstance(storage, str):
            storage = RDBStorage(storage)
        study = _study(storage, folder.name, mode, sampler)
        directions = ["min" if one is StudyDirection.MINIMIZE else "max" for one in study.directions]
        begun = bool(study.get_trials(deepcopy=False))
        noted = study.user_attrs
    asked = [mode] if isinstance(mode, str) else list(mode)
    if FINGERPRINT in noted and not begun and _changed(noted[FINGERPRINT], fingerprint):
        # A mistake was found before the first trial: nothing is lost, and the corrected call starts anew.
        optuna.delete_study(study_name=folder.name, storage=storage)
        study = _study(storage, folder.name, mode, sampler)
        noted, directions = {}, [*map(str, asked)]
    if FINGERPRINT not in noted and directions != asked:
        raise StudyMismatchError(f"the study {folder.name!r} has the directions {directions}, but `mode` is {asked}.")
    if FINGERPRINT in noted:
        _compare(folder, study, fingerprint, allow_changed=allow_changed)
    elif begun:
        raise StudyMismatchError(f"the study {folder.name!r} was not made by lightning_hpo: choose another `name`.")
    else:
        study.set_user_attr(FINGERPRINT, dict(fingerprint))
    if not own:
        _claim_place(study, folder.path)
    study_id(study)  # made while nobody else opens the study
    return study, storage


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


def _home() -> Path | None:
    """The user's home folder; None for a user without one, such as a bare number in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def _study(
    storage: BaseStorage, name: str, mode: Mode | Sequence[Mode], sampler: BaseSampler | None = None
) -> optuna.Study:
    modes = (mode,) if isinstance(mode, str) else mode
    directions = [StudyDirection.MINIMIZE if one == "min" else StudyDirection.MAXIMIZE for one in modes]
    with contextlib.suppress(DuplicatedStudyError), warnings_only("optuna"):
        storage.create_new_study(directions, name)
    return optuna.load_study(study_name=name, storage=storage, sampler=sampler)


def _make_sqlite(file: Path, name: str, mode: Mode | Sequence[Mode], fingerprint: Mapping[str, Any]) -> None:
    """Make the study beside its place and move it there: a process killed meanwhile leaves no half of a database."""
    for leftover in file.parent.glob(f".{file.name}.*"):
        leftover.unlink(missing_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    storage = RDBStorage(sqlite_url(fresh))
    _study(storage, name, mode).set_user_attr(FINGERPRINT, dict(fingerprint))
    storage.engine.dispose()
    forget_checksum(file)
    fresh.replace(file)


def _compare(folder: RunFolder, study: optuna.Study, asked: Mapping[str, Any], *, allow_changed: bool) -> None:
    """Refuse a study that was made with other settings, or write down that it goes on with these."""
    stored = study.user_attrs[FINGERPRINT]
    changed = _changed(stored, asked)
    if not changed:
        return
    different = (one for name in sorted(changed) for one in _differences(name, stored.get(name), asked.get(name)))
    listed = hide_passwords("; ".join(different))
    # A function is often the same computation with a counter or a print around it; its change is written down.
    tolerated = _MAY_CHANGE if allow_changed else {"code"} if asked["trains"] is None else set()
    if not changed <= tolerated:
        remedy = (
            ", or continue all the same with `allow_changed=True`; the study keeps a note of it"
            if changed <= _MAY_CHANGE
            else ""
        )
        raise StudyMismatchError(
            f"the study in {folder.path} was made with other settings: {listed}. "
            f"Choose another `name`, go back to the old settings to continue it{remedy}."
        )
    trials = study.get_trials(deepcopy=False)
    for name, new in parse_space(asked["space"]).items():
        for old in (trial.distributions[name] for trial in trials if name in trial.distributions):
            try:
                if not (isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution)):
                    check_distribution_compatibility(old, new)
            except ValueError as error:
                raise StudyMismatchError(
                    f"the study in {folder.path} cannot take another kind of distribution for {name!r}: {error}"
                ) from None
    warnings.warn(f"from trial {len(trials)} on, the study in {folder.path} has changed: {listed}", stacklevel=2)
    notes = [*study.user_attrs.get(CHANGES, []), {"from_trial": len(trials), "changes": listed}]
    study.set_user_attr(CHANGES, notes)
    study.set_user_attr(FINGERPRINT, dict(asked))


def _changed(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> set[str]:
    """Names of the settings that differ."""
    return {name for name in {**stored, **asked} if _differences(name, stored.get(name), asked.get(name))}


def _differences(name: str, stored: Any, asked: Any) -> list[str]:
    """What differs in one setting, in words for people."""
    if name == "sampler" and not stored:  # of an older study
        return []
    if name == "code":  # older studies have none; bytecode of another Python says nothing
        if not stored or not asked or stored["python"] != asked["python"]:
            return []
        old, new = stored["parts"], asked["parts"]
        words = {(True, True): "changed", (True, False): "is gone", (False, True): "is new"}
        return [
            f"the code of {part} {words[part in old, part in new]}"
            for part in sorted({**old, **new})
            if old.get(part) != new.get(part)
        ]
    before, after = (json.dumps({name: one}, indent=1, sort_keys=True).splitlines() for one in (stored, asked))
    return [
        f"{'was' if line[0] == '-' else 'now'} {line[1:].strip().rstrip(',')}"
        for line in difflib.unified_diff(before, after, lineterm="", n=0)
        if line[0] in "+-" and line[:3] not in ("---", "+++")
    ]
