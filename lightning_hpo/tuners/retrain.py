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
from lightning_hpo.tuners.beginning import Beginning
from lightning_hpo.tuners.limits import Limits
from lightning_hpo.tuners.parts import Parts, Setup

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
        if tuner.setup.parts.no_function:
            raise ValueError("the answer of a population is a schedule, not one configuration: fit with its best.yaml.")
        if seed is None:
            seed = trial_seed(tuner.seed, len(result.rows))
        if type(seed) is not int or not 0 <= seed < _SEED_LIMIT:
            raise ValueError(f"`seed` must be an int from 0 to {_SEED_LIMIT - 1}, got {seed!r}.")
        again = copy.copy(tuner)
        again.setup = _setup_of_answer(tuner.setup, result, seed, changes)
    return search(again)


def _setup_of_answer(setup: Setup, result: Result, seed: int, changes: Mapping[str, Any]) -> Setup:
    """Return the setup of a search of one trial that trains the best configuration again, with changes."""
    full, unit = fit_steps(setup.scheduler), setup.unit
    most: dict[UnitName, Any] = {name: changes.get(f"max_{name}") for name in UNITS}
    if any(value is not None for value in most.values()):
        budget = read_budget(most)
        full, unit = budget.full, budget.unit
    params = dict(result.best_params)
    if setup.define is not None:
        found: Any = FixedTrial(dict(result.rows[result.best_trial].params))
        params = suggest(found, setup.define)
    for name, value in changes.items():
        if name not in (f"max_{known}" for known in UNITS):
            params[_full_name(name, params)] = value
    mark = f"-{hashlib.sha256(repr(sorted(changes.items())).encode()).hexdigest()[:8]}" if changes else ""
    name = f"{result.study.study_name}-again-{seed}{mark}"
    return Setup(
        space=parse_space({name: choice(value) for name, value in params.items()}),
        define=None,
        scheduler=folded(FullBudget(full, 1), setup.goal.folds, setup.goal.modes[0]),
        unit=unit,
        parts=Parts(parts_of_unit=unit.parts),
        goal=replace(setup.goal, sampler=RandomSampler(), confirm=None, trial_seed=seed),
        run=replace(setup.run, name=name, storage=None, overwrite=False, shared=False),
        trials=setup.trials,
        workers=replace(setup.workers, workers=1),
        limits=Limits(unit=unit, max_failed=1),
        beginning=Beginning(),
    )


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
