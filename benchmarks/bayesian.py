"""Sample efficiency and cost of Bayesian optimisation, in parts that append to a JSON-lines file.

    OMP_NUM_THREADS=1 python benchmarks/bayesian.py --methods ours optuna_gp --problems branin --seeds 0 1 2
    OMP_NUM_THREADS=1 python benchmarks/bayesian.py --cost ours optuna_gp
    python benchmarks/bayesian.py --table

Score: normalised regret = (noise-free value of the recommended configuration - best) / (median of random configurations
- best). Every method recommends the lowest value that it observed; `ours (model)` the lowest posterior mean among its
evaluated configurations. `ours@4` asks for four configurations before it is told the first of their values. Parts that
are already in the file are not run again.
"""

import argparse
import itertools
import json
import math
import platform
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np
import optuna
import torch
from bayesian_problems import PROBLEMS, is_development
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from scipy.stats import rankdata

from lightning_hpo.samplers import GaussianProcessSampler, predicted_best

RESULTS = Path(__file__).parent / "results" / "bayesian.jsonl"
CHECKPOINTS = (20, 50, 100)
# Not ranked: a single seed, and versions of ours (d06db11, 2026-11-26, 91ea269, the evening of 2026-11-27).
FEW = ("textbook", "before", "older", "plain_kernel", "evening")
torch.set_num_threads(1)
optuna.logging.set_verbosity(optuna.logging.WARNING)


# -------------------------------------------------------------------------------------------------------------- methods
def botorch_suggestion(rows, values, seed):
    """SingleTaskGP + qLogNoisyExpectedImprovement on the unit cube."""
    from botorch.acquisition.logei import qLogNoisyExpectedImprovement
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    torch.manual_seed(seed)
    x, y = torch.tensor(rows, dtype=torch.double), -torch.tensor(values, dtype=torch.double)[:, None]
    model = SingleTaskGP(x, y)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    acquisition = qLogNoisyExpectedImprovement(model, X_baseline=x, prune_baseline=True)
    bounds = torch.stack([torch.zeros(x.shape[1]), torch.ones(x.shape[1])]).double()
    found, _ = optimize_acqf(acquisition, bounds=bounds, q=1, num_restarts=10, raw_samples=512)
    return found[0].numpy()


class Hebo:
    """HEBO on the unit cube, with its own start and default settings."""

    def __init__(self, d, seed):
        from hebo.design_space.design_space import DesignSpace
        from hebo.optimizers.hebo import HEBO

        torch.manual_seed(seed)
        np.random.seed(seed)  # its evolutionary search draws from the global generator
        space = DesignSpace().parse([{"name": f"x{i}", "type": "num", "lb": 0.0, "ub": 1.0} for i in range(d)])
        self.optimizer, self.asked = HEBO(space, scramble_seed=seed), None

    def suggest(self):
        self.asked = self.optimizer.suggest(n_suggestions=1)
        return self.asked.iloc[0].to_numpy(dtype=float)

    def observe(self, value):
        self.optimizer.observe(self.asked, np.array([[value]]))


def to_params(space, row):
    from lightning_hpo.space import from_unit

    return {name: from_unit(distribution, float(u)) for (name, distribution), u in zip(space.items(), row, strict=True)}


def textbook(rows, values, rng):
    """scikit-learn GP, EI with xi = .01, 25 restarts of L-BFGS-B with numerical gradients; no logs."""
    from scipy.optimize import minimize
    from scipy.stats import norm
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import Matern

    seed = int(rng.integers(2**31))
    process = GaussianProcessRegressor(
        Matern(nu=2.5), alpha=1e-6, normalize_y=True, n_restarts_optimizer=5, random_state=seed
    ).fit(rows, values)
    best = min(values)

    def negative(x):
        mean, sd = process.predict(x[None], return_std=True)
        z = (best - mean - 0.01) / max(sd[0], 1e-12)
        return float(-((best - mean - 0.01) * norm.cdf(z) + sd * norm.pdf(z))[0])

    d = rows.shape[1]
    ends = [minimize(negative, rng.random(d), method="L-BFGS-B", bounds=[(0, 1)] * d) for _ in range(25)]
    return min(ends, key=lambda end: end.fun).x


