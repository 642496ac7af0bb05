"""Where jobs run: in this process, or in worker processes that stay alive from job to job."""

import contextlib
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from types import FrameType, TracebackType
from typing import Any, Protocol, Self

import torch
from optuna import TrialPruned

from lightning_hpo.exits import WRONG_CALL
from lightning_hpo.failures import JobError, failure_text, let_go
from lightning_hpo.live import ParameterMismatchError
from lightning_hpo.objective import Outcome, Task
from lightning_hpo.watchdog import Silence, Watchdog

Work = Callable[[Task, Callable[[], bool]], Outcome]

_READY = "ready"
_STARTING = "LIGHTNING_HPO_WORKER_STARTING"  # in the environment of a worker until it has imported the main script
_GUARD = (
    "`workers` > 1 starts processes that import the main script again, so what the script does must be under "
    '`if __name__ == "__main__":`, and model, data and function must be importable by name'
)
_PAUSING = (signal.SIGINT, signal.SIGTERM)
_SPAWN = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
_one_starts = threading.Lock()  # the environment belongs to all threads
_GRACE = 10.0  # seconds between SIGTERM and SIGKILL


class RankLostError(RuntimeError):
    """Another rank of a distributed training did not come out of a job that failed here; the job is not done."""


class WorkerStartError(RuntimeError):
    """A worker process ended before it was ready for a job."""

    exit_code = WRONG_CALL


def refuse_in_starting_worker() -> None:
    """Raise WorkerStartError if a worker process that is importing the main script has come here."""
    if _STARTING in os.environ:
        raise WorkerStartError(f"{_GUARD}.")


class Executor(Protocol):
    """Runs jobs; ``submit`` never raises what the job raises, the future does."""

    @property
    def workers(self) -> int:
        """Jobs that can run at the same time."""

    def submit(self, task: Task) -> "Future[Outcome]":
        """Start a job."""


class InProcess:
    """Runs each job here and now.

    Args:
        work: carries out a task; its second argument says whether to pause.
        should_pause: handed to ``work``, which asks it after every optimizer step and validation batch.
        trial_timeout: seconds without such a question after which the job counts as hanging. A thread cannot be
            stopped from outside, so the stacks of all threads are printed and the process exits with code 1; the same
            command continues the trial from its checkpoint. None waits for ever.
    """

    workers = 1

    def __init__(self, work: Work, should_pause: Callable[[], bool], *, trial_timeout: float | None = None) -> None:
        self._work = work
        self._should_pause = should_pause
        self._watchdog = None if trial_timeout is None else Watchdog(trial_timeout)

    def __enter__(self) -> Self:
        # A Trainer and its module refer to each other, so only the collector frees them. What exists already stays;
        # set aside, it need not be looked through after every job.
        gc.freeze()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        gc.unfreeze()

    def submit(self, task: Task) -> "Future[Outcome]":
        """Run the job to its end and return its finished future."""
        future: Future[Outcome] = Future()
        try:
            with contextlib.nullcontext() if self._watchdog is None else self._watchdog.watching(task):
                future.set_result(self._work(task, self._asked))
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # the future carries it, SystemExit of user code too
            if isinstance(error.__context__, KeyboardInterrupt):  # Lightning makes an exit of Ctrl-C
                raise KeyboardInterrupt from error
            let_go(error)
            future.set_exception(error)
        gc.collect()
        return future

    def _asked(self) -> bool:
        if self._watchdog is not None:
            self._watchdog.progress += 1
        return self._should_pause()


