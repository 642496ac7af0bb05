"""How the validations of a trial make its score: the last one counts, the best one, or the mean of the last few."""

import math
import re
from dataclasses import dataclass
from typing import Any, Self

from lightning_hpo.records import Kept, Mode
from lightning_hpo.text import nearest

_MEAN = re.compile(r"mean\(\s*([1-9]\d*)\s*\)")
_ACCEPTED = "'last', 'best', or 'mean(k)' with a whole number k of at least 1, e.g. 'mean(3)'"


@dataclass(frozen=True)
class ScoreRule:
    """The rule that makes a score of the validations of a trial, those of all its jobs in order of their step.

    Args:
        name: ``"last"``, the validation at the step where the trial stands; ``"best"``, the best one so far; or
            ``"mean"``, the mean of the last ``count``, of fewer where there are fewer.
        count: of validations in a mean.
    """

    name: str = "last"
    count: int = 1

    @classmethod
    def read(cls, given: Any) -> Self:
        """Return the rule of a text: ``"last"``, ``"best"`` or ``"mean(k)"``.

        Raises:
            TypeError, ValueError: for anything else, with what is accepted.

        Example:
            >>> ScoreRule.read("mean(3)")
            ScoreRule(name='mean', count=3)
        """
        if not isinstance(given, str):
            raise TypeError(f"`score` must be {_ACCEPTED}, got {given!r}.")
        if given in ("last", "best"):
            return cls(given)
        mean = _MEAN.fullmatch(given)
        if mean is None:
            hint = nearest(given, ("last", "best", "mean(3)"))
            raise ValueError(f"`score` must be {_ACCEPTED}, got {given!r}.{hint}")
        return cls("mean", int(mean[1]))

    def __str__(self) -> str:
        return f"mean({self.count})" if self.name == "mean" else self.name

    def label(self, monitor: str) -> str:
        """Name of the score of a metric, for people.

        Example:
            >>> ScoreRule.read("mean(3)").label("val_loss")
            'val_loss (mean(3))'
        """
        return monitor if self.name == "last" else f"{monitor} ({self})"

    def add(self, kept: Kept, step: int, value: float, mode: Mode) -> Kept:
        """Return the validations that the score is made of, when one more has come; a repeated one changes nothing.

        Args:
            kept: those before.
            step: optimizer step of the new one.
            value: of the metric. Of the best, one that is not finite only counts while there is no other.
            mode: whether lower or higher values are better.
        """
        if self.name == "mean":
            return tuple(sorted({**dict(kept), step: value}.items()))[-self.count :]
        if self.name == "best" and kept:
            before, sign = kept[-1][1], 1 if mode == "min" else -1
            better = math.isfinite(value) and not (math.isfinite(before) and sign * before <= sign * value)
            return ((step, value),) if better else kept
        return ((step, value),)

    def score(self, kept: Kept) -> float:
        """Return the score that these validations make; NaN without any, or where the mean has one that is NaN."""
        return sum(value for _, value in kept) / len(kept) if kept else math.nan


LAST = ScoreRule()
