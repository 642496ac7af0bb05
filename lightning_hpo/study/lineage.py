"""The family tree of a population: each segment is a trial with constant hyperparameters and a parent.

The winner's way up its parents is a schedule of hyperparameters. :func:`replay` turns it into one that a plain
``Trainer.fit`` runs without us.
"""

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import TrialState, create_trial

from lightning_hpo.lr_schedules.replay import ReplayLR
from lightning_hpo.records import Mode, Row, best_row
from lightning_hpo.schedulers.explore import intervals
from lightning_hpo.study.rows import PARENT, SEGMENT, read_rows

__all__ = [
    "Phase",
    "Replay",
    "ReplayLR",
    "Segment",
    "intervals",
    "lineage",
    "plot",
    "replay",
    "schedule_of",
    "to_study",
    "winner",
]


@dataclass
class Segment:
    """A part of one member's training with constant hyperparameters.

    Args:
        number: of the trial; unique in its population.
        member: who trained it.
        start: the member's optimizer step at which it begins.
        params: hyperparameters.
        values: the member's optimizer step -> value of the monitored metric.
        parent: number of the segment that the weights come from; None for a first segment.
        forked_at: the parent's step at which its weights were taken.
    """

    number: int
    member: int
    start: int
    params: Mapping[str, Any]
    values: dict[int, float] = field(default_factory=dict)
    parent: int | None = None
    forked_at: int | None = None

    @property
    def stop(self) -> int:
        """Last step with a value."""
        return max(self.values, default=self.start)

    def as_json(self) -> dict[str, Any]:
        """Return plain values."""
        return {**asdict(self), "params": dict(self.params), "values": list(self.values.items())}

    def notes(self) -> dict[str, Any]:
        """Return what a trial keeps beside its parameters, values and parent."""
        return {SEGMENT: {"member": self.member, "start": self.start, "forked_at": self.forked_at}}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Segment":
        """Undo :meth:`as_json`."""
        return cls(**{**stored, "values": {int(step): float(value) for step, value in stored["values"]}})


@dataclass(frozen=True)
class Phase:
    """``steps`` optimizer steps with constant hyperparameters, beginning at ``start``."""

    start: int
    steps: int
    params: Mapping[str, Any]


def lineage(source: Any) -> list[Segment]:
    """Read all segments of a population, in order of their number.

    Args:
        source: folder of a :class:`~lightning_hpo.callbacks.population.PopulationBasedTraining`, a study, or the result
            of a :class:`~lightning_hpo.tuners.population.PopulationTuner`.

    Raises:
        FileNotFoundError: if the folder holds no population.
    """
    source = getattr(source, "study", source)
    if isinstance(source, optuna.Study):
        segments = [_from_trial(trial) for trial in source.get_trials(deepcopy=False)]
        return _in_optimizer_steps(segments, read_rows(source))
    segments = []
    records = sorted(Path(source).glob("member_*/record.json"))
    if not records:
        raise FileNotFoundError(f"{source} holds no population: there is no member_*/record.json in it.")
    for record in records:
        segments += [Segment.from_json(stored) for stored in json.loads(record.read_text())["content"]["segments"]]
    return sorted(segments, key=lambda segment: segment.number)


def winner(segments: Sequence[Segment], mode: Mode = "min") -> Segment:
    """Return the segment that got furthest, of several the one whose last value is best; NaN never wins.

    Raises:
        ValueError: if no segment has a number as its last value.
    """
    judged = _judged(segments)
    if not judged:
        raise ValueError("no segment of the population has a finite value.")
    return min(judged, key=lambda segment: (-segment.stop, _sign(mode) * segment.values[segment.stop], segment.number))


def _judged(segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if segment.values and math.isfinite(segment.values[segment.stop])]


def _sign(mode: Mode) -> float:
    return 1.0 if mode == "min" else -1.0


