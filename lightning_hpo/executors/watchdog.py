"""Jobs that hang: noticed by their idle time, on the monotonic clock of the process that watches."""

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from lightning_hpo.errors import UNFORESEEN, last_line
from lightning_hpo.records import Task
from lightning_hpo.text import say


class IdleTime:
    """Time since a counter has last changed.

    Args:
        read: returns the counter.
    """

    def __init__(self, read: Callable[[], int]) -> None:
        self._read = read
        self._last = read()
        self._since = time.monotonic()

    def seconds(self) -> float:
        """Seconds since the counter was last seen to change."""
        now = self._read()
        if now != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since


class Watchdog:
    """Ends this process if a job in it makes no progress: nothing can stop a thread from outside.

    Args:
        limit: seconds without a change of :attr:`progress`.
    """

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self.progress = 0

    @contextmanager
    def watching(self, task: Task) -> Iterator[None]:
        """Watch while the block runs. A hang that holds the interpreter's lock cannot be noticed."""
        done = threading.Event()
        threading.Thread(target=self._watch, args=(task, done), daemon=True).start()
        try:
            yield
        finally:
            done.set()

    def _watch(self, task: Task, done: threading.Event) -> None:
        idle = IdleTime(lambda: self.progress)
        while not done.wait(min(self._limit / 10, 1.0)):
            if idle.seconds() > self._limit:
                faulthandler.dump_traceback(file=2)  # the file descriptor: sys.stderr may be replaced
                line = last_line(
                    f"no progress for {self._limit:g} s in trial {task.job.trial}; its stacks are above",
                    task.folder.parent.parent,
                    "run the same command to continue",
                )
                say(line, sys.__stderr__)
                os._exit(UNFORESEEN)
