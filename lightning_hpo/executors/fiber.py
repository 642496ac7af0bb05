"""A function that can be suspended anywhere inside: a thread that runs only while its owner waits for it."""

import contextvars
import threading
from collections.abc import Callable

import torch

from lightning_hpo.training.random_state import rng_state, set_rng_state


class Cancelled(BaseException):
    """Raised where a fiber was suspended, to end it."""


class Fiber:
    """Runs ``function`` in slices. Exactly one of owner and fiber runs at any time.

    The global random number generators belong to whoever runs: each fiber finds them as it left them.

    Args:
        function: called with nothing at the first :meth:`resume`; calls :meth:`suspend` to end a slice.
    """

    def __init__(self, function: Callable[[], None]) -> None:
        self._function = function
        self._mine = threading.Semaphore(0)
        self._owners = threading.Semaphore(0)
        self._random = rng_state()
        self._cancelled = False
        self._threads = torch.get_num_threads()
        self._thread: threading.Thread | None = None
        self.error: BaseException | None = None
        self.done = False

    def resume(self) -> None:
        """Run until the fiber suspends itself or ends; :attr:`done` and :attr:`error` say which."""
        before = rng_state()
        set_rng_state(self._random)
        if self._thread is None:
            context = contextvars.copy_context()
            self._thread = threading.Thread(target=context.run, args=(self._run,), daemon=True)
            self._thread.start()
        else:
            self._mine.release()
        self._owners.acquire()
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
            self.resume()

    def _run(self) -> None:
        torch.set_num_threads(self._threads)  # a new thread starts with all cores
        try:
            self._function()
        except BaseException as error:  # noqa: BLE001  # handed to the owner
            self.error = error
        finally:
            self.done = True
            self._owners.release()
