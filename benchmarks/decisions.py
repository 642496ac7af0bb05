"""CPU of one decision and one suggestion at 500 trials: a scheduler, and a sampler that sees partial runs.

python benchmarks/decisions.py
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Mapping
from typing import Any

import optuna
from curves import problem
from multifidelity import Ours, asynchronous_hyperband, gaussian_process, tpe
from optuna.samplers import BaseSampler, GPSampler, RandomSampler

from lightning_hpo.records import Row
from lightning_hpo.samplers import KernelDensitySampler
from lightning_hpo.samplers.adapter import SamplerAdapter


def rows_of_a_search(trials: int) -> list[Row]:
    """Rows of a search over a recorded table with random proposals, four jobs at a time, stopped at ``trials``."""
    of = problem("digits")
    search = Ours(asynchronous_hyperband(of.max_epochs), RandomSampler(), of, 0)
    at_work = [search.ask() for _ in range(4)]
    while len(search.rows) < trials:
        work = at_work.pop(0)
        assert work is not None
        search.tell(work, of.value(work.params, work.stop))
        at_work.append(search.ask())
    return search.rows


def milliseconds(sampler: BaseSampler, rows: list[Row], questions: int) -> list[float]:
    """CPU of each (decision, suggestion) while the table grows; the first one fills the view and is left out."""
    of = problem("digits")
    scheduler = asynchronous_hyperband(of.max_epochs)
    adapter = SamplerAdapter(sampler, of.space, mode="min", seed=0)
    notes: list[Mapping[str, Any]] = [{}] * len(rows)
    rows = list(rows)
    spent = []
    for _ in range(questions + 1):
        began = time.process_time()
        scheduler.next(rows)
        params, note = adapter.ask(rows, notes, 1)
        spent.append(1000 * (time.process_time() - began))
        rows.append(Row(len(rows), params, {1: of.value(params, 1)}))
        notes.append(note)
    return spent[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=500)
    parser.add_argument("--questions", type=int, default=12)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore")
    rows = rows_of_a_search(arguments.trials)
    print(f"CPU ms at {arguments.trials} trials: median (min, max) of {arguments.questions} questions")
    samplers = {
        "no model": (RandomSampler(), arguments.questions),
        "KernelDensitySampler": (KernelDensitySampler(0), arguments.questions),
        "TPE": (tpe(), arguments.questions),
        "GaussianProcessSampler": (gaussian_process(), arguments.questions),
        "Optuna's GPSampler": (GPSampler(), 3),
    }
    for name, (sampler, questions) in samplers.items():
        spent = milliseconds(sampler, rows, questions)
        print(f"{name:<24} {statistics.median(spent):8.1f} ({min(spent):.1f}, {max(spent):.1f})", flush=True)


if __name__ == "__main__":
    main()
