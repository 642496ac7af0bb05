"""The folder of one search: its study, its trials, its lock, and what it was started with."""

import contextlib
import difflib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock
import optuna
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.study import StudyDirection
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from lightning_hpo.quiet import warnings_only
from lightning_hpo.schedulers import Mode

FINGERPRINT = "lightning_hpo"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SQLITE_HEADER = b"SQLite format 3\x00"


class StudyMismatchError(ValueError):
    """A stored study was made with other settings than this call."""


class StudyInUseError(RuntimeError):
    """Another process works on the study."""


class StorageError(OSError):
    """The run folder or its study cannot be used."""


class RunFolder:
    """Where one search keeps everything.

    Args:
        root: folder of all runs; made if missing.
        name: of this run: 1 to 100 of ``A-Z a-z 0-9 . _ -``, beginning with a letter or digit.

    Raises:
        ValueError: if the name has another form.
        StorageError: if the folder cannot be written.
    """

    def __init__(self, root: str | Path, name: str) -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(
                f"`name` must be 1 to 100 of A-Z a-z 0-9 . _ - with a letter or digit first, got {name!r}."
            )
        self.name = name
        self.path = Path(root).resolve() / name
        try:
            (self.path / "trials").mkdir(parents=True, exist_ok=True)
            probe = self.path / f".writable.{os.getpid()}"
            probe.touch()
            probe.unlink()
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

    def trial(self, number: int) -> Path:
        """Folder of a trial."""
        return self.path / "trials" / f"{number:04d}"

    @contextmanager
    def readable_errors(self) -> Iterator[None]:
        """Turn what a database raises into a StorageError that names the folder."""
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            cause = error.__cause__ or error.__context__ or error
            reason = str(cause).splitlines()[0]
            raise StorageError(f"the study in {self.path} cannot be used: {reason}") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the run for this process; the lock dies with it.

        Raises:
            StudyInUseError: if another process holds it.
        """
        owner = self.path / "owner.json"
        lock = filelock.FileLock(self.path / "lock", blocking=False)
        try:
            lock.acquire()
        except filelock.Timeout:
            holder = json.loads(owner.read_text()) if owner.exists() else {}
            raise StudyInUseError(
                f"the study in {self.path} is in use by process {holder.get('pid')} on host {holder.get('host')}."
            ) from None
        try:
            owner.write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
            yield
        finally:
            owner.unlink(missing_ok=True)
            lock.release()


def open_study(
    folder: RunFolder,
    storage: str | BaseStorage | None,
    mode: Mode | Sequence[Mode],
    fingerprint: Mapping[str, Any],
    sampler: BaseSampler | None = None,
) -> tuple[optuna.Study, BaseStorage]:
    """Open the study of a run, or create it.

    Args:
        folder: of the run; the study has its name.
        storage: Optuna storage or its URL; None is a SQLite file in the folder.
        mode: direction of the study, or one for each objective.
        fingerprint: what the search was called with, as JSON; stored with a new study, compared with an old one.
        sampler: that the returned study has.

    Raises:
        StudyMismatchError: naming each difference.
        StorageError: if the study file is empty or no database.
    """
    if storage is None:
        file = folder.study_file
        _refuse_damaged(file)
        if not file.exists():
            _make_sqlite(file, folder.name, mode, fingerprint)
        storage = _sqlite_url(file)
    if isinstance(storage, str):
        storage = RDBStorage(storage)
    study = _study(storage, folder.name, mode, sampler)
    if FINGERPRINT in study.user_attrs:
        _refuse_other(folder, study.user_attrs[FINGERPRINT], fingerprint)
    elif study.get_trials(deepcopy=False):
        raise StudyMismatchError(f"the study {folder.name!r} was not made by lightning_hpo: choose another `name`.")
    else:
        study.set_user_attr(FINGERPRINT, dict(fingerprint))
    return study, storage


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
    storage = RDBStorage(_sqlite_url(fresh))
    _study(storage, name, mode).set_user_attr(FINGERPRINT, dict(fingerprint))
    storage.engine.dispose()
    fresh.replace(file)


def _sqlite_url(file: Path) -> str:
    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def _refuse_damaged(file: Path) -> None:
    if not file.exists():
        return
    with file.open("rb") as opened:
        header = opened.read(len(_SQLITE_HEADER))
    if header != _SQLITE_HEADER:
        raise StorageError(f"{file} is not a study: it is empty or damaged. Move it away to start a new one.")


def _refuse_other(folder: RunFolder, stored: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
    old, new = (json.dumps(one, indent=1, sort_keys=True).splitlines() for one in (stored, asked))
    changes = [
        f"{'was' if line[0] == '-' else 'now'} {line[1:].strip().rstrip(',')}"
        for line in difflib.unified_diff(old, new, lineterm="", n=0)
        if line[0] in "+-" and line[:3] not in ("---", "+++")
    ]
    if changes:
        raise StudyMismatchError(
            f"the study in {folder.path} was made with other settings: {'; '.join(changes)}. "
            "Choose another `name`, or go back to the old settings to continue it."
        )
