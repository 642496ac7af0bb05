"""File locks that the kernel frees when their process dies, however it dies. No clock and no heartbeat is involved."""

import fcntl
import os
from pathlib import Path

from lightning_hpo.atomic import open_own

_held: set[int] = set()  # file handles of all locks of this process


class Lock:
    """An advisory lock on a file (``flock``), for one holder or for several together.

    It works between processes of one machine, and of several on a file system whose locks do (NFS since version 4). The
    file stays. A forked child, such as a worker of a DataLoader, does not keep the lock of a parent that has died.

    Args:
        path: of the lock's own file; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle: int | None = None

    def take(self, *, together: bool = False, wait: bool = False) -> bool:
        """Take the lock and say whether that worked.

        Args:
            together: hold it at the same time as others that say so.
            wait: until it is free.

        Raises:
            OSError: if the file cannot be opened, or is a symbolic link.
        """
        handle = open_own(self.path, os.O_RDWR | os.O_CREAT)
        _held.add(handle)
        try:
            fcntl.flock(handle, (fcntl.LOCK_SH if together else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self._close(handle)
            return False
        except BaseException:
            self._close(handle)
            raise
        self._handle = handle
        return True

    def free(self) -> None:
        """Give the lock back, if it is held."""
        handle, self._handle = self._handle, None
        if handle is not None:
            self._close(handle)

    def write(self, text: str) -> None:
        """Leave a note in the file of a lock that is held."""
        assert self._handle is not None
        os.ftruncate(self._handle, 0)
        os.pwrite(self._handle, text.encode(), 0)

    @staticmethod
    def _close(handle: int) -> None:
        _held.discard(handle)
        os.close(handle)


def _close_in_child() -> None:
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_close_in_child)
