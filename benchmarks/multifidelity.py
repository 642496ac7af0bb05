"""Regret per worker-epoch on recorded learning curves, ours and peers, by simulation.

A method hands out (configuration, from epoch, to epoch) and is told the recorded value; W asynchronous workers on an
event heap, one unit of time per epoch. A job that continues a trial costs only the additional epochs, for every method
that can continue one. Regret is (best value observed - best in the table) / (median final value - best in the table),
clipped to [0, 1]; the x axis counts worker-epochs, idle ones included, in units of R = 81.

    python benchmarks/multifidelity.py                      # everything: about half an hour on one core
    python benchmarks/multifidelity.py --methods asha --workers 16 --seeds 5 --tables digits
    python benchmarks/multifidelity.py --table              # summary of what was measured, as Markdown

Runs are kept as JSON lines in ``results/multifidelity.jsonl``; those that are there are not repeated. A new method is
one entry in ``METHODS``.
"""

import argparse
import functools
import heapq
import importlib.util
import itertools
import json
import logging
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, RandomSampler, TPESampler

from lightning_hpo.schedulers import ASHA, AsyncHyperband, FullBudget, Hyperband, Scheduler
from lightning_hpo.suggest import Asker
from lightning_hpo.trials import Row

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "multifidelity.jsonl"
TABLES = ("digits", "digits_noisy", "cancer")
WORKERS = (1, 16, 4)
SEEDS = 20
BUDGETS = (5, 10, 20)  # in units of R


class Table:
    """Recorded curves, looked up by the nearest configuration in the unit cube."""

    def __init__(self, path: Path) -> None:
        data = np.load(path)
        self.curves = data["val_ce"].astype(float)
        self.space: dict[str, BaseDistribution] = {}
        for name, kind, low, high, log in json.loads(str(data["space"])):
            if kind == "cat":
                self.space[name] = CategoricalDistribution(low)
            else:
                self.space[name] = (IntDistribution if kind == "int" else FloatDistribution)(low, high, log=log)
        self.units = np.array([self.unit(config) for config in json.loads(str(data["configs"]))])
        self.best = float(self.curves.min())
        self.span = float(np.median(self.curves[:, -1])) - self.best

    @property
    def max_epochs(self) -> int:
        return self.curves.shape[1]

    def unit(self, params: Mapping[str, Any]) -> list[float]:
        """One column per numeric parameter in [0, 1]; a choice counts 0/1 by one-hot columns of 1/sqrt(2)."""
        columns: list[float] = []
        for name, one in self.space.items():
            if isinstance(one, CategoricalDistribution):
                columns += [math.sqrt(0.5) * (choice == params[name]) for choice in one.choices]
            else:
                scale = math.log if one.log else float
                columns.append((scale(params[name]) - scale(one.low)) / (scale(one.high) - scale(one.low)))
        return columns

    def params(self, cube: Sequence[float]) -> dict[str, Any]:
        """Configuration at a point of the unit cube with one coordinate per parameter."""
        params: dict[str, Any] = {}
        for place, (name, one) in zip(cube, self.space.items(), strict=True):
            if isinstance(one, CategoricalDistribution):
                params[name] = one.choices[min(int(place * len(one.choices)), len(one.choices) - 1)]
            elif one.log:
                params[name] = one.low * (one.high / one.low) ** float(place)
            else:
                params[name] = one.low + float(place) * (one.high - one.low)
        return params

    def nearest(self, params: Mapping[str, Any]) -> int:
        return int(((self.units - self.unit(params)) ** 2).sum(axis=1).argmin())

    def regret(self, value: float) -> float:
        return min(max((value - self.best) / self.span, 0.0), 1.0)


@functools.cache
def table(name: str) -> Table:
    return Table(HERE / "data" / f"mlp_{name}.npz")


@dataclass(frozen=True)
class Work:
    """Train the configuration of one trial from an epoch to an epoch."""

    trial: Any
    params: Mapping[str, Any]
    start: int
    stop: int


class Method(Protocol):
    """What the simulator plays with; a new one per run."""

    def ask(self) -> Work | None: ...

    def tell(self, work: Work, value: float) -> None: ...


