"""A study as a journal: one line of JSON for each change, appended and synced (Optuna's JournalStorage).

A population writes one value per member and interval, and an interval may last only tens of milliseconds. Optuna's
SQLite takes about 2 ms of CPU for a value, 10 ms for a new trial and 0.2 s for a new file; its journal 0.3, 0.5 and 0.
``optuna-dashboard runs/<name>/study.journal`` shows it like any other study.

Each line begins with a checksum of the rest: ``{"crc32":"1c291ca3","op_code":...}``. Optuna passes over it, so its own
JournalStorage and the dashboard read and extend the journal. A single wrong bit is found and put right, as only one
change of one bit gives the checksum again. Other damage is named with its line.
"""

import contextlib
import fcntl
import io
import json
import logging
import os
import re
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import BaseJournalBackend

from lightning_hpo.atomic import atomic_write, open_own
from lightning_hpo.errors import StorageError

JOURNAL = "study.journal"
_CHECKED = re.compile(rb'\{"crc32":"([0-9a-f]{8})",')
_UNCHECKED = b'{"op_code":'  # how a line begins that Optuna itself has written
_TRIED = 16 * 1024  # bytes; in a longer damaged part the wrong bit is not searched for


class _Journal(BaseJournalBackend):
    """Optuna's journal with checksums, and with a lock that dies with its process.

    Optuna's own locks are files that outlive a killed process, which then block the next one for half a minute.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._line = self._place = 0  # number of the line to be read next, and where it begins

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write whole lines, and return when they are on the disk; on a full disk none of them."""
        lines = b"".join(map(_checked, logs))
        with _locked(self._file) as opened:
            end = opened.seek(0, os.SEEK_END)
            if end and os.pread(opened.fileno(), 1, end - 1) != b"\n":  # the process that wrote last was killed
                end = _repair(opened, self._file)
            try:
                while lines:
                    lines = lines[opened.write(lines) or 0 :]
                os.fsync(opened.fileno())
            except BaseException:
                with contextlib.suppress(OSError):
                    opened.truncate(end)
                raise

    def read_logs(self, log_number_from: int) -> Iterator[dict[str, Any]]:
        """Read the whole lines from a number on; what comes after them is about to be written."""
        if log_number_from != self._line:
            self._line = self._place = 0
        with self._file.open("rb") as opened:
            opened.seek(self._place)
            content = _mended(opened.read(), self._file, self._line)
        for line in content.split(b"\n")[:-1]:
            self._line += 1
            self._place += len(line) + 1
            if self._line > log_number_from:
                record: dict[str, Any] = json.loads(line)
                yield record


def open_journal(file: Path, begin: Callable[[JournalStorage], object]) -> JournalStorage:
    """Open a journal to write, or begin one; the caller holds the run's lock.

    A wrong bit is put right. What a killed process left of its last line moves to ``<name>.corrupt-<time>``: that
    change was never acknowledged.

    Args:
        file: of the journal.
        begin: writes what a new one starts with. It is written beside its place and moved there, so a process killed
            meanwhile leaves no empty journal.

    Raises:
        StorageError: if the file is empty, or has damage that cannot be put right.
    """
    if not file.exists():
        fresh = file.with_name(f".{file.name}.tmp")
        atomic_write(fresh, b"")
        begin(read_journal(fresh))
        fresh.replace(file)
    with _locked(file) as opened:
        _repair(opened, file)
    return read_journal(file)


def read_journal(file: Path) -> JournalStorage:
    """Open a journal to read, while somebody may be writing it.

    Raises:
        StorageError: if the file is damaged.
    """
    try:
        return JournalStorage(_Journal(file))
    except (ValueError, KeyError, TypeError) as error:  # of a line that means nothing
        raise StorageError(f"{file} is damaged: {type(error).__name__}: {error}.") from error


@contextmanager
def _locked(file: Path) -> Iterator[io.FileIO]:
    """Open a journal to write at its end, while no other process does so."""
    with io.FileIO(open_own(file, os.O_RDWR | os.O_APPEND), "r+") as opened:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield opened


