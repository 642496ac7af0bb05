"""Starting points: configurations that every tuner tries before its sampler proposes any."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.samplers import RandomSampler
from optuna.trial import FrozenTrial

from lightning_hpo.quiet import warnings_only
from lightning_hpo.schedulers.base import Bracket, Scheduler
from lightning_hpo.space import Define, SearchSpace
from lightning_hpo.text import nearest
from lightning_hpo.training.builder import Builder
from lightning_hpo.tuners.beginning import Beginning


def validate_beginning(beginning: Beginning, space: SearchSpace | Define, scheduler: Scheduler) -> None:
    """Raise ValueError for points that do not belong to the space, or of which a search cannot try all."""
    points = () if beginning.start == "defaults" else starting_points(beginning, space, None)
    if beginning.from_run is not None and callable(space):
        raise ValueError("`from_run` needs a space of names with distributions, got a function of a trial.")
    endless = getattr(scheduler, "plan_covers", "all") == "round"
    plan: Sequence[Bracket] = () if endless else getattr(scheduler, "plan", tuple)()
    most = sum(bracket.trials for bracket in plan)
    if most and len(points) > most:
        raise ValueError(f"`start` has {len(points)} points, but the search starts only {most} trials.")


def starting_points(
    beginning: Beginning, space: SearchSpace | Define, builder: Builder | None
) -> tuple[Mapping[str, Any], ...]:
    """Return the starting points as a study stores them.

    Raises:
        ValueError: for a name or a value outside the space, or without any default value.
    """
    if beginning.start is None:
        return ()
    if beginning.start == "defaults":
        return (_defaults(space, builder),)
    return tuple(_read(f"`start[{index}]`", space, point) for index, point in enumerate(beginning.start))


def _defaults(space: SearchSpace | Define, builder: Builder | None) -> dict[str, Any]:
    if builder is None:
        raise ValueError("`start` is 'defaults', but a plain function has none: give a list, start=[{'x': 0.5}].")
    if callable(space):
        raise ValueError("`start` is 'defaults', but the space is a function of a trial: give a list, start=[{...}].")
    try:
        point = space.known_part(builder.of_values.defaults(space))
    except ValueError as error:
        raise ValueError(f"`start` is 'defaults': {error} Change the space, or give a list, start=[{{...}}].") from None
    if not point:
        raise ValueError(
            f"`start` is 'defaults', but none of {', '.join(space)} has a default value: give a list, start=[{{...}}]."
        )
    return point


def _read(where: str, space: SearchSpace | Define, point: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return _defined(space, point) if callable(space) else space.starting_point(point)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _defined(define: Define, point: Mapping[str, Any]) -> dict[str, Any]:
    """Compare a point with what a function of a trial suggests there, in a study of its own."""
    with warnings_only("optuna"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a value that is out of range is refused below
        study = optuna.create_study(sampler=RandomSampler(seed=0))
        study.enqueue_trial(dict(point))
        trial = study.ask()
        define(trial)
    suggested: FrozenTrial = study.trials[0]
    for name, value in point.items():
        distribution = suggested.distributions.get(name)
        if distribution is None:
            raise ValueError(
                f"a starting point names {name!r}, which the function of a trial does not suggest there."
                f"{nearest(name, suggested.distributions)}"
            )
        if not distribution._contains(distribution.to_internal_repr(value)):  # noqa: SLF001  # has no public name
            raise ValueError(f"{name!r} is {value!r}, which is not in its space: {distribution}.")
    return dict(point)
