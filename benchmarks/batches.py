"""1, 16 and 64 suggestions at once: do they repeat each other, and what does it cost in regret?

Functions of `bayesian_problems.py`: `GaussianProcessSampler` with Optuna's TPE (constant liar) and random search; a batch
is asked for before the first of its values is told. Curves of `curves.py`, as in `multifidelity.py`: `HyperbandTuner` and
peers with 16 and 64 workers, which have four times the budget where they are 64. The distance of a suggestion is that to
the nearest configuration that is at work, in the largest difference of a parameter on [0, 1]; a choice that differs is 1
apart. A suggestion closer than 0.01 repeats it.

    OMP_NUM_THREADS=1 python benchmarks/batches.py --seeds 3
    python benchmarks/batches.py --table

Runs are kept in ``results/batches.jsonl``; those that are there are not repeated.
"""

import argparse
import importlib.util
import itertools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import multifidelity
import numpy as np
import optuna
from bayesian_problems import PROBLEMS, is_development
from curves import problem
from multifidelity_tables import BUDGETS, at
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from peers import Method, OptunaHyperband, Work

from lightning_hpo.samplers import GaussianProcessSampler
from lightning_hpo.space import to_unit

RESULTS = Path(__file__).parent / "results" / "batches.jsonl"
FUNCTIONS = (
    "hartmann6", "levy4", "michalewicz5", "cosine_mixture4", "branin_noisy",
    "ackley5", "rosenbrock4", "rastrigin3", "network8", "sphere5_noisy",
)  # fmt: skip
SAMPLERS: dict[str, Callable[[int], BaseSampler]] = {
    "ours": lambda seed: GaussianProcessSampler(seed=seed),
    "optuna_tpe": lambda seed: TPESampler(seed=seed, constant_liar=True),
    "random": lambda seed: RandomSampler(seed=seed),
}
CURVES = ("synthetic-easy", "synthetic-valleys", "synthetic-mixed", "held-5d-noisy", "held-12d")
TUNERS = {
    "hyperband-tuner": multifidelity.METHODS["hyperband-tuner"],
    "optuna-hyperband-tpe": multifidelity.Entry(lambda of, seed: OptunaHyperband(of, seed, constant_liar=True)),
    "syne-tune-asha": multifidelity.METHODS["syne-tune-asha"],
    "random": multifidelity.METHODS["random"],
}
CHECKPOINTS = (128, 192)
_REPEATED, _FIRST = 0.01, 10


def distance(space: Mapping[str, BaseDistribution], params: Mapping[str, Any], others: Sequence[Mapping]) -> float:
    """Distance to the nearest of the others; infinite if there are none."""

    def apart(name: str, other: Mapping[str, Any]) -> float:
        if isinstance(space[name], CategoricalDistribution):
            return float(params[name] != other[name])
        return abs(to_unit(space[name], params[name]) - to_unit(space[name], other[name]))

    return min((max(apart(name, other) for name in space) for other in others), default=np.inf)


def function(name: str, method: str, size: int, seed: int) -> dict[str, Any]:
    """Return regrets (by the lowest value), distances in the batches after the first, and CPU ms a suggestion."""
    of = PROBLEMS[name]()
    study = optuna.create_study(sampler=SAMPLERS[method](seed))
    spent = 0.0
    distances: list[float] = []
    truths: list[float] = []
    regrets: list[float] = []
    while len(truths) < CHECKPOINTS[-1]:
        batch: list[optuna.Trial] = []
        for _ in range(size):
            begin = time.process_time()
            trial = study.ask(of.space)
            spent += time.process_time() - begin
            if len(truths) >= _FIRST and batch:
                distances.append(distance(of.space, trial.params, [other.params for other in batch]))
            batch.append(trial)
        for trial in batch:
            study.tell(trial, of.observe(trial.params, seed, trial.number))
            truths.append(of.truth(trial.params))
        if len(truths) in CHECKPOINTS:
            regrets.append((truths[study.best_trial.number] - of.best) / (of.median - of.best))
    return {"regrets": regrets, "ms": 1000 * spent / len(truths), **_summary(distances)}


