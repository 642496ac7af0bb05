"""Checkpoints that are whole or absent: written beside the target, synced, renamed, and verified on every load.

A sealed checkpoint is an ordinary torch file whose zip comment ends with the SHA-256 of everything before it. So the
hash can never be separated from the file, and ``torch.load`` and ``load_from_checkpoint`` read it without us.
Loading always passes ``weights_only=True``: nothing stored in a checkpoint is ever executed.
"""

import contextlib
import hashlib
import os
import struct
import time
from pathlib import Path
from typing import Any, BinaryIO

_TAG = b"sha256:"
_TRAILER = len(_TAG) + 64
# The end-of-central-directory record closes every zip file; torch writes no comment after it (APPNOTE 4.3.16).
_END_RECORD = 22
_END_SIGNATURE = b"PK\x05\x06"
_BLOCK = 1 << 18  # bytes that are hashed and written together: torch writes in many small pieces


class DamagedCheckpointError(RuntimeError):
    """A checkpoint is torn, changed, or was not written by :func:`save`."""


def save(state: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write ``state`` so that a crash at any moment leaves the old file or the new one, never a part.

    The file that stood at ``path`` is kept as :func:`previous_of` until the next save.

    Args:
        state: tensors and plain Python values (what ``weights_only=True`` can load).
        path: target file; missing folders are made.

    Raises:
        OSError: if the file cannot be written (full disk, no permission). The old file is untouched then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_sealed(state, fresh)
        if path.exists():
            _keep_previous(path)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load(path: str | os.PathLike[str], map_location: Any = "cpu") -> dict[str, Any]:
    """Verify and read a checkpoint.

    Args:
        path: a file that :func:`save` wrote.
        map_location: as in ``torch.load``.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedCheckpointError: if the content is not what was written, or holds more than tensors and plain values.
    """
    import torch  # noqa: PLC0415  # heavy, and a search over a plain function reads no checkpoint

    verify(path)
    try:
        state: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:
        if type(error).__name__ != "UnpicklingError":
            raise
        reason = str(error).strip().splitlines()[0]
        raise DamagedCheckpointError(f"{path} was refused, nothing in it was executed: {reason}") from error
    return state


def verify(path: str | os.PathLike[str]) -> None:
    """Compare a checkpoint with the hash it carries.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedCheckpointError: if any bit differs, or the file carries no hash.
    """
    with Path(path).open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - 64, 0))
        expected = file.read()
        file.seek(0)
        actual = _digest(file, max(size - 64, 0))
    if size < _TRAILER + _END_RECORD or expected != actual.encode():
        raise DamagedCheckpointError(f"{path} is damaged or was not written by lightning_hpo: its SHA-256 differs.")


def newest_intact(path: str | os.PathLike[str]) -> tuple[Path | None, list[Path]]:
    """Find what can be resumed from.

    Args:
        path: the newest checkpoint, with :func:`previous_of` behind it.

    Returns:
        The newer of the two files that is intact, or None; and those that are damaged.
    """
    damaged: list[Path] = []
    for candidate in (Path(path), previous_of(path)):
        try:
            verify(candidate)
        except FileNotFoundError:
            continue
        except DamagedCheckpointError:
            damaged.append(candidate)
        else:
            return candidate, damaged
    return None, damaged


def set_aside(path: str | os.PathLike[str]) -> Path:
    """Move a damaged file to ``<name>.corrupt-<time>`` beside it, for people to look at, and return where it is."""
    path = Path(path)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    names = (path.with_name(f"{path.name}.corrupt-{stamp}{suffix}") for suffix in ("", *map("-{}".format, range(100))))
    target = next(name for name in names if not name.exists())
    path.replace(target)
    return target


def previous_of(path: str | os.PathLike[str]) -> Path:
    """Where :func:`save` keeps the file it replaces: ``last.ckpt`` -> ``last.previous.ckpt``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a checkpoint and its predecessor, and what a killed save left behind; files of others stay."""
    path = Path(path)
    remove_leftovers(path)
    for file in (path, previous_of(path)):
        if _is_sealed(file):
            file.unlink()


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete unfinished files that killed processes left beside ``path``."""
    path = Path(path)
    for leftover in path.parent.glob(f".{path.name}.*.tmp"):
        leftover.unlink(missing_ok=True)


def _is_sealed(path: Path) -> bool:
    """Whether a file ends as :func:`save` ends it."""
    try:
        with path.open("rb") as file:
            file.seek(-_TRAILER, os.SEEK_END)
            return file.read(len(_TAG)) == _TAG
    except OSError:  # no such file, or a shorter one
        return False


def _write_sealed(state: dict[str, Any], path: Path) -> None:
    import torch  # noqa: PLC0415  # as in load()

    with path.open("wb") as file:
        sealing = _Sealing(file)
        try:
            torch.save(state, sealing)  # type: ignore[arg-type]  # it only writes and flushes
        except RuntimeError as error:  # torch's writer reports a full disk in this way
            raise OSError(f"{path} could not be written: {error}") from error
        sealing.finish()
        os.fsync(file.fileno())


class _Sealing:
    """Passes a zip file on as it is written, hashes it, and gives it a comment with the hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._held = bytearray()  # what is not yet passed on; the last bytes may be the end record

    def write(self, data: bytes) -> int:
        if len(data) < _BLOCK:
            self._held += data
        else:  # a large tensor is not copied
            self._pass(self._held)
            self._pass(memoryview(data)[:-_END_RECORD])
            self._held = bytearray(data[-_END_RECORD:])
        if len(self._held) >= _BLOCK:
            self._pass(self._held[:-_END_RECORD])
            del self._held[:-_END_RECORD]
        return len(data)

    def flush(self) -> None:
        self._file.flush()

    def finish(self) -> None:
        if self._held[-_END_RECORD:][: len(_END_SIGNATURE)] != _END_SIGNATURE:
            raise OSError("torch wrote no zip file that ends without a comment, so it cannot be sealed.")
        self._pass(self._held[:-2] + struct.pack("<H", _TRAILER) + _TAG)  # the length of the comment, and its beginning
        self._file.write(self._digest.hexdigest().encode())
        self._file.flush()

    def _pass(self, data: bytearray | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)


def _digest(file: Any, length: int) -> str:
    digest = hashlib.sha256()
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
    return digest.hexdigest()


def _keep_previous(path: Path) -> None:
    """Give the old file its second name while it still has the first, so that one of the two is always there."""
    spare = path.with_name(f".{path.name}.previous.{os.getpid()}.tmp")
    try:
        with contextlib.suppress(FileExistsError):
            os.link(path, spare)
        spare.replace(previous_of(path))
    except OSError:  # a file system without hard links
        path.replace(previous_of(path))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
