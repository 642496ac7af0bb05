"""Studies with GaussianProcessSampler and the functions that tests minimise with it."""

import math

import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from lightning_hpo.samplers import GaussianProcessSampler

MIXED = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "dropout": FloatDistribution(0.0, 0.5, step=0.05),
    "units": IntDistribution(16, 512, log=True),
    "layers": IntDistribution(1, 6),
    "activation": CategoricalDistribution(["relu", "tanh", "gelu"]),
    "batch": CategoricalDistribution([32, 8, 16, 64]),
}
SPACE = {"x": FloatDistribution(0, 1), "y": FloatDistribution(0, 1)}


def new_study(direction="minimize", **arguments):
    return optuna.create_study(direction=direction, sampler=GaussianProcessSampler(**{"seed": 0, **arguments}))


def branin(trial):
    a, b = trial.suggest_float("a", -5, 10), trial.suggest_float("b", 0, 15)
    return (
        (b - 5.1 / (4 * math.pi**2) * a**2 + 5 / math.pi * a - 6) ** 2 + 10 * (1 - 1 / (8 * math.pi)) * math.cos(a) + 10
    )


def mixed_loss(params):
    return (
        (math.log10(params["lr"]) + 3) ** 2
        + params["dropout"]
        + abs(math.log2(params["units"]) - 7) / 4
        + {"relu": 0.0, "tanh": 0.4, "gelu": 0.2}[params["activation"]]
        + abs(math.log2(params["batch"]) - 4) / 2
        + 0.1 * params["layers"]
    )


def run(objective, n_trials, **arguments):
    study = new_study(**arguments)
    study.optimize(objective, n_trials=n_trials, catch=ArithmeticError)
    return study
