"""Tells the loggers of each trial, or member of a population, how it has ended, once."""

import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

from lightning_hpo.records import Row
from lightning_hpo.reporting.events import Event, JobEnded, SearchEnded, StudyRead
from lightning_hpo.study.trial_folders import identity_of
from lightning_hpo.text import hide_passwords

EndTrial: TypeAlias = Callable[[Path, Row, Mapping[str, Any]], None]
"""Called with folder, row and identity of a trial that has ended."""
_TOLD = "logger_ended"  # in the folder of a trial whose logger knows


class EndedTrials:
    """Ends the runs of loggers, in a thread of its own: some tools take seconds for it. An observer."""

    def __init__(self, end: EndTrial, folder: Callable[[int], Path], study_id: str) -> None:
        self._end = end
        self._folder = folder
        self._study_id = study_id
        self._seen: set[int] = set()
        self._thread = ThreadPoolExecutor(1, "lightning_hpo loggers")
        self._waiting: list[Future[None]] = []

    def on(self, event: Event) -> None:
        """Look for trials that have ended; wait for all loggers at the end of the search."""
        if isinstance(event, StudyRead | JobEnded | SearchEnded):
            self._look(event.rows)
        if isinstance(event, SearchEnded):
            for future in self._waiting:
                future.result()
            self._waiting.clear()

    def _look(self, rows: Sequence[Row]) -> None:
        for home, row in {row.home: row for row in rows}.items():  # the last trial of each member of a population
            if row.state != "running" and home not in self._seen:
                self._seen.add(home)
                if not (self._folder(home) / _TOLD).exists():
                    self._waiting.append(self._thread.submit(self._tell, row, rows[home].params))

    def _tell(self, row: Row, params: Mapping[str, Any]) -> None:
        folder = self._folder(row.home)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._end(folder, replace(row, params=params), identity_of(self._study_id, row.home, params))
            (folder / _TOLD).touch()
        except Exception as error:  # noqa: BLE001  # a logger costs no search; the next call tries again
            text = hide_passwords(f"{type(error).__name__}: {error}")
            logging.getLogger(__name__).warning("the logger of trial %d did not take its end: %s", row.number, text)
