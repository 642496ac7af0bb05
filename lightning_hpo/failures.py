"""Why a job gave no score, as the text that is stored with its trial."""

import traceback

from lightning_hpo.safe_text import hide_passwords

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


def failure_text(error: BaseException) -> str:
    """Say in one line what happened, with the traceback below it; passwords in URLs are left out."""
    if isinstance(error, JobError):
        return hide_passwords(str(error))[:LONGEST]
    text = f"{type(error).__name__}: {error}\n{''.join(traceback.format_exception(error))}"
    return hide_passwords(text)[:LONGEST]


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
