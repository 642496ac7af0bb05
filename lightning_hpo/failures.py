"""Why a job gave no score, as the text that is stored with its trial."""

import traceback
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from lightning_hpo.safe_text import hide_passwords, hide_values

LONGEST = 20_000  # letters; a study is no place for more


class JobError(RuntimeError):
    """A job failed for a reason that its text says in full; no traceback is needed."""


class ParameterMismatchError(RuntimeError):
    """A hyperparameter that was asked for is not the one that trains."""

    exit_code = 2  # the module does not fit the call; see lightning_hpo.exits


class RankLostError(RuntimeError):
    """Another rank of a distributed training did not come out of a job that failed here; the job is not done."""


class DivergedError(JobError):
    """The training loss became NaN or infinite."""


def failure_text(error: BaseException, params: Mapping[str, Any] = MappingProxyType({})) -> str:
    """Say in one line what happened, with the traceback below it; without passwords in URLs, and secrets of a trial.

    Args:
        error: of a job.
        params: of its trial.
    """
    if isinstance(error, JobError):
        text = str(error)
    else:
        text = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
    return hide_passwords(hide_values(text[: 2 * LONGEST], params))[:LONGEST]


def let_go(error: BaseException) -> None:
    """Free what the frames of an exception hold: a module and its tensors outlive their trial otherwise."""
    seen: set[int] = set()
    chain: list[BaseException | None] = [error]
    while chain:
        one = chain.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        traceback.clear_frames(one.__traceback__)
        chain += [one.__cause__, one.__context__]
