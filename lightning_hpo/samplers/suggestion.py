"""The next configuration of a search, from the model of its rows.

Most suggestions maximise log expected improvement over the whole space. Two cases need more:

* Noise. Expected improvement takes the best mean for granted, and keeps to the neighbourhood of a draw that may be
  lucky. So every second suggestion goes where the mean less three standard deviations is lowest. Several acquisition
  functions in one search: Cowen-Rivers et al. 2022, arXiv 2012.03826.
* A search without noise that has stalled. Every second suggestion is of a model of the best row's neighbourhood
  (:mod:`lightning_hpo.samplers.local`), which gains the last digits. After a longer stall every fourth is the best
  configuration with one parameter changed, which leaves its basin where parameters act one by one.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np

from lightning_hpo.samplers.acquisition import AcquisitionFunction, log_expected_improvement, lower_confidence_bound
from lightning_hpo.samplers.acquisition_search import Search
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.feasibility import Feasibility, no_objective
from lightning_hpo.samplers.local import is_stalled, local_model
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import GaussianProcessModel, RegressorModel

_NOISY = 1e-2  # noise variance, in units of the targets' variance, from which every second trial is optimistic
_SHORT, _LONG = 5, 12  # rows without a gain
_optimistic: AcquisitionFunction = partial(lower_confidence_bound, beta=3.0)


def next_configuration(
    model: GaussianProcessModel | RegressorModel,
    observations: Observations,
    feasibility: Feasibility,
    *,
    acquisition: AcquisitionFunction | None,
    fixed: Mapping[int, float],
    number: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the search columns of the next configuration, shape (d,).

    Args:
        model: of the rows.
        observations: the rows.
        feasibility: of configurations.
        acquisition: for every suggestion; None for those above.
        fixed: column index -> position, for columns that are already decided.
        number: of the trial.
        rng: of this suggestion.
    """
    known = np.concatenate([observations.units, observations.pending])
    noisy = isinstance(model, GaussianProcessModel) and model.process.hyperparameters.noise > _NOISY
    function = acquisition or (_optimistic if noisy and number % 2 else log_expected_improvement)
    if not feasibility.known:
        function = no_objective
    search = partial(Search, function=function, known=known, fixed=fixed, rng=rng, feasibility=feasibility)
    whole = search(model)
    if function is log_expected_improvement and not (acquisition or noisy or fixed):
        values = np.where(observations.candidates(), observations.values, np.nan)
        unit = None
        if number % 4 == 1 and is_stalled(values, _LONG):
            unit = whole.jump()
        elif number % 2 == 0 and is_stalled(values, _SHORT):
            local = local_model(model.encoding, observations, values)
            unit = None if local is None else search(local).maximise()
        if unit is not None and not whole.is_known(unit):
            return unit
    return whole.maximise()
