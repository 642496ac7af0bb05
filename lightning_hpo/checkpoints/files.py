"""Checkpoints that are whole or absent: written beside the target, synced, renamed, and verified on every load.

A sealed checkpoint is an ordinary torch file whose zip comment ends with the SHA-256 of everything before it. So the
hash can never be separated from the file, and ``torch.load`` and ``load_from_checkpoint`` read it without us.

The hash finds accidents; anybody can compute it. Checkpoints of real modules hold objects of any class, in
hyperparameters, in callbacks' states, in what ``on_save_checkpoint`` adds, and to read those is to execute what the
file says. So a run signs what it writes with its key (HMAC-SHA256 of the same hash, also in the comment):

* Every file is first read with ``weights_only=True``, which executes nothing. For most modules that is all.
* A file with more in it is read in full only if it has the signature of the key that the caller gives, and then from
  the very bytes whose signature was compared. Any other file is refused: a donor's of another user, a planted one.
* The key is in the run folder, not in the study or the file (:mod:`lightning_hpo.checkpoints.key`). Who can read that
  file as its owner could change the user's code as well; a published study or checkpoint gives nothing away.
* A state that could not be read back is refused when it is written (:func:`require_readable`), by its place and cause.
"""

import contextlib
import io
import logging
import os
import shutil
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from lightning_hpo.checkpoints.key import NO_KEY, Key
from lightning_hpo.checkpoints.origin import outline
from lightning_hpo.checkpoints.sealing import Seal, Sealing, is_sealed, read_seal
from lightning_hpo.errors import DamagedCheckpointError, UnreadableStateError

_DETAIL = " error: "  # before what torch found, in the advice that it gives


