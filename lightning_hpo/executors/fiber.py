"""A function that can be suspended anywhere inside: a thread that runs only while its owner waits for it."""

import contextvars
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lightning_hpo.training.random_state import rng_state, set_rng_state


class Cancelled(BaseException):
    """Raised where a fiber was suspended, to end it."""


class Fiber:
    """Runs ``function`` in slices. Exactly one of owner and fiber runs at any time.

    The global random number generators belong to whoever runs: each fiber finds them as it left them.

    Args:
        function: called with nothing at the first :meth:`resumed`; calls :meth:`suspend` to end a slice.
    """

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._mine = threading.Semaphore(0)
        self._owners = threading.Semaphore(0)
        self._random = rng_state()
        self._cancelled = False
        self._threads = torch.get_num_threads()
        self._thread: threading.Thread | None = None
        self.result: Any = None
        self.error: BaseException | None = None
        self.done = False

    @contextmanager
    def resumed(self) -> Iterator[threading.Semaphore]:
        """Let the fiber run; the block is to acquire the semaphore, which waits until it suspends itself or ends.

        Afterwards :attr:`done`, :attr:`result` and :attr:`error` say which.
        """
        before = rng_state()
        set_rng_state(self._random)
        if self._thread is None:
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
            self._thread.start()
        else:
            self._mine.release()
        yield self._owners
        if self.done:
            self._thread.join()
        else:
            self._random = rng_state()
        set_rng_state(before)

    def suspend(self) -> None:
        """Give control back to the owner; to be called from within the function.

        Raises:
            Cancelled: if the owner wants the fiber to end.
        """
        self._owners.release()
        self._mine.acquire()
        if self._cancelled:
            raise Cancelled

    def cancel(self) -> None:
        """End a suspended fiber."""
        if self._thread is not None and not self.done:
            self._cancelled = True
            with self.resumed() as suspended:
                suspended.acquire()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread starts with all cores
        try:
            self.result = self._function()
        except BaseException as error:  # noqa: BLE001  # handed to the owner
            self.error = error
        finally:
            self.done = True
            self._owners.release()
