"""Whole files: what a path names is the old content or the new, at any moment, and never another user's file.

A symbolic link that somebody planted is not followed. At the path itself it is replaced; the unfinished file beside it
has a name that nobody can foresee, and must not exist before.
"""

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


def atomic_write(path: Path, data: str | bytes) -> None:
    """Write a file so that no moment, kill or full disk leaves a part of it.

    Args:
        path: of the file; a symbolic link there is replaced, and what it names stays as it is.
        data: its content; text is written as UTF-8.

    Raises:
        OSError: if it cannot be written. The old file is then still there.
    """
    with replacing(path) as file:
        file.write(data.encode() if isinstance(data, str) else data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that takes the place of ``path`` when the block has ended; if it raises, the old file stays."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with os.fdopen(open_new(fresh), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


def open_new(path: Path) -> int:
    """Open a file that does not exist yet, not even as a symbolic link, and return its handle."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK, 0o666)


def open_own(path: Path, flags: int) -> int:
    """Open a file, made if it is missing and ``flags`` say so, and return its handle.

    Raises:
        OSError: with ELOOP, if it is a symbolic link: it may name a file that is not ours.
    """
    try:
        return os.open(path, flags | _NO_LINK, 0o666)
    except OSError as error:
        if error.errno not in (errno.ELOOP, errno.EMLINK):
            raise
        reason = "it is a symbolic link, which is not followed; remove it"
        raise OSError(errno.ELOOP, reason, str(path)) from None


_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
