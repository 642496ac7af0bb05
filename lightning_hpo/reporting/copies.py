"""Copies a run to a store while it is at work, from a thread of its own; an observer."""

import logging
import sys
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from lightning_hpo.errors import StorageError, StudyPaused
from lightning_hpo.records import CHECKPOINT
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Event, JobEnded, JobStarted, StudyRead
from lightning_hpo.study.remote import Remote
from lightning_hpo.study.run_folder import RunFolder
from lightning_hpo.text import say

_SHARE = 4  # the store rests so many times as long as a copy took, so copying takes at most a fifth of the time
_LEAST, _MOST = 1.0, 120.0  # seconds of rest
_TRIES = 3  # at the end
_NAMED = 3  # files in the last line


class Copies:
    """Keeps the copy of a run up to date while the block runs, and completes it at the end.

    A store that fails does not end the search: it is tried again after the next job, three times at the end, and the
    last line says what is not copied.
    """

    def __init__(self, remote: Remote, folder: RunFolder, console: Console) -> None:
        self._remote, self._folder, self._console = remote, folder, console
        self._at_work: set[Path] = set()
        self._due: set[Path] = {*(folder.path / "trials").iterdir()}  # folders of trials that are not kept yet
        self._logging: frozenset[Path] = frozenset()  # folders of trials at work when the study was read
        self._wake, self._over = threading.Event(), threading.Event()
        self._problem: str | None = None

    def on(self, event: Event) -> None:
        """Keep the files of each trial as they are at the end of a job, which the journal knows by then."""
        if isinstance(event, JobStarted):
            self._at_work.add(event.task.folder)
            if event.task.source is None or event.task.source.name == CHECKPOINT:
                return
            self._due.add(event.task.folder)  # with the checkpoint of its parent
        elif isinstance(event, JobEnded):
            folder = self._folder.trial(event.row.home)
            self._at_work.discard(folder)
            self._due.add(folder)
        try:
            self._remote.keep(self._due)
            self._due.clear()
        except OSError as error:
            self._warn(error)
        if isinstance(event, StudyRead):
            self._logging = frozenset(self._at_work)
            self._wake.set()

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._wake.set()
        self._thread.join()  # else it could write an older study over that of the next call
        self._remote.forget()
        if not (error is None or isinstance(error, Exception | StudyPaused)):
            return  # a second Ctrl-C
        for trial in range(_TRIES):
            if self._copied(last=True):
                if error is None or isinstance(error, StudyPaused):
                    self._console.line(f"copied to {self._remote.url}")
                return
            time.sleep(trial * _LEAST)
        if self._remote.is_ahead:
            say(
                f"{self._folder.path} was deleted or moved while the search ran; nothing was removed from "
                f"{self._remote.url}, and the same command goes on from there",
                sys.stderr,
            )
            return
        names = self._remote.missing()
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        what = f"not copied to {self._remote.url}: {', '.join(names[:_NAMED])}{more}"
        what = what if names else f"copied to {self._remote.url}, which could not be noted here"
        say(
            f"{what} ({self._problem}); everything is in {self._folder.path}, and the same command tries again",
            sys.stderr,
        )

    def _serve(self) -> None:
        """Copy after each change of the study, and rest in between."""
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._over.is_set():
                return
            begun = time.monotonic()
            self._copied()
            self._over.wait(min(max(_LEAST, _SHARE * (time.monotonic() - begun)), _MOST))

    def _copied(self, *, last: bool = False) -> bool:
        """Copy what is new and return whether that went well."""
        try:
            self._remote.copy(self._logging, last=last)
        except (StorageError, OSError) as error:
            self._warn(error)
            return False
        self._problem = None
        return True

    def _warn(self, error: Exception) -> None:
        """Warn once of a problem."""
        if str(error) != self._problem:
            self._problem = str(error)
            logging.getLogger(__name__).warning("%s; the search goes on, and it is tried again", error)
