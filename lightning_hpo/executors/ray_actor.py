"""An actor as the driver sees it: started, given jobs, watched, and started again when it has died."""

import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning_hpo.atomic import atomic_write
from lightning_hpo.checkpoints.files import previous_of
from lightning_hpo.errors import JobError, StorageError, WorkerStartError
from lightning_hpo.executors.ray_worker import CONTROL, kept_files, reads, signature_of
from lightning_hpo.executors.watchdog import IdleTime
from lightning_hpo.records import Task

_CARRY = 2.0  # seconds between two looks for new files of an actor that does not see the run folder
_TRIES = 3  # actors that die while they start
_ANSWER = 10.0  # seconds in which an actor that is not busy answers


class NotBegunError(Exception):
    """The actor of a job had died before it began the job."""


class RayActor:
    """An actor; its thread starts it and gives it jobs, other threads pause and close it.

    Args:
        ray: the package.
        make: returns the handle of a new actor, which may have to wait for room in the cluster.
        limit: seconds without progress, or None.
    """

    def __init__(self, ray: Any, make: Callable[[], Any], limit: float | None) -> None:
        self._ray, self._make, self._limit = ray, make, limit
        self._handle: Any = None
        self._lock = threading.Lock()
        self._closed = False
        self._sees_folder = True
        self._held: dict[str, tuple[int, int]] = {}  # files that it has copies of, with the signatures of ours
        self._count = 0
        self._begun: Path | None = None  # in the run folder: which job it has begun
        self.folder: Path | None = None
        """Of the trial that it worked on last."""

    def start(self) -> None:
        """Start the actor unless it is alive, and wait until it has imported everything.

        Raises:
            WorkerStartError: if it cannot be started.
        """
        for trial in range(_TRIES):
            with self._lock:
                if self._handle is not None or self._closed:
                    return
                self._handle, self.folder = self._make(), None
            try:
                self._sees_folder = self._ray.get(self._handle.sees_folder.remote())
            except self._ray.exceptions.RayError as error:
                self.end()
                died = isinstance(error, self._ray.exceptions.RayActorError) and not error.actor_init_failed
                if not died or trial == _TRIES - 1:
                    raise WorkerStartError(f"a Ray actor could not start: {error}") from None
            else:
                return

    def alive(self) -> bool:
        """Whether it answers; else it is given up, and can be started again.

        One that sees the run folder is not asked: after a loss its file tells whether it had begun the job.
        """
        if self._sees_folder:
            return True
        try:
            self._ray.get(self._call("progress"), timeout=_ANSWER)
        except Exception:  # noqa: BLE001  # for whatever reason: of Ray, or closed by another thread
            self.end()
            return False
        return True

    def carry_out(self, task: Task) -> Any:
        """Carry out a job, and return its outcome, or how it failed.

        Raises:
            JobError: if the actor dies, or makes no progress and is killed.
            NotBegunError: if it had died before.
            StorageError: if its files cannot be written.
        """
        patience = None if self._limit is None else min(self._limit / 10, 1.0)
        patience = patience if self._sees_folder else min(patience or _CARRY, _CARRY)
        idle = IdleTime(self._progress)
        run, attempt = task.folder.parent.parent, secrets.token_hex(8)
        self._begun = self._begun or run / f".ray.{attempt}.tmp"
        try:
            answer = self._handle.carry_out.remote(task, self._files_for(task), (self._begun, attempt))
            while patience is not None and not self._ray.wait([answer], timeout=patience)[0]:
                if self._limit is not None and idle.seconds() > self._limit:
                    raise JobError(f"no progress for {self._limit:g} s")
                self._fetch(task)
            found = self._ray.get(answer)
            self._fetch(task)
        except self._ray.exceptions.RayError as error:
            if self._sees_folder and not reads(self._begun, attempt):
                raise NotBegunError from None
            raise JobError(f"the Ray actor of the job was lost: {error}") from None
        return found

    def pause(self) -> None:
        """Ask its job to save and return."""
        with suppress(Exception):  # it has just died
            self._call("pause")

    def end(self) -> None:
        """Kill it, whatever it does; it can be started again."""
        with self._lock:
            handle, self._handle = self._handle, None
        if handle is not None:
            if not self._sees_folder:
                with suppress(Exception):  # it is dead or busy
                    self._ray.get(handle.leave.options(concurrency_group=CONTROL).remote(), timeout=_ANSWER)
            self._ray.kill(handle)

    def close(self) -> None:
        """Kill it for good."""
        with self._lock:
            self._closed = True
        self.end()
        if self._begun is not None:
            self._begun.unlink(missing_ok=True)

    def _call(self, method: str) -> Any:
        return getattr(self._handle, method).options(concurrency_group=CONTROL).remote()

    def _progress(self) -> int:
        """Count of the questions whether to pause; the last one if the actor is too busy to answer."""
        if self._limit is not None:
            with suppress(self._ray.exceptions.GetTimeoutError):
                self._count = self._ray.get(self._call("progress"), timeout=self._limit / 10)
        return self._count

    def _files_for(self, task: Task) -> dict[str, bytes]:
        """Files that a job needs and that the actor does not have, by their path in the run folder."""
        before, self.folder = self.folder, task.folder
        if self._sees_folder:
            return {}
        if before != task.folder:
            self._held = {}
        run = task.folder.parent.parent
        source = [] if task.source is None else [previous_of(task.source), task.source]
        files: dict[str, bytes] = {}
        for path in (*kept_files(task.folder), *(path for path in source if path.exists())):
            name = str(path.relative_to(run))
            if self._held.get(name) != (signature := signature_of(path)):
                files[name], self._held[name] = path.read_bytes(), signature
        return files

    def _fetch(self, task: Task) -> None:
        """Write the files that the actor has made, the previous checkpoint before the one that followed it."""
        if self._sees_folder:
            return
        files: dict[str, bytes] = self._ray.get(self._call("changed"))
        for name in sorted(files, key=lambda name: ".previous." not in name):
            path = task.folder.parent.parent / name
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                atomic_write(path, files[name])
                self._held[name] = signature_of(path)
            except OSError as error:
                raise StorageError(error.errno, f"a file of a Ray actor: {error.strerror}", str(path)) from error
