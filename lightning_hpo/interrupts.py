"""Ctrl-C, SIGTERM and a closed terminal (SIGHUP) mean pause; a second Ctrl-C means now."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

PAUSING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StudyPaused(SystemExit):  # a way to leave, not an error
    """The search was interrupted by a signal; everything is saved and the same call continues it.

    Its code is 128 + the signal's number, so a script ends with 130 (Ctrl-C), 143 (SIGTERM) or 129 (SIGHUP).
    """


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
    """Turn SIGINT, SIGTERM and SIGHUP into a wish to pause while the block runs; in other threads nothing.

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

    taken = [number for number in PAUSING if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handle) for number in taken}
    try:
        yield interrupts
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
