"""Functions of 50 to 500 parameters: GaussianProcessSampler beside Optuna's TPE and CMA-ES, and random search.

    OMP_NUM_THREADS=1 python benchmarks/many_parameters.py          # CMA-ES needs: pip install cmaes
    python benchmarks/many_parameters.py --table

Score: (best value - lowest possible one) / (median of random configurations - lowest possible one). Runs are kept in
``results/many_parameters.jsonl``; those that are there are not repeated.
"""

import argparse
import itertools
import json
import time
import warnings
from pathlib import Path

import numpy as np
import optuna
from bayesian_problems import FUNCTIONS, ackley, rastrigin, rosenbrock
from optuna.distributions import FloatDistribution

from lightning_hpo.samplers import GaussianProcessSampler

RESULTS = Path(__file__).parent / "results" / "many_parameters.jsonl"
CHECKPOINTS = (100, 200)
SAMPLERS = {
    "random": lambda seed: optuna.samplers.RandomSampler(seed=seed),
    "optuna_cmaes": lambda seed: optuna.samplers.CmaEsSampler(seed=seed),
    "ours": lambda seed: GaussianProcessSampler(seed=seed),
    "optuna_tpe": lambda seed: optuna.samplers.TPESampler(seed=seed),
}
# On the unit cube, lowest value 0; no optimum is in the middle. Of `few` six parameters matter.
FUNCTIONS_OF = {
    "sphere": lambda x: float(((x - 0.37) ** 2).sum()),
    "rosenbrock": lambda x: rosenbrock(3 * x - 1),
    "ackley": lambda x: ackley(30 * x - 11),
    "rastrigin": lambda x: rastrigin(10 * x - 4),
    "few": lambda x: FUNCTIONS["hartmann6"][0](x[:: len(x) // 6][:6]) - FUNCTIONS["hartmann6"][2],
}


def run(name: str, dimension: int, method: str, seed: int) -> tuple[dict[int, float], float]:
    """Return the score at each checkpoint, and the CPU seconds of a suggestion."""
    function = FUNCTIONS_OF[name]
    random = np.random.default_rng(0).random((1000, dimension))
    median = float(np.median([function(x) for x in random]))
    space = {f"x{i}": FloatDistribution(0.0, 1.0) for i in range(dimension)}
    study = optuna.create_study(sampler=SAMPLERS[method](seed))
    scores, spent = {}, 0.0
    for number in range(1, CHECKPOINTS[-1] + 1):
        begin = time.process_time()
        trial = study.ask(space)
        spent += time.process_time() - begin
        value = function(np.array([trial.params[name] for name in space]))
        begin = time.process_time()
        study.tell(trial, value)
        spent += time.process_time() - begin
        if number in CHECKPOINTS:
            scores[number] = study.best_value / median
    return scores, spent / CHECKPOINTS[-1]


def records() -> list[dict]:
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def table() -> None:
    """Print the mean score of each function, and the mean over all."""
    found: dict[tuple, list[dict]] = {}
    for r in records():
        found.setdefault((r["function"], r["parameters"], r["method"]), []).append(r)
    places = sorted({key[:2] for key in found}, key=lambda place: (place[1], place[0]))
    for n in CHECKPOINTS:
        print(f"\n### {n} evaluations (seeds)\n\n| function | parameters | {' | '.join(SAMPLERS)} |\n{'|---' * 6}|")
        full = [place for place in places if all((*place, method) in found for method in SAMPLERS)]
        means = {key: float(np.mean([r["scores"][str(n)] for r in of])) for key, of in found.items()}
        for place in places:
            keys = [(*place, method) for method in SAMPLERS]
            cells = [f"{means[key]:.3f} ({len(found[key])})" if key in found else "-" for key in keys]
            print(f"| {place[0]} | {place[1]} | {' | '.join(cells)} |")
        cells = [f"{np.mean([means[*place, method] for place in full]):.3f}" for method in SAMPLERS]
        print(f"| **mean of {len(full)}** | | {' | '.join(cells)} |")
    print(f"\n### CPU ms of a suggestion\n\n| parameters | {' | '.join(SAMPLERS)} |\n{'|---' * 5}|")
    for dimension in sorted({place[1] for place in places}):
        cells = []
        for method in SAMPLERS:
            spent = [r["seconds"] for key, of in found.items() for r in of if key[1:] == (dimension, method)]
            cells.append(f"{1000 * np.mean(spent):.1f}" if spent else "-")
        print(f"| {dimension} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--functions", nargs="+", default=list(FUNCTIONS_OF), choices=list(FUNCTIONS_OF))
    parser.add_argument("--parameters", nargs="+", type=int, default=[50, 200, 500])
    parser.add_argument("--methods", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--table", action="store_true", help="print the summary and run nothing")
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    if arguments.table:
        return table()
    RESULTS.parent.mkdir(exist_ok=True)
    wanted = itertools.product(arguments.seeds, arguments.parameters, arguments.functions, arguments.methods)
    for seed, dimension, name, method in wanted:
        keys = ("function", "parameters", "method", "seed")
        if (name, dimension, method, seed) in {tuple(r[key] for key in keys) for r in records()}:
            continue
        scores, seconds = run(name, dimension, method, seed)
        record = {"function": name, "parameters": dimension, "method": method, "seed": seed, "scores": scores}
        with RESULTS.open("a") as file:
            file.write(json.dumps({**record, "seconds": seconds}) + "\n")
        print(record, f"{seconds:.3f} s a suggestion", flush=True)
    return None


if __name__ == "__main__":
    main()
