"""Problems with learning curves: recorded tables, and synthetic curves over a continuous space.

A recorded table is looked up by the nearest configuration, so a search that draws some hundred configurations nearly
sweeps it, and a model that finds the right region finds the same few entries again. The synthetic problems have no such
floor: there is always a better point nearby. They are made, not measured; say so wherever they are reported.

``entries-...`` are the same tables without that floor: each configuration of a run stands for the nearest entry for
which no other configuration of the run stands, so that a near copy of a good configuration is another training.
"""

import functools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.optimize import minimize

HERE = Path(__file__).parent
TABLES = ("digits", "digits_noisy", "cancer")
ENTRIES = tuple(f"entries-{name}" for name in TABLES)


class Problem(Protocol):
    """What the simulator plays on; lower values are better."""

    space: dict[str, BaseDistribution]
    max_epochs: int

    def value(self, params: Mapping[str, Any], epoch: int) -> float:
        """What a tuner is told."""

    def regret(self, params: Mapping[str, Any], epoch: int) -> float:
        """(value without noise - best) / (median final value of random - best), clipped to [0, 1]."""


def from_cube(space: Mapping[str, BaseDistribution], cube: Sequence[float]) -> dict[str, Any]:
    """Configuration at a point of the unit cube with one coordinate per parameter."""
    params: dict[str, Any] = {}
    for place, (name, one) in zip(cube, space.items(), strict=True):
        if isinstance(one, CategoricalDistribution):
            params[name] = one.choices[min(int(place * len(one.choices)), len(one.choices) - 1)]
        elif one.log:
            params[name] = one.low * (one.high / one.low) ** float(place)
        else:
            params[name] = one.low + float(place) * (one.high - one.low)
    return params


class Table:
    """Recorded curves, looked up by the nearest configuration in the unit cube.

    Args:
        path: of the file.
        distinct: whether different configurations have different entries, first come, first served, as long as there
            are free ones.
    """

    def __init__(self, path: Path, *, distinct: bool = False) -> None:
        self._entries: dict[tuple[Any, ...], int] | None = {} if distinct else None
        data = np.load(path)
        self.curves = data["val_ce"].astype(float)
        self.space: dict[str, BaseDistribution] = {}
        for name, kind, low, high, log in json.loads(str(data["space"])):
            if kind == "cat":
                self.space[name] = CategoricalDistribution(low)
            else:
                self.space[name] = (IntDistribution if kind == "int" else FloatDistribution)(low, high, log=log)
        self.max_epochs = self.curves.shape[1]
        self._units = np.array([self._unit(config) for config in json.loads(str(data["configs"]))])
        self._best = float(self.curves.min())
        self._span = float(np.median(self.curves[:, -1])) - self._best

    def value(self, params: Mapping[str, Any], epoch: int) -> float:
        return float(self.curves[self._entry(params), epoch - 1])

    def regret(self, params: Mapping[str, Any], epoch: int) -> float:
        return min(max((self.value(params, epoch) - self._best) / self._span, 0.0), 1.0)

    def _entry(self, params: Mapping[str, Any]) -> int:
        distances = ((self._units - self._unit(params)) ** 2).sum(axis=1)
        if self._entries is None:
            return int(distances.argmin())
        key = tuple(params[name] for name in self.space)
        if key not in self._entries:
            if len(self._entries) < len(distances):
                distances[list(self._entries.values())] = math.inf
            self._entries[key] = int(distances.argmin())
        return self._entries[key]

    def _unit(self, params: Mapping[str, Any]) -> list[float]:
        """One column per numeric parameter in [0, 1]; a choice counts 0/1 by one-hot columns of 1/sqrt(2)."""
        columns: list[float] = []
        for name, one in self.space.items():
            if isinstance(one, CategoricalDistribution):
                columns += [math.sqrt(0.5) * (choice == params[name]) for choice in one.choices]
            else:
                scale = math.log if one.log else float
                columns.append((scale(params[name]) - scale(one.low)) / (scale(one.high) - scale(one.low)))
        return columns


