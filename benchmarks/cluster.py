"""Sleeping trials on Ray workers: how busy the workers are, and what a job costs the process that decides.

    python benchmarks/cluster.py --workers 1 8 64 --seconds 2 [--tune]

A job sleeps, so any number of workers fits a machine. The first job of a worker waits until all workers have one. The
share of busy time is counted from that moment to the moment when the first worker has no job left. The CPU time is that of the process that decides, all
its threads, from the first job that has ended to the last; beside it stands what such a process costs that is connected
to Ray and does nothing for as long. The memory is of one worker, what it shares with others counted in part (PSS).
``--tune`` does the same with Ray Tune (random search, actors used again), which needs ``ray[tune]``.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray

from lightning_hpo import FullBudget, RayExecutor, Tuner
from lightning_hpo.records import Job
from lightning_hpo.reporting.events import Event, JobEnded
from lightning_hpo.tuners.parts import Parts

X = {"x": "uniform(0, 1)"}
_IDLE = 10.0  # seconds


class Clock:
    """Notes the time and the CPU time of this process at the end of each job."""

    def __init__(self) -> None:
        self.ends: list[tuple[float, float]] = []

    def on(self, event: Event) -> None:
        """Note it."""
        if isinstance(event, JobEnded):
            self.note()

    def note(self) -> None:
        """Note it."""
        self.ends.append((time.monotonic(), time.process_time()))

    def each(self, skipped: int) -> tuple[float, float]:
        """Return seconds and CPU seconds for each job, without the first ones."""
        (begin, before), (end, after) = self.ends[skipped], self.ends[-1]
        jobs = len(self.ends) - skipped - 1
        return (end - begin) / jobs, (after - before) / jobs


def sleeping(seconds: float, log: Path, workers: int) -> Callable[[Mapping[str, float]], float]:
    """Return a function that sleeps, once all workers are there, and writes when and where it did."""
    everybody = log.with_name("everybody")

    def sleep(params: Mapping[str, float]) -> float:
        start = time.time()
        if not everybody.exists():
            log.with_name(f"{ray.get_runtime_context().get_actor_id()}.here").touch()
            if len([*log.parent.glob("*.here")]) >= workers:
                everybody.touch()
        while not everybody.exists():
            time.sleep(0.5)
        time.sleep(seconds)
        with log.open("a") as file:
            file.write(f"{ray.get_runtime_context().get_actor_id()} {start} {time.time()} {_memory()}\n")
        return params["x"]

    return sleep


def _memory() -> float:
    """Memory of this process in MiB."""
    rollup = Path("/proc/self/smaps_rollup").read_text()
    return next(int(line.split()[1]) / 1024 for line in rollup.splitlines() if line.startswith("Pss:"))


def busy(log: Path) -> tuple[int, float, float]:
    """Return how many workers there were, the share of their time in which they had a job, and the memory of one."""
    lines = [line.split() for line in log.read_text().splitlines()]
    workers = {worker: [(float(a), float(b)) for who, a, b, _ in lines if who == worker] for worker, *_ in lines}
    memory = max(float(line[3]) for line in lines)
    begin = max(min(start for start, _ in jobs) for jobs in workers.values())
    end = min(max(stop for _, stop in jobs) for jobs in workers.values())
    spans = [max(min(stop, end) - max(start, begin), 0) for jobs in workers.values() for start, stop in jobs]
    return len(workers), sum(spans) / (len(workers) * (end - begin)), memory


def ours(workers: int, jobs: int, sleep: Callable[[Mapping[str, float]], float], root: str) -> tuple[float, float]:
    """Run the jobs; return seconds and the driver's CPU seconds for each, start and end left out."""
    clock = Clock()

    def work(job: Job, params: Mapping[str, float]) -> float:  # noqa: ARG001  # called so
        return sleep(params)

    executor = RayExecutor(workers, resources={"CPU": 0.001})
    parts = Parts(observers=lambda run: [clock])  # noqa: ARG005  # called so
    Tuner(X, FullBudget(1, jobs), parts=parts, root=root, executor=executor, verbose=False).optimize(work)
    return clock.each(workers)


def ray_tune(workers: int, jobs: int, sleep: Callable[[Mapping[str, float]], float], root: str) -> tuple[float, float]:
    """The same with Ray Tune."""
    from ray import tune  # an extra

    clock = Clock()

    class Ends(tune.Callback):
        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:  # Ray calls it so
            clock.note()

    def trainable(config: dict[str, float]) -> dict[str, float]:
        return {"score": sleep(config)}

    settings: Any = {"num_samples": jobs, "max_concurrent_trials": workers, "metric": "score", "mode": "min"}
    tune.Tuner(
        tune.with_resources(trainable, {"cpu": 0.001}),
        param_space={"x": tune.uniform(0, 1)},
        tune_config=tune.TuneConfig(**settings, reuse_actors=True),
        run_config=tune.RunConfig(storage_path=root, verbose=0, callbacks=[Ends()]),
    ).fit()
    return clock.each(workers)


def main() -> None:
    """Print a line for each number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--jobs", type=int, default=10, help="for each worker")
    parser.add_argument("--tune", action="store_true", help="Ray Tune too")
    given = parser.parse_args()
    ray.init(address="local", include_dashboard=False, logging_level="ERROR", log_to_driver=False)
    begun = time.process_time()
    time.sleep(_IDLE)
    idle = (time.process_time() - begun) / _IDLE
    for name, run in (("lightning_hpo", ours), *([("Ray Tune", ray_tune)] if given.tune else [])):
        for workers in given.workers:
            with TemporaryDirectory() as root:
                log = Path(root) / "log"
                seconds, cpu = run(workers, workers * given.jobs, sleeping(given.seconds, log, workers), root)
                count, share, memory = busy(log)
            print(
                f"{name:<14} {workers:>4} workers ({count} were used)  busy {share:6.1%}  CPU {1000 * cpu:6.1f} ms/job, "
                f"of which idle Ray {1000 * idle * seconds:.1f}  {memory:.0f} MiB a worker",
                flush=True,
            )


if __name__ == "__main__":
    main()
