"""Regret per worker-epoch on learning curves, ours and peers, by simulation.

A method hands out (configuration, from epoch, to epoch) and is told the value there; W asynchronous workers on an event
heap, one unit of time per epoch. A job that continues a trial costs only the additional epochs, for every method that
can continue one. The incumbent is the best value observed; its regret is (its value without noise - best) / (median
final value - best), clipped to [0, 1]; the x axis counts worker-epochs, idle ones included, in units of R = 81.

    python benchmarks/multifidelity.py                      # everything: about two hours on one core
    python benchmarks/multifidelity.py --methods asha --workers 16 --seeds 5 --problems digits
    python benchmarks/multifidelity.py --table              # summary of what was measured, as Markdown

Runs are kept as JSON lines in ``results/multifidelity.jsonl``; those that are there are not repeated. A new method is
one entry in ``METHODS``, a new problem one in :mod:`curves`.
"""

import argparse
import heapq
import importlib.util
import itertools
import json
import logging
import math
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from curves import PROBLEMS, Problem, problem
from multifidelity_tables import BUDGETS, summary
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from peers import Method, OptunaHyperband, PeerDEHB, SyneTuneASHA, Work

from lightning_hpo.records import Row
from lightning_hpo.samplers import KernelDensitySampler
from lightning_hpo.samplers.adapter import SamplerAdapter
from lightning_hpo.schedulers import ASHA, AsyncHyperband, FullBudget, Hyperband, Scheduler

RESULTS = Path(__file__).parent / "results" / "multifidelity.jsonl"
WORKERS = (1, 16, 4)
SEEDS = 20


class Ours:
    """A scheduler and a sampler of this project, over rows in memory."""

    def __init__(self, scheduler: Scheduler, sampler: BaseSampler, of: Problem, seed: int, **options: Any) -> None:
        self.scheduler = scheduler
        self.adapter = SamplerAdapter(sampler, of.space, mode="min", seed=seed, **options)
        self.rows: list[Row] = []
        self.notes: list[Mapping[str, Any]] = []

    def ask(self) -> Work | None:
        job = self.scheduler.next(self.rows)
        if job is None:
            return None
        if job.trial is None:
            params, notes = self.adapter.ask(self.rows, self.notes, job.max_steps)
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


def tpe() -> TPESampler:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(constant_liar=True)


def gaussian_process() -> BaseSampler:
    from lightning_hpo.samplers import GaussianProcessSampler

    return GaussianProcessSampler(seed=0)


def ours(make_scheduler: Callable[[int], Scheduler], make_sampler: Callable[[], BaseSampler], **options: Any) -> Any:
    return lambda of, seed: Ours(make_scheduler(of.max_epochs), make_sampler(), of, seed, **options)


def tuner(name: str) -> Callable[[Problem, int], Method]:
    """A tuner's own scheduler, sampler and random share, with rungs from one epoch and no end."""

    def make(of: Problem, seed: int) -> Method:
        import lightning_hpo

        made = getattr(lightning_hpo, name)(of.space, max_steps=of.max_epochs, min_steps=1, timeout=1.0, seed=seed)
        sampler, share = made.setup.goal.sampler, made.setup.parts.propose.keywords["random_share"]
        return Ours(made.scheduler, sampler, of, seed, random_share=share)

    return make


def asynchronous_hyperband(max_epochs: int) -> Scheduler:
    return AsyncHyperband(max_epochs, iterations=None)


def with_kernel_densities(of: Problem, seed: int) -> Method:
    """HyperbandTuner as it was: rungs counted down, and kernel densities above the lowest rung."""
    scheduler = AsyncHyperband(of.max_epochs, iterations=None, rungs="down")
    lowest = scheduler.plan()[0].rungs[0].max_steps
    return Ours(
        scheduler, KernelDensitySampler(seed), of, seed, random_share=lambda steps: 1 if steps == lowest else 1 / 3
    )


@dataclass(frozen=True)
class Entry:
    """How to make a method, and the module it needs."""

    make: Callable[[Problem, int], Method]
    needs: str = "optuna"


METHODS: dict[str, Entry] = {
    "hyperband-tuner": Entry(tuner("HyperbandTuner"), needs="lightning"),
    "kernel-density": Entry(with_kernel_densities),  # HyperbandTuner of 2026-11-24
    "random": Entry(ours(lambda epochs: FullBudget(epochs, 10**6), RandomSampler)),
    "hyperband": Entry(ours(lambda epochs: Hyperband(epochs, iterations=9), RandomSampler)),
    "asha": Entry(ours(ASHA, RandomSampler)),  # what ASHATuner does by default
    "async-hyperband": Entry(ours(asynchronous_hyperband, RandomSampler)),
    "optuna-hyperband-tpe": Entry(OptunaHyperband),
    "syne-tune-asha": Entry(SyneTuneASHA, needs="syne_tune"),
    "dehb": Entry(PeerDEHB, needs="dehb"),
}


def play(method: Method, of: Problem, workers: int, budget: float = BUDGETS[-1]) -> dict[str, Any]:
    """Simulate one run up to a budget, in units of R.

    Returns:
        trace: [worker-epochs / R, regret] at each improvement; busy: share of worker time spent training; trials;
        ms: CPU milliseconds per question, the mean over the run.
    """
    limit = budget * of.max_epochs / workers
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
        value = of.value(work.params, work.stop)
        if value < best:
            best = value
            trace.append([now * workers / of.max_epochs, of.regret(work.params, work.stop)])
        began = time.process_time()
        method.tell(work, value)
        seconds += time.process_time() - began
    return {
        "trace": trace,
        "busy": busy / (limit * workers),
        "trials": trials,
        "ms": 1000 * seconds / questions,
    }


def load() -> dict[tuple[str, str, int, int], dict[str, Any]]:
    """Return what was measured, by (problem, method, workers, seed)."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text().splitlines()]
    return {(run["problem"], run["method"], run["workers"], run["seed"]): run for run in lines}


def measure(options: argparse.Namespace) -> None:
    """Play what is missing and append it to the results."""
    done = load()
    RESULTS.parent.mkdir(exist_ok=True)
    for method in options.methods:
        if importlib.util.find_spec(METHODS[method].needs) is None:
            print(f"{method}: missing, {METHODS[method].needs} is not installed")
    wanted = itertools.product(options.workers, range(options.seeds), options.problems, options.methods)
    for workers, seed, name, method in wanted:
        entry = METHODS[method]
        if (name, method, workers, seed) in done or importlib.util.find_spec(entry.needs) is None:
            continue
        of = problem(name)
        run = play(entry.make(of, seed), of, workers)
        line = {"problem": name, "method": method, "workers": workers, "seed": seed, **run}
        with RESULTS.open("a") as file:
            file.write(json.dumps(line) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=PROBLEMS, choices=PROBLEMS)
    parser.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=tuple(METHODS))
    parser.add_argument("--workers", nargs="+", type=int, default=WORKERS)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--table", action="store_true", help="print the summary and measure nothing")
    options = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)  # peers are talkative
    if not options.table:
        measure(options)
    print("\n".join(summary(load(), options.workers)))


if __name__ == "__main__":
    main()
