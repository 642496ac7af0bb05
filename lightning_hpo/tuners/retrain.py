"""The answer of a search once more, as a search of one trial in a run folder of its own."""

import copy
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from optuna.samplers import RandomSampler
from optuna.trial import FixedTrial

from lightning_hpo.errors import explained
from lightning_hpo.reporting.result import Result
from lightning_hpo.schedulers import FullBudget
from lightning_hpo.schedulers.folds import fit_steps, folded
from lightning_hpo.schedulers.units import UNITS, UnitName, read_budget
from lightning_hpo.space import choice, parse_space, suggest
from lightning_hpo.study.rows import trial_seed
from lightning_hpo.text import nearest
from lightning_hpo.tuners.limits import Limits

_SEED_LIMIT = 2**32


def retrain(
    tuner: Any,
    search: Callable[[Any], Result],
    result: Result,
    seed: int | None,
    changes: Mapping[str, Any],
) -> Result:
    """Train the answer of a search once more; see :meth:`~lightning_hpo.reporting.result.Result.retrain`."""
    with explained(None):
        parts, goal = tuner._parts, tuner._goal  # noqa: SLF001  # a tuner like it is made
        if parts.no_function:
            raise ValueError("the answer of a population is a schedule, not one configuration: fit with its best.yaml.")
        if seed is None:
            seed = trial_seed(tuner.seed, len(result.rows))
        if type(seed) is not int or not 0 <= seed < _SEED_LIMIT:
            raise ValueError(f"`seed` must be an int from 0 to {_SEED_LIMIT - 1}, got {seed!r}.")
        most: dict[UnitName, Any] = {unit: changes.get(f"max_{unit}") for unit in UNITS}
        again = copy.copy(tuner)
        again.scheduler = FullBudget(fit_steps(tuner.scheduler), 1)
        if any(value is not None for value in most.values()):
            budget = read_budget(most)
            again.unit, again.scheduler = budget.unit, FullBudget(budget.full, 1)
        again.scheduler = folded(again.scheduler, goal.folds, tuner.mode)
        params = dict(result.best_params)
        if (define := tuner._define) is not None:  # noqa: SLF001  # as above
            found: Any = FixedTrial(dict(result.rows[result.best_trial].params))
            params = suggest(found, define)
        for name, value in changes.items():
            if name not in (f"max_{unit}" for unit in UNITS):
                params[_full_name(name, params)] = value
        again.space, again._define = parse_space({name: choice(value) for name, value in params.items()}), None  # noqa: SLF001
        again._goal = replace(goal, sampler=RandomSampler(), confirm=None, trial_seed=seed)  # noqa: SLF001
        again._beginning = type(tuner._beginning)()  # noqa: SLF001  # as above
        again._limits = Limits(unit=again.unit, max_failed=1)  # noqa: SLF001
        again._parts = type(parts)(parts_of_unit=again.unit.parts)  # noqa: SLF001
        text = repr(sorted(changes.items()))
        mark = f"-{hashlib.sha256(text.encode()).hexdigest()[:8]}" if changes else ""
        name = f"{result.study.study_name}-again-{seed}{mark}"
        again._run = replace(tuner._run, name=name, storage=None, overwrite=False, shared=False)  # noqa: SLF001
        again._workers = replace(tuner._workers, workers=1)  # noqa: SLF001
    return search(again)


def _full_name(name: str, params: Mapping[str, Any]) -> str:
    """Return the name in the space that is meant: itself, or the one that ends with it."""
    ends = [known for known in params if known == name or known.rpartition(".")[2] == name]
    if name in params or len(ends) == 1:
        return name if name in params else ends[0]
    if ends:
        raise TypeError(f"{name!r} may be {' or '.join(map(repr, ends))}: give it as **{{{ends[0]!r}: ...}}.")
    if "." in name:  # an argument that the search left at its default
        return name
    known = [*params, *(f"max_{unit}" for unit in UNITS)]
    raise TypeError(f"retrain() got {name!r}; it takes `seed` and {', '.join(known)}.{nearest(name, known)}")
