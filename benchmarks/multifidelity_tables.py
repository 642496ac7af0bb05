"""Summaries of simulated runs, as Markdown: means over seeds, and differences paired by seed."""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from curves import ENTRIES, HELD_BACK, SYNTHETIC, TABLES
from numpy.typing import NDArray

BUDGETS = (5, 10, 20)  # in units of R
PEERS = ("dehb", "syne-tune-asha", "optuna-hyperband-tpe", "random")
OURS = "hyperband-tuner"

Runs: TypeAlias = Mapping[tuple[str, str, int, int], Mapping[str, Any]]


def at(trace: Sequence[Sequence[float]], budget: float) -> float:
    """Regret of the incumbent after ``budget`` (in R); 1 before the first value."""
    return next((regret for x, regret in reversed(trace) if x <= budget + 1e-9), 1.0)


def regrets(runs: Runs, method: str, workers: int, problems: Sequence[str]) -> NDArray[np.float64]:
    """Regret of shape (budgets, problems, seeds), of the seeds that all problems have."""
    seeds = [
        seed
        for seed in sorted({key[3] for key in runs})
        if all((problem, method, workers, seed) in runs for problem in problems)
    ]
    return np.array(
        [
            [[at(runs[problem, method, workers, seed]["trace"], budget) for seed in seeds] for problem in problems]
            for budget in BUDGETS
        ]
    )


def speed_up(runs: Runs, method: str, workers: int, problem: str) -> float:
    """How many times fewer worker-epochs to random search's mean regret at the largest budget; 0 if not reached."""
    of = {
        name: [run["trace"] for key, run in runs.items() if key[:3] == (problem, name, workers)]
        for name in (method, "random")
    }
    if not of["random"]:
        return 0.0
    goal = statistics.mean(at(trace, BUDGETS[-1]) for trace in of["random"])
    for quarter in range(1, 4 * BUDGETS[-1] + 1):
        if statistics.mean(at(trace, quarter / 4) for trace in of[method]) <= goal:
            return BUDGETS[-1] / (quarter / 4)
    return 0.0


def summary(runs: Runs, workers: Sequence[int]) -> Iterator[str]:
    """Of each group of problems and number of workers: means, then paired differences."""
    for title, problems in (
        ("recorded tables", TABLES),
        ("recorded tables by their entries", ENTRIES),
        ("synthetic problems", tuple(SYNTHETIC)),
        ("problems held back", tuple(HELD_BACK)),
    ):
        for count in workers:
            if not regrets(runs, OURS, count, problems).size:
                continue
            yield f"\n### {title[0].upper() + title[1:]}, {count} worker{'s' * (count > 1)}\n"
            yield from means(runs, count, problems)
            yield ""
            yield from differences(runs, count, problems)


def means(runs: Runs, workers: int, problems: Sequence[str]) -> Iterator[str]:
    """One line per method, the best at the largest budget first."""
    names = " · ".join(name.removeprefix("synthetic-").removeprefix("entries-") for name in problems)
    yield f"| method | seeds | mean 5R | 10R | 20R (SE) | 20R: {names} | speed-up | geo-mean | busy | ms |"
    yield "|" + "---|" * 10
    lines = []
    for method in sorted({key[1] for key in runs}):
        of = regrets(runs, method, workers, problems)
        seeds = of.shape[2] if of.ndim == 3 else 0
        if not seeds:
            continue
        mean = of.mean(axis=(1, 2))
        error = standard_error(of[-1].mean(axis=0))
        ups = [speed_up(runs, method, workers, problem) for problem in problems]
        geo = f"{statistics.geometric_mean(ups):.1f}" if all(ups) else "-"
        every = [run for key, run in runs.items() if key[1:3] == (method, workers) and key[0] in problems]
        busy, ms = (statistics.mean(run[what] for run in every) for what in ("busy", "ms"))
        cells = [
            method,
            str(seeds),
            *(f"{value:.4f}" for value in mean[:2]),
            f"{mean[2]:.4f} ({error:.4f})",
            " ".join(f"{value:.3f}" for value in of[-1].mean(axis=1)),
            " ".join(f"{up:.1f}" if up else "-" for up in ups),
            geo,
            f"{busy:.2f}",
            f"{ms:.2f}",
        ]
        lines.append((mean[-1], f"| {' | '.join(cells)} |"))
    yield from (line for _, line in sorted(lines))


def differences(runs: Runs, workers: int, problems: Sequence[str], ours: str = OURS) -> Iterator[str]:
    """Mean over seeds of (ours - the other), each the mean over problems, and its standard error."""
    yield f"| {ours} minus | 5R | 10R | 20R |"
    yield "|---|---|---|---|"
    mine = regrets(runs, ours, workers, problems)
    for other in sorted({key[1] for key in runs} - {ours}, key=lambda name: (name not in PEERS, name)):
        theirs = regrets(runs, other, workers, problems)
        if theirs.ndim != 3 or mine.shape != theirs.shape or not theirs.size:
            continue
        apart = (mine - theirs).mean(axis=1)  # (budgets, seeds)
        cells = " | ".join(f"{gap.mean():+.4f} ± {standard_error(gap):.4f}" for gap in apart)
        yield f"| {other} | {cells} |"


def standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values))) if len(values) > 1 else math.nan
