"""Which executor the options ask for: this process, worker processes, actors of Ray, or jobs of SLURM."""

import math
from typing import Any

from lightning_hpo.executors.in_process import InProcess
from lightning_hpo.executors.processes import WorkerProcesses
from lightning_hpo.executors.queued_jobs import QueuedJobs
from lightning_hpo.executors.ray import RayExecutor
from lightning_hpo.executors.ray_pool import RayWorkers
from lightning_hpo.executors.submitit_executor import SubmititExecutor
from lightning_hpo.executors.worker import validate_can_start
from lightning_hpo.interrupts import Interrupts
from lightning_hpo.records import Work
from lightning_hpo.tuners.options import WorkerOptions


def make_executor(
    work: Work, options: WorkerOptions, interrupts: Interrupts
) -> InProcess | WorkerProcesses | RayWorkers | QueuedJobs:
    """Make the executor that the options ask for."""
    if options.in_process:
        return InProcess(work, interrupts.pause_wanted, trial_timeout=options.trial_timeout)
    watched: Any = {"trial_timeout": options.trial_timeout, "max_retries": options.max_retries}
    executor: WorkerProcesses | RayWorkers | QueuedJobs
    if isinstance(options.executor, SubmititExecutor):
        executor = QueuedJobs(work, options.executor, options.max_retries)
    elif isinstance(options.executor, RayExecutor):
        executor = RayWorkers(work, options.executor, devices_per_trial=options.devices_per_trial, **watched)
    else:
        executor = WorkerProcesses(work, options.workers, options.devices_per_trial, **watched)
    interrupts.listeners.append(executor.pause)
    return executor


def validate_workers(options: WorkerOptions, ranks: int, single_process: str, *, shared: bool) -> None:
    """Raise ValueError for workers, or processes of each trial, that cannot be had; ImportError without an extra."""
    if ranks > 1 and single_process:
        raise ValueError(f"`trainer` trains each trial in {ranks} processes, but {single_process}.")
    if options.in_process:
        return
    if ranks not in (1, options.devices_per_trial):
        raise ValueError(
            f"`workers` is {options.workers} with `devices_per_trial`={options.devices_per_trial}, but `trainer` "
            f"trains a trial in {ranks} processes: leave `devices`, `num_nodes` out and give devices_per_trial={ranks}."
        )
    if isinstance(options.executor, SubmititExecutor) and options.trial_timeout is not None:
        raise ValueError(
            f"`trial_timeout` is {options.trial_timeout:g} s, but the jobs of a SubmititExecutor are ended by SLURM: "
            f"give it parameters={{'timeout_min': {math.ceil(options.trial_timeout / 60)}}}."
        )
    if isinstance(options.executor, SubmititExecutor) and shared:
        raise ValueError(
            "`shared` lets several processes decide, but one process leads the jobs of a SubmititExecutor: leave "
            "`shared` out, or let the elements of an array job share the study (`lightning-hpo slurm`)."
        )
    if isinstance(options.executor, RayExecutor | SubmititExecutor):
        options.executor.validate()
    else:
        validate_can_start(options.workers)
