"""A model of the neighbourhood of the best configuration, for a search that has stalled.

The length scales and the output transform of a whole space seldom fit the basin of its optimum: a model of the whole
knows too little there to go on by more than small steps. So a search that has stalled fits a second model to the rows
nearest to the best one, in a box around them: positions in the box are its columns, hence its priors are about the box
and shrink with it. As the trust regions of Eriksson et al. 2019 (arXiv 1910.01739) it looks inside its box only; the
other suggestions are of the model of the whole space, which keeps the search global.
"""

import numpy as np

from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import GaussianProcessModel, fit_few

_FIRST = 15  # the first rows are spread, and gain nothing by design
_LEAST_GAIN = 0.01
_MARGIN = 0.3  # the box is larger than that of its rows by this share on either side: the best row may be at its edge
_NARROWEST = 1e-9


def is_stalled(values: Floats, recent: int) -> bool:
    """Whether the last rows gained less than 1 % of median - best.

    Args:
        values: to be minimised, in the order of the trials, shape (n,); NaN for failed and infeasible ones.
        recent: how many rows; with fewer than 15 others no search counts as stalled.

    Example:
        >>> is_stalled(np.linspace(1.0, 0.0, 30), 5), is_stalled(np.append(np.linspace(1.0, 0.0, 25), np.ones(5)), 5)
        (False, True)
    """
    values = values[~np.isnan(values)]
    if len(values) < _FIRST + recent:
        return False
    best = values.min()
    return bool(values[:-recent].min() - best <= _LEAST_GAIN * (np.median(values) - best))


def local_model(encoding: Encoding, observations: Observations, values: Floats) -> GaussianProcessModel | None:
    """Return the model of the 2 d + 2 fully trained rows nearest to the best one.

    None if there are no more than these, or if no parameter is continuous: there are no last digits to gain then.

    Args:
        encoding: of the whole space.
        observations: of the study.
        values: of the rows, NaN for failed and infeasible ones, shape (n,).
    """
    units, pending = observations.units, observations.pending
    rows = np.flatnonzero(~np.isnan(values) & (observations.fidelity == 1.0))
    count = 2 * len(encoding) + 2
    if len(rows) <= count or not len(encoding.continuous):
        return None
    features = encoding.features(units[rows])
    apart = ((features - features[np.argmin(values[rows])]) ** 2).sum(axis=1)
    near = np.sort(rows[np.argsort(apart, kind="stable")[:count]])
    box = _box(encoding, units[near])
    inside = ((pending >= box.low) & (pending <= box.high)).all(axis=1)
    return fit_few(box, Observations(units[near], observations.fidelity[near], values[near], pending[inside]))


def _box(encoding: Encoding, units: Floats) -> Encoding:
    """The box around rows with a margin: a share of its sides, one value more where there are few."""
    low, high = units.min(axis=0), units.max(axis=0)
    steps = [1.0 / (len(column.positions) - 1) if column.kind == "ordered" else 0.0 for column in encoding.columns]
    margin = np.maximum(_MARGIN * (high - low), steps)
    low, high = np.maximum(low - margin, 0.0), np.minimum(high + margin, 1.0)
    flat = high - low < _NARROWEST
    return encoding.within(np.where(flat, low - _NARROWEST, low), np.where(flat, high + _NARROWEST, high))
