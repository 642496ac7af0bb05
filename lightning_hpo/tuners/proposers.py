"""Proposers: which trial a job is for, and with which parameters."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import optuna
from optuna.pruners import BasePruner, NopPruner
from optuna.samplers import RandomSampler

from lightning_hpo.errors import LightningHPOError
from lightning_hpo.records import Job, Row, searched
from lightning_hpo.samplers.adapter import SamplerAdapter, is_random
from lightning_hpo.samplers.keyed import KeyedSampler
from lightning_hpo.samplers.prior import prior_trials
from lightning_hpo.space import Define, Space, parse_space, suggest
from lightning_hpo.study.table import TrialTable
from lightning_hpo.tuners.options import Goal


class ProposalError(LightningHPOError):
    """The user's function of a trial has raised; the cause says what, and ``trial`` is the number of the trial."""

    def __init__(self, trial: int) -> None:
        super().__init__(f"no parameters for trial {trial}")
        self.trial = trial


class Proposer(Protocol):
    """Gives a job its trial and parameters; never decides budgets."""

    def propose(self, table: TrialTable, job: Job) -> tuple[int, Mapping[str, Any]]:
        """Return the number of the job's trial, and the parameters to train with.

        Args:
            table: of the study; a job without a trial adds a new one to it.
            job: what the scheduler asks for.

        Raises:
            ProposalError: if a function of the user fails; the trial is in the table.
        """


@dataclass(frozen=True)
class OpenStudy:
    """What a proposer is made from, when the study is open.

    Args:
        study: of the search.
        table: of the study.
        space: name -> distribution, or a function of a trial that returns name -> value.
        goal: directions, sampler and seed.
        rungs: steps at which trials are judged, rising.
        starts: parameters of the first trials, whole or in part.
        prior: trials of an earlier run, which the sampler learns from too.
    """

    study: optuna.Study
    table: TrialTable
    space: Space | Define
    goal: Goal
    rungs: Sequence[int]
    starts: Sequence[Mapping[str, Any]] = ()
    prior: Sequence[Row] = ()

    def start(self, number: int) -> Mapping[str, Any]:
        """Parameters that a new trial must have, by its number."""
        return self.starts[number] if number < len(self.starts) else {}


MakeProposer: TypeAlias = Callable[[OpenStudy], Proposer]


RandomShare: TypeAlias = Callable[[int], float]


class SamplerProposer:
    """Asks any Optuna sampler for all parameters at once, from the rows of the table.

    Args:
        opened: the study; the space must be names with distributions.
        random_share: of the steps at which a trial will be judged first, the probability that it is drawn at random
            and not proposed by the sampler. Default: 0.
    """

    def __init__(
        self,
        opened: OpenStudy,
        *,
        random_share: RandomShare = lambda steps: 0.0,  # noqa: ARG005  # a name for the reader
    ) -> None:
        assert opened.goal.sampler is not None
        assert not callable(opened.space)
        self._opened = opened
        self._space = parse_space(opened.space)
        self._adapter = SamplerAdapter(
            opened.goal.sampler,
            self._space,
            mode=opened.goal.modes[0],
            seed=opened.goal.seed,
            study_notes=opened.table.study_notes,
            random_share=random_share,
            rungs=opened.rungs,
            prior=opened.prior,
        )

    def propose(self, table: TrialTable, job: Job) -> tuple[int, Mapping[str, Any]]:
        """Return the trial's own parameters, or new ones for a new or an enqueued trial."""
        if job.confirms is not None:
            return table.repeat(job.confirms), table.rows[job.confirms].params
        enqueued = None if job.trial is None else table.enqueued(job.trial)
        if job.trial is not None and enqueued is None:
            return job.trial, table.rows[job.trial].params
        self._adapter.recall(table.study_notes)
        number = len(table.rows) if job.trial is None else job.trial
        given = job.params or enqueued or self._opened.start(number)
        rows, of_search = table.rows[:number], table.notes[:number]
        if (before := searched(rows)) is not rows:
            of_search = [note for row, note in zip(rows, of_search, strict=True) if row.confirms is None]
        params, notes = self._adapter.ask(before, of_search, job.max_steps, given)
        table.note(self._adapter.study_notes)
        if job.trial is None:
            return table.add(params, self._space, parent=job.parent, notes=notes), params
        table.fill(job.trial, params, self._space, notes)
        return job.trial, params


class OptunaProposer:
    """Lets Optuna's own study ask its sampler: enqueued trials, functions of a trial, several objectives.

    Args:
        opened: the study, which is asked; it gets the sampler of the goal.
        pruner: becomes the study's.
        random_share: as for :class:`SamplerProposer`, of a scheduler that judges trials after each job. None where a
            pruner judges them while they train.
    """

    def __init__(self, opened: OpenStudy, *, pruner: BasePruner, random_share: RandomShare | None = None) -> None:
        self._opened, self._study, goal = opened, opened.study, opened.goal
        self._space = opened.space if callable(opened.space) else parse_space(opened.space)
        assert goal.sampler is not None
        keyed = isinstance(goal.sampler, KeyedSampler)  # of a study that was searched in this process before
        prior = prior_trials(opened.prior, self._space) if opened.prior and not callable(self._space) else []
        self._study.sampler = goal.sampler if keyed else KeyedSampler(goal.sampler, goal.seed, prior)
        self._study.pruner = pruner
        self._own, self._random = self._study.sampler, KeyedSampler(RandomSampler(), goal.seed)
        self._random_share = random_share

    def propose(self, table: TrialTable, job: Job) -> tuple[int, Mapping[str, Any]]:
        """Ask the study for a trial, or take one up that was enqueued or left behind, and let it suggest."""
        number = job.trial if job.confirms is None else table.repeat(job.confirms)
        if number is not None and self._random_share is not None and table.rows[number].values:
            return number, table.rows[number].params  # it goes on
        if number is None and (point := self._opened.start(len(table.rows))):
            self._study.enqueue_trial(dict(point))  # where a kill leaves it, it waits as a trial that was enqueued
        if self._random_share is not None:
            new, share = len(table.rows) if number is None else number, self._random_share(job.max_steps)
            self._study.sampler = self._random if is_random(self._opened.goal.seed, new, share) else self._own
        trial = self._study.ask() if number is None else table.attach(number)
        table.own(trial, by_job=self._random_share is not None)
        try:
            params = suggest(trial, self._space)
        except Exception as error:
            raise ProposalError(trial.number) from error
        finally:
            table.reread(trial.number)
        return trial.number, params


def make_proposer(opened: OpenStudy, *, random_share: RandomShare = lambda steps: 0.0) -> Proposer:  # noqa: ARG005  # as above
    """Return the proposer of a tuner: for a function of a trial Optuna's study is asked, which then prunes nothing."""
    if callable(opened.space):
        return OptunaProposer(opened, pruner=NopPruner(), random_share=random_share)
    return SamplerProposer(opened, random_share=random_share)
