"""What goes wrong with a study's storage, as a StorageError in one readable line."""

import errno
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError

from lightning_hpo.errors import StorageError, StudyInUseError
from lightning_hpo.text import hide_passwords

# What an operating system says of a disk that is full, read-only, somebody else's, or failing, and of planted links.
_UNUSABLE = {
    getattr(errno, name)
    for name in ("ENOSPC", "EDQUOT", "EFBIG", "EROFS", "EACCES", "EPERM", "EIO", "ESTALE", "ELOOP")
    if hasattr(errno, name)
}
_SQLITE_ERRNO = {"SQLITE_FULL": errno.ENOSPC, "SQLITE_READONLY": errno.EROFS, "SQLITE_CANTOPEN": errno.EACCES}


@contextmanager
def readable_errors(folder: Path) -> Iterator[None]:
    """Turn what a database or a disk raises while a run is at work into a StorageError that names the folder."""
    try:
        yield
    except StorageError:
        raise
    except UpdateFinishedTrialError as error:  # the lock is in the run folder, a study given as storage is not
        raise StudyInUseError(
            f"the study of {folder} was changed by another process, which uses its storage from another `root`"
        ) from error
    except OSError as error:
        where = str(error.filename or folder)
        gone = isinstance(error, FileNotFoundError) and Path(where).is_relative_to(folder)
        if error.errno not in _UNUSABLE and not gone:
            raise
        raise _numbered(error.errno or 0, f"the run folder cannot be used: {error.strerror}", where) from error
    except Exception as error:
        if not _is_of_database(error):
            raise
        raise _unusable(folder, error) from error


@contextmanager
def readable(folder: Path) -> Iterator[None]:
    """Turn what Optuna raises over a storage that is damaged or has no driver into a StorageError."""
    try:
        yield
    except StorageError:
        raise
    # JSON errors are ValueErrors.
    except (ValueError, TypeError, AttributeError, RecursionError, ImportError) as error:
        reason = hide_passwords(f"{type(error).__name__}: {error}".splitlines()[0])
        raise StorageError(f"the study of {folder} cannot be read: {reason}") from error
    except Exception as error:
        if not _is_of_database(error):
            raise
        raise _unusable(folder, error) from error


def sqlite_url(file: Path) -> str:
    """URL of a file whose name may hold anything."""
    from sqlalchemy import URL  # noqa: PLC0415  # few runs need a database

    return URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)


def _is_of_database(error: BaseException) -> bool:
    modules = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return isinstance(error, StorageInternalError) or "sqlalchemy" in modules


def _unusable(folder: Path, error: BaseException) -> StorageError:
    """Say in one line why a database cannot be used, with the error number of the operating system if there is one."""
    chain: list[BaseException] = [error]
    while (inner := chain[-1].__cause__ or chain[-1].__context__) is not None and inner not in chain:
        chain.append(inner)
    known = next((cause for cause in chain if isinstance(cause, sqlite3.Error)), chain[-1])
    reason = hide_passwords(str(known).splitlines()[0] if str(known) else type(known).__name__)
    text = f"the study in {folder} cannot be used: {reason}"
    number = _SQLITE_ERRNO.get(getattr(known, "sqlite_errorname", ""))
    return StorageError(text) if number is None else _numbered(number, text, str(folder))


def _numbered(number: int, text: str, where: str) -> StorageError:
    return StorageError(number, f"{text} ({errno.errorcode.get(number, number)})", where)


def renamed_text(path: Path, names: Sequence[str]) -> str:
    """Say that a run folder was renamed or copied, as its study has another name."""
    return (
        f"{path} holds the study {', '.join(map(repr, names))}, as the folder was renamed or copied: a run has the "
        f"name of its folder. Rename it to {names[0]!r}, in another `root` if that place is taken"
    )
