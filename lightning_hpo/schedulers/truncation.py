"""Truncation selection: which members of a population copy, and which may be copied.

Source: Jaderberg et al. 2017, *Population Based Training of Neural Networks* (arXiv 1711.09846), section 4.1.1.
"""

import math
from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Literal, TypeAlias

import numpy as np

from lightning_hpo.records import Mode

Donor: TypeAlias = Literal["random-top", "best"]


def exploit(
    scores: Mapping[int, float],
    member: int,
    generator: np.random.Generator,
    *,
    mode: Literal["min", "max"] = "min",
    quantile: float = 0.2,
    donor: Donor = "random-top",
    stopped: Collection[int] = (),
    violations: Mapping[int, float] = MappingProxyType({}),
) -> int | None:
    """Truncation selection: say from whom a member copies.

    The worst ``ceil(quantile * n)`` members (at most half of them) copy from the best as many. Ties are broken by the
    member's number, so two equal members still have a loser. A score that is not finite always loses, also beyond the
    share, and is never copied.

    Args:
        scores: member -> score of every living member; leave dead ones out.
        member: who asks; a key of ``scores``.
        generator: draws the donor for ``"random-top"``.
        mode: whether small or large scores are good.
        quantile: share that copies and share that is copied, in (0, 0.5].
        donor: ``"random-top"`` or ``"best"``.
        stopped: members that a callback has asked to stop (see :func:`truncate`).
        violations: member -> sum of its constraints above 0; members that are left out violate none.

    Returns:
        The member to copy from, or None if ``member`` does not lose or nobody can give.

    Example:
        >>> exploit({0: 0.3, 1: 0.9, 2: 0.5, 3: 0.1, 4: 0.4}, 1, np.random.default_rng(0))
        3
    """
    losers, top = truncate(scores, mode=mode, quantile=quantile, stopped=stopped, violations=violations)
    if member not in losers or not top:
        return None
    return top[0] if donor == "best" else top[int(generator.integers(len(top)))]


def truncate(
    scores: Mapping[int, float],
    *,
    mode: Mode = "min",
    quantile: float = 0.2,
    stopped: Collection[int] = (),
    violations: Mapping[int, float] = MappingProxyType({}),
) -> tuple[list[int], list[int]]:
    """Name the members that copy, and those that may be copied, best first. None is both.

    Infeasible members come after feasible ones, those that violate their constraints least before the others, and are
    never copied. A member that was asked to stop ranks last and copies, also beyond the share; not so the one with the
    best score, as nobody has more to give, and not if all were asked.
    """
    sign = 1.0 if mode == "min" else -1.0
    finite = [member for member in scores if math.isfinite(scores[member])]
    by_score = sorted(finite, key=lambda member: (violations.get(member, 0.0), sign * scores[member], member))
    late = set(stopped) & set(by_score[1:]) if set(finite) - set(stopped) else set()
    ranked = sorted(by_score, key=late.__contains__)
    broken = [member for member in scores if member not in finite]
    count = min(max(math.ceil(round(quantile * len(scores), 9)), 1), len(scores) // 2)
    top = [member for member in ranked[: max(count, 1)] if member not in late and not violations.get(member)]
    worst = max(count - len(broken), len(late))
    return [*(member for member in ranked[len(ranked) - worst :] if member not in top), *broken], top