class Synthetic:
    """Curves a + (1.5 - a) exp(-(t / tau)**.5) whose asymptote a and time tau depend on the configuration.

    a(x) = 1 - exp(-q(x)), q a quadratic form around an optimum drawn from ``seed``, with few important directions and
    with interactions. tau(x) = 30 / 300**s(x) epochs, where the speed s(x) in [0, 1] is (1 - m) (1 - a(x)) + m f(x):
    with m = 0 what is good is fast; f rises on one side of the optimum, so with a large m low budgets mislead.

    Args:
        dims: parameters; with ``choices`` the last two of them are categorical.
        misleading: m in [0, 1].
        noise: standard deviation of a value at the first epoch; it falls with the square root of the epochs.
        valleys: number of local optima; all but one are shallower.
        seed: of the problem.
        choices: of the last two parameters, or 0 for none.
        max_epochs: R.
    """

    def __init__(
        self,
        dims: int,
        misleading: float,
        noise: float,
        *,
        valleys: int = 1,
        seed: int = 0,
        choices: int = 0,
        max_epochs: int = 81,
    ) -> None:
        self.max_epochs = max_epochs
        rng = np.random.default_rng(seed)
        self.space: dict[str, BaseDistribution] = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(dims)}
        for i in range(dims - 2, dims) if choices else ():
            self.space[f"x{i}"] = CategoricalDistribution([f"c{j}" for j in range(choices)])
        self._places = rng.permuted(np.tile(np.linspace(0.1, 0.9, max(choices, 1)), (dims, 1)), axis=1)
        self._misleading, self._noise, self._seed = misleading, noise, seed
        self._centers = rng.uniform(0.15, 0.85, (valleys, dims))
        turn = np.linalg.qr(np.eye(dims) + 0.35 * rng.standard_normal((dims, dims)))[0]
        weights = 10.0 * 0.6 ** np.arange(dims)
        self._form = turn.T @ np.diag(weights) @ turn
        self._depths = np.concatenate([[0.0], rng.uniform(0.03, 0.15, valleys - 1)])
        self._fast = rng.standard_normal(dims)
        self._fast /= np.linalg.norm(self._fast)
        units = rng.uniform(size=(20_000, dims))
        units[:, dims - 2 :] = self._places[-1, rng.integers(0, choices, (20_000, 2))] if choices else units[:, -2:]
        finals = self._curve(units, self.max_epochs)
        starts = units[np.argsort(finals)[:10]]
        free = dims - 2 if choices else dims
        ends = [self._descend(start, free) for start in starts]
        self._best = float(min(finals.min(), *ends))
        self._span = float(np.median(finals)) - self._best

    def value(self, params: Mapping[str, Any], epoch: int) -> float:
        unit = self._unit(params)
        key = [self._seed, epoch, *np.frombuffer(unit.tobytes(), dtype=np.uint32)]
        noise = self._noise / math.sqrt(epoch) * np.random.default_rng(key).standard_normal() if self._noise else 0.0
        return float(self._curve(unit[None], epoch)[0] + noise)

    def regret(self, params: Mapping[str, Any], epoch: int) -> float:
        value = float(self._curve(self._unit(params)[None], epoch)[0])
        return min(max((value - self._best) / self._span, 0.0), 1.0)

    def rank_correlation(self, epoch: int) -> float:
        """Spearman's correlation of noisy values at an epoch with final ones without noise, over random points."""
        rng = np.random.default_rng(0)
        units = rng.uniform(size=(5000, len(self.space)))
        low = self._curve(units, epoch) + self._noise / math.sqrt(epoch) * rng.standard_normal(5000)
        noisy, final = (np.argsort(np.argsort(values)) for values in (low, self._curve(units, self.max_epochs)))
        return float(np.corrcoef(noisy, final)[0, 1])

    def _curve(self, units: NDArray[np.float64], epoch: int) -> NDArray[np.float64]:
        """Values without noise at ``units`` of shape (n, dims)."""
        away = units[:, None, :] - self._centers  # (n, valleys, dims)
        q = self._q(away)
        asymptote = (1 - (1 - self._depths) * np.exp(-q)).min(axis=1)
        fast = 1 / (1 + np.exp(2 - 8 * away[:, 0] @ self._fast))
        speed = (1 - self._misleading) * (1 - asymptote) + self._misleading * fast
        return asymptote + (1.5 - asymptote) * np.exp(-np.sqrt(epoch / 30 * 300**speed))

    def _q(self, away: NDArray[np.float64]) -> NDArray[np.float64]:
        return 3 * np.einsum("nvi,ij,nvj->nv", away, self._form, away) / len(self._form)

    def _descend(self, start: NDArray[np.float64], free: int) -> float:
        """Best final value near ``start``, its last coordinates fixed where they are choices."""

        def final(x: NDArray[np.float64]) -> float:
            return float(self._curve(np.concatenate([x, start[free:]])[None], self.max_epochs)[0])

        return float(minimize(final, start[:free], bounds=[(0, 1)] * free).fun)

    def _unit(self, params: Mapping[str, Any]) -> NDArray[np.float64]:
        return np.array(
            [
                self._places[-1][one.choices.index(params[name])]
                if isinstance(one, CategoricalDistribution)
                else params[name]
                for name, one in self.space.items()
            ],
            dtype=float,
        )