class Ours:
    """A scheduler and a sampler of this project, over rows in memory."""

    def __init__(self, scheduler: Scheduler, sampler: BaseSampler, of: Table, seed: int, **asker: Any) -> None:
        self.scheduler = scheduler
        self.asker = Asker(sampler, of.space, mode="min", seed=seed, **asker)
        self.rows: list[Row] = []
        self.notes: list[Mapping[str, Any]] = []

    def ask(self) -> Work | None:
        job = self.scheduler.next(self.rows)
        if job is None:
            return None
        if job.trial is None:
            params, notes = self.asker.ask(self.rows, self.notes)
            number = len(self.rows)
            self.rows.append(Row(number, params, target=job.max_steps))
            self.notes.append(notes)
        else:
            number = job.trial
            self.rows[number] = replace(self.rows[number], target=job.max_steps)
        row = self.rows[number]
        return Work(number, row.params, max(row.values, default=0), job.max_steps)

    def tell(self, work: Work, value: float) -> None:
        row = self.rows[work.trial]
        state = "complete" if work.stop >= self.scheduler.max_steps else "running"
        self.rows[work.trial] = replace(row, values={**row.values, work.stop: value}, target=None, state=state)


class OptunaHyperband:
    """TPE with HyperbandPruner: a trial runs on while it is not pruned."""

    def __init__(self, of: Table, seed: int) -> None:
        self.rungs = [3**i for i in range(5)]
        self.study = optuna.create_study(
            study_name=f"seed{seed}",  # the bracket is a hash of the name
            sampler=TPESampler(seed=seed),
            pruner=optuna.pruners.HyperbandPruner(1, of.max_epochs, 3),
        )
        self.space = of.space
        self.running: list[Work] = []

    def ask(self) -> Work:
        if self.running:
            return self.running.pop()
        trial = self.study.ask(self.space)
        return Work(trial, trial.params, 0, self.rungs[0])

    def tell(self, work: Work, value: float) -> None:
        trial = work.trial
        trial.report(value, work.stop)
        if work.stop == self.rungs[-1]:
            self.study.tell(trial, value)
        elif trial.should_prune():
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.running.append(Work(trial, work.params, work.stop, work.stop * 3))


class SyneTuneASHA:
    """Syne Tune's ASHA (stopping type): a trial runs on while it is not stopped."""

    def __init__(self, of: Table, seed: int) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import uniform
        from syne_tune.optimizer.baselines import ASHA as Peer

        np.random.seed(seed)  # it draws its bracket from the global generator
        names = list(of.space)
        self.scheduler = Peer(
            config_space={name: uniform(0.0, 1.0) for name in names},
            metric="loss",
            time_attr="epoch",
            max_t=of.max_epochs,
            random_seed=seed,
        )
        self.make = Trial
        self.of = of
        self.count = itertools.count()
        self.rungs = [3**i for i in range(5)]
        self.running: list[Work] = []

    def ask(self) -> Work:
        if self.running:
            return self.running.pop()
        import datetime

        config = self.scheduler.suggest().config
        trial = self.make(next(self.count), config, datetime.datetime(2000, 1, 1))
        self.scheduler.on_trial_add(trial)
        return Work(trial, self.of.params(list(config.values())), 0, self.rungs[0])

    def tell(self, work: Work, value: float) -> None:
        result = {"loss": value, "epoch": work.stop}
        decision = self.scheduler.on_trial_result(work.trial, result)
        if work.stop == self.rungs[-1]:
            self.scheduler.on_trial_complete(work.trial, result)
        elif decision == "CONTINUE":
            self.running.append(Work(work.trial, work.params, work.stop, work.stop * 3))
        else:
            self.scheduler.on_trial_remove(work.trial)


