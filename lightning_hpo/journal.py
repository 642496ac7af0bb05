"""A study as a journal: one line of JSON for each change, appended and synced (Optuna's JournalStorage).

A population writes one value per member and interval, and an interval may last only tens of milliseconds. Optuna's
SQLite takes about 2 ms of CPU for a value, 10 ms for a new trial and 0.2 s for a new file; its journal 0.3, 0.5 and 0.
``optuna-dashboard runs/<name>/study.journal`` shows it like any other study.
"""

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from lightning_hpo.runs import StorageError

JOURNAL = "study.journal"


class _Journal(JournalFileBackend):
    """Optuna's journal without its lock: who writes holds the run folder's lock, and who reads needs none.

    Optuna's own locks are files that outlive a killed process, which then block the next one for half a minute.
    """

    def __init__(self, file: Path) -> None:
        super().__init__(str(file))
        self._file = file

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Write whole lines, and return when they are on the disk."""
        lines = "".join(f"{json.dumps(log, separators=(',', ':'))}\n" for log in logs)
        with self._file.open("ab") as opened:
            opened.write(lines.encode())
            opened.flush()
            os.fsync(opened.fileno())


def open_journal(file: Path, begin: Callable[[JournalStorage], object]) -> JournalStorage:
    """Open a journal to write, or begin one; the caller holds the run's lock.

    What a killed process left of its last line moves to ``<name>.corrupt-<time>``: that change was never acknowledged.

    Args:
        file: of the journal.
        begin: writes what a new one starts with. It is written beside its place and moved there, so a process killed
            meanwhile leaves no empty journal.

    Raises:
        StorageError: if the file is empty, or damaged elsewhere than at its end.
    """
    if not file.exists():
        fresh = file.with_name(f".{file.name}.tmp")
        fresh.unlink(missing_ok=True)
        begin(read_journal(fresh))
        fresh.replace(file)
    content = file.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole == 0:
        raise StorageError(f"{file} is not a study: it is empty or damaged. Move it away to start a new one.")
    if whole < len(content):
        aside = file.with_name(f"{file.name}.corrupt-{time.strftime('%Y%m%dT%H%M%S')}")
        aside.write_bytes(content[whole:])
        with file.open("rb+") as opened:
            opened.truncate(whole)
            os.fsync(opened.fileno())
        logging.getLogger(__name__).warning(
            "the last line of %s was cut off by a kill or a full disk, and moved to %s", file, aside.name
        )
    return read_journal(file)


def read_journal(file: Path) -> JournalStorage:
    """Open a journal to read, while somebody may be writing it.

    Raises:
        StorageError: if the file is damaged.
    """
    try:
        return JournalStorage(_Journal(file))
    except (ValueError, KeyError, TypeError) as error:  # of a line that is no JSON, or of one that means nothing
        raise StorageError(f"{file} is damaged: {type(error).__name__}: {error}.") from error
