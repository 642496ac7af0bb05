"""How a script ends: exit codes that mean something, and a last line that says what to do.

Errors stay ordinary exceptions. Whoever catches one sees its class and text; a notebook shows it and lives on. Only if
one that left :func:`explained` ends the whole process does the exit code follow the table, through ``sys.excepthook``:

====  =================================================================================================
0     the search is over
1     an error that nobody foresaw
2     the call is wrong, does not fit the study, or the study is in use
3     the failure limit was reached, or no trial succeeded
4     the run folder, a checkpoint or the storage cannot be used: full, read-only, damaged
130   paused by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (a closed terminal); the same command continues
====  =================================================================================================
"""

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from lightning_hpo.printing import say
from lightning_hpo.safe_text import hide_passwords, one_line

UNFORESEEN, WRONG_CALL, FAILED, STORAGE, INTERRUPTED = 1, 2, 3, 4, 130
_CODE = "_lightning_hpo_exit_code"  # on an exception that has left explained()
_PREFIX = "lightning_hpo: "
_NEXT = {
    UNFORESEEN: "run the same command to continue",
    WRONG_CALL: "correct the call and run it again",
    FAILED: "see the reasons with `python -m lightning_hpo show`, then run the same command to go on",
    STORAGE: "mend the storage and run the same command to continue",
    INTERRUPTED: "run the same command to continue",
}
_before: Any = None  # the excepthook that ours passes everything on to


def exit_code(error: BaseException) -> int:
    """Exit code of a process that ends with this error; an exception class may have an ``exit_code`` of its own."""
    code = getattr(error, "exit_code", None)
    if isinstance(code, int):
        return code
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    kinds = {kind.__name__ for kind in type(error).__mro__}  # Lightning is not loaded to ask for its own exception
    wrong = kinds & {"ValueError", "TypeError", "MisconfigurationException"}
    return WRONG_CALL if wrong else UNFORESEEN


def last_line(what: str, kept: Path | None, then: str) -> str:
    """Write the line that a person sees last: what happened; what is kept; how to continue."""
    what = one_line(hide_passwords(what)).rstrip(". ").replace(";", ",")
    keeps = "nothing was started" if kept is None else f"what was recorded and saved is kept in {kept}"
    return f"{_PREFIX}{what}; {one_line(keeps)}; {then}."


def line_for(error: BaseException, kept: Path | None) -> str:
    """:func:`last_line` for an error."""
    first = (str(error).splitlines() or [""])[0]
    known = hasattr(type(error), "exit_code") or isinstance(error, ValueError | TypeError)
    what = first if known and first else f"{type(error).__name__}{first and ': '}{first}"
    return last_line(what, kept, _NEXT[exit_code(error)])


@contextmanager
def explained(kept: Path | None) -> Iterator[None]:
    """Give an error that leaves the block a last line (a note of the exception) and an exit code.

    Args:
        kept: folder in which everything is kept; None before there is one.
    """
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if not hasattr(error, _CODE):
            error.add_note(line_for(error, kept))
            setattr(error, _CODE, exit_code(error))
            _install()
        raise


def leave(error: BaseException) -> NoReturn:
    """End a command line's process with an error's text, its last line and its exit code, without a traceback."""
    lines = [one_line(hide_passwords(line)) for line in str(error).splitlines()]
    last = next((note for note in getattr(error, "__notes__", ()) if note.startswith(_PREFIX)), line_for(error, None))
    say("\n".join([*(lines[1:] and lines), last]), sys.stderr)  # the last line has the first one
    raise SystemExit(exit_code(error)) from error


def _install() -> None:
    global _before  # there is one excepthook in a process
    if sys.excepthook is not _leave:
        _before, sys.excepthook = sys.excepthook, _leave


def _leave(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if _before is sys.__excepthook__:  # the traceback quotes the script, maybe the line with a storage's URL
        say(hide_passwords("".join(traceback.format_exception(error))).rstrip("\n"), sys.stderr)
    else:
        _before(kind, error, trace)
    code = getattr(error, _CODE, None)
    if code is not None and not (hasattr(sys, "ps1") or sys.flags.interactive):
        raise SystemExit(code)
