"""A run that is kept in a store elsewhere too (``root="s3://bucket/runs"``, any URL of fsspec), and comes back from it.

A run is at work in a folder of this machine, below ``runs`` or ``$LIGHTNING_HPO_RUNS``. The store has a copy of its
files under the same names at ``root/name``. Locks, unfinished files and the key that signs checkpoints stay here.

* A file is written under another name, read back, compared by SHA-256 and then renamed, so what a name says is whole.
* Files of a trial are copied as they were when its last job ended, and the journal as it was then, so the store has
  what a process killed at that moment leaves behind. Hard links in ``.copies`` keep such files until they are copied. A
  file is removed there only when the journal in the store knows that it is not needed.
* Where the journal in the store goes on from the one here, all files come back, the journal last. Where each says
  something else, the run is refused. Where both say the same, the files of trials come back whose folder is gone.
* While the journal here is shorter than the one in the store, the run folder was deleted, and nothing changes there.
"""

import contextlib
import hashlib
import io
import json
import os
import re
import secrets
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from lightning_hpo.atomic import atomic_write, replacing
from lightning_hpo.checkpoints.key import KEY_FILE
from lightning_hpo.errors import WRONG_CALL, StorageError, StudyMismatchError
from lightning_hpo.study.journal import JOURNAL
from lightning_hpo.study.storage_errors import readable_errors
from lightning_hpo.study.trial_folders import OWNER
from lightning_hpo.text import hide_passwords

LOCAL = "LIGHTNING_HPO_RUNS"
"""Environment variable: folder of the runs whose ``root`` is a URL."""
_RECORD = "copies.json"
_KEPT = ".copies"
_BLOCK = 1 << 20  # bytes
_STAYS = {KEY_FILE, _RECORD, "lock", "turn", "lease", "worker.lock", "owner.json", "ranks.json", "progress.json"}
_FLATTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/(?!/)")  # what a Path makes of a URL


def is_url(root: str | Path) -> bool:
    """Whether a root is a URL, not a folder."""
    return isinstance(root, str) and "://" in root


def validate_root(root: str | Path) -> None:
    """Raise ValueError or ImportError for a URL that fsspec cannot open, or a Path that was a URL."""
    if _FLATTENED.match(str(root)):
        reason = "and a Path is no URL: give it as text" if isinstance(root, Path) else "which is no URL: write '://'"
        raise ValueError(f"`root` is {root!r}, {reason}.")
    if not is_url(root):
        return
    if re.match(r"(file|local)://(?![A-Za-z]:)[^/]", str(root)):
        raise ValueError(f"`root` is {root!r}, and a folder of this machine has three slashes: 'file:///folder/runs'.")
    import fsspec  # noqa: PLC0415  # few runs need it

    try:
        fsspec.get_filesystem_class(fsspec.core.split_protocol(root)[0])
    except ValueError:
        raise ValueError(
            f"`root` is {hide_passwords(str(root))!r}, which fsspec does not know: give a folder, or a URL such as "
            "'s3://bucket/runs'."
        ) from None
    except ImportError as error:
        missing = ImportError(f"`root` is {hide_passwords(str(root))!r}: {error}")
        missing.exit_code = WRONG_CALL  # type: ignore[attr-defined]  # read by errors.exit_code
        raise missing from None


def local_root(root: str | Path) -> str | Path:
    """Return the folder of the runs: ``root`` itself, unless it is a URL."""
    return os.environ.get(LOCAL, "runs") if is_url(root) else root