def _repair(opened: io.FileIO, file: Path) -> int:
    """Put wrong bits right in place, move an unfinished last line away, and return where the file ends then."""
    opened.seek(0)
    content = opened.read()
    mended = _mended(content, file, 0)
    whole = mended.rfind(b"\n") + 1
    if whole == 0:
        raise StorageError(f"{file} is not a study: it is empty or damaged. Move it away to start a new one.")
    for place in (place for place, byte in enumerate(mended) if byte != content[place]):
        with file.open("rb+") as other:  # not through `opened`, which writes at the end whatever the place
            other.seek(place)
            other.write(mended[place : place + 1])
    if whole < len(content):
        aside = file.with_name(f"{file.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
        atomic_write(aside, content[whole:])
        opened.truncate(whole)
        logging.getLogger(__name__).warning(
            "the last line of %s was cut off by a kill or a full disk, and moved to %s", file, aside.name
        )
    os.fsync(opened.fileno())
    return whole


def _checked(log: dict[str, Any]) -> bytes:
    """Write a record as a line with its checksum."""
    rest = json.dumps(log, separators=(",", ":")).encode()[1:]
    return b'{"crc32":"%08x",%s\n' % (zlib.crc32(rest), rest)


def _holds(line: bytes | bytearray) -> bool:
    """Whether a line has a checksum and agrees with it."""
    begin = _CHECKED.match(line)
    return begin is not None and zlib.crc32(line[begin.end() :]) == int(begin[1], 16)


def _is_right(line: bytes) -> bool:
    """Whether a line agrees with its checksum, or can be read and is one that Optuna itself has written without one."""
    if not line.startswith(_UNCHECKED):
        return _holds(line)
    with contextlib.suppress(ValueError):
        return isinstance(json.loads(line), dict)
    return False


def _mended(content: bytes, file: Path, before: int) -> bytes:
    """Put wrong bits right, one in a line.

    Args:
        content: of the file, from the beginning of a line on.
        file: for messages.
        before: lines of the file before the content.

    Raises:
        StorageError: if a line is damaged otherwise.
    """
    *lines, tail = content.split(b"\n")
    if tail and _holds(tail[:-1]) and (tail[-1] ^ ord("\n")).bit_count() == 1:
        lines, tail = [*lines, tail[:-1]], b""
        _warn(before + len(lines), file)
    rest, mended = deque(lines), list[bytes]()
    while rest:
        line = rest.popleft()
        if not _is_right(line):
            number = before + len(lines) - len(rest)
            right = _one_bit_changed(line)
            if right is None and rest and not _is_right(rest[0]):  # a wrong bit that looks like the end of a line
                right = _one_bit_changed(line + b"\n" + rest.popleft())
            if right is None:
                raise StorageError(_damage(file, number, line))
            _warn(number, file)
            line = right
        mended.append(line)
    return b"\n".join([*mended, tail])


def _one_bit_changed(part: bytes) -> bytes | None:
    """Change the bit that makes every line of a part agree with its checksum; None if there is none."""
    tried = bytearray(part)
    for place in range(len(part) if len(part) <= _TRIED else 0):
        for bit in range(8):
            tried[place] ^= 1 << bit
            if all(map(_holds, tried.split(b"\n"))):
                return bytes(tried)
            tried[place] ^= 1 << bit
    return None


def _warn(number: int, file: Path) -> None:
    logging.getLogger(__name__).warning("a wrong bit in line %d of %s was put right", number, file)


def _damage(file: Path, number: int, line: bytes) -> str:
    """Say what is damaged, and how to go on."""
    trial = re.search(rb'"trial_id":(\d+)', line)
    about = f", which is about trial {int(trial[1])}" if trial else ""
    if number == 1:
        return f"{file} is damaged in its first line: put back a copy of it, or move it away to start a new study."
    keep = f"head -n {number - 1} {file.name} > {file.name}.new && mv {file.name}.new {file.name}"
    return (
        f"{file} is damaged in line {number}{about}: the checksum differs. Put back a copy of the file, or keep the "
        f"lines before, which are the study as it was then, and the same command goes on from there: `{keep}`."
    )