def save(state: dict[str, Any], path: str | os.PathLike[str], key: Key = NO_KEY) -> None:
    """Write ``state`` so that a crash at any moment leaves the old file or the new one, never a part.

    The file that stood at ``path`` is kept as :func:`previous_of` until the next save.

    Args:
        state: tensors and plain Python values (what ``weights_only=True`` can load); with a key, any objects.
        path: target file; missing folders are made.
        key: of the run. Without one, the file is not signed.

    Raises:
        OSError: if the file cannot be written (full disk, no permission). The old file is untouched then.
        UnreadableStateError: if ``state`` holds something that cannot be written, naming its place.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        _write_sealed(state, fresh, key)
        if path.exists():
            _keep_previous(path)
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    _sync_folder(path.parent)


def load(path: str | os.PathLike[str], map_location: Any = "cpu", key: Key = NO_KEY) -> dict[str, Any]:
    """Verify and read a checkpoint.

    Args:
        path: a file that :func:`save` wrote.
        map_location: as in ``torch.load``.
        key: of the run. A file that it has signed may hold objects of any class; in another, nothing is executed.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedCheckpointError: if the content is not what was written, or holds more than tensors and plain values
            without being signed with ``key``.
    """
    with Path(path).open("rb") as file:
        read_seal(file, path)
        file.seek(0)
        try:
            return _read(file, map_location, plain=True)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # noqa: BLE001  # torch's reader raises anything over a strange file
            reason = _reason(error)
        file.seek(0)
        content = io.BytesIO(file.read())  # what is compared is what is read, even if somebody writes meanwhile
    if not read_seal(content, path).is_of(key):
        why = f" ({key.missing})" if key.secret is None else ""
        raise DamagedCheckpointError(
            f"{path} was refused, nothing in it was executed: {reason}. Objects are read only from a checkpoint that "
            f"is signed with the key of its run, and this one is not known to be{why}."
        )
    content.seek(0)
    try:
        return _read(content, map_location, plain=False)
    except Exception as error:
        raise DamagedCheckpointError(
            f"{path} is whole, but its objects cannot be read back here: {type(error).__name__}: {_reason(error)}"
        ) from error


def require_readable(state: Mapping[str, Any], key: Key = NO_KEY) -> None:
    """Write and read a Trainer's state in memory, its tensors aside, to find out whether training can be continued.

    Raises:
        UnreadableStateError: naming the places of what cannot be written or read back, why, and the remedy.
    """
    problems = list(_problems(state, (), plain=key.secret is None))
    if not problems:
        return
    listed = "; ".join(f"{_written(place)}: {why}" for place, why in problems)
    names = list(dict.fromkeys(place[1] for place, _ in problems if place[:1] in _HPARAMS and len(place) > 1))
    remedies = (
        [f"call self.save_hyperparameters(ignore={names!r}), or give it a class that can be imported"] if names else []
    )
    if any(place[:1] not in _HPARAMS for place, _ in problems):
        remedies.append("keep it out of what state_dict() and on_save_checkpoint() add")
    if key.secret is None:
        remedies.append(f"let the run have its key ({key.missing})")
    raise UnreadableStateError(
        f"a checkpoint of this model could be written but never continued, because it cannot hold {listed}. "
        f"Remedy: {'; or '.join(remedies)}."
    )


def verify(path: str | os.PathLike[str]) -> None:
    """Compare a checkpoint with the hash it carries.

    Raises:
        FileNotFoundError: if there is no such file.
        DamagedCheckpointError: if any bit differs, or the file carries no hash.
    """
    _seal_of(path)


def newest_intact(path: str | os.PathLike[str], key: Key = NO_KEY) -> tuple[Path | None, list[Path]]:
    """Find what can be resumed from.

    Args:
        path: the newest checkpoint, with :func:`previous_of` behind it.
        key: of the run. A file that it has not signed is intact if it can be read with ``weights_only=True``.

    Returns:
        The newer of the two files that is intact, or None; and those that are damaged or refused.
    """
    damaged: list[Path] = []
    for candidate in (Path(path), previous_of(path)):
        try:
            if not _seal_of(candidate).is_of(key):
                load(candidate, key=key)  # in which nothing is executed
        except FileNotFoundError:
            continue
        except DamagedCheckpointError as error:
            logging.getLogger(__name__).warning("%s", error)
            damaged.append(candidate)
        else:
            return candidate, damaged
    return None, damaged


def read_newest(path: Path, key: Key) -> tuple[Path | None, dict[str, Any] | None]:
    """Return the file of :func:`newest_intact` with its content, or None twice; damaged files are moved aside."""
    remove_leftovers(path)
    newest, damaged = newest_intact(path, key)
    for file in damaged:
        with contextlib.suppress(FileNotFoundError):  # another rank has moved it
            aside = set_aside(file)  # the next save must not take it for the good file before
            logging.getLogger(__name__).warning("%s is damaged and was moved to %s", file, aside.name)
    return newest, None if newest is None else load(newest, key=key)


def set_aside(path: str | os.PathLike[str]) -> Path:
    """Move a damaged file to ``<name>.corrupt-<time>`` beside it, for people to look at, and return where it is."""
    path = Path(path)
    stamp = time.strftime("%Y%m%dT%H%M%S")
    names = (path.with_name(f"{path.name}.corrupt-{stamp}{suffix}") for suffix in ("", *map("-{}".format, range(100))))
    target = next(name for name in names if not name.exists())
    path.replace(target)
    return target


def previous_of(path: str | os.PathLike[str]) -> Path:
    """Where :func:`save` keeps the file it replaces: ``last.ckpt`` -> ``last.previous.ckpt``."""
    path = Path(path)
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def remove(path: str | os.PathLike[str]) -> None:
    """Delete a checkpoint and its predecessor, and what a killed save left behind; files of others stay."""
    path = Path(path)
    remove_leftovers(path)
    for file in (path, previous_of(path)):
        if is_sealed(file):
            file.unlink()


def remove_later(folder: Path, step: int) -> None:
    """Remove checkpoints of later steps, which a killed process has left: they are about to be saved again.

    Where a file stands already, a ModelCheckpoint saves beside it, under a name of another version.
    """
    _remove_all(folder.glob(".*.ckpt.*.tmp"))
    for file in sorted(folder.glob("*.ckpt")):
        if (outline(file) or {}).get("global_step", step) > step:
            remove(file)


def keep(path: str | os.PathLike[str], kept: str | os.PathLike[str]) -> None:
    """Give a checkpoint and its predecessor second names, under which they stay when they are replaced."""
    for source, target in ((Path(path), Path(kept)), (previous_of(path), previous_of(kept))):
        fresh = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        if source.exists():
            fresh.unlink(missing_ok=True)
            try:
                os.link(source, fresh)
            except OSError:  # a file system without hard links
                shutil.copyfile(source, fresh)
            fresh.replace(target)


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Delete unfinished files that killed processes left beside ``path``."""
    path = Path(path)
    _remove_all(path.parent.glob(f".{path.name}.*.tmp"))


