"""Does the Gaussian process learn the parameters of a branch? Regret on a conditional space and on a flat one.

The function has two branches. Each has two parameters of its own, and the branches share one. The flat space has all
five parameters in every trial, so a trial of one branch carries two that mean nothing. Printed for each number of
trials: the median and the mean regret over the seeds (value of the best trial less the optimum).

    python benchmarks/conditions.py --seeds 10 --trials 50
"""

import argparse
import math
import statistics
import time

from optuna.samplers import RandomSampler, TPESampler

from lightning_hpo import GaussianProcessSampler, KernelDensitySampler
from lightning_hpo.records import Row
from lightning_hpo.samplers.adapter import SamplerAdapter
from lightning_hpo.space import parse_space

FLAT = {
    "branch": "choice('a', 'b')",
    "shared": "uniform(0, 1)",
    "a_rate": "loguniform(1e-5, 1e-1)",
    "a_size": "uniform(0, 1)",
    "b_rate": "loguniform(1e-5, 1e-1)",
    "b_size": "uniform(0, 1)",
}
CONDITIONAL = {name: text + (f" if branch == '{name[0]}'" if name[1] == "_" else "") for name, text in FLAT.items()}


def function(params):
    """Two valleys: branch a has its optimum 0 at (1e-2, 0.7); the best of branch b is 0.1."""
    bowl = (params["shared"] - 0.3) ** 2
    if params["branch"] == "a":
        return bowl + 0.3 * (math.log10(params["a_rate"]) + 2) ** 2 + (params["a_size"] - 0.7) ** 2
    return 0.1 + bowl + 0.1 * (math.log10(params["b_rate"]) + 4) ** 2 + 0.5 * (params["b_size"] - 0.2) ** 2


def curve(space, sampler, seed, trials):
    """Best value so far, after each trial."""
    adapter = SamplerAdapter(sampler, parse_space(space), mode="min", seed=seed)
    rows, notes, best = [], [], []
    for number in range(trials):
        params, note = adapter.ask(rows, notes, 1)
        value = function(params)
        rows.append(Row(number, params=params, values={1: value}, state="complete"))
        notes.append(note)
        best.append(min(value, best[-1] if best else math.inf))
    return best


SAMPLERS = {
    "Gaussian process": lambda seed: GaussianProcessSampler(seed=seed),
    "Gaussian process, a branch at a time": lambda seed: _ByBranch(seed=seed),
    "kernel densities": lambda seed: KernelDensitySampler(seed=seed),
    "TPE of Optuna": lambda seed: TPESampler(seed=seed),
    "random": lambda seed: RandomSampler(seed=seed),
}


class _ByBranch(GaussianProcessSampler):
    """Without the conditions: a parameter that not every trial has is modelled on the trials that have it."""

    @property
    def _branches(self):
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--only", default="")
    given = parser.parse_args()
    marks = sorted({min(mark, given.trials) for mark in (20, 30, given.trials)})
    print(
        f"{'sampler':<38}{'space':<14}" + "".join(f"{f'median @ {mark}':>14}{f'mean @ {mark}':>14}" for mark in marks)
    )
    for name, make in SAMPLERS.items():
        if given.only not in name:
            continue
        for kind, space in (("conditional", CONDITIONAL), ("flat", FLAT)):
            start = time.perf_counter()
            curves = [curve(space, make(seed), seed, given.trials) for seed in range(given.seeds)]
            cells = ""
            for mark in marks:
                regrets = [curve[mark - 1] for curve in curves]
                cells += f"{statistics.median(regrets):>14.2e}{statistics.mean(regrets):>14.2e}"
            print(f"{name:<38}{kind:<14}{cells}  {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
