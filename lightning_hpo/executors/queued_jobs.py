"""Jobs of a search as jobs of SLURM, through submitit."""

import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from lightning_hpo.errors import JobError, WorkerStartError
from lightning_hpo.executors.script_classes import name_classes_of_script
from lightning_hpo.executors.submitit_executor import SubmititExecutor
from lightning_hpo.executors.worker import carry_out
from lightning_hpo.quiet import hide_known_warnings
from lightning_hpo.records import PAUSED, Outcome, Task, Work
from lightning_hpo.study.leases import trial_held

_FOLDER = ".submitit"  # of the run: what submitit writes, and the marks
_POLL = 1.0  # seconds between looks at a job, and between those of a job at its mark
_PAUSED = Outcome(None, 0, ended=PAUSED)


class QueuedJobs:
    """The executor that a :class:`SubmititExecutor` describes.

    Jobs save and end when a mark in the run folder is gone: when the search is paused, and when the same call goes on
    after its process was killed.

    Args:
        work: as for ``InProcess``; cloudpickle sends it, classes of the script by value.
        settings: of the queue.
        max_retries: how many times a job that ended without a result is queued again.
    """

    def __init__(self, work: Work, settings: SubmititExecutor, max_retries: int = 0) -> None:
        self.workers = settings.workers
        self._work, self._settings, self._retries = work, settings, max_retries
        self._pool = ThreadPoolExecutor(self.workers)  # a thread waits for each job
        self._over, self._pausing = threading.Event(), False
        self._lock = threading.Lock()  # submitit keeps the states of all jobs together
        self._queue: Any = None
        self._mark: Path | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self.pause()
        self._pool.shutdown()

    def pause(self) -> None:
        """Ask all jobs to save and return; a signal handler calls it, so it takes no lock."""
        self._pausing = True
        if self._mark is not None:
            self._mark.unlink(missing_ok=True)

    def submit(self, task: Task) -> "Future[Outcome]":
        """Queue the job."""
        if self._mark is None:
            folder = task.folder.parent.parent / _FOLDER
            folder.mkdir(mode=0o700, exist_ok=True)
            for left in folder.glob("*.mark"):  # by a process that was killed: this one holds the run
                left.unlink()
            self._queue = self._settings.queue(folder)
            mark = folder / f"{secrets.token_hex(8)}.mark"
            mark.touch()
            self._mark = mark
        return self._pool.submit(self._carry_out, task, self._mark)

    def _carry_out(self, task: Task, mark: Path) -> Outcome:
        """Queue a job, again if it ends without a result, and wait for its outcome."""
        for left in range(self._retries, -1, -1):
            if self._pausing:
                break
            job = self._queued(QueuedJob(self._work, task, mark))
            try:
                while (state := self._state(job)) is not None:
                    if self._over.wait(_POLL) or (self._pausing and state == "PENDING"):
                        job.cancel(check=False)
                        return _PAUSED
                answer = job.result()
            except Exception as error:
                if left or self._pausing:
                    continue
                log = job.paths.stderr
                raise JobError(f"job {job.job_id} ended without a result ({job.state}); its log: {log}") from error
            finally:  # with them the key of the run
                for file in (job.paths.submitted_pickle, job.paths.result_pickle):
                    file.unlink(missing_ok=True)
            if isinstance(answer, Outcome):
                return answer
            raise answer.error()
        return _PAUSED

    def _queued(self, job: "QueuedJob") -> Any:
        try:
            with self._lock:
                return self._queue.submit(job)
        except Exception as refused:
            error = WorkerStartError(f"a job could not be queued: {refused}")
            error.ends_search = True  # type: ignore[attr-defined]  # read by the loop
            raise error from refused

    def _state(self, job: Any) -> str | None:
        """Return the state of a job; None if it has ended."""
        with self._lock:
            return None if job.done() else job.state


class QueuedJob:
    """What runs in a job of the queue; it goes on as long as ``mark`` is there."""

    def __init__(self, work: Work, task: Task, mark: Path) -> None:
        self._work, self._task, self._mark = work, task, mark
        self._asked, self._pausing = -_POLL, False
        self._preempted, self._left = False, SystemExit()

    def __call__(self) -> Any:
        """Carry out the job; one of the same trial whose driver was killed may still be saving."""
        hide_known_warnings()
        name_classes_of_script()
        with trial_held(self._task.folder):
            if self._pause_wanted():  # the driver has gone while the job was in the queue
                return _PAUSED
            answer = carry_out(self._train, self._task, self._pause_wanted)
        if self._preempted:
            raise self._left
        return answer

    def checkpoint(self) -> Any:
        """Return the job that submitit is to queue when this one is preempted; it then exits, wherever this one is."""
        from submitit.helpers import DelayedSubmission  # noqa: PLC0415  # an extra

        self._preempted = True
        return DelayedSubmission(QueuedJob(self._work, self._task, self._mark))

    def _train(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        try:
            return self._work(task, should_pause)
        except SystemExit as left:
            self._left = left
            raise

    def _pause_wanted(self) -> bool:
        if not self._pausing and time.monotonic() >= self._asked + _POLL:
            self._asked = time.monotonic()
            try:
                self._mark.open().close()  # NFS looks again at what is opened, not at what is only asked for
            except FileNotFoundError:
                self._pausing = True
        return self._pausing