class PeerDEHB:
    """DEHB through ask and tell; a promoted configuration continues, a mutant starts anew."""

    def __init__(self, of: Table, seed: int) -> None:
        from dehb import DEHB

        self.folder = tempfile.TemporaryDirectory()
        self.dehb = DEHB(
            dimensions=len(of.space),
            configspace=False,
            min_fidelity=1,
            max_fidelity=of.max_epochs,
            eta=3,
            n_workers=1,  # of its own; more than one starts Dask
            seed=seed,
            output_path=self.folder.name,
            save_freq="end",
            log_level="ERROR",
        )
        self.of = of
        self.reached: dict[bytes, int] = {}

    def ask(self) -> Work:
        info = self.dehb.ask()
        stop = max(round(float(info["fidelity"])), 1)
        reached = self.reached.get(np.asarray(info["config"]).tobytes(), 0)
        return Work(info, self.of.params(info["config"]), reached if reached < stop else 0, stop)

    def tell(self, work: Work, value: float) -> None:
        key = np.asarray(work.trial["config"]).tobytes()
        self.reached[key] = max(self.reached.get(key, 0), work.stop)
        self.dehb.tell(work.trial, {"fitness": value, "cost": float(work.stop)})


def tpe() -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(constant_liar=True)


def gaussian_process() -> BaseSampler:
    from lightning_hpo.samplers import GaussianProcessSampler

    return GaussianProcessSampler(seed=0)


def ours(make_scheduler: Callable[[int], Scheduler], make_sampler: Callable[[], BaseSampler], **asker: Any) -> Any:
    return lambda of, seed: Ours(make_scheduler(of.max_epochs), make_sampler(), of, seed, **asker)


def asynchronous_hyperband(max_epochs: int) -> Scheduler:
    return AsyncHyperband(max_epochs, iterations=None)


@dataclass(frozen=True)
class Entry:
    """A method, who wrote it, and the module it needs."""

    make: Callable[[Table, int], Method]
    ours: bool = True
    needs: str = "optuna"


THIRD = {"random_fraction": 1 / 3}
METHODS: dict[str, Entry] = {
    "random": Entry(ours(lambda epochs: FullBudget(epochs, 10**6), RandomSampler)),
    "hyperband": Entry(ours(lambda epochs: Hyperband(epochs, iterations=9), RandomSampler)),
    "asha": Entry(ours(ASHA, RandomSampler)),
    "async-hyperband": Entry(ours(asynchronous_hyperband, RandomSampler)),
    "asha-tpe": Entry(ours(ASHA, tpe, **THIRD)),
    "async-hyperband-tpe": Entry(ours(asynchronous_hyperband, tpe, **THIRD)),
    "async-hyperband-gp": Entry(
        ours(asynchronous_hyperband, gaussian_process, **THIRD), needs="lightning_hpo.samplers"
    ),
    "asha-gp": Entry(ours(ASHA, gaussian_process, **THIRD), needs="lightning_hpo.samplers"),
    "optuna-hyperband-tpe": Entry(OptunaHyperband, ours=False),
    "syne-tune-asha": Entry(SyneTuneASHA, ours=False, needs="syne_tune"),
    "dehb": Entry(PeerDEHB, ours=False, needs="dehb"),
}


def play(method: Method, of: Table, workers: int) -> dict[str, Any]:
    """Simulate one run up to the largest budget.

    Returns:
        trace: [worker-epochs / R, regret] at each improvement; busy: share of worker time spent training; trials;
        ms: CPU milliseconds per question, the mean over the run.
    """
    limit = BUDGETS[-1] * of.max_epochs / workers
    now, busy, seconds, questions, trials = 0.0, 0.0, 0.0, 0, 0
    best = math.inf
    trace: list[list[float]] = []
    order = itertools.count()
    heap: list[tuple[float, int, Work]] = []
    while True:
        while len(heap) < workers:
            began = time.process_time()
            work = method.ask()
            seconds += time.process_time() - began
            questions += 1
            if work is None:
                break
            trials += work.start == 0
            busy += max(min(now + work.stop - work.start, limit) - now, 0.0)
            heapq.heappush(heap, (now + work.stop - work.start, next(order), work))
        if not heap:
            break
        now, _, work = heapq.heappop(heap)
        if now > limit:
            break
        value = float(of.curves[of.nearest(work.params), work.stop - 1])
        if value < best:
            best = value
            trace.append([now * workers / of.max_epochs, of.regret(best)])
        began = time.process_time()
        method.tell(work, value)
        seconds += time.process_time() - began
    return {
        "trace": trace,
        "busy": busy / (limit * workers),
        "trials": trials,
        "ms": 1000 * seconds / questions,
    }


