"""The folder of a population: who writes what all share, what killed processes left, and its errors in words."""

import errno
import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, Protocol, TypeAlias, TypeVar

from lightning_hpo.errors import StorageError, explained
from lightning_hpo.study.locks import Lock

State: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class NextPhase:
    """Go on with other hyperparameters, and with the weights in ``state`` unless it is None.

    Args:
        donor: member that the hyperparameters come from.
        parent: number of the donor's segment.
        forked_at: the donor's step.
        params: hyperparameters from now on.
        state: of the donor, see :mod:`lightning_hpo.training.state_transfer`.
    """

    donor: int
    parent: int
    forked_at: int
    params: Mapping[str, Any]
    state: State | None


class InFolder(Protocol):
    """What works in the folder of a population."""

    @property
    def path(self) -> Path:
        """Of the folder."""


F = TypeVar("F", bound=InFolder)
P = ParamSpec("P")
T = TypeVar("T")


def with_storage_errors(method: Callable[Concatenate[F, P], T]) -> Callable[Concatenate[F, P], T]:
    """Turn what a disk raises in a method into a StorageError that names the folder, with its exit code."""

    @functools.wraps(method)
    def wrapped(self: F, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with explained(self.path):
            try:
                return method(self, *args, **kwargs)
            except StorageError:
                raise
            except OSError as error:
                raise unusable(self.path, error) from error

    return wrapped


def unusable(folder: Path, error: OSError) -> StorageError:
    """Say in one line why the folder of a population cannot be used."""
    if not folder.exists():
        text = "the folder of the population is gone: it was deleted or moved while members were at work"
        return StorageError(errno.ENOENT, text, str(folder))
    return storage_error("the folder of the population cannot be used", folder, error)


def storage_error(what: str, path: Path, error: OSError) -> StorageError:
    """Say in one line what could not be done, and why."""
    if error.errno is None:
        return StorageError(f"{what}: {error}")
    name = errno.errorcode.get(error.errno, error.errno)
    return StorageError(error.errno, f"{what}: {error.strerror} ({name})", str(path))


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process writes what all members share, and keep it so while the block runs."""
    lock = Lock(folder / "lock")
    lock.take(wait=True)
    try:
        yield
    finally:
        lock.free()


def remove_leftovers(folder: Path) -> None:
    """Delete what killed processes left unfinished; nobody else may be writing in the folder itself."""
    for leftover in folder.glob(".*.tmp"):
        leftover.unlink(missing_ok=True)
