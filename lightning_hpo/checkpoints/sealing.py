"""The comment that closes a checkpoint: who wrote it, and whether it is whole.

A torch file is a zip file, and a zip file may end with a comment. Ours is ``sha256:`` and the hash of everything before
the hash; of a run with a key, ``hmac-sha256:`` and the signature of everything before the signature stand before that.
"""

import hashlib
import hmac
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from lightning_hpo.checkpoints.key import Key
from lightning_hpo.errors import DamagedCheckpointError

_HEX = 64
_TAG = b"sha256:"
_TRAILER = len(_TAG) + _HEX
_SIGNED = b"hmac-sha256:"  # before the trailer, with the signature of everything before the signature
_SIGNATURE = len(_SIGNED) + _HEX
# The end-of-central-directory record closes every zip file; torch writes no comment after it (APPNOTE 4.3.16).
_END_RECORD = 22
_END_SIGNATURE = b"PK\x05\x06"
_BLOCK = 1 << 18  # bytes that are hashed and written together: torch writes in many small pieces


@dataclass(frozen=True)
class Seal:
    """Digest of everything before the signature of a whole file, and the signature, or what is in its place."""

    digest: bytes
    signature: bytes

    def is_of(self, key: Key) -> bool:
        """Whether this key has signed the file."""
        expected = key.sign(self.digest)
        return expected is not None and hmac.compare_digest(_SIGNED + expected, self.signature)


def read_seal(file: BinaryIO, path: object) -> Seal:
    """Compare a file with its hash, and return what else it carries.

    Raises:
        DamagedCheckpointError: if they differ, or there is no hash.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _HEX - _TRAILER - len(_SIGNED), 0))
    comment = file.read()
    file.seek(0)
    digest = hashlib.sha256()
    for length in (size - _TRAILER - _HEX, _TRAILER):  # up to the signature, and with it to the hash
        before = digest.copy()
        _add(digest, file, length)
    if size < _TRAILER + _END_RECORD or comment[-_TRAILER:] != _TAG + digest.hexdigest().encode():
        raise DamagedCheckpointError(f"{path} is damaged or was not written by lightning_hpo: its SHA-256 differs.")
    return Seal(before.digest(), comment[:_SIGNATURE])


def is_sealed(path: Path) -> bool:
    """Whether a file ends as :func:`lightning_hpo.checkpoints.save` ends it."""
    try:
        with path.open("rb") as file:
            file.seek(-_TRAILER, os.SEEK_END)
            return file.read(len(_TAG)) == _TAG
    except OSError:  # no such file, or a shorter one
        return False


class Sealing:
    """Passes a zip file on as it is written, hashes it, and gives it a comment with signature and hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._digest = hashlib.sha256()
        self._held = bytearray()  # what is not yet passed on; the last bytes may be the end record

    def write(self, data: bytes) -> int:
        """Pass data on, in large pieces."""
        if len(data) < _BLOCK:
            self._held += data
        else:  # a large tensor is not copied
            self._pass(self._held)
            self._pass(memoryview(data)[:-_END_RECORD])
            self._held = bytearray(data[-_END_RECORD:])
        if len(self._held) >= _BLOCK:
            self._pass(self._held[:-_END_RECORD])
            del self._held[:-_END_RECORD]
        return len(data)

    def flush(self) -> None:
        """Flush what was passed on."""
        self._file.flush()

    def finish(self, key: Key) -> None:
        """Pass on what is left, with the comment at its end."""
        if self._held[-_END_RECORD:][: len(_END_SIGNATURE)] != _END_SIGNATURE:
            raise OSError("torch wrote no zip file that ends without a comment, so it cannot be sealed.")
        comment = _TRAILER if key.secret is None else _SIGNATURE + _TRAILER
        self._pass(self._held[:-2] + struct.pack("<H", comment))
        if key.secret is not None:
            self._pass(bytearray(_SIGNED))
            self._pass(bytearray(key.sign(self._digest.digest()) or b""))
        self._pass(bytearray(_TAG))
        self._file.write(self._digest.hexdigest().encode())
        self._file.flush()

    def _pass(self, data: bytearray | memoryview) -> None:
        self._file.write(data)
        self._digest.update(data)


def _add(digest: Any, file: BinaryIO, length: int) -> None:
    while length > 0 and (block := file.read(min(length, 1 << 20))):
        digest.update(block)
        length -= len(block)
