"""The key of a run folder: with it, a checkpoint that this run wrote is told from one that somebody else put there.

It is a file of random bytes that only its owner may read and write (mode 0600). The key counts only as long as that is
so, and as long as it belongs to who runs this process: a key that another user has put in its place is not used. It is
kept nowhere else: not in the study, not in a checkpoint, not in a message.
"""

import contextlib
import hmac
import os
import secrets
import stat
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

KEY_FILE = "seal.key"
_LETTERS = 64
# Neither a link that leads elsewhere is followed, nor a pipe waited for.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_TRIES = 5  # another process that starts may tidy an unfinished file away


@dataclass(frozen=True)
class Key:
    """Signs what a run writes; without a secret it signs nothing and knows nothing as its own.

    Args:
        secret: never shown.
        missing: why there is no secret, for messages.
    """

    secret: bytes | None = field(default=None, repr=False)
    missing: str = "no key was given to read it with"

    @classmethod
    def new(cls) -> Self:
        """Make a key that ends with this process and those it is sent to."""
        return cls(secrets.token_hex(_LETTERS // 2).encode())

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Read the key of a folder, if it has one that only this user can have written."""
        file = folder / KEY_FILE
        try:
            handle = os.open(file, os.O_RDONLY | _NO_LINK)
        except FileNotFoundError:
            return cls(missing=f"there is no {file}")
        except OSError as error:
            return cls(missing=f"{file} cannot be used: {error.strerror}")
        try:
            problem = _problem(os.fstat(handle))
            secret = b"" if problem else os.read(handle, _LETTERS + 1)
        finally:
            os.close(handle)
        if problem is None and len(secret) != _LETTERS:
            problem = "it is damaged"
        return cls(secret) if problem is None else cls(missing=f"{file} cannot be used: {problem}")

    @classmethod
    def made_in(cls, folder: Path) -> Self:
        """Read the key of a folder, or make it; of several processes that do so at once, all get the same one."""
        for _ in range(_TRIES):
            if os.path.lexists(folder / KEY_FILE):
                break
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                _make(folder)
        return cls.of(folder)

    def sign(self, content: bytes) -> bytes | None:
        """Return the signature of ``content`` in 64 letters, or None without a secret."""
        return None if self.secret is None else hmac.new(self.secret, content, "sha256").hexdigest().encode()


NO_KEY = Key()


def _make(folder: Path) -> None:
    """Write a key beside its place and give it its name, unless another process was faster."""
    handle, name = tempfile.mkstemp(prefix=f".{KEY_FILE}.", suffix=".tmp", dir=folder)  # mode 0600
    fresh = Path(name)
    try:
        with os.fdopen(handle, "wb") as opened:
            opened.write(secrets.token_hex(_LETTERS // 2).encode())
            opened.flush()
            os.fsync(handle)
        try:
            os.link(fresh, folder / KEY_FILE)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links
            fresh.rename(folder / KEY_FILE)
    finally:
        fresh.unlink(missing_ok=True)


def _problem(status: os.stat_result) -> str | None:
    """Why a file is no secret of this user, or None."""
    if not stat.S_ISREG(status.st_mode):
        return "it is not a file"
    if os.name == "nt":  # neither owner nor mode say anything there
        return None
    if status.st_uid != os.geteuid():
        return "it belongs to another user"
    if status.st_mode & 0o077:
        return f"its mode is {stat.S_IMODE(status.st_mode):04o}, so it is no secret; chmod 600 makes it one again"
    return None
