"""What can go wrong: exceptions, what a trial's failure is stored as, and how a script ends.

All exceptions of this package are :class:`LightningHPOError`. They are ordinary exceptions: they can be caught, and a
notebook shows them and lives on. If an exception that has left :func:`explained` ends the whole process, the exit code
follows this table, through ``sys.excepthook``:

====  =================================================================================================
0     the search is over
1     an unforeseen error
2     the call is wrong, does not fit the study, or the study is in use
3     the failure limit was reached, or no trial succeeded
4     the run folder, a checkpoint or the storage cannot be used: full, read-only, damaged
130   paused by Ctrl-C, 143 by SIGTERM, 129 by SIGHUP (a closed terminal); the same command continues
====  =================================================================================================

The hook is installed by the first error of a tuner, in a script only: never in IPython.
"""

import builtins
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, NoReturn, Self

from lightning_hpo.text import hide_passwords, hide_values, one_line, say

UNFORESEEN, WRONG_CALL, FAILED, STORAGE, INTERRUPTED = 1, 2, 3, 4, 130
_LONGEST = 20_000  # letters of a reason; a study is no place for more
_CODE = "_lightning_hpo_exit_code"  # on an exception that has left explained()
_PREFIX = "lightning_hpo: "
_NEXT = {
    UNFORESEEN: "run the same command to continue",
    WRONG_CALL: "correct the call and run it again",
    FAILED: "see the reasons with `python -m lightning_hpo show`, then go on with the same command; after a change of "
    "the code, with `allow_changed=True` or another `name`",
    STORAGE: "mend the storage and run the same command to continue",
    INTERRUPTED: "run the same command to continue",
}


class LightningHPOError(Exception):
    """Base of all exceptions of this package."""


class JobError(LightningHPOError, RuntimeError):
    """A job failed for a reason that its text says in full; no traceback is needed."""


class ParameterMismatchError(LightningHPOError, RuntimeError):
    """A hyperparameter that was asked for is not the one that trains."""

    ends_search = True  # raised by a job: not the trial's fault; see lightning_hpo.tuners.search
    exit_code = WRONG_CALL  # the module does not fit the call; see lightning_hpo.errors


class RankLostError(LightningHPOError, RuntimeError):
    """Another rank of a distributed training did not end a job that failed here, so the job is not done."""

    ends_search = True


class DivergedError(JobError):
    """The training loss became NaN or infinite."""


class SearchFailedError(LightningHPOError, RuntimeError):
    """No trial succeeded, or too many failed in a row."""

    exit_code = FAILED


class StorageError(LightningHPOError, OSError):
    """The run folder or its study cannot be used."""

    ends_search = True
    exit_code = STORAGE


class StudyMismatchError(LightningHPOError, ValueError):
    """A stored study was made with other settings than this call."""


class StudyInUseError(LightningHPOError, RuntimeError):
    """Another process works on the study."""

    exit_code = WRONG_CALL


class DamagedCheckpointError(LightningHPOError, RuntimeError):
    """A checkpoint is torn, changed, not written by us, or holds objects and was written by another run."""


class UnreadableStateError(LightningHPOError, ValueError):
    """A state holds something that could not be read back from a checkpoint."""

    exit_code = WRONG_CALL


class WorkerStartError(LightningHPOError, RuntimeError):
    """A worker process ended before it was ready for a job."""

    exit_code = WRONG_CALL


class StudyPaused(BaseException):  # not an error, so no LightningHPOError: ``except Exception`` does not catch it
    """The search was interrupted by a signal; everything is saved and the same call continues it.

    Except in IPython it is a SystemExit. Its code is 128 + the signal's number, so a script ends with 130 (Ctrl-C),
    143 (SIGTERM) or 129 (SIGHUP). In IPython, where a SystemExit asks to leave, it is an exception like others.
    """

    def __new__(cls, *args: Any) -> Self:
        """Make a SystemExit too where that ends a script."""
        base: Any = BaseException
        if "get_ipython" not in vars(builtins):
            base, cls = SystemExit, _LeavingScript  # type: ignore[assignment]  # noqa: PLW0642  # of this class too
        made: Self = base.__new__(cls, *args)
        return made

    @property
    def code(self) -> int:
        """Exit code of a script."""
        return int(self.args[0])

    def __str__(self) -> str:
        return "the search is paused and everything is saved: run the same call again to continue"

    def _render_traceback_(self) -> list[str]:
        """Let IPython show the line, and no traceback."""
        return [f"StudyPaused: {self}"]


class _LeavingScript(StudyPaused, SystemExit):  # type: ignore[misc]  # SystemExit declares `code` as an attribute
    pass


_LeavingScript.__name__ = StudyPaused.__name__


def failure_text(error: BaseException, params: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Say in one line what happened, with the traceback below it; without passwords in URLs, and secrets of a trial."""
    if isinstance(error, JobError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
    return hide_passwords(hide_values(text[: 2 * _LONGEST], params))[:_LONGEST]


def free_frames(error: BaseException) -> None:
    """Clear the frames of an exception, which otherwise keep a module and its tensors alive after their trial."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        link = chain.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        traceback.clear_frames(link.__traceback__)
        chain += [link.__cause__, link.__context__]


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
    what = one_line(hide_passwords(what)).rstrip(". ")
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
    """Let a script end with the code of its error; IPython shows errors itself and has no exit code."""
    if not isinstance(sys.excepthook, _ExitWithCode) and not hasattr(builtins, "__IPYTHON__"):
        sys.excepthook = _ExitWithCode(sys.excepthook)


class _ExitWithCode:
    """An excepthook that passes everything on to the one before it, and then exits with the error's code."""

    def __init__(self, before: Callable[..., Any]) -> None:
        self._before = before

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if self._before is sys.__excepthook__:  # its traceback quotes the script, maybe the line with a storage's URL
            say(hide_passwords("".join(traceback.format_exception(error))).rstrip("\n"), sys.stderr)
        else:
            self._before(kind, error, trace)
        code = getattr(error, _CODE, None)
        if code is not None and not (hasattr(sys, "ps1") or sys.flags.interactive):
            raise SystemExit(code)
