"""Printing that cannot end a search: what cannot be shown is not shown."""

import atexit
import logging
import os
import sys
from contextlib import suppress
from typing import Any

_lost: dict[int, tuple[Any, Exception]] = {}  # streams that did not take a line, by their id, and why


def say(text: str, stream: Any = None) -> None:
    """Print a line at once, wherever the output goes: a closed pipe, a full disk, an encoding without its letters.

    Letters that the stream cannot encode are written as escapes. A line that cannot be written is lost; the first time,
    a warning says so, unless nobody is there any more to read.

    Args:
        text: without secrets and control characters.
        stream: where to print. Default: ``sys.stdout``.
    """
    stream = sys.stdout if stream is None else stream
    try:
        try:
            print(text, file=stream, flush=True)
        except UnicodeEncodeError:
            encoding = getattr(stream, "encoding", None) or "ascii"
            print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (OSError, ValueError) as error:  # ValueError: the stream is closed
        if id(stream) in _lost:
            return
        _lost[id(stream)] = stream, error
        atexit.register(_give_up, stream)
        if not isinstance(error, BrokenPipeError):
            logging.getLogger(__name__).warning("output cannot be written (%s), work goes on without it", error)


def lost(stream: Any) -> Exception | None:
    """Why a stream did not take all that was said, if so."""
    return _lost.get(id(stream), (None, None))[1]


def _give_up(stream: Any) -> None:
    """Let what a stream still holds go nowhere; else the interpreter ends with an error when it flushes it."""
    with suppress(ValueError):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
