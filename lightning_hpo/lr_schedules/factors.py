"""Decay curves as pure functions: steps since the warm-up ended -> factor between 1 and 0.

Notation: ``step`` counts optimizer steps since the warm-up ended (0 is the first at full learning rate), ``total`` is
the length of the decay in steps. A curve with a ``total`` is 1 at ``step = 0`` and exactly 0 from ``step = total`` on.

Every form is written so that nothing cancels near the end, where 1 + cos(x) or 1 - sqrt(p) lose half the digits of a
small learning rate.
"""

import math
from types import MappingProxyType
from typing import Literal


def linear(step: int, total: int) -> float:
    """1 - p with p = step / total.

    Source: linear decay to zero, Bergsma et al. 2025 (arXiv 2502.15938); theory in Defazio et al. 2023 (2310.07831).

    Example:
        >>> linear(1, 4)
        0.75
    """
    return (total - step) / total if step < total else 0.0


def cosine(step: int, total: int) -> float:
    """(1 + cos(pi p)) / 2 with p = step / total, written as sin^2(pi (1 - p) / 2).

    Source: Loshchilov and Hutter 2017, SGDR (arXiv 1608.03983), eq. (5) with a single cycle.

    Example:
        >>> round(cosine(1, 3), 15)
        0.75
    """
    return math.sin(0.5 * math.pi * (total - step) / total) ** 2 if step < total else 0.0


def one_minus_sqrt(step: int, total: int) -> float:
    """1 - sqrt(p) with p = step / total, written as (1 - p) / (1 + sqrt(p)).

    Source: Haegele et al. 2024 (arXiv 2405.18392), the cool-down they recommend.

    Example:
        >>> one_minus_sqrt(1, 4)
        0.5
    """
    return (total - step) / total / (1.0 + math.sqrt(step / total)) if step < total else 0.0


def one_minus_square(step: int, total: int) -> float:
    """1 - p^2 with p = step / total, written as (1 - p) (1 + p).

    Source: Haegele et al. 2024 (arXiv 2405.18392), one of the cool-downs compared.

    Example:
        >>> one_minus_square(1, 2)
        0.75
    """
    return (total - step) / total * (1.0 + step / total) if step < total else 0.0


Cooldown = Literal["linear", "1-sqrt", "cosine", "1-square"]

COOLDOWNS = MappingProxyType(
    {"linear": linear, "1-sqrt": one_minus_sqrt, "cosine": cosine, "1-square": one_minus_square}
)
