"""What failed trials do to GaussianProcessSampler: mean regret after 25 and 50 trials, and how many of these failed.

    OMP_NUM_THREADS=1 python benchmarks/bayesian_failures.py

``half``: a slanted half of the space fails; ``corner``: the upper two fifths of the first parameter; ``accidents``: a fifth
of all trials, wherever they are.
"""

import math

import numpy as np
import optuna
from bayesian_problems import PROBLEMS

from lightning_hpo.samplers import GaussianProcessSampler

SEEDS = range(20, 28)
optuna.logging.set_verbosity(optuna.logging.WARNING)


def half(unit, _luck):
    return unit @ (np.arange(len(unit)) % 2 * 2 - 1.0) > 0.15 * math.sqrt(len(unit))


def corner(unit, _luck):
    return unit[0] > 0.6


def accidents(_unit, luck):
    return luck < 0.2


def run(problem, fails, seed):
    study = optuna.create_study(sampler=GaussianProcessSampler(seed=seed))
    best, failed, reached = math.inf, 0, []
    for number in range(50):
        trial = study.ask(problem.space)
        unit = np.array([(trial.params[name] - one.low) / (one.high - one.low) for name, one in problem.space.items()])
        if fails(unit, np.random.default_rng([9, seed, number]).random()):
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
            failed += 1
        else:
            value = problem.truth(trial.params)
            study.tell(trial, value)
            best = min(best, value)
        if number + 1 in (25, 50):
            reached.append(((best - problem.best) / (problem.median - problem.best), failed))
    return reached


def main():
    print("| problem | fails | regret at 25 | at 50 | failed of 25 | of 50 |\n|---|---|---|---|---|---|")
    for name in ("branin", "hartmann3", "rosenbrock4", "ackley5", "hartmann6"):
        problem = PROBLEMS[name]()
        for fails in (half, corner, accidents):
            early, late = np.array([run(problem, fails, seed) for seed in SEEDS]).mean(axis=0)
            print(
                f"| {name} | {fails.__name__} | {early[0]:.1e} | {late[0]:.1e} | {early[1]:.1f} | {late[1]:.1f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
