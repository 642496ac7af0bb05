"""Population-Based Training as pure functions: who copies from whom, and which hyperparameters come next.

Nothing here trains, reads a disk or a clock, or draws from a global generator. A random decision is keyed by
(seed, member, step), so it is the same whoever makes it, and however often.

Source: Jaderberg et al. 2017, *Population Based Training of Neural Networks* (arXiv 1711.09846): Algorithm 1 for the
order of exploit and explore, section 4.1.1 for truncation selection.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass
from typing import Any, Literal, TypedDict

import numpy as np
from optuna.distributions import BaseDistribution

from lightning_hpo.records import Job, Mode, Row
from lightning_hpo.schedulers.base import Bracket, Rung
from lightning_hpo.schedulers.explore import (
    Adviser,
    Explore,
    ExploreContext,
    Interval,
    Params,
    clip,
    explore,
    intervals,
    perturb_some,
    sample,
)
from lightning_hpo.schedulers.truncation import Donor, exploit, truncate
from lightning_hpo.text import nearest

_DONORS, _EXPLORES = ("random-top", "best"), ("losers", "all", "pb2")


class RuleOptions(TypedDict, total=False):
    """Arguments of :class:`Rules` that a user chooses."""

    quantile: float
    donor: Donor
    explore: Literal["losers", "all", "pb2"] | Explore
    resample: float
    factor: float


@dataclass(frozen=True)
class MemberScore:
    """What the others know of one living member.

    Args:
        score: last value of the monitored metric; NaN and infinities lose against every number.
        params: hyperparameters it trains with.
        stopped: whether a callback (EarlyStopping, say) has asked to stop it there.
        violation: sum of all constraints above 0; an infeasible member is no donor.
    """

    score: float
    params: Params
    stopped: bool = False
    violation: float = 0.0


@dataclass(frozen=True)
class Fork:
    """A member goes on with other hyperparameters, and with the weights of ``donor`` if that is another member."""

    donor: int
    params: Params


@dataclass(frozen=True)
class Rules:
    """Who loses, who gives, and how hyperparameters change.

    The defaults of ``quantile`` and ``resample`` are measured (``benchmarks/population.md``); the paper has 0.2 and 0.

    Args:
        space: name -> distribution.
        mode: whether a small (``"min"``) or a large (``"max"``) score is good.
        quantile: share of the population that copies, and share that may be copied; in (0, 0.5]. At least one member
            of each is meant, and never the same one.
        donor: ``"random-top"`` copies from a random member of the top share (the paper), ``"best"`` from the best one.
        explore: ``"losers"`` changes only the hyperparameters that were just copied (the paper, Ray Tune). ``"all"``
            perturbs every member at every interval, each hyperparameter with probability 0.25 and without resampling.
            ``"pb2"`` has a Gaussian process choose what losers go on with, from all that training has shown so far
            (:class:`lightning_hpo.schedulers.pb2.PB2`); ``resample`` and ``factor`` mean nothing then. Or a function of
            (params, space, generator) that returns new params, or an :class:`Adviser`; it is asked for losers, and its
            values are clipped to the space.
        resample: probability in [0, 1] that a copied hyperparameter is drawn anew from the space; else it is perturbed.
        factor: a perturbed value is multiplied or divided by it; above 1.
        seed: of all random decisions.

    Raises:
        ValueError: naming an argument outside its range.
    """

    space: Mapping[str, BaseDistribution]
    mode: Literal["min", "max"] = "min"
    quantile: float = 0.4
    donor: Donor = "random-top"
    explore: Literal["losers", "all", "pb2"] | Explore = "losers"
    resample: float = 0.5
    factor: float = 1.2
    seed: int = 0

    def __post_init__(self) -> None:
        if conditions := getattr(self.space, "conditions", {}):
            raise ValueError(
                f"`space` has a condition for {next(iter(conditions))!r}, but the parameters of a population change "
                "while it trains: leave the condition out, or search with another tuner."
            )
        if self.mode not in ("min", "max"):
            raise ValueError(f"`mode` must be 'min' or 'max', got {self.mode!r}.")
        if not 0 < self.quantile <= 0.5:
            raise ValueError(f"`quantile` must be in (0, 0.5], got {self.quantile!r}.")
        if self.donor not in _DONORS:
            hint = nearest(str(self.donor), _DONORS)
            raise ValueError(f"`donor` must be one of {_DONORS}, got {self.donor!r}.{hint}")
        if not (callable(self.explore) or isinstance(self.explore, Adviser) or self.explore in _EXPLORES):
            hint = nearest(str(self.explore), _EXPLORES)
            raise ValueError(f"`explore` must be one of {_EXPLORES} or a function, got {self.explore!r}.{hint}")
        if not 0 <= self.resample <= 1:
            raise ValueError(f"`resample` must be a probability in [0, 1], got {self.resample!r}.")
        if not self.factor > 1:
            raise ValueError(f"`factor` must be above 1, got {self.factor!r}.")

    def initial(self, member: int) -> dict[str, Any]:
        """Draw the hyperparameters that a member starts with."""
        return sample(self.space, np.random.default_rng([self.seed, member]))

    def decide(
        self, member: int, step: int, member_scores: Mapping[int, MemberScore], history: Sequence[Interval] = ()
    ) -> Fork | None:
        """Say how a member goes on after ``step``.

        Where all members are infeasible, nobody copies, and the losers change their own hyperparameters.

        Args:
            member: who asks; one of ``member_scores``.
            step: optimizer steps it has seen.
            member_scores: of every living member that has a score.
            history: all intervals so far; only an :class:`Adviser` looks at them.

        Returns:
            None if it goes on as it is.
        """
        generator = self._generator(member, step)
        donor = self._donor(member, member_scores, generator)
        if donor is not None:
            taken = self._taken_before(member, step, member_scores, history)
            params = self._explored(member_scores[donor], generator, step, history, taken)
            return Fork(donor, params)
        infeasible = member_scores[member].violation > 0 and member in self.truncate(member_scores)[0]
        if self.explore != "all" and not infeasible:
            return None
        params = self._explored(member_scores[member], generator, step, history)
        return None if params == dict(member_scores[member].params) else Fork(member, params)

    def explore_from(
        self, member: int, step: int, donor: int, member_score: MemberScore, history: Sequence[Interval] = ()
    ) -> Fork:
        """Fork from a donor whose hyperparameters turned out to be those of ``member_score``."""
        return Fork(donor, self._explored(member_score, self._generator(member, step), step, history))

    def _generator(self, member: int, step: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, member, step])

    def truncate(self, member_scores: Mapping[int, MemberScore]) -> tuple[list[int], list[int]]:
        """Name the members that copy, and those that may be copied (see :func:`truncate`)."""
        return truncate(**self._standing(member_scores))

    def _donor(
        self, member: int, member_scores: Mapping[int, MemberScore], generator: np.random.Generator
    ) -> int | None:
        return exploit(member=member, generator=generator, donor=self.donor, **self._standing(member_scores))

    def _standing(self, member_scores: Mapping[int, MemberScore]) -> dict[str, Any]:
        return {
            "scores": {member: member_score.score for member, member_score in member_scores.items()},
            "stopped": [member for member, member_score in member_scores.items() if member_score.stopped],
            "violations": {member: member_score.violation for member, member_score in member_scores.items()},
            "mode": self.mode,
            "quantile": self.quantile,
        }

    def _taken_before(
        self, member: int, step: int, member_scores: Mapping[int, MemberScore], history: Sequence[Interval]
    ) -> list[Params]:
        """Repeat the decisions of the losers before this one, for an adviser that spreads them."""
        if self._adviser is None:
            return []
        losers, _ = self.truncate(member_scores)
        taken: list[Params] = []
        for other in losers[: losers.index(member)]:
            generator = self._generator(other, step)
            donor = self._donor(other, member_scores, generator)
            assert donor is not None
            taken.append(self._explored(member_scores[donor], generator, step, history, taken))
        return taken

    def _explored(
        self,
        member_score: MemberScore,
        generator: np.random.Generator,
        step: int,
        history: Sequence[Interval],
        taken: Sequence[Params] = (),
    ) -> dict[str, Any]:
        params = member_score.params
        if self.explore == "all":
            return perturb_some(params, self.space, generator, factor=self.factor)
        if self.explore == "losers":
            return explore(params, self.space, generator, resample=self.resample, factor=self.factor)
        if self._adviser is not None:
            context = ExploreContext(step, self.mode, member_score.score, history, taken)
            changed = self._adviser.advise(params, self.space, generator, context)
        else:
            assert callable(self.explore)
            changed = self.explore(params, self.space, generator)
        changed = {**params, **changed}
        return {name: clip(self.space[name], value) if name in self.space else value for name, value in changed.items()}

    @property
    def needs_history(self) -> bool:
        """Whether decisions depend on what all intervals so far have brought."""
        return self._adviser is not None

    @property
    def _adviser(self) -> Adviser | None:
        if self.explore == "pb2":
            from lightning_hpo.schedulers.pb2 import PB2  # noqa: PLC0415  # it brings the Gaussian process along

            return PB2()
        return self.explore if isinstance(self.explore, Adviser) else None


@dataclass(frozen=True)
class PopulationBased:
    """Population-Based Training: after every interval the worst members copy from the best ones.

    A member is a chain of trials, since the parameters of a trial never change: a member that copies ends its trial and
    starts another one, which goes on where the member stands. The first trials of the members have the numbers 0 to
    ``population_size - 1``, which are also the numbers of the members.

    If it is synchronous, the decisions of a round need the scores of all members that live, so neither the order in
    which jobs end nor the number of workers changes them. Members that copy come first: their donors then still have
    the weights that were judged. Otherwise no member waits: at the end of its interval it is compared with the last
    scores of the others, so the order in which jobs end decides too (Jaderberg et al. 2017, section 3).

    Args:
        rules: who copies, from whom, and which hyperparameters come next.
        population_size: members, at least 2.
        interval: optimizer steps of a round, at least 1. A member that stands beyond the end of a round, as with
            several manual optimizers, is judged where it stands.
        max_steps: optimizer steps of every member; a multiple of ``interval``.
        synchronous: whether all members wait for each other at the end of an interval.

    Raises:
        ValueError: naming an argument outside its range.
    """

    rules: Rules
    population_size: int
    interval: int
    max_steps: int
    synchronous: bool = True

    replaces_broken = True
    """A trial whose score is no number goes on: its member copies."""

    def __post_init__(self) -> None:
        if self.population_size < 2:
            raise ValueError(f"`population_size` must be an int >= 2, got {self.population_size!r}.")
        if self.interval < 1:
            raise ValueError(f"`interval` must be an int >= 1, got {self.interval!r}.")
        if self.max_steps % self.interval or self.max_steps < 1:
            whole = max(round(self.max_steps / self.interval), 1) * self.interval
            raise ValueError(
                f"`max_steps` must be a multiple of `interval` {self.interval}, got {self.max_steps}; e.g. {whole}."
            )

    @property
    def mode(self) -> Mode:
        """Whether lower or higher scores are better."""
        return self.rules.mode

    def next(self, rows: Sequence[Row]) -> Job | None:
        """Start a member that is missing; else let the members of the earliest round go on, those that copy first."""
        last = {row.home: row for row in rows}
        if len(last) < self.population_size:
            return Job(self.interval, params=self.rules.initial(len(last)))
        living = {member: row for member, row in last.items() if row.state == "running"}
        free = {member: row for member, row in living.items() if row.idle}
        if not free:
            return None
        ended = min(self._round(row) for row in (living if self.synchronous else free).values())
        waiting = {member: row for member, row in free.items() if self._round(row) == ended}
        if not waiting:
            return None
        target = (ended + 1) * self.interval
        judged = self._judged(rows, ended) if self.synchronous else _judged_last(rows, last)
        member_scores = {member: self._member_score(row, ended) for member, row in judged.items()} if ended else {}
        losers, top = self.rules.truncate(member_scores)
        copying = set(losers if top else ())
        copying |= {member for member, row in waiting.items() if row.parent is not None and not row.values}
        member = min(waiting, key=lambda member: (member not in copying, member))
        row = waiting[member]
        decided = member not in member_scores or judged[member].number != row.number or (row.decided or 0) > row.step
        if decided:  # and its job has died
            return Job(target, trial=row.number)
        history = intervals(rows, target - 1) if self.rules.needs_history else []
        fork = self.rules.decide(member, ended * self.interval, member_scores, history)
        if fork is None:
            return Job(target, trial=row.number)
        return Job(target, parent=judged[fork.donor].number, params=fork.params, replaces=row.number)

    def plan(self) -> tuple[Bracket, ...]:
        """Return the one bracket of one rung, with a job in each interval, and the copies between two of them."""
        size, rounds = self.population_size, self.max_steps // self.interval
        losers, _ = truncate(dict.fromkeys(range(size), 0.0), quantile=self.rules.quantile)
        changing = size if self.rules.explore == "all" else len(losers)
        return (Bracket((Rung(size, self.max_steps),), jobs_each=rounds, copies=changing * (rounds - 1)),)

    def settings(self) -> dict[str, Any]:
        """Return what must not change while a study goes on, as plain values."""
        explore = self.rules.explore
        named = explore if isinstance(explore, str) else repr(explore) if is_dataclass(explore) else _name(explore)
        rules = {name: getattr(self.rules, name) for name in ("quantile", "donor", "resample", "factor")}
        return {"population_size": self.population_size, "interval": self.interval, **rules, "explore": named}

    def _round(self, row: Row) -> int:
        """Round that a trial has come to."""
        return row.step // self.interval

    def _judged(self, rows: Sequence[Row], ended: int) -> dict[int, Row]:
        """Trial of each member that has a score of a round, the members that failed later included."""
        return {row.home: row for row in rows if any(step // self.interval == ended for step in row.values)}

    def _member_score(self, row: Row, ended: int) -> MemberScore:
        step = max(step for step in row.values if step // self.interval == ended or not self.synchronous)
        return MemberScore(row.values[step], row.params, step in row.stopped, row.violation(step))


def _judged_last(rows: Sequence[Row], last: Mapping[int, Row]) -> dict[int, Row]:
    """Trial of each living member that has its last score; those that have ended may have no checkpoint to copy."""
    return {row.home: row for row in rows if row.values and last[row.home].state == "running"}


def _name(explore: Any) -> str:
    return str(getattr(explore, "__qualname__", type(explore).__qualname__))
