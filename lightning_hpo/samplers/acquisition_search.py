"""Where is the acquisition function largest? The search over mixed spaces.

1. Candidates: a shifted Sobol sequence over the whole space, and *sprays*: copies of the best rows with some columns
   moved a little, at several scales (as in BoTorch's mixed optimiser). A small finite space is enumerated instead.
2. From the best candidate of either half of the sequence and the best spray, climb: L-BFGS-B over the continuous
   columns, in units of their length scales, then the best single change of a discrete column, all of them evaluated in
   one batch; until neither helps.
3. The best configuration that is not known yet. Integers and steps with many values are rounded here.
"""

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.stats import qmc

from lightning_hpo.samplers.acquisition import AcquisitionFunction
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.feasibility import Feasibility
from lightning_hpo.samplers.surrogate import GaussianProcessModel, RegressorModel

SOBOL_POINTS = 512
SPRAY_POINTS = 256
LARGEST_GRID = 2048
_BEST_ROWS = 5
_SCALES = np.array([0.3, 0.1, 0.03, 0.01, 0.001])
_ROUNDS = 4
_JUMPS = 64  # positions along a column of many values
_UNCONSTRAINED = Feasibility()


class Search:
    """The search for one suggestion.

    Args:
        model: of the study.
        function: the acquisition function.
        known: search columns of configurations that must not be suggested again, shape (k, d).
        fixed: column index -> position, for columns that are already decided.
        rng: of this suggestion.
        feasibility: whose worth is added to the acquisition function.
    """

    def __init__(
        self,
        model: GaussianProcessModel | RegressorModel,
        function: AcquisitionFunction,
        known: Floats,
        fixed: Mapping[int, float],
        rng: np.random.Generator,
        *,
        feasibility: Feasibility = _UNCONSTRAINED,
    ) -> None:
        self.model, self.function, self.rng, self.feasibility = model, function, rng, feasibility
        self.encoding: Encoding = model.encoding
        self.fixed = fixed
        self.known = {row.tobytes() for row in known}
        self.free = np.array([i for i in range(len(self.encoding)) if i not in fixed], dtype=np.intp)
        self.climbed = np.array([i for i in self.encoding.continuous if i not in fixed], dtype=np.intp)

    def maximise(self) -> Floats:
        """Return the search columns of the suggestion, shape (d,)."""
        if self.encoding.size <= LARGEST_GRID:
            return self._best(self._fix(self.encoding.grid()))
        rows, parts = self._candidates()
        values = self.score(rows)
        starts = [part[np.argmax(values[part])] for part in parts]
        ends = [self._climb(rows[start], values[start]) for start in starts]
        finalists = self.encoding.snap(np.array(ends))
        if not self._new(finalists).any():  # every climb ended at a known configuration
            finalists = rows
        return self._best(finalists)

    def jump(self, best: Floats) -> Floats:
        """Return the best row with one column changed, where that is worth most, shape (d,)."""
        jumps = []
        for i in self.free:
            column = self.encoding.columns[i]
            positions = column.nearest(self.rng.random(_JUMPS)) if column.values is None else column.positions
            others = np.repeat(best[None], len(positions), axis=0)
            others[:, i] = positions
            jumps.append(others)
        return self._best(self._fix(np.concatenate(jumps)))

    def is_known(self, unit: Floats) -> bool:
        """Whether a configuration must not be suggested again."""
        return unit.tobytes() in self.known

    def score(self, units: Floats) -> Floats:
        """Return the acquisition of rows, shape (m,)."""
        mean, sd = self.model.posterior(units)
        values: Floats = self.function(mean, sd, self.model.best)[0]
        return values + self.feasibility.worth(units)

    def _best(self, units: Floats) -> Floats:
        values = self.score(units)
        new = self._new(units)
        if new.any():
            values[~new] = -math.inf
        best: Floats = units[int(np.argmax(values))]
        return best

    def _new(self, units: Floats) -> NDArray[np.bool_]:
        return np.array([row.tobytes() not in self.known for row in units], dtype=bool)

    def _fix(self, units: Floats) -> Floats:
        for column, position in self.fixed.items():
            units[:, column] = position
        return self.encoding.settle(units)

    def _candidates(self) -> tuple[Floats, list[NDArray[np.intp]]]:
        d = len(self.encoding)
        spread = self._fix(self.encoding.place((_sobol(d) + self.rng.random(d)) % 1.0))
        rows = np.concatenate([spread, self._fix(self._sprays())])
        if not math.isinf(self.encoding.size):
            rows = self.encoding.snap(rows)
            new = self._new(rows)
            if new.any():
                # known rows stay in the table, so that its parts keep their places, but as copies of a new row
                rows[~new] = rows[int(np.argmax(new))]
        halves = np.array_split(np.arange(len(spread)), 2)
        return rows, [*halves, np.arange(len(spread), len(rows))]

    def _sprays(self) -> Floats:
        d, free = len(self.encoding), len(self.free)
        order = np.argsort(self.model.means, kind="stable")[:_BEST_ROWS]
        rows = self.model.units[order][np.arange(SPRAY_POINTS) % len(order)]
        scales = self.rng.permutation(np.resize(_SCALES, SPRAY_POINTS))[:, None] * self.encoding.widths
        moves = scales * self.rng.standard_normal((SPRAY_POINTS, d))
        moved = self.rng.random((SPRAY_POINTS, d)) < max(0.5, 1.0 / free) if free <= 20 else None
        if moved is None:  # in many dimensions, about ten columns move at once
            moved = self.rng.random((SPRAY_POINTS, d)) < 10.0 / free
        sprays = np.clip(rows + np.where(moved, moves, 0.0), self.encoding.low, self.encoding.high)
        redrawn = self.encoding.place(self.rng.random((SPRAY_POINTS, d)))
        changes = self.rng.random((SPRAY_POINTS, d)) < 1.0 / free
        for i, column in enumerate(self.encoding.columns):
            if column.kind == "categorical":
                sprays[:, i] = np.where(changes[:, i], redrawn[:, i], rows[:, i])
            elif column.kind == "ordered":
                sprays[:, i] = np.where(changes[:, i], redrawn[:, i], column.nearest(sprays[:, i]))
        return sprays

    def _climb(self, unit: Floats, value: float) -> Floats:
        for _ in range(_ROUNDS):
            climbed = self.climbed[self.encoding.active(unit[None])[0, self.climbed]]
            if isinstance(self.model, GaussianProcessModel) and len(climbed):
                unit, value = self._ascend(self.model, unit, value, climbed)
            has = self.encoding.active(unit[None])[0]
            discrete = [i for i in self.free if has[i] and self.encoding.columns[i].kind != "continuous"]
            if discrete:
                unit, value, changed = self._change(unit, value, discrete)
                if not changed:
                    break
            else:
                break  # L-BFGS-B has converged; without discrete columns nothing can follow
        return unit

    def _ascend(
        self, model: GaussianProcessModel, unit: Floats, value: float, climbed: NDArray[np.intp]
    ) -> tuple[Floats, float]:
        """L-BFGS-B over the continuous columns ``climbed``, in units of their length scales."""
        picked = np.searchsorted(self.encoding.continuous, climbed)
        scales = np.minimum(model.lengthscales[climbed], 1.0)
        point = unit.copy()

        def negative(scaled: Floats) -> tuple[float, Floats]:
            point[climbed] = scaled * scales
            mean, sd, mean_gradient, sd_gradient = model.gradient(point)
            worth, by_mean, by_sd = self.function(np.array([mean]), np.array([sd]), model.best)
            more, slope = self.feasibility.gradient(point)
            gradient = by_mean[0] * mean_gradient + by_sd[0] * sd_gradient + slope
            return -float(worth[0]) - more, -gradient[picked] * scales

        low, high = self.encoding.low[climbed], self.encoding.high[climbed]
        bounds = np.stack([low / scales, high / scales], axis=1)
        climb: Any = minimize  # the stubs cannot match a function that returns value and gradient
        found = climb(
            negative,
            unit[climbed] / scales,
            jac=True,
            method="L-BFGS-B",
            bounds=bounds,
            options={"maxiter": 50, "ftol": 1e-5, "gtol": 1e-3},
        )
        if not -found.fun > value:
            return unit, value
        end = unit.copy()
        end[climbed] = np.clip(found.x * scales, low, high)
        return self.encoding.settle(end[None])[0], float(-found.fun)

    def _change(self, unit: Floats, value: float, discrete: list[int]) -> tuple[Floats, float, bool]:
        """The best change of one discrete column, if it is an improvement."""
        neighbours = []
        for i in discrete:
            positions = self.encoding.choices(i)
            others = np.repeat(unit[None], np.count_nonzero(positions != unit[i]), axis=0)
            others[:, i] = positions[positions != unit[i]]
            neighbours.append(others)
        rows = self.encoding.settle(np.concatenate(neighbours))
        values = self.score(rows)
        if not math.isinf(self.encoding.size):
            values[~self._new(rows)] = -math.inf
        best = int(np.argmax(values))
        if values[best] <= value + 1e-9:
            return unit, value, False
        return rows[best], float(values[best]), True


@lru_cache(maxsize=64)
def _sobol(dimension: int) -> Floats:
    return qmc.Sobol(dimension, scramble=False).random(SOBOL_POINTS)