class Deceptive(Synthetic):
    """Early values say little of the end: (1 - w) a + w (1 + .2 a + .8 b), w = exp(-t / 20), b like a with another optimum."""

    def _curve(self, units: NDArray[np.float64], epoch: int) -> NDArray[np.float64]:
        here = units[:, None, :] - self._centers
        elsewhere = units[:, None, :] - np.where(self._centers < 0.5, 0.9, 0.1)
        early = math.exp(-epoch / 20)
        final, first = (1 - np.exp(-self._q(away))[:, 0] for away in (here, elsewhere))
        return np.asarray((1 - early) * final + early * (1 + 0.2 * final + 0.8 * first))


SYNTHETIC = {
    "synthetic-easy": {"dims": 6, "misleading": 0.0, "noise": 0.0, "seed": 1},
    "synthetic-noisy": {"dims": 8, "misleading": 0.4, "noise": 0.1, "seed": 2},
    "synthetic-valleys": {"dims": 6, "misleading": 0.4, "noise": 0.02, "valleys": 4, "seed": 3},
    "synthetic-mixed": {"dims": 8, "misleading": 0.6, "noise": 0.02, "choices": 4, "seed": 4},
    "synthetic-misleading": {"dims": 8, "misleading": 1.0, "noise": 0.02, "seed": 6},
    "synthetic-deceptive": {"dims": 8, "misleading": 0.0, "noise": 0.02, "seed": 9},
}
# Looked at once, when the rule of HyperbandTuner was settled. R is no power of 3.
HELD_BACK = {
    "held-3d": {"dims": 3, "misleading": 0.1, "noise": 0.02, "seed": 31, "max_epochs": 50},
    "held-5d-noisy": {"dims": 5, "misleading": 0.3, "noise": 0.2, "seed": 32, "max_epochs": 100},
    "held-7d-valleys": {"dims": 7, "misleading": 0.3, "noise": 0.02, "valleys": 6, "seed": 33, "max_epochs": 60},
    "held-6d-mixed": {"dims": 6, "misleading": 0.4, "noise": 0.05, "choices": 3, "seed": 34, "max_epochs": 40},
    "held-6d-misleading": {"dims": 6, "misleading": 1.0, "noise": 0.02, "seed": 35, "max_epochs": 50},
    "held-12d": {"dims": 12, "misleading": 0.2, "noise": 0.05, "seed": 36, "max_epochs": 100},
    "held-deceptive": {"dims": 5, "misleading": 0.0, "noise": 0.02, "seed": 37, "max_epochs": 50},
}
PROBLEMS = (*TABLES, *ENTRIES, *SYNTHETIC, *HELD_BACK)


def problem(name: str) -> Problem:
    """Return a problem by its name in :data:`PROBLEMS`, for one run."""
    table = name.removeprefix("entries-")
    return _lasting(name) if table == name else Table(_path(table), distinct=True)


def _path(table: str) -> Path:
    return HERE / "data" / f"mlp_{table}.npz"


@functools.cache
def _lasting(name: str) -> Problem:
    made = {**SYNTHETIC, **HELD_BACK}.get(name)
    if made is not None:
        return (Deceptive if name.endswith("deceptive") else Synthetic)(**made)
    return Table(_path(name))
