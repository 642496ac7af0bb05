"""What runs in a Ray actor: jobs one after the other, and answers to the driver while a job is at work.

The run folder is used where the actor sees it. Elsewhere the actor keeps a copy of the trial that it works on, and the
driver carries files to and fro.
"""

import contextlib
import gc
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from lightning_hpo.executors.script_classes import name_classes_of_script
from lightning_hpo.executors.worker import carry_out
from lightning_hpo.quiet import hide_known_warnings
from lightning_hpo.records import Task, Work
from lightning_hpo.study.leases import WORKER_LOCK, trial_held

CONTROL = "control"
"""Concurrency group of the calls that are answered while a job is at work."""
_NOT_CARRIED = (WORKER_LOCK, "lease")


class RayWorker:
    """Carries out jobs. Its other methods are called at any time, from a thread of their own.

    Args:
        work: carries out a job.
        token: a file of the run folder, and its content.
    """

    def __init__(self, work: Work, token: tuple[Path, str]) -> None:
        hide_known_warnings()
        self._work = work
        self._pausing = False
        self._progress = 0
        self._copy = None if reads(*token) else Path(tempfile.mkdtemp(prefix="lightning_hpo."))
        self._carried: dict[str, tuple[int, int]] = {}  # files of the copy that the driver has, with their signatures
        gc.freeze()

    def sees_folder(self) -> bool:
        """Whether the actor sees the run folder."""
        return self._copy is None

    def carry_out(self, task: Task, files: Mapping[str, bytes], begun: tuple[Path, str]) -> object:
        """Carry out a job.

        Args:
            task: the job.
            files: of the copy that the driver holds in a newer version, by their path in the run folder.
            begun: a file of the run folder, and what to write there first.

        Returns:
            The outcome, or how the job failed.
        """
        self._progress += 1
        if self._copy is not None:
            task = self._receive(self._copy, task, files)
        else:
            with contextlib.suppress(OSError):  # a full disk
                begun[0].write_text(begun[1])
        name_classes_of_script()
        with trial_held(task.folder):
            answer = carry_out(self._work, task, self._should_pause)
        gc.collect()  # a Trainer and its module refer to each other
        return answer

    def pause(self) -> None:
        """Let the running job save and return."""
        self._pausing = True

    def progress(self) -> int:
        """Count of the questions whether to pause."""
        return self._progress

    def changed(self) -> dict[str, bytes]:
        """Return the files of the copy that have changed since the last call."""
        files: dict[str, bytes] = {}
        if self._copy is None:
            return files
        for path in kept_files(self._copy):
            name = str(path.relative_to(self._copy))
            with contextlib.suppress(FileNotFoundError):  # replaced this moment
                if self._carried.get(name) != (signature := signature_of(path)):
                    files[name], self._carried[name] = path.read_bytes(), signature
        return files

    def leave(self) -> None:
        """Remove the copy, before the actor ends."""
        if self._copy is not None:
            shutil.rmtree(self._copy, ignore_errors=True)

    def _should_pause(self) -> bool:
        self._progress += 1
        return self._pausing

    def _receive(self, copy: Path, task: Task, files: Mapping[str, bytes]) -> Task:
        """Make the copy that of the task's trial, and return the task with its paths there."""
        run = task.folder.parent.parent
        folder = copy / task.folder.relative_to(run)
        if not folder.exists():  # it is that of another trial
            shutil.rmtree(copy)
            self._carried.clear()
            folder.mkdir(parents=True)
        for name, content in files.items():
            path = copy / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
            self._carried[name] = signature_of(path)
        source = None if task.source is None else copy / task.source.relative_to(run)
        return replace(task, folder=folder, source=source)


def kept_files(folder: Path) -> list[Path]:
    """Return the files below a folder that are carried between machines."""
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".tmp" and path.name not in _NOT_CARRIED
    ]


def signature_of(path: Path) -> tuple[int, int]:
    """Return what changes when a file is written: its time and its size."""
    status = path.stat()
    return status.st_mtime_ns, status.st_size


def reads(token: Path, content: str) -> bool:
    """Whether a file is there and has this content."""
    try:
        return token.read_text() == content
    except OSError:
        return False