def sampler_of(method, seed, space=None):
    if method.startswith("ours"):
        _, _, warp = method.partition(":")
        return GaussianProcessSampler(seed=seed, space=space, **({"warp": warp} if warp else {}))
    return {
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "optuna_tpe": lambda: optuna.samplers.TPESampler(seed=seed),
        "optuna_gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }[method]()


def run(problem, method, seed, evaluations):
    """Yield (n, regret of the lowest observation, regret by the model or None, CPU seconds) at each checkpoint."""
    method, _, width = method.partition("@")
    direct, waiting = method in ("botorch", "textbook", "hebo"), []
    branches = problem.space if getattr(problem.space, "conditions", None) else None
    study = optuna.create_study(
        sampler=optuna.samplers.RandomSampler(seed=seed) if direct else sampler_of(method, seed, branches)
    )
    rng = np.random.default_rng([5, seed])
    names, rows, values, truths, spent = list(problem.space), [], [], [], 0.0
    start = 5 if method == "textbook" else 10
    hebo = Hebo(len(names), seed) if method == "hebo" else None
    for number in range(evaluations):
        begin = time.process_time()
        if direct:
            if hebo is not None:
                row = hebo.suggest()
            elif number < start:
                row = rng.random(len(names))
            elif method == "botorch":
                row = botorch_suggestion(np.array(rows), values, 1000 * seed + number)
            else:
                row = textbook(np.array(rows), values, rng)
            params = to_params(problem.space, row)
            rows.append(row)
        else:
            waiting = waiting or [study.ask(None if branches else problem.space) for _ in range(int(width or 1))]
            trial = waiting.pop(0)
            if branches:
                branches.draw(lambda name, trial=trial: trial._suggest(name, branches[name]))  # noqa: SLF001
            params = trial.params
        spent += time.process_time() - begin
        value = problem.observe(params, seed, number)
        if hebo is not None:
            begin = time.process_time()
            hebo.observe(value)
            spent += time.process_time() - begin
        if not direct:
            study.tell(trial, value)
        values.append(value)
        truths.append(problem.truth(params))
        if number + 1 in CHECKPOINTS:
            scale = problem.median - problem.best
            by_model = None
            if method.startswith("ours"):
                by_model = (problem.truth(predicted_best(study).params) - problem.best) / scale
            yield number + 1, (truths[int(np.argmin(values))] - problem.best) / scale, by_model, spent


def append(record):
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(json.dumps(record) + "\n")


def records():
    return [json.loads(line) for line in RESULTS.read_text().splitlines()] if RESULTS.exists() else []


def compare(problems, methods, seeds, evaluations):
    done = {(r["problem"], r["method"], r["seed"], r["n"]) for r in records() if r["kind"] == "regret"}
    for seed in seeds:
        for name in problems:
            problem = None
            for method in methods:
                last = max(n for n in CHECKPOINTS if n <= evaluations)
                if (name, method, seed, last) in done:
                    continue
                problem = problem or PROBLEMS[name]()
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    for n, regret, by_model, cpu in run(problem, method, seed, evaluations):
                        if (name, method, seed, n) not in done:
                            append(
                                {
                                    "kind": "regret", "problem": name, "method": method, "seed": seed, "n": n,
                                    "regret": regret, "by_model": by_model, "cpu": cpu,
                                }
                            )  # fmt: skip
                print(f"{name:32} {method:12} seed {seed}: {regret:.2e} {cpu:.1f} s", flush=True)


# ----------------------------------------------------------------------------------------------------------------- cost
MIXED = {
    "a": FloatDistribution(0, 1),
    "b": FloatDistribution(1e-4, 1, log=True),
    "c": IntDistribution(16, 512, log=True),
    "d": IntDistribution(1, 8),
    "e": CategoricalDistribution(["p", "q", "r"]),
    "f": CategoricalDistribution(["s", "t"]),
}


def cost(methods, sizes, asks):
    """CPU per suggestion with n random observations: the first ask, and the mean of `asks` rounds after it."""
    smooth = PROBLEMS["hartmann6"]()
    for kind in ("hartmann6", "mixed"):
        space = smooth.space if kind == "hartmann6" else MIXED
        for n in sizes:
            for method in methods:
                if (method == "optuna_gp" and n > 1000) or (kind == "mixed" and n > 200):
                    continue
                study = optuna.create_study(sampler=sampler_of(method, 0))
                rng = np.random.default_rng(n)
                frozen = []
                for _ in range(n):
                    params = to_params(space, rng.random(6))
                    value = cost_value(smooth, space, params)
                    frozen.append(optuna.trial.create_trial(params=params, distributions=dict(space), value=value))
                study.add_trials(frozen)
                spent = []
                for _ in range(asks + 1 if n <= 500 or method.startswith("ours") else 4):
                    begin = time.process_time()
                    trial = study.ask(space)
                    spent.append(time.process_time() - begin)
                    study.tell(trial, cost_value(smooth, space, trial.params))
                best = study.best_value
                record = {"kind": "cost", "space": kind, "method": method, "n": n, "first": spent[0],
                          "later": float(np.mean(spent[1:])), "asks": len(spent) - 1, "best": best}  # fmt: skip
                append(record)
                print(record, flush=True)


def cost_value(problem, space, params):
    if space is problem.space:
        return problem.truth(params)
    return (params["a"] - 0.3) ** 2 + (math.log10(params["b"]) / 4 + 0.5) ** 2 + abs(math.log2(params["c"]) - 6) / 5 \
        + 0.1 * params["d"] + {"p": 0.0, "q": 0.5, "r": 1.0}[params["e"]]  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------- table
def table():
    found = [r for r in records() if r["kind"] == "regret"]
    values = {}
    for r in found:
        values.setdefault((r["problem"], r["method"], r["n"]), {})[r["seed"]] = r["regret"]
        if r["by_model"] is not None:
            values.setdefault((r["problem"], r["method"] + " (model)", r["n"]), {})[r["seed"]] = r["by_model"]
    methods = sorted({key[1] for key in values if "@" not in key[1]})
    print(
        f"python {platform.python_version()}, "
        + ", ".join(
            f"{name} {version(name)}" for name in ("numpy", "scipy", "optuna", "scikit-learn", "botorch", "greenlet")
        )
    )
    for n in CHECKPOINTS:
        for half in (True, False):
            names = [name for name in PROBLEMS if is_development(name) == half]
            title = "development half" if half else "other half"
            print(f"\n### mean regret (seeds) at {n} evaluations, {title}\n\n| problem | " + " | ".join(methods) + " |")
            print("|" + "---|" * (len(methods) + 1))
            for name in names:
                cells = [
                    f"{np.mean(list(v.values())):.1e} ({len(v)})" if (v := values.get((name, m, n))) else "-"
                    for m in methods
                ]
                print(f"| {name} | " + " | ".join(cells) + " |")
            means = {m: {p: np.mean(list(values[p, m, n].values())) for p in names if (p, m, n) in values}
                     for m in methods}  # fmt: skip
            print("| **geometric mean, floor 1e-6** (problems) | " + " | ".join(
                f"{np.exp(np.mean(np.log(np.maximum(list(of.values()), 1e-6)))):.2e} ({len(of)})"
                if (of := means[m]) else "-" for m in methods) + " |")  # fmt: skip
            full = [m for m in methods if "(model)" not in m and ":" not in m and m not in FEW]
            shared = [p for p in names if all(p in means[m] for m in full)]
            if shared:
                ranks = np.argsort(np.argsort([[means[m][p] for p in shared] for m in full], axis=0), axis=0) + 1
                ranked = dict(zip(full, ranks.mean(axis=1), strict=True))
                by_method = " | ".join(f"{ranked[m]:.2f}" if m in ranked else "-" for m in methods)
                print(f"| **mean rank** on {len(shared)} | {by_method} |")
    print("\n### four asked at once: mean regret at 100 evaluations, same seeds\n\n| problem | at once | one by one |")
    print("|---|---|---|")
    for name in PROBLEMS:
        for method in ("ours", "optuna_gp"):
            batched, single = values.get((name, method + "@4", 100), {}), values.get((name, method, 100), {})
            if shared := sorted(batched.keys() & single.keys()):
                pair = [np.mean([v[s] for s in shared]) for v in (batched, single)]
                print(f"| {name}, {method} ({len(shared)}) | {pair[0]:.1e} | {pair[1]:.1e} |")
    costs = [r for r in records() if r["kind"] == "cost"]
    if costs:
        print(
            "\n### CPU per suggestion, ms: first ask / mean of the later ones\n\n| space | n | method | first | later |"
        )
        print("|---|---|---|---|---|")
        for r in costs:
            print(f"| {r['space']} | {r['n']} | {r['method']} | {1e3 * r['first']:.1f} | {1e3 * r['later']:.1f} |")


def paired():
    """Regret by (problem, "lowest value" or "model's mean", n), then by method and seed; peers have the former only."""
    values = {}
    for r in (r for r in records() if r["kind"] == "regret"):
        for title, name in (("lowest value", "regret"), ("model's mean", "by_model")):
            regret = r["regret"] if r[name] is None else r[name]
            values.setdefault((r["problem"], title, r["n"]), {}).setdefault(r["method"], {})[r["seed"]] = regret
    return values


def halves():
    """Each half of the problems, and both."""
    for title in ("development", "other", "both"):
        yield (
            title,
            [name for name in PROBLEMS if title in ("both", "development" if is_development(name) else "other")],
        )


def against(other):
    """Print the ratio of ours to another method or version: geometric means over problems of means over seeds."""
    values, rng = paired(), np.random.default_rng(0)
    groups = {
        "all": lambda p: True,  # noqa: ARG005
        "functions": lambda p: not p.endswith("_noisy") and not p.startswith("hpolib"),
        "tables": lambda p: p.startswith("hpolib"),
        "noisy, lowest value": lambda p: p.endswith("_noisy"),
        "noisy, model's mean": lambda p: p.endswith("_noisy"),
    }
    print(f"| problems | half | {' | '.join(map(str, CHECKPOINTS))} |\n|---|---|{'---|' * len(CHECKPOINTS)}")
    for (title, chosen), (half, names) in itertools.product(groups.items(), halves()):
        cells = []
        for n in CHECKPOINTS:
            pairs = []
            for p in filter(chosen, names):
                found = values.get((p, "model's mean" if "mean" in title else "lowest value", n), {})
                if seeds := sorted(found.get("ours", {}).keys() & found.get(other, {}).keys()):
                    pairs.append(np.array([[found[m][s] for s in seeds] for m in ("ours", other)]))
            ratios = [_ratio(pairs)] if pairs else []
            for _ in range(400 if pairs else 0):
                drawn = [pairs[i] for i in rng.integers(len(pairs), size=len(pairs))]
                ratios.append(_ratio([x[:, rng.integers(x.shape[1], size=x.shape[1])] for x in drawn]))
            low, high = np.quantile(ratios, [0.05, 0.95]) if ratios else (math.nan, math.nan)
            cells.append(f"{ratios[0]:.2f} ({low:.2f}-{high:.2f}), {len(pairs)}" if ratios else "-")
        print(f"| {title} | {half} | {' | '.join(cells)} |")


def ranks(methods):
    """Print mean ranks by the mean over the seeds that all methods have, on the problems that all were run on."""
    values = paired()
    print(f"| evaluations | half | problems | {' | '.join(methods)} |\n{'|---' * (len(methods) + 3)}|")
    for n, (half, names) in itertools.product(CHECKPOINTS, halves()):
        means = []
        for p in names:
            found = values.get((p, "lowest value", n), {})
            if seeds := set.intersection(*(set(found.get(m, {})) for m in methods)):
                means.append([np.mean([found[m][s] for s in seeds]) for m in methods])
        if means:
            cells = np.mean(rankdata(means, axis=1), axis=0)
            print(f"| {n} | {half} | {len(means)} | {' | '.join(f'{cell:.2f}' for cell in cells)} |")


def _ratio(pairs):
    means = np.maximum([pair.mean(axis=1) for pair in pairs], 1e-6)
    return float(np.exp(np.log(means[:, 0] / means[:, 1]).mean()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--methods", nargs="+", default=["random", "optuna_tpe", "ours"])
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(10)))
    parser.add_argument("--evaluations", type=int, default=100)
    parser.add_argument("--cost", nargs="+", metavar="METHOD", help="measure CPU per suggestion instead")
    parser.add_argument("--sizes", nargs="+", type=int, default=[50, 200, 500, 1000, 5000])
    parser.add_argument("--asks", type=int, default=20)
    parser.add_argument("--table", action="store_true", help="print the summary of the results file")
    parser.add_argument("--against", metavar="METHOD", help="compare ours with a peer or an older version of it")
    parser.add_argument("--ranks", nargs="+", metavar="METHOD", help="mean ranks of these")
    arguments = parser.parse_args()
    if arguments.against:
        against(arguments.against)
    elif arguments.ranks:
        ranks(arguments.ranks)
    elif arguments.table:
        table()
    elif arguments.cost:
        cost(arguments.cost, arguments.sizes, arguments.asks)
    else:
        compare(arguments.problems, arguments.methods, arguments.seeds, arguments.evaluations)


if __name__ == "__main__":
    main()