def at(trace: Sequence[Sequence[float]], budget: float) -> float:
    """Regret of the incumbent after ``budget`` (in R); 1 before the first value."""
    return next((regret for x, regret in reversed(trace) if x <= budget + 1e-9), 1.0)


def load() -> dict[tuple[str, str, int, int], dict[str, Any]]:
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {(run["table"], run["method"], run["workers"], run["seed"]): run for run in lines}


def measure(options: argparse.Namespace) -> None:
    """Play what is missing and append it to the results."""
    done = load()
    RESULTS.parent.mkdir(exist_ok=True)
    for method in options.methods:
        if importlib.util.find_spec(METHODS[method].needs) is None:
            print(f"{method}: missing, {METHODS[method].needs} is not installed")
    wanted = itertools.product(options.workers, range(options.seeds), options.tables, options.methods)
    for workers, seed, name, method in wanted:
        entry = METHODS[method]
        if (name, method, workers, seed) in done or importlib.util.find_spec(entry.needs) is None:
            continue
        run = play(entry.make(table(name), seed), table(name), workers)
        line = {"table": name, "method": method, "workers": workers, "seed": seed, **run}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def summary(options: argparse.Namespace) -> Iterator[str]:
    """Markdown tables of everything measured, and the speed-up over random search."""
    runs = load()
    for workers in options.workers:
        yield f"\n### {workers} worker{'s' * (workers > 1)}\n"
        names = " · ".join(options.tables)
        yield f"| method | seeds | 5R: {names} | 10R | 20R | mean 5R | mean 10R | mean 20R | SE | {names} speed-up | geo-mean | busy | ms |"
        yield "|" + "---|" * 13
        lines = []
        for method in options.methods:
            of = {
                name: [run for key, run in runs.items() if key[:3] == (name, method, workers)]
                for name in options.tables
            }
            seeds = min(map(len, of.values()))
            if not seeds:
                lines.append((9.0, f"| {method} | missing |" + " |" * 11))
                continue
            regrets = np.array(
                [
                    [[at(run["trace"], budget) for run in of[name][:seeds]] for name in options.tables]
                    for budget in BUDGETS
                ]
            )  # (budget, table, seed)
            means = regrets.mean(axis=(1, 2))
            error = regrets[-1].mean(axis=0).std(ddof=1) / math.sqrt(seeds) if seeds > 1 else math.nan
            ups = [
                speed_up(of[name], [run for key, run in runs.items() if key[:3] == (name, "random", workers)])
                for name in options.tables
            ]
            geo = statistics.geometric_mean(ups) if all(ups) else math.nan
            cells = [" ".join(f"{value:.3f}" for value in row) for row in regrets.mean(axis=2)]
            every = [run for part in of.values() for run in part]
            lines.append(
                (
                    means[-1],
                    f"| {method} | {seeds} | {' | '.join(cells)} | "
                    + " | ".join(f"{value:.4f}" for value in means)
                    + f" | {error:.4f} | {' '.join(f'{up:.1f}' if up else '-' for up in ups)} | {geo:.2f} "
                    f"| {statistics.mean(run['busy'] for run in every):.2f} | {statistics.mean(run['ms'] for run in every):.2f} |",
                )
            )
        yield from (line for _, line in sorted(lines))


def speed_up(runs: Sequence[Mapping[str, Any]], random: Sequence[Mapping[str, Any]]) -> float:
    """How many times fewer worker-epochs to random search's mean regret at the largest budget; 0 if not reached."""
    goal = statistics.mean(at(run["trace"], BUDGETS[-1]) for run in random)
    for quarter in range(1, 4 * BUDGETS[-1] + 1):
        if statistics.mean(at(run["trace"], quarter / 4) for run in runs) <= goal:
            return BUDGETS[-1] / (quarter / 4)
    return 0.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="+", default=TABLES, choices=TABLES)
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=tuple(METHODS))
    parser.add_argument("--workers", nargs="+", type=int, default=WORKERS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print the summary and measure nothing")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)  # peers are talkative
    if not options.table:
        measure(options)
    print("\n".join(summary(options)))


if __name__ == "__main__":
    main()