def schedule_of(segment: Segment, segments: Sequence[Segment]) -> list[Phase]:
    """Walk up the parents of a segment: the hyperparameters that its weights were trained with, first to last.

    Phases with equal hyperparameters are joined.
    """
    by_number = {segment.number: segment for segment in segments}
    lengths: list[tuple[int, Mapping[str, Any]]] = []
    until = segment.stop
    current: Segment | None = segment
    while current is not None:
        lengths.append((until - current.start, current.params))
        until = current.start if current.forked_at is None else current.forked_at
        current = None if current.parent is None else by_number[current.parent]
    phases: list[Phase] = []
    for steps, params in reversed(lengths):
        start = phases[-1].start + phases[-1].steps if phases else 0
        if phases and dict(phases[-1].params) == dict(params):
            phases[-1] = Phase(phases[-1].start, phases[-1].steps + steps, params)
        elif steps:
            phases.append(Phase(start, steps, params))
    return phases


def phases_of(number: int, rows: Sequence[Row]) -> list[Phase]:
    """Return the hyperparameters that the weights of a trial were trained with, in optimizer steps, first to last."""
    segments = [
        Segment(row.number, row.home, row.start, dict(row.params), dict(row.values), row.parent, row.forked_at)
        for row in rows
    ]
    segments = _in_optimizer_steps(segments, rows)
    return schedule_of(segments[number], segments)


def schedule(phases: Sequence[Phase], name: str) -> list[tuple[int, Any]]:
    """Return (first step, value) of one hyperparameter, where it changes."""
    steps: list[tuple[int, Any]] = []
    for phase in phases:
        if not steps or steps[-1][1] != phase.params[name]:
            steps.append((phase.start, phase.params[name]))
    return steps


@dataclass(frozen=True)
class Replay:
    """The winner's history as an ordinary configuration.

    Args:
        phases: of hyperparameters, first to last.
        max_steps: optimizer steps in all.
        params: last hyperparameters.
    """

    phases: Sequence[Phase]
    max_steps: int
    params: Mapping[str, Any]

    def schedule(self, name: str) -> list[tuple[int, Any]]:
        """Return (first step, value) of one hyperparameter, where it changes."""
        return schedule(self.phases, name)


def replay(source: Any, mode: Mode | None = None) -> Replay:
    """Turn the winner's history into an ordinary configuration.

    Args:
        source: as for :func:`lineage`, or its segments. Of a result its own best trial is replayed; of others the trial
            that is best by the same rule: the one that got furthest, of several the one with the best last value. A
            warning says so if an earlier segment had ended with a better value.
        mode: whether a small or a large score wins; default: as the population was run, ``"min"`` for bare segments.

    Example:
        ``ReplayLR(optimizer, replay("runs/pbt").schedule("lr"))`` in ``configure_optimizers``, with
        ``"interval": "step"``, and ``Trainer(max_steps=replay("runs/pbt").max_steps)``.
    """
    number: int | None = getattr(source, "best_trial", None) if hasattr(source, "study") else None
    source = getattr(source, "study", source)
    if mode is None:
        mode = _mode_of(source)
    if number is None and isinstance(source, optuna.Study):
        best = best_row(read_rows(source), mode)
        number = None if best is None else best.number
    segments = list(source) if isinstance(source, Sequence) and not isinstance(source, str) else lineage(source)
    chosen = (
        winner(segments, mode) if number is None else next(segment for segment in segments if segment.number == number)
    )
    _warn_of_better(chosen, segments, mode)
    phases = schedule_of(chosen, segments)
    return Replay(phases, sum(phase.steps for phase in phases), phases[-1].params)


