"""1, 16 and 64 suggestions at once: do they repeat each other, and what does it cost in regret?

`BayesianTuner`'s sampler on functions of `bayesian_problems.py`: a batch is asked for before the first of its values is
told. `HyperbandTuner` on the problems of `curves.py`, as in `multifidelity.py`. The distance of a suggestion is that to
the nearest configuration that is at work, in the largest difference of a parameter on [0, 1]; a choice that differs is 1
apart. Beside its smallest and median value stands that of random configurations, asked in batches of the same size.

    OMP_NUM_THREADS=1 python benchmarks/batches.py --seeds 3
"""

import argparse
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import multifidelity
import numpy as np
import optuna
from bayesian_problems import PROBLEMS
from curves import problem
from multifidelity import METHODS, Ours
from multifidelity_tables import BUDGETS, at
from optuna.distributions import BaseDistribution, CategoricalDistribution
from peers import Work

from lightning_hpo.samplers import GaussianProcessSampler
from lightning_hpo.space import to_unit

FUNCTIONS = ("hartmann6", "levy4", "ackley5", "rosenbrock4", "rastrigin3", "branin_noisy")
CURVES = ("synthetic-easy", "synthetic-valleys", "synthetic-mixed", "held-5d-noisy", "held-12d")
SIZES = (1, 16, 64)
EVALUATIONS = 192


def distance(space: Mapping[str, BaseDistribution], params: Mapping[str, Any], others: Sequence[Mapping]) -> float:
    """Distance to the nearest of the others; infinite if there are none."""

    def apart(name: str, other: Mapping[str, Any]) -> float:
        if isinstance(space[name], CategoricalDistribution):
            return float(params[name] != other[name])
        return abs(to_unit(space[name], params[name]) - to_unit(space[name], other[name]))

    return min((max(apart(name, other) for name in space) for other in others), default=np.inf)


def function(name: str, size: int, seed: int, sampler: optuna.samplers.BaseSampler) -> tuple[float, list[float], float]:
    """Return regret (by the lowest value), distances in the batches after the first, and CPU seconds a suggestion."""
    of = PROBLEMS[name]()
    study = optuna.create_study(sampler=sampler)
    spent, distances, truths = 0.0, [], []
    while len(truths) < EVALUATIONS:
        batch: list[optuna.Trial] = []
        for _ in range(size):
            begin = time.process_time()
            trial = study.ask(of.space)
            spent += time.process_time() - begin
            if len(truths) >= 10 and batch:
                distances.append(distance(of.space, trial.params, [other.params for other in batch]))
            batch.append(trial)
        for trial in batch:
            study.tell(trial, of.observe(trial.params, seed, trial.number))
            truths.append(of.truth(trial.params))
    best = truths[study.best_trial.number]
    return (best - of.best) / (of.median - of.best), distances, spent / len(truths)


class Watched:
    """A method of `multifidelity.py` whose new configurations are compared with those at work."""

    def __init__(self, method: Ours, space: Mapping[str, BaseDistribution]) -> None:
        self.method, self.space = method, space
        self.distances: list[float] = []

    def ask(self) -> Work | None:
        at_work = [row.params for row in self.method.rows if row.state == "running" and not row.idle]
        work = self.method.ask()
        if work is not None and work.start == 0 and at_work:
            self.distances.append(distance(self.space, work.params, at_work))
        return work

    def tell(self, work: Work, value: float) -> None:
        self.method.tell(work, value)


def rows(seeds: int) -> Iterator[str]:
    """Lines of the two tables."""
    yield f"| function | at once | regret after {EVALUATIONS} | closest: ours | median | random | CPU ms |\n{'|---' * 7}|"
    for name in FUNCTIONS:
        for size in SIZES:
            runs = [function(name, size, seed, GaussianProcessSampler(seed=seed)) for seed in range(seeds)]
            drawn = [function(name, size, seed, optuna.samplers.RandomSampler(seed=seed)) for seed in range(seeds)]
            yield (
                f"| {name} | {size} | {np.mean([run[0] for run in runs]):.1e} | {_distances(runs, drawn)} "
                f"| {1000 * np.mean([run[2] for run in runs]):.0f} |"
            )
    yield f"\n| curves | workers | regret at {', '.join(f'{b}R' for b in BUDGETS)} | closest | median |\n{'|---' * 5}|"
    for name in CURVES:
        for size in SIZES:
            traces, closest = [], []
            for seed in range(seeds):
                of = problem(name)
                method = Watched(METHODS["hyperband-tuner"].make(of, seed), of.space)
                traces.append(multifidelity.play(method, of, size)["trace"])
                closest += method.distances
            regrets = ", ".join(f"{np.mean([at(trace, budget) for trace in traces]):.3f}" for budget in BUDGETS)
            cells = f"{min(closest):.3f} | {np.median(closest):.2f}" if closest else "- | -"
            yield f"| {name} | {size} | {regrets} | {cells} |"


def _distances(runs: Sequence[tuple], drawn: Sequence[tuple]) -> str:
    ours, random = (np.concatenate([run[1] for run in of]) for of in (runs, drawn))
    return f"{ours.min():.1e} | {np.median(ours):.2f} | {random.min():.1e}" if len(ours) else "- | - | -"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    for row in rows(arguments.seeds):
        print(row, flush=True)


if __name__ == "__main__":
    main()