def _remove_all(leftovers: Iterable[Path]) -> None:
    for leftover in leftovers:
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def _read(file: BinaryIO, map_location: Any, *, plain: bool) -> dict[str, Any]:
    import torch  # noqa: PLC0415  # heavy, and a search over a plain function reads no checkpoint

    state: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=plain)
    return state


def _seal_of(path: str | os.PathLike[str]) -> Seal:
    with Path(path).open("rb") as file:
        return read_seal(file, path)


def _write_sealed(state: dict[str, Any], path: Path, key: Key) -> None:
    import torch  # noqa: PLC0415  # as in _read()

    path.unlink(missing_ok=True)  # of a process that was killed, or a link that would lead elsewhere
    with path.open("xb") as file:
        sealing = Sealing(file)
        try:
            torch.save(state, sealing)  # type: ignore[arg-type]  # it only writes and flushes
        except Exception as error:
            require_readable(state, key)  # says which part of it
            if isinstance(error, RuntimeError):  # torch's writer, whose own text does not say that the disk is full
                raise OSError(f"{path} could not be written: {error.__context__ or error}") from error
            raise
        sealing.finish(key)
        os.fsync(file.fileno())


_HPARAMS = (("hyper_parameters",), ("datamodule_hyper_parameters",))


def _problems(value: Any, place: tuple[Any, ...], *, plain: bool) -> Iterator[tuple[tuple[Any, ...], str]]:
    """The innermost parts of a state that cannot be read back, each with the keys that lead to it and the reason."""
    why = _why_unreadable(value, plain=plain)
    if why is None:
        return
    parts: Iterable[tuple[Any, Any]] = ()
    if isinstance(value, Mapping):
        parts = value.items()
    elif isinstance(value, list | tuple):
        parts = enumerate(value)
    inner = [found for name, part in parts for found in _problems(part, (*place, name), plain=plain)]
    yield from inner or [(place, why)]


def _written(place: tuple[Any, ...]) -> str:
    """``hyper_parameters['loss'][0]``."""
    return "".join([*map(str, place[:1]), *(f"[{key!r}]" for key in place[1:])]) or "it"


def _why_unreadable(value: Any, *, plain: bool) -> str | None:
    import torch  # noqa: PLC0415  # as in _read()

    file = io.BytesIO()
    try:
        torch.save(_without_tensors(value), file)
        file.seek(0)
        _read(file, "cpu", plain=plain)
    except Exception as error:  # noqa: BLE001  # a user's class may raise anything
        return f"{type(error).__name__}: {_reason(error)}"
    return None


def _without_tensors(value: Any) -> Any:
    """The same containers with empty tensors: what a large model weighs is not written only to be read."""
    import torch  # noqa: PLC0415  # as in _read()

    if type(value) in (torch.Tensor, torch.nn.Parameter):
        return torch.empty(0)
    if type(value) in (dict, OrderedDict):
        return type(value)((name, _without_tensors(part)) for name, part in value.items())
    if type(value) in (list, tuple):
        return type(value)(map(_without_tensors, value))
    return value


def _reason(error: BaseException) -> str:
    """What an error says, in one line; torch hides it in advice to trust the file."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or ["no reason given"]
    detail = next((line.partition(_DETAIL)[2] for line in lines[1:] if _DETAIL in line), lines[0])
    return detail.partition(" was not an allowed global")[0].strip().rstrip(".")


def _keep_previous(path: Path) -> None:
    """Give the old file its second name while it still has the first, so that one of the two is always there."""
    spare = path.with_name(f".{path.name}.previous.{os.getpid()}.tmp")
    try:
        spare.unlink(missing_ok=True)
        os.link(path, spare)
        spare.replace(previous_of(path))
    except OSError:  # a file system without hard links
        path.replace(previous_of(path))


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # a folder cannot be opened there
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