class Remote:
    """The copy of a run in a store.

    Raises:
        StorageError: if the store does not take a file and give it back.
    """

    def __init__(self, root: str, folder: Path) -> None:
        import fsspec  # noqa: PLC0415  # few runs need it

        url = f"{root.rstrip('/')}/{folder.name}"
        self.url = hide_passwords(url)
        """For messages."""
        self._folder = folder
        with self._explained():
            self._store, self._path = fsspec.core.url_to_fs(url)
            probe = f".writable.{secrets.token_hex(4)}"
            self._put(probe, io.BytesIO(probe.encode()))
            self._remove(probe)
        sizes = self._sizes()
        self._length = sizes.get(JOURNAL, 0)  # of the journal in the store
        self._copied = self._recorded(sizes)  # other files there, with the signatures of ours
        self._gone: set[str] = set()  # of them, not here any more at the beginning of the last round
        self._lock = threading.Lock()  # of the next two
        self._kept: dict[str, Path] = {}  # files of trials as they were when `keep` was called
        self._length_kept = 0  # of the journal then
        self.forget()

    def set_aside(self) -> None:
        """Rename the copy, so that a run of its name begins anew."""
        with self._explained():
            if self._store.exists(self._path):
                aside = f"{self._path}.old-{time.strftime('%Y%m%dT%H%M%S')}-{secrets.token_hex(2)}"
                self._store.mv(self._path, aside, recursive=True)
        self._length, self._copied = 0, {}

    def restore(self) -> int:
        """Bring the files back if the store has more of the study than this machine; return how many came.

        Raises:
            StudyMismatchError: if the study here and the study there have gone on in different ways.
            StorageError: if a file cannot be read.
        """
        here, there = _journal_of(self._folder), b""
        with self._explained():
            if self._length:
                there = self._store.cat_file(self._place(JOURNAL))
        if here.startswith(there):
            trials = {path.name for path in (self._folder / "trials").glob("*")}
            return self._bring([name for name in self._sizes() if there and _is_below(name, "trials", but=trials)])
        if not there.startswith(here):
            raise StudyMismatchError(
                f"the study in {self._folder} and its copy at {self.url} have gone on in different ways: choose "
                "another `name`, or move one of them away to go on with the other"
            )
        return self._bring(sorted({*self._sizes(), JOURNAL}, key=lambda name: name == JOURNAL))

    def _bring(self, names: Sequence[str]) -> int:
        with readable_errors(self._folder):
            for name in names:
                path = self._folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as target:
                    for block in self._blocks(self._place(name)):
                        target.write(block)
                if name != JOURNAL:
                    self._copied[name] = _signature(path.stat())
        self._record()
        return len(names)

    def keep(self, folders: Iterable[Path]) -> None:
        """Keep the journal and the files of trials as they are now, for :meth:`copy`.

        Args:
            folders: of trials that are not at work, or are about to be.

        Raises:
            OSError: if there is no room for them.
        """
        with self._lock:
            for path in (path for folder in folders if folder.is_dir() for path in folder.iterdir()):
                name = path.relative_to(self._folder).as_posix()
                is_file = _is_kept(name) and path.is_file() and not path.is_symlink()
                if is_file and self._copied.get(name) != _signature(path.stat()):
                    self._keep(name, path)
            with contextlib.suppress(FileNotFoundError):
                self._length_kept = (self._folder / JOURNAL).stat().st_size

    def _keep(self, name: str, path: Path) -> None:
        kept = self._kept.setdefault(name, self._folder / _KEPT / secrets.token_hex(8))
        kept.parent.mkdir(exist_ok=True)
        kept.unlink(missing_ok=True)
        try:
            os.link(path, kept)
        except OSError:  # a file system without hard links
            shutil.copy2(path, kept)

    def forget(self) -> None:
        """Forget what was kept."""
        with self._lock:
            self._kept = {}
            shutil.rmtree(self._folder / _KEPT, ignore_errors=True)

    def missing(self) -> list[str]:
        """Names of the files that the store has not, has in an older version, or has too many."""
        journal = [JOURNAL] if self._length != len(_journal_of(self._folder)) else []
        new = [name for name, path in self._files() if self._copied.get(name) != _signature(path.stat())]
        return [*journal, *new, *self._absent()]

    @property
    def is_ahead(self) -> bool:
        """Whether the store has more of the study than the run folder, which was then deleted while the search ran."""
        return len(_journal_of(self._folder)) < self._length

    def copy(self, at_work: Collection[Path] = (), *, last: bool = False) -> None:
        """Copy what is new: what was kept, the journal of that time, and files that no decision depends on.

        Args:
            at_work: folders of the trials whose logs are left out.
            last: nothing is at work any more, so everything is copied as it is.

        Raises:
            StorageError: if the store cannot be used, somebody else has written there, or the run folder was deleted.
        """
        if self.is_ahead:
            raise StorageError(f"{self._folder} was deleted or moved while the search ran")
        gone = self._absent()
        with self._explained():
            self._compare()
            length = None if last else self._copy_kept()
            for name, path in self._files():
                if last or not (_is_of_trial(name) or any(path.is_relative_to(folder) for folder in at_work)):
                    self._copy(name, path)
            if len(journal := _journal_of(self._folder)[:length]) != self._length:
                self._put(JOURNAL, io.BytesIO(journal))
                self._length = len(journal)
            for name in gone if last else gone & self._gone:
                self._remove(name)
                del self._copied[name]
            self._gone = gone
        self._record()

    def _compare(self) -> None:
        """Raise OSError if the journal in the store is no older version of ours; else go by what is there."""
        sizes = self._sizes()
        if sizes.get(JOURNAL, 0) == self._length:
            return
        there = self._store.cat_file(self._place(JOURNAL)) if JOURNAL in sizes else b""
        if not _journal_of(self._folder).startswith(there):
            raise OSError("another process has changed the study there")
        self._length = len(there)  # of a write whose answer was lost
        self._copied = {name: known for name, known in self._copied.items() if sizes.get(name) == known[1]}

    def _copy_kept(self) -> int:
        """Copy the files that were kept, and return the length of the journal then."""
        with self._lock:
            kept, self._kept, length = self._kept, {}, self._length_kept
        try:
            for name in [*kept]:
                self._copy(name, kept[name])
                kept.pop(name).unlink(missing_ok=True)
        finally:
            with self._lock:
                for name in kept.keys() & self._kept.keys():  # kept anew meanwhile
                    kept.pop(name).unlink(missing_ok=True)
                self._kept.update(kept)
        return length

    def _copy(self, name: str, path: Path) -> None:
        """Copy a file, unless the store has it or it was removed this moment."""
        try:
            source = path.open("rb")
        except FileNotFoundError:
            return
        with source:
            signature = _signature(os.fstat(source.fileno()))
            if self._copied.get(name) != signature:
                self._put(name, source)
                self._copied[name] = signature

    def _absent(self) -> set[str]:
        """Names of the files that only the store has."""
        return {name for name in self._copied if not (self._folder / name).exists()}

    def _put(self, name: str, source: BinaryIO) -> None:
        """Write a file, and give it its name once what is read back has the same hash."""
        place = PurePosixPath(self._place(name))
        part = str(place.with_name(f".{place.name}.part"))
        self._store.makedirs(str(place.parent), exist_ok=True)
        ours, theirs = hashlib.sha256(), hashlib.sha256()
        with self._store.open(part, "wb") as target:
            while block := source.read(_BLOCK):
                ours.update(block)
                target.write(block)
        for block in self._blocks(part):
            theirs.update(block)
        if ours.digest() != theirs.digest():
            raise OSError(f"{name} is not read back as it was written")
        self._store.mv(part, str(place))

    def _blocks(self, place: str) -> Iterator[bytes]:
        """Read a file of the store; an error of the block that takes the bytes is not one of the store."""
        with self._explained(), self._store.open(place, "rb") as source:
            while block := source.read(_BLOCK):
                yield block

    def _remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._store.rm(self._place(name))

    def _sizes(self) -> dict[str, int]:
        """Return the sizes of the files in the store that belong to the run, by their name in the run folder."""
        with self._explained():
            self._store.invalidate_cache()
            found: dict[str, dict[str, Any]] = self._store.find(self._path, detail=True)
        names = {path[len(self._path) :].strip("/"): status["size"] for path, status in found.items()}
        return {name: size for name, size in names.items() if _is_kept(name)}

    def _recorded(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, int]]:
        """Return the files that the store has, as far as a record of this folder says so."""
        try:
            record = json.loads((self._folder / _RECORD).read_text())
            files = dict(record["files"]) if record["url"] == self.url else {}
        except (OSError, ValueError, LookupError, TypeError):
            return {}
        return {name: (written, size) for name, (written, size) in files.items() if sizes.get(name) == size}

    def _record(self) -> None:
        with readable_errors(self._folder):
            atomic_write(self._folder / _RECORD, json.dumps({"url": self.url, "files": self._copied}))

    def _files(self) -> Iterator[tuple[str, Path]]:
        for path in sorted(self._folder.rglob("*")):
            name = path.relative_to(self._folder).as_posix()
            if _is_kept(name) and name != JOURNAL and path.is_file() and not path.is_symlink():
                yield name, path

    def _place(self, name: str) -> str:
        return f"{self._path}/{name}"

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn whatever a store raises into a StorageError that names it."""
        try:
            yield
        except StorageError:
            raise
        except Exception as error:
            reason = hide_passwords(f"{type(error).__name__}: {error}".splitlines()[0])
            raise StorageError(f"{self.url}, the copy of the run, cannot be used: {reason}") from error


def _is_kept(name: str) -> bool:
    """Whether a file of a run belongs into the store, and may come from there."""
    parts = PurePosixPath(name).parts
    return bool(parts) and parts[-1] not in _STAYS and not any(part[0] == "." and part != OWNER for part in parts)


def _is_below(name: str, folder: str, *, but: Collection[str]) -> bool:
    """Whether a file is in a folder of the run, and not below these folders in it."""
    parts = PurePosixPath(name).parts
    return parts[0] == folder and len(parts) > 2 and parts[1] not in but


def _is_of_trial(name: str) -> bool:
    """Whether a file is in the folder of a trial itself, as its checkpoints are, and not its logs."""
    parts = PurePosixPath(name).parts
    return len(parts) == 3 and parts[0] == "trials"


def _journal_of(folder: Path) -> bytes:
    """Return the whole lines of a journal; empty if there is none."""
    try:
        content = (folder / JOURNAL).read_bytes()
    except FileNotFoundError:
        return b""
    return content[: content.rfind(b"\n") + 1]


def _signature(status: os.stat_result) -> tuple[int, int]:
    return status.st_mtime_ns, status.st_size
