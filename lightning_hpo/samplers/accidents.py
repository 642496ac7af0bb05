"""Failures that the place explains, and accidents.

A failed trial says "not here" if trials near it fail too, and nothing if they do not: a full disk, a lost worker. Taken
for the worst value, an accident near the optimum is a cliff there, and spoils the model of the others. So a Gaussian
process is fitted to labels, 1 for a failed trial and -1 for another (least-squares classification: Rasmussen & Williams
2006, section 6.5). A failed trial is an accident where that model, noise aside, expects none.
"""

import numpy as np

from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.observations import Observations
from lightning_hpo.samplers.surrogate import Fitter


def without_accidents(fitter: Fitter, encoding: Encoding, observations: Observations) -> Observations:
    """Return the rows with each accident as a pending row: only its place is known to be taken.

    Args:
        fitter: of the labels; it keeps its fits, which saves time and changes nothing.
        encoding: of the space.
        observations: one or more rows.
    """
    failed = np.isnan(observations.values)
    if not failed.any() or failed.all():
        return observations
    labels = Observations(
        observations.units, np.ones(len(failed)), np.where(failed, 1.0, -1.0), observations.pending[:0]
    )
    model = fitter.model(encoding, labels)
    expected, _ = model.posterior(observations.units)
    accident = failed & (expected < model.targets.forward(np.zeros(1)))
    return Observations(
        observations.units[~accident],
        observations.fidelity[~accident],
        observations.values[~accident],
        np.concatenate([observations.pending, observations.units[accident]]),
        None if observations.constraints is None else observations.constraints[~accident],
    )
