"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP) mean pause; a second Ctrl-C means now.

In a job of SLURM, SIGUSR1 does too: it is sent before the time limit. Lightning leaves a signal that has a handler
alone, so its own way to requeue a job, from a checkpoint that no tuner knows, is not taken.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_CLOSED: signal.Signals | None = getattr(signal, "SIGHUP", None)  # Windows has none
_ENDING = signal.SIGUSR1 if "SLURM_JOB_ID" in os.environ else None
PAUSING = (signal.SIGINT, signal.SIGTERM, *(number for number in (_CLOSED, _ENDING) if number is not None))

Handler = Callable[[int, FrameType | None], Any]


class LocalHandler:
    """A signal handler that does nothing of its own in processes that user code forks: a pool must be able to end them.

    Args:
        handle: what a signal does in this process.
        before: handler of the signal that holds in forked processes.
    """

    def __init__(self, handle: Handler, before: Any) -> None:
        self._handle = handle
        self.before = before
        self.processes = {os.getpid()}  # in which it acts

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Act, or let the handler before act."""
        if os.getpid() in self.processes:
            self._handle(number, frame)
            return
        signal.signal(number, signal.SIG_DFL if self.before is None else self.before)
        os.kill(os.getpid(), number)


def act_here() -> None:
    """Let the handlers that this process has inherited act in it."""
    for number in PAUSING:
        handler = signal.getsignal(number)
        while isinstance(handler, LocalHandler):
            handler.processes.add(os.getpid())
            handler = handler.before


class Interrupts:
    """Which signal has come, if any."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.listeners: list[Callable[[], None]] = []  # called when the first signal comes

    def pause_wanted(self) -> bool:
        """Whether work should be saved and stopped now."""
        return self.received is not None


@contextmanager
def pausing_signals() -> Iterator[Interrupts]:
    """Turn the signals of :data:`PAUSING` into a wish to pause while the block runs; in other threads nothing.

    A second SIGINT raises KeyboardInterrupt. A SIGHUP that is ignored, as under ``nohup``, stays so.
    """
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001  # the signal module's signature
        if number == signal.SIGINT and interrupts.received is not None:
            raise KeyboardInterrupt
        if interrupts.received is not None:
            return
        interrupts.received = signal.Signals(number)
        for listener in interrupts.listeners:
            listener()

    taken = [number for number in PAUSING if number != _CLOSED or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.getsignal(number) for number in taken}
    for number in taken:
        signal.signal(number, LocalHandler(handle, before[number]))
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def handlers_kept() -> Iterator[None]:
    """Install the handlers of :data:`PAUSING` again after the block, whatever it has put in their place."""
    before = {number: signal.getsignal(number) for number in PAUSING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                if handler is not None:  # None was not installed by Python
                    signal.signal(number, handler)