class WorkerProcesses:
    """Runs jobs in processes of their own, which import everything once and then wait for the next job.

    A worker that crashes fails its job only; another takes its place. Workers end when this process does, however it
    ends. Each worker sees its share of the GPUs, if there are any. It leads a process group of its own, so that what
    the job has started ends with it.

    Args:
        work: as for :class:`InProcess`; it is sent to the workers, so it must be made of importable parts.
        workers: number of processes, >= 1.
        devices_per_trial: GPUs that each worker sees.
        trial_timeout: seconds without progress (see :class:`InProcess`) after which a job is ended: SIGTERM to its
            process, 10 s later SIGKILL to its group. None waits for ever.
        max_retries: how many times a job whose process died or was ended so is started again, from its last
            checkpoint. An exception of the job is not retried: it would come again.

    Raises:
        TypeError: if ``work`` cannot be sent to another process.
        WorkerStartError: if a worker cannot import what it needs.
    """

    def __init__(
        self,
        work: Work,
        workers: int,
        devices_per_trial: int = 1,
        *,
        trial_timeout: float | None = None,
        max_retries: int = 0,
    ) -> None:
        self.workers = workers
        self._pause: Any = _SPAWN.RawValue("b", 0)  # without a lock, which a killed worker would keep
        shares = gpu_shares(visible_gpus(), workers, devices_per_trial)
        threads = max(torch.get_num_threads() // workers, 1)
        self._slots = [
            _Slot((work, self._pause, _Place(share, threads)), limit=trial_timeout, retries=max_retries)
            for share in shares
        ]

    def __enter__(self) -> Self:
        try:
            for slot in self._slots:
                slot.start()
            for slot in self._slots:
                slot.wait_until_ready()
        except BaseException:  # a second Ctrl-C too: processes that wait for a job would keep this one from ending
            for slot in self._slots:
                slot.stop(patient=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for slot in self._slots:
            slot.stop(patient=error is None)

    def pause(self) -> None:
        """Ask all jobs at work to save and return."""
        self._pause.value = 1

    def submit(self, task: Task) -> "Future[Outcome]":
        """Give the job to a free worker, best the one that has worked on the trial before."""
        free = [slot for slot in self._slots if slot.free]
        slot = next((slot for slot in free if slot.last_trial == task.job.trial), free[0])
        return slot.submit(task)


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as ``CUDA_VISIBLE_DEVICES`` writes them."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return [name.strip() for name in names.split(",") if name.strip()]
    return [str(index) for index in range(torch.cuda.device_count())]


def gpu_shares(gpus: Sequence[str], workers: int, devices_per_trial: int) -> list[str | None]:
    """Deal GPUs to workers.

    Args:
        gpus: names of all GPUs.
        workers: number of workers; with more workers than shares, several use the same GPUs.
        devices_per_trial: GPUs in a share.

    Returns:
        For each worker the ``CUDA_VISIBLE_DEVICES`` to set, or None without GPUs.

    Raises:
        ValueError: if there are GPUs, but fewer than ``devices_per_trial``.

    Example:
        >>> gpu_shares(["0", "1", "2", "3"], 3, 2)
        ['0,1', '2,3', '0,1']
    """
    if not gpus:
        return [None] * workers
    if len(gpus) < devices_per_trial:
        raise ValueError(f"`devices_per_trial` is {devices_per_trial}, but only {len(gpus)} GPUs are visible.")
    count = len(gpus) // devices_per_trial
    starts = [(worker % count) * devices_per_trial for worker in range(workers)]
    return [",".join(gpus[start : start + devices_per_trial]) for start in starts]


@dataclass(frozen=True)
class _Failure:
    """What a worker sends back for a job that raised, and as what the parent raises it again."""

    text: str
    kind: type[Exception]


@dataclass(frozen=True)
class _Place:
    """What a worker may use."""

    gpus: str | None
    threads: int


class _Slot:
    """One worker process at a time, with a thread for each job that waits for its answer.

    Args:
        arguments: of :func:`_serve`, after the connection and the progress.
        limit: seconds without progress, or None.
        retries: of a job whose process has died.
    """

    def __init__(self, arguments: tuple[Work, Any, "_Place"], *, limit: float | None, retries: int) -> None:
        self._arguments = arguments
        self._limit = limit
        self._retries = retries
        self._progress: Any = _SPAWN.RawValue("Q", 0)  # counts what should_pause was asked
        self._process: Any = None
        self._connection: Connection | None = None
        self._future: Future[Outcome] | None = None
        self._stopping = False
        self.last_trial: int | None = None

    @property
    def free(self) -> bool:
        """Whether it can take a job."""
        return self._future is None or self._future.done()

    def start(self) -> None:
        """Start the process."""
        ours, theirs = _SPAWN.Pipe()
        process = _SPAWN.Process(target=_serve, args=(theirs, self._progress, *self._arguments), daemon=False)
        # A signal to the whole group must not hit the worker before it can handle one; it inherits the mask.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _PAUSING)
        try:
            with _one_starts:
                os.environ[_STARTING] = "1"
                try:
                    process.start()
                    self._process = process
                finally:
                    del os.environ[_STARTING]
        except Exception as error:
            if type(error).__name__ not in ("AttributeError", "TypeError", "PicklingError"):
                raise
            raise TypeError(  # a thing that cannot be sent
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
        """Fulfil the future with what becomes of a job."""
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
            future.set_exception(answer.kind(answer.text))
        else:
            future.set_result(answer)

    def _answer(self, task: Task) -> "Outcome | _Failure":
        """Send a job and wait for the answer; raise JobError if the process dies or has to be ended."""
        if not self._process.is_alive():
            self.start()
            self.wait_until_ready()
        assert self._connection is not None
        silence = Silence(lambda: self._progress.value)
        try:
            self._connection.send(task)
            while not self._connection.poll(None if self._limit is None else min(self._limit / 10, 1.0)):
                assert self._limit is not None
                if silence.seconds() > self._limit:
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
        """End the process, and what it has started and left behind."""
        with contextlib.suppress(ProcessLookupError, PermissionError):  # no such group: all of it has ended
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        self._process.join()


def _end(code: int) -> str:
    return (
        f"was killed by signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"ended with exit code {code}"
    )


def _serve(connection: Connection, progress: Any, work: Work, pause: Any, place: _Place) -> None:
    """Life of a worker: take a task, do it, answer; until there is no parent or no more tasks."""
    del os.environ[_STARTING]
    os.setpgid(0, 0)
    if place.gpus is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = place.gpus
    torch.set_num_threads(place.threads)
    threading.Thread(target=_die_with_parent, daemon=True).start()
    terminated = threading.Event()

    def note(_number: int, _frame: FrameType | None) -> None:
        terminated.set()

    signal.signal(signal.SIGTERM, note)  # a whole group may be told to end: then save first
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to decide
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _PAUSING)

    def should_pause() -> bool:
        progress.value += 1
        return bool(pause.value) or terminated.is_set()

    gc.freeze()
    connection.send(_READY)
    while (task := _next_task(connection)) is not None:
        progress.value += 1
        try:
            answer: Outcome | _Failure = work(task, should_pause)
        except BaseException as error:  # noqa: BLE001  # the parent records it
            kinds = (kind for kind in (ParameterMismatchError, TrialPruned) if isinstance(error, kind))
            answer = _Failure(failure_text(error), next(kinds, JobError))
            let_go(error)
        connection.send(answer)
        gc.collect()


def _next_task(connection: Connection) -> Task | None:
    try:
        task: Task | None = connection.recv()
    except (EOFError, OSError):  # the parent has died
        os.killpg(0, signal.SIGKILL)
        raise
    return task


def _die_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os.killpg(0, signal.SIGKILL)
