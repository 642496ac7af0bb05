"""A worker process: how it is started, given jobs, watched and replaced, and the function that runs in it.

Every worker imports this module, so it imports neither torch nor Lightning: a job imports what it needs.
"""

import contextlib
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from types import FrameType
from typing import Any

from lightning_hpo.errors import (
    UNFORESEEN,
    JobError,
    ParameterMismatchError,
    WorkerStartError,
    exit_code,
    failure_text,
    free_frames,
)
from lightning_hpo.executors.watchdog import IdleTime
from lightning_hpo.interrupts import PAUSING, LocalHandler
from lightning_hpo.quiet import hide_known_warnings
from lightning_hpo.records import Outcome, Task, Work

SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
_READY = "ready"
_GUARD = (
    "`workers` > 1 starts processes that import the main script again, so what the script does must be under "
    '`if __name__ == "__main__":`, and model, data and function must be importable by name'
)
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL


def validate_not_starting() -> None:
    """Raise WorkerStartError in a process of multiprocessing that is still importing the main script."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise WorkerStartError(f"{_GUARD}.")


def validate_can_start(workers: int) -> None:
    """Raise ValueError in a process that cannot start worker processes."""
    if not hasattr(os, "setpgid"):
        raise ValueError(
            f"`workers` is {workers}, but this system has no process groups, in which worker processes end together: "
            "give workers=1 and isolate=False."
        )
    if multiprocessing.current_process().daemon:
        raise ValueError(
            f"`workers` is {workers}, but this process is daemonic, as in a multiprocessing.Pool, and may not start "
            "others: give workers=1 and isolate=False, or start it with daemon=False, as "
            "concurrent.futures.ProcessPoolExecutor does."
        )


@dataclass(frozen=True)
class _Failure:
    """Answer of a worker to a job that raised: the text, and the exception that the parent raises.

    Args:
        text: of the failure.
        kind: class of the exception in the parent.
        ends_search: whether the search ends with it.
        exit_code: of a script that it ends.
    """

    text: str
    kind: type[Exception]
    ends_search: bool = False
    exit_code: int = UNFORESEEN

    def error(self) -> Exception:
        """Return the exception that the parent raises."""
        error = self.kind(self.text)
        if self.ends_search:
            error.ends_search, error.exit_code = True, self.exit_code  # type: ignore[attr-defined]  # read by the loop
        return error


@dataclass(frozen=True)
class WorkerResources:
    """GPUs and threads of a worker."""

    gpus: str | None
    threads: int


class WorkerProcess:
    """A worker process that is started again when it has died; a thread waits for the answer to each job.

    Args:
        arguments: of :func:`_serve`, after the connection and the progress.
        limit: seconds without progress, or None.
        retries: of a job whose process has died.
    """

    def __init__(self, arguments: tuple[Work, Any, WorkerResources], *, limit: float | None, retries: int) -> None:
        self._arguments = arguments
        self._limit = limit
        self._retries = retries
        self._progress: Any = SPAWN.RawValue("Q", 0)  # counts the calls of should_pause
        self._process: Any = None
        self._connection: Connection | None = None
        self._future: Future[Outcome] | None = None
        self._stopping = False
        self.last_trial: int | None = None

    @property
    def free(self) -> bool:
        """Whether the worker can take a job."""
        return self._future is None or self._future.done()

    def start(self) -> None:
        """Start the process."""
        ours, theirs = SPAWN.Pipe()
        process = SPAWN.Process(target=_serve, args=(theirs, self._progress, *self._arguments), daemon=False)
        # A signal to the whole group must not hit the worker before it can handle one; it inherits the mask, which the
        # tracker of multiprocessing would change if the worker started it.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, PAUSING)
        try:
            process.start()
            self._process = process
        except Exception as error:
            if type(error).__name__ not in ("AttributeError", "TypeError", "PicklingError"):
                raise
            raise TypeError(  # not picklable
                "`workers` > 1 needs a model, data module or function that can be imported by name, "
                f"not a lambda or a local class: {error}"
            ) from None
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._connection = ours

    def wait_until_ready(self) -> None:
        """Wait until the process has imported everything.

        Raises:
            WorkerStartError: if it ends instead.
        """
        assert self._connection is not None
        try:
            self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise WorkerStartError(
                f"a worker process {_end(self._process.exitcode)} before it was ready; what it said is above. {_GUARD}."
            ) from None

    def submit(self, task: Task) -> "Future[Outcome]":
        """Send a job, to a new process if the old one has died."""
        self.last_trial = task.job.trial
        self._future = Future()
        threading.Thread(target=self._attend, args=(self._future, task), daemon=True).start()
        return self._future

    def stop(self, *, patient: bool) -> None:
        """End the process: at once, or after a job that is still at work."""
        self._stopping = True
        if self._process is None:
            return
        if patient and self._process.is_alive():
            assert self._connection is not None
            with contextlib.suppress(OSError):  # it has just died
                self._connection.send(None)
            self._process.join(timeout=_GRACE)
        self._kill()

    def _attend(self, future: "Future[Outcome]", task: Task) -> None:
        """Set the result or the exception of a job's future."""
        answer: Outcome | _Failure | JobError
        for _ in range(1 + self._retries):
            try:
                answer = self._answer(task)
                break
            except JobError as death:
                answer = death
                if self._stopping:
                    break
            except Exception as error:  # noqa: BLE001  # a new process could not be started; the future carries it
                future.set_exception(error)
                return
        if isinstance(answer, JobError):
            future.set_exception(answer)
        elif isinstance(answer, _Failure):
            future.set_exception(answer.error())
        else:
            future.set_result(answer)

    def _answer(self, task: Task) -> "Outcome | _Failure":
        """Send a job and wait for the answer; raise JobError if the process dies or has to be ended."""
        if not self._process.is_alive():
            self.start()
            self.wait_until_ready()
        assert self._connection is not None
        idle = IdleTime(lambda: self._progress.value)
        try:
            self._connection.send(task)
            while not self._connection.poll(None if self._limit is None else min(self._limit / 10, 1.0)):
                assert self._limit is not None
                if idle.seconds() > self._limit:
                    self._process.terminate()
                    self._process.join(timeout=_GRACE)
                    self._kill()
                    raise JobError(f"no progress for {self._limit:g} s")
            answer: Outcome | _Failure = self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            while (code := self._process.exitcode) is None:  # another thread has just reaped it
                time.sleep(0.01)
            self._kill()
            raise JobError(f"the worker process {_end(code)}") from None
        return answer

    def _kill(self) -> None:
        """End the process and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no such group: all of it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _end(code: int) -> str:
    return (
        f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    )


def _serve(connection: Connection, progress: Any, work: Work, pause: Any, resources: WorkerResources) -> None:
    """Run in a worker: take a task, do it, answer; until the parent is gone or sends no more tasks."""
    os.setpgid(0, 0)
    hide_known_warnings()
    if resources.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = resources.gpus
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(resources.threads)
    else:  # the job may import it
        os.environ["OMP_NUM_THREADS"] = str(resources.threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    terminated = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        terminated.set()

    # It may be sent to a whole group: the job then saves first.
    signal.signal(signal.SIGTERM, LocalHandler(note, signal.SIG_DFL))
    for number in {*PAUSING} - {signal.SIGTERM}:  # the parent decides what they mean
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, PAUSING)

    def should_pause() -> bool:
        progress.value += 1
        return bool(pause.value) or terminated.is_set()

    gc.freeze()
    _send(connection, _READY)
    while (task := _next_task(connection)) is not None:
        progress.value += 1
        answer = carry_out(work, task, should_pause)
        terminated.clear()  # the job has saved and paused; the parent says what is next
        _send(connection, answer)
        gc.collect()


def carry_out(work: Work, task: Task, should_pause: Callable[[], bool]) -> Outcome | _Failure:
    """Carry out a job in a worker; an error becomes an answer, as the search records it."""
    try:
        return work(task, should_pause)
    except BaseException as error:  # noqa: BLE001  # the search records it
        from optuna import TrialPruned  # noqa: PLC0415  # a plain function does not need it

        kinds = (kind for kind in (ParameterMismatchError, TrialPruned) if isinstance(error, kind))
        ends = bool(getattr(error, "ends_search", False))
        failure = _Failure(failure_text(error), next(kinds, JobError), ends, exit_code(error))
        free_frames(error)
        return failure


def _send(connection: Connection, message: object) -> None:
    with _parent_alive():
        connection.send(message)


def _next_task(connection: Connection) -> Task | None:
    with _parent_alive():
        task: Task | None = connection.recv()
    return task


@contextlib.contextmanager
def _parent_alive() -> Iterator[None]:
    """End the whole group of this process if the other end of the connection is gone."""
    try:
        yield
    except (EOFError, OSError):
        os.killpg(0, signal.SIGKILL)
        raise


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
