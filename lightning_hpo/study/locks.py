"""File locks that the kernel frees when their process dies, however it dies. No clock and no heartbeat is involved."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from lightning_hpo.atomic import open_own

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # its absence is looked for

OWNER = "owner.json"
"""Beside the lock of a run: which process holds it, on which machine."""


def _nothing() -> None:
    pass


def hold(handle: int, path: Path, *, together: bool = False, wait: bool = True) -> Callable[[], None]:
    """Lock an open file (``flock``) and return what frees it before the file is closed.

    Where there is no ``flock``, the lock is that of filelock, on the file ``<path>.filelock``.

    Raises:
        BlockingIOError: if another process holds it, without ``wait``.
        ValueError: if ``together`` is asked for and there is no ``flock``.
    """
    if fcntl is not None:
        fcntl.flock(handle, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        return _nothing
    if together:
        raise ValueError(
            "shared=True needs locks that several processes can hold (flock), which this system lacks: leave it out, "
            "and give each process a name of its own."
        )
    from filelock import FileLock, Timeout  # noqa: PLC0415  # where there is flock, nobody waits for it to load

    lock = FileLock(f"{path}.filelock", timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout as error:
        raise BlockingIOError(f"{path} is locked") from error
    return lock.release


class Lock:
    """An advisory lock on a file (:func:`hold`), for one holder or for several together.

    It works between processes of one machine, and of several on a file system whose locks do (NFS since version 4). The
    file stays. A forked child, such as a worker of a DataLoader, does not keep the lock of a parent that has died.

    Args:
        path: of the lock's own file; its folder must exist.
    """

    _opened: ClassVar[set["Lock"]] = set()  # those with an open file, which a forked child closes

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None
        self._unlock: Callable[[], None] = _nothing

    def take(self, *, together: bool = False, wait: bool = False) -> bool:
        """Take the lock and say whether that worked.

        Args:
            together: hold it at the same time as others that say so.
            wait: until it is free.

        Raises:
            OSError: if the file cannot be opened, or is a symbolic link.
        """
        self._handle = open_own(self.path, os.O_RDWR | os.O_CREAT)
        self._opened.add(self)
        try:
            self._unlock = hold(self._handle, self.path, together=together, wait=wait)
        except BlockingIOError:
            self.free()
            return False
        except BaseException:
            self.free()
            raise
        return True

    def free(self) -> None:
        """Give the lock back, if it is held."""
        if self._handle is not None:
            self._unlock()
            self._unlock = _nothing
            self._opened.discard(self)
            os.close(self._handle)
            self._handle = None

    def write(self, text: str) -> None:
        """Leave a note in the file of a lock that is held."""
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.lseek(self._handle, 0, os.SEEK_SET)
        os.write(self._handle, text.encode())

    @classmethod
    def _free_all(cls) -> None:
        for lock in list(cls._opened):
            lock.free()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=Lock._free_all)  # noqa: SLF001  # of this file
