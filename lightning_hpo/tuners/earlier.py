"""Trials of an earlier run, which the sampler of a search learns from; they are no trials of the search."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna

from lightning_hpo.records import Row
from lightning_hpo.reporting.run import Run as EarlierRun
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.space import SearchSpace, split_name
from lightning_hpo.tuners.options import Goal

PRIOR = "lightning_hpo_prior"
"""User attribute of a study: parameters and score of each trial that was taken over from an earlier run."""


def prior_rows(
    study: optuna.Study, from_run: str | Path | None, space: SearchSpace, goal: Goal, *, max_steps: int, unit: Unit
) -> Sequence[Row]:
    """Return the finished trials of an earlier run, as rows; copied into the study at the first call.

    Args:
        study: of the search.
        from_run: folder of the earlier run; None for none.
        space: of the search.
        goal: of the search.
        max_steps: full budget of a trial.
        unit: of the budget.

    Raises:
        ValueError: if the earlier run measured something else, or none of its trials belongs to the space.
        StorageError: if there is no run.
    """
    if from_run is None:
        return ()
    noted = study.user_attrs.get(PRIOR)
    if noted is None:
        noted = _taken(from_run, space, goal, max_steps, unit)
        study.set_user_attr(PRIOR, noted)
    return [
        Row(number, params, {max_steps: score}, state="complete")
        for number, (params, score) in enumerate(noted)
        if space.fits(params)  # it may have changed since
    ]


def _taken(
    from_run: str | Path, space: SearchSpace, goal: Goal, max_steps: int, unit: Unit
) -> list[tuple[dict[str, Any], float]]:
    """Choose the trials that count here, and say how many do not."""
    run = read_run(from_run)
    _validate(run, goal)
    finished = [row for row in run.rows if row.state == "complete" and row.score is not None]
    places = {split_name(name): name for name in space}
    taken: list[tuple[dict[str, Any], float]] = []
    reasons: Counter[str] = Counter()
    for row in finished:
        params = {places.get(split_name(name), name): value for name, value in row.params.items()}
        why = _why_not(row, params, space)
        if why:
            reasons[why] += 1
        else:
            assert row.score is not None
            taken.append((params, row.score))
    counts = f"{len(taken)} of {len(finished)} finished trials of {run.path} are used"
    because = "; ".join(f"{count} {why}" for why, count in sorted(reasons.items()))
    if not taken:
        names = ", ".join(dict.fromkeys(name for row in finished for name in row.params)) or "none"
        raise ValueError(
            f"`from_run`: {counts}: {because or 'it has none'}. Names there: {names}; here: {', '.join(space)}."
        )
    if because:
        warnings.warn(f"`from_run`: {counts}; {because}", stacklevel=2)
    full = run.settings.get("scheduler", {}).get("max_steps", max_steps)
    if (full, run.unit) != (max_steps, unit):
        warnings.warn(
            f"`from_run`: trials of {run.path} have {run.amount(full)}, those of this search {unit.amount(max_steps)}; "
            "their scores are taken for comparable",
            stacklevel=2,
        )
    return taken


def _why_not(row: Row, params: Mapping[str, Any], space: SearchSpace) -> str:
    """Why a trial does not count in a space; empty if it does."""
    if row.parent is not None:
        return "went on from the weights of another trial"
    if not row.feasible:
        return "break a constraint"
    if space.fits(params):
        return ""
    if others := [name for name in params if name not in space]:
        return f"have {others[0]!r}, which is not in this space"
    if lacking := [name for name in space if space.has(name, params) and name not in params]:
        return f"lack {lacking[0]!r}"
    return "have values outside this space"


def _validate(run: EarlierRun, goal: Goal) -> None:
    if len(run.directions) > 1 or len(goal.modes) > 1:
        raise ValueError("`from_run` is for searches with one objective.")
    compared = {
        "monitor": (run.settings.get("monitor") or "score", goal.monitors[0] or "score"),
        "mode": (run.mode, goal.modes[0]),
        "score rule": (run.settings.get("score", "last"), goal.score),
    }
    for name, (there, ours) in compared.items():
        if there != ours:
            raise ValueError(f"`from_run`: {run.path} has the {name} {there!r}, and this search {ours!r}.")
