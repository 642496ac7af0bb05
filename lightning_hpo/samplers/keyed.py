"""Any Optuna sampler, made repeatable: its draws depend on the seed and the trial's number alone."""

import zlib
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.samplers.adapter import reseed
from lightning_hpo.samplers.prior import with_prior


class KeyedSampler(BaseSampler):
    """An Optuna sampler whose random numbers are set from (seed, trial number) before each trial.

    Optuna's seeded samplers start their stream again in every process, and repeat configurations after a restart.
    """

    def __init__(self, sampler: BaseSampler, seed: int, prior: Sequence[FrozenTrial] = ()) -> None:
        self.sampler = sampler
        self.prior = prior
        """Trials that the sampler learns from beside those of the study."""
        self._seed = seed

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        """Set the random numbers, then ask the sampler."""
        reseed(self.sampler, self._seed, trial.number)
        self.sampler.before_trial(with_prior(study, self.prior), trial)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Ask the sampler."""
        return self.sampler.infer_relative_search_space(with_prior(study, self.prior), trial)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Ask the sampler."""
        return self.sampler.sample_relative(with_prior(study, self.prior), trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Ask the sampler, with random numbers of the parameter: a kill may fall between two parameters of a trial."""
        reseed(self.sampler, self._seed, trial.number, zlib.crc32(param_name.encode()))
        study = with_prior(study, self.prior)
        return self.sampler.sample_independent(study, trial, param_name, param_distribution)

    def after_trial(
        self, study: optuna.Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None
    ) -> None:
        """Tell the sampler."""
        self.sampler.after_trial(study, trial, state, values)