def _warn_of_better(chosen: Segment, segments: Sequence[Segment], mode: Mode) -> None:
    """Say that a segment before the end of the population had a better value than the one that is replayed."""
    sign = _sign(mode)
    better = min(_judged(segments), key=lambda segment: sign * segment.values[segment.stop], default=chosen)
    score = chosen.values.get(chosen.stop, math.inf * sign)
    if sign * better.values.get(better.stop, score) < sign * score:
        warnings.warn(
            f"trial {better.number} had ended with a better value, {better.values[better.stop]:.6g} at step "
            f"{better.stop}, than the one that is replayed, trial {chosen.number} with {score:.6g} at step "
            f"{chosen.stop}",
            stacklevel=3,
        )


def to_study(segments: Sequence[Segment], space: Mapping[str, BaseDistribution], mode: Mode = "min") -> optuna.Study:
    """Put the segments of a folder into an Optuna study in memory, numbered in order of their start."""
    study = optuna.create_study(direction="minimize" if mode == "min" else "maximize")
    order = sorted(segments, key=lambda segment: (segment.start, segment.number))
    number = {segment.number: place for place, segment in enumerate(order)}
    for segment in order:
        parent = None if segment.parent is None else number[segment.parent]
        study.add_trial(
            create_trial(
                state=TrialState.COMPLETE if segment.values else TrialState.FAIL,
                value=segment.values[segment.stop] if segment.values else None,
                params=dict(segment.params),
                distributions=dict(space),
                intermediate_values=dict(segment.values),
                user_attrs={} if parent is None else {PARENT: parent},
                system_attrs=segment.notes(),
            )
        )
    return study


def plot(segments: Sequence[Segment], name: str) -> Any:
    """Draw one hyperparameter over the steps of every member, with a line from each parent to its child.

    Args:
        segments: as from :func:`lineage`.
        name: of the hyperparameter.

    Returns:
        A matplotlib Figure.

    Raises:
        ImportError: if matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # an extra
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'lightning-hpo-suite[plot]'") from error
    figure = Figure(layout="constrained")
    axes = figure.add_subplot(xlabel="optimizer step of the member", ylabel=name)
    by_number = {segment.number: segment for segment in segments}
    for segment in segments:
        color = f"C{segment.member % 10}"
        axes.plot([segment.start, segment.stop], [segment.params[name]] * 2, color=color, marker="|")
        if segment.parent is not None and segment.forked_at is not None:
            parent = by_number[segment.parent]
            axes.plot(
                [segment.forked_at, segment.start],
                [parent.params[name], segment.params[name]],
                color=color,
                lw=0.5,
                ls=":",
            )
    if all(isinstance(segment.params[name], float) and segment.params[name] > 0 for segment in segments):
        axes.set_yscale("log")
    return figure


def _from_trial(trial: optuna.trial.FrozenTrial) -> Segment:
    notes = trial.system_attrs.get(SEGMENT, {})
    return Segment(
        number=trial.number,
        member=notes.get("member", trial.number),
        start=notes.get("start", 0),
        params=dict(trial.params),
        values=dict(trial.intermediate_values),
        parent=trial.user_attrs.get(PARENT),
        forked_at=notes.get("forked_at"),
    )


def _in_optimizer_steps(segments: Sequence[Segment], rows: Sequence[Row]) -> list[Segment]:
    """Return the segments in optimizer steps, also those of a study whose budgets are in epochs or samples."""
    known = {(row.home, step): at for row in rows for step, at in row.global_steps.items()}
    if not known:
        return list(segments)
    return [
        replace(
            segment,
            start=known.get((segment.member, segment.start), segment.start),
            values={known.get((segment.member, step), step): value for step, value in segment.values.items()},
            forked_at=None
            if segment.parent is None or segment.forked_at is None
            else known.get((rows[segment.parent].home, segment.forked_at), segment.forked_at),
        )
        for segment in segments
    ]


def _mode_of(source: Any) -> Mode:
    if isinstance(source, optuna.Study):
        return "min" if source.direction == optuna.study.StudyDirection.MINIMIZE else "max"
    if isinstance(source, str | Path) and (settings := Path(source) / "population.json").exists():
        mode: Mode = json.loads(settings.read_text())["mode"]
        return mode
    return "min"
