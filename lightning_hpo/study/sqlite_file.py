"""The SQLite file of a study, looked at before it is trusted, and what goes wrong with a storage in words."""

import contextlib
import errno
import hashlib
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_hpo.atomic import atomic_write
from lightning_hpo.errors import StorageError
from lightning_hpo.text import hide_passwords

_SQLITE_HEADER = b"SQLite format 3\x00"
_HEADER_LENGTH, _COUNTER, _COUNTER_AGAIN = 100, slice(24, 28), slice(92, 96)  # SQLite's file format, section 1.3
_CHECKED = 64 * 2**20  # bytes: a larger study is not read through before it is opened, but its size is looked at
_MOST_PARAMS, _LONGEST_ATTRIBUTE = 10_000, 16 * 2**20  # of a trial; more would not fit into memory
# What an operating system says of a disk that is full, read-only, somebody else's, or failing, and of planted links.
UNUSABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ELOOP")
    if hasattr(errno, name)
}
_SQLITE_ERRNO = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS, "SQLITE_CANTOPEN": errno.EACCES}


def sqlite_url(file: Path) -> str:
    """URL of a file whose name may hold anything."""
    from sqlalchemy import URL  # noqa: PLC0415  # slow to import, and not needed by every store

    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def check_study_file(file: Path) -> None:
    """Look at a study's SQLite file before it is trusted.

    Raises:
        StorageError: if it is empty, no database, damaged (its content differs from what :func:`note_checksum` noted,
            or ``PRAGMA integrity_check``, up to 64 MiB), or so large that reading it would take more memory than there
            should be (beyond).
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        header = opened.read(len(_SQLITE_HEADER))
    if header != _SQLITE_HEADER:
        raise StorageError(f"{file} is not a study: it is empty or damaged. Move it away to start a new one.")
    try:
        with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
            if size <= _CHECKED:
                found = database.execute("PRAGMA integrity_check(1)").fetchone()[0]
                problem = None if found == "ok" else f"it is damaged: {found}"
            else:
                problem = _too_large(database)
            problem = problem or _other_content(file, database)
    except UnicodeDecodeError as error:  # of what SQLite says of a damaged name
        raise StorageError(f"the study in {file.parent} cannot be used: it is damaged.") from error
    except sqlite3.Error as error:
        raise unusable(file.parent, error) from error
    if problem:
        raise StorageError(f"the study in {file.parent} cannot be used: {problem.splitlines()[0]}")


def note_checksum(file: Path) -> None:
    """Write the checksum of a study's SQLite file beside it, to find a wrong bit that SQLite itself does not see.

    SQLite counts its changes in the file, so the checksum is not compared with a file that was changed since, by a
    process that was killed or by a dashboard.
    """
    with contextlib.closing(sqlite3.connect(file, timeout=60)) as database:
        header, found = _header_and_hash(file, database)
    atomic_write(_checksum_file(file), f"{header[_COUNTER].hex()} {found}\n")


def forget_checksum(file: Path) -> None:
    """Remove the checksum of a study's SQLite file that is about to be made: it is of one that was moved away."""
    _checksum_file(file).unlink(missing_ok=True)


def _other_content(file: Path, database: sqlite3.Connection) -> str | None:
    beside = _checksum_file(file)
    try:
        counted, noted = beside.read_text().split()
    except (FileNotFoundError, ValueError, UnicodeDecodeError):
        return None  # a study of before the checksums, or one whose first run was killed
    header, found = _header_and_hash(file, database)
    changed_since = header[_COUNTER] == header[_COUNTER_AGAIN] and header[_COUNTER].hex() != counted
    if changed_since or found == noted:
        return None
    return (
        f"it is damaged: the content of {file.name} is not what the last run left, by the checksum in {beside.name}. "
        f"Put back a copy of both files; to go on with the study as it is, remove {beside.name}."
    )


def _header_and_hash(file: Path, database: sqlite3.Connection) -> tuple[bytes, str]:
    database.execute("BEGIN")
    database.execute("SELECT count(*) FROM sqlite_master").fetchone()  # from here on nobody writes, until we close
    with file.open("rb") as opened:
        header = opened.read(_HEADER_LENGTH)
        opened.seek(0)
        return header, hashlib.file_digest(opened, "sha256").hexdigest()


def _checksum_file(file: Path) -> Path:
    return file.with_name(f"{file.name}.sum")


def _too_large(database: sqlite3.Connection) -> str | None:
    counted = "SELECT max(n) FROM (SELECT count(*) AS n FROM trial_params GROUP BY trial_id)"
    params = database.execute(counted).fetchone()[0] or 0
    if params > _MOST_PARAMS:
        return f"a trial has {params:,} parameters; {_MOST_PARAMS:,} is the most."
    for table in (
        "study_user_attributes",
        "study_system_attributes",
        "trial_user_attributes",
        "trial_system_attributes",
    ):
        longest = database.execute(f"SELECT max(length(value_json)) FROM {table}").fetchone()[0] or 0  # noqa: S608
        if longest > _LONGEST_ATTRIBUTE:
            return f"an attribute has {longest:,} letters; {_LONGEST_ATTRIBUTE:,} is the most."
    return None


@contextmanager
def readable(where: Path) -> Iterator[None]:
    """Turn what Optuna raises over a damaged storage, or one without a driver, into a StorageError."""
    try:
        yield
    # JSON errors are ValueErrors.
    except (ValueError, TypeError, AttributeError, RecursionError, ImportError) as error:
        reason = hide_passwords(f"{type(error).__name__}: {error}".splitlines()[0])
        raise StorageError(f"the study of {where} cannot be read: {reason}") from error


def unusable(where: Path, error: BaseException) -> StorageError:
    """Say in one line why a database cannot be used, with the error number of the operating system if there is one."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    known = next((one for one in chain if isinstance(one, sqlite3.Error)), chain[-1])
    reason = hide_passwords(str(known).splitlines()[0] if str(known) else type(known).__name__)
    text = f"the study in {where} cannot be used: {reason}"
    number = _SQLITE_ERRNO.get(getattr(known, "sqlite_errorname", ""))
    return (
        StorageError(text)
        if number is None
        else StorageError(number, f"{text} ({errno.errorcode[number]})", str(where))
    )
