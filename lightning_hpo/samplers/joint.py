"""What samplers of one objective share that suggest the parameters of a trial jointly."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial

from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.space import SearchSpace


class JointSampler(BaseSampler):
    """A sampler whose suggestion is a function of seed, trial number and the table of trials.

    Parameters that it cannot model jointly are drawn at random.

    Args:
        seed: keys all random numbers, with the trial's number; an integer >= 0.
        space: a parsed space with conditions, which is modelled as a whole; None for what the trials share.

    Raises:
        ValueError: if ``seed`` is negative or no integer.
    """

    def __init__(self, seed: int, space: SearchSpace | None) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise ValueError(f"`seed` must be an int >= 0, got {seed!r}.")
        self.seed, self.space = seed, space

    def reseed_rng(self) -> None:
        """Do nothing: random numbers are keyed by the trial's number, so no two workers share a stream."""

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Draw one parameter at random."""
        self.sign(study)
        key = np.random.SeedSequence([self.seed, trial.number, *param_name.encode()])
        random = RandomSampler(seed=int(key.generate_state(1)[0]))
        return random.sample_independent(study, trial, param_name, param_distribution)

    def sign(self, study: Study) -> int:
        """Return 1 if the objective is minimised and -1 if it is maximised; raise ValueError for several objectives."""
        if len(study.directions) > 1:
            raise ValueError(f"{type(self).__name__} is for one objective, the study has {len(study.directions)}.")
        return 1 if study.direction == StudyDirection.MINIMIZE else -1

    def modelled(self, shared: Mapping[str, BaseDistribution]) -> Mapping[str, BaseDistribution]:
        """Return the parsed space if it has conditions, else the parameters that the trials share."""
        return self.space if self.space is not None and self.space.conditions else shared

    def encoding(self, shared: Mapping[str, BaseDistribution]) -> Encoding:
        """Return the columns of what is modelled."""
        return Encoding(self.modelled(shared))

    def at_random(self, encoding: Encoding, rng: np.random.Generator) -> dict[str, Any]:
        """Draw all parameters at random."""
        return encoding.decode(encoding.place(rng.random((1, len(encoding))))[0])


def violation(trial: FrozenTrial) -> float:
    """Return the sum of all constraints of a trial above 0."""
    return sum(max(value, 0.0) for value in trial.constraints.values())
