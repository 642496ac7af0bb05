"""Trials that a sampler learns from beside those of its study."""

from collections.abc import Container, Mapping, Sequence
from datetime import datetime
from typing import Any

import optuna
from optuna.distributions import BaseDistribution
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.records import Row

LONG_AGO = datetime.fromtimestamp(0)  # noqa: DTZ006  # Optuna's times are naive; samplers must not see a clock


class _WithPrior:
    """Optuna's storage of a study, with more finished trials before those of the study."""

    def __init__(self, storage: Any, prior: Sequence[FrozenTrial]) -> None:
        self._storage, self._prior = storage, prior

    def __getattr__(self, name: str) -> Any:
        return getattr(self._storage, name)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the prior trials and the study's own."""
        prior = [trial for trial in self._prior if states is None or trial.state in states]
        return [*prior, *self._storage.get_all_trials(study_id, deepcopy=deepcopy, states=states)]


def with_prior(study: optuna.Study, prior: Sequence[FrozenTrial]) -> optuna.Study:
    """Return a study for a sampler, which has more finished trials; the same one if there are none."""
    if not prior:
        return study
    storage: Any = _WithPrior(study._storage, prior)  # noqa: SLF001  # has no public name
    return optuna.load_study(study_name=study.study_name, storage=storage, sampler=study.sampler)


def prior_trials(rows: Sequence[Row], space: Mapping[str, BaseDistribution]) -> list[FrozenTrial]:
    """Return rows of an earlier run as complete trials, with numbers below 0."""
    return [
        FrozenTrial(
            number=row.number - len(rows),
            trial_id=row.number - len(rows),
            state=TrialState.COMPLETE,
            value=row.score,
            datetime_start=LONG_AGO,
            datetime_complete=LONG_AGO,
            params=dict(row.params),
            distributions={name: space[name] for name in row.params},
            user_attrs={},
            system_attrs={},
            intermediate_values={},
        )
        for row in rows
    ]