class Watched:
    """A method of `multifidelity.py` whose new configurations are compared with those at work."""

    def __init__(self, method: Method, space: Mapping[str, BaseDistribution]) -> None:
        self.method, self.space = method, space
        self.at_work: list[Mapping[str, Any]] = []
        self.distances: list[float] = []

    def ask(self) -> Work | None:
        work = self.method.ask()
        if work is not None:
            if work.start == 0 and self.at_work:
                self.distances.append(distance(self.space, work.params, self.at_work))
            self.at_work.append(work.params)
        return work

    def tell(self, work: Work, value: float) -> None:
        self.at_work.remove(work.params)
        self.method.tell(work, value)


def curve(name: str, method: str, size: int, seed: int) -> dict[str, Any]:
    """Return regrets at the budgets, distances, and CPU ms a question."""
    of = problem(name)
    watched = Watched(TUNERS[method].make(of, seed), of.space)
    budgets = _budgets(size)
    run = multifidelity.play(watched, of, size, budgets[-1])
    return {
        "regrets": [at(run["trace"], budget) for budget in budgets], "ms": run["ms"], **_summary(watched.distances)
    }  # fmt: skip


def _budgets(size: int) -> list[int]:
    return [budget * (4 if size > 16 else 1) for budget in BUDGETS]


def _summary(distances: Sequence[float]) -> dict[str, Any]:
    found = np.array(distances or [math.nan])
    return {"closest": float(found.min()), "median": float(np.median(found)),
            "repeated": float(np.mean(found < _REPEATED))}  # fmt: skip


def records() -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """Return what was measured, by (problem, method, at once, seed)."""
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []
    return {(line["problem"], line["method"], line["size"], line["seed"]): line for line in lines}


def measure(options: argparse.Namespace) -> None:
    """Run what is missing and append it to the results."""
    done = records()
    RESULTS.parent.mkdir(exist_ok=True)
    for seed, size, name in itertools.product(range(options.seeds), options.sizes, options.problems):
        for method in SAMPLERS if name in FUNCTIONS else TUNERS:
            needs = "optuna" if name in FUNCTIONS else TUNERS[method].needs
            if (name, method, size, seed) in done or importlib.util.find_spec(needs) is None:
                continue
            found = (function if name in FUNCTIONS else curve)(name, method, size, seed)
            with RESULTS.open("a") as file:
                file.write(json.dumps({"problem": name, "method": method, "size": size, "seed": seed, **found}) + "\n")


def table(sizes: Sequence[int]) -> Iterator[str]:
    """Lines of the tables: regrets, then distances and CPU."""
    found: dict[tuple[str, int, str], list[dict[str, Any]]] = {}
    for (name, method, size, _), run in sorted(records().items()):
        found.setdefault((name, size, method), []).append(run)
    for size, (names, methods) in itertools.product(sizes, ((FUNCTIONS, SAMPLERS), (CURVES, TUNERS))):
        shown = [name for name in names if all((name, size, method) in found for method in methods)]
        if not shown:
            continue
        titles = [f"after {n}" for n in CHECKPOINTS] if names is FUNCTIONS else [f"{b}R" for b in _budgets(size)]
        yield f"\n{size} at once: mean regret {', '.join(titles)} (seeds)\n"
        yield f"| problem | half | {' | '.join(methods)} |\n{'|---' * (len(methods) + 2)}|"
        for name in shown:
            half = "" if names is CURVES else "development" if is_development(name) else "other"
            cells = [_regrets(found[name, size, method]) for method in methods]
            yield f"| {name} | {half} | {' | '.join(cells)} |"
        yield f"\n| {size} at once | median distance | repeated | CPU ms |\n{'|---' * 4}|"
        for method in methods:
            runs = [run for name in shown for run in found[name, size, method]]
            median, repeated, ms = (np.nanmean([run[key] for run in runs]) for key in ("median", "repeated", "ms"))
            yield f"| {method} | {median:.3f} | {repeated:.3f} | {ms:.1f} |"


def _regrets(runs: Sequence[Mapping[str, Any]]) -> str:
    means = np.mean([run["regrets"] for run in runs], axis=0)
    return f"{', '.join(f'{mean:.1e}' for mean in means)} ({len(runs)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=[*FUNCTIONS, *CURVES], choices=[*FUNCTIONS, *CURVES])
    parser.add_argument("--sizes", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="print the summary and measure nothing")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if not options.table:
        measure(options)
    print("\n".join(table(options.sizes)))


if __name__ == "__main__":
    main()
