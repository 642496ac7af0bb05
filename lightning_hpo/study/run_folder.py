"""The folder of one search: where its study, its trials and the best files are, and its lock."""

import contextlib
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

from lightning_hpo.atomic import atomic_write, open_new
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import StorageError, StudyInUseError
from lightning_hpo.study.journal import JOURNAL
from lightning_hpo.study.leases import study_lock
from lightning_hpo.study.locks import OWNER, Lock
from lightning_hpo.study.storage_errors import readable_errors
from lightning_hpo.study.trial_folders import free_name

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
        self._is_new = not self.path.exists()
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
        """The journal of the study, unless another storage holds it."""
        return self.path / JOURNAL

    @property
    def first_edition(self) -> Path:
        """Where the first edition of this package kept the study: an SQLite file."""
        return self.path / "study.db"

    @property
    def has_study(self) -> bool:
        """Whether the study of a run is in the folder, one of the first edition included."""
        return self.study_file.exists() or self.first_edition.exists()

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

    def holds(self, path: Path) -> bool:
        """Whether a path is within the run folder, symbolic links followed; nothing outside is ever deleted."""
        return path.resolve().is_relative_to(self.path.resolve())

    def readable_errors(self) -> AbstractContextManager[None]:
        """Turn what a database or a disk raises into a StorageError that names the folder."""
        return readable_errors(self.path)

    def set_aside(self) -> Path:
        """Rename the folder, so that a run of its name begins anew; return the new path.

        Raises:
            StudyInUseError: if another process works on the run.
        """
        with self.locked():
            return self.path.rename(free_name(self.path, "old"))

    def discard(self) -> None:
        """Remove the folder if this call has made it, before anything was begun in it; for the holder of the lock."""
        if self._is_new and not any((self.path / "trials").iterdir()):
            shutil.rmtree(self.path, ignore_errors=True)

    @contextmanager
    def locked(self, *, shared: bool = False) -> Iterator[None]:
        """Hold the run for this process, or together with other processes that share it; the lock dies with it.

        Raises:
            StudyInUseError: if another process holds it, and not both share it.
        """
        owner = self.path / OWNER
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
            with study_lock(self.path) if shared else nullcontext():  # others may be removing unfinished files
                atomic_write(owner, json.dumps({"pid": os.getpid(), "host": platform.node()}))
            yield
        finally:
            if not shared:
                owner.unlink(missing_ok=True)
            lock.free()


def _home() -> Path | None:
    """The user's home folder; None for a user without one, such as a bare number in a container."""
    try:
        return Path.home()
    except RuntimeError:
        return None
