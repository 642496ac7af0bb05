"""Jobs in worker processes that stay alive from job to job."""

import os
from collections.abc import Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self

from lightning_hpo.executors.worker import SPAWN, WorkerProcess, WorkerResources
from lightning_hpo.records import Outcome, Task, Work


class WorkerProcesses:
    """Runs jobs in processes of their own, which import everything once and then wait for the next job.

    A worker that crashes fails its job only; another takes its place. Workers end when this process does, however it
    ends. Each worker sees its share of the GPUs, if there are any. It leads a process group of its own, so that
    processes which the job has started end with it.

    Args:
        work: as for ``InProcess``; it is sent to them, so it must be made of importable parts.
        workers: number of processes, >= 1.
        devices_per_trial: GPUs that each worker sees.
        trial_timeout: seconds without progress (see ``InProcess``) after which a job is ended: SIGTERM to its
            process, 10 s later SIGKILL to its group. None waits for ever.
        max_retries: how many times a job whose process died or was ended so is started again, from its last
            checkpoint. An exception of the job is not retried, as it would be raised again.

    Raises:
        TypeError: if ``work`` cannot be sent to another process.
        WorkerStartError: if a worker cannot import what it needs.
    """

    def __init__(
        self,
        work: Work,
        workers: int,
        devices_per_trial: int = 1,
        *,
        trial_timeout: float | None = None,
        max_retries: int = 0,
    ) -> None:
        import torch  # noqa: PLC0415  # heavy, and only needed with worker processes

        self.workers = workers
        self._pause: Any = SPAWN.RawValue("b", 0)  # without a lock, which a killed worker would keep
        shares = gpu_shares(visible_gpus(), workers, devices_per_trial)
        threads = max(torch.get_num_threads() // workers, 1)
        self._processes = [
            WorkerProcess(
                (work, self._pause, WorkerResources(share, threads)), limit=trial_timeout, retries=max_retries
            )
            for share in shares
        ]

    def __enter__(self) -> Self:
        try:
            for process in self._processes:
                process.start()
            for process in self._processes:
                process.wait_until_ready()
        except BaseException:  # also after a second Ctrl-C: waiting workers would keep this process from ending
            for process in self._processes:
                process.stop(patient=False)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.stop(patient=error is None)

    def pause(self) -> None:
        """Ask all running jobs to save and return."""
        self._pause.value = 1

    def submit(self, task: Task) -> "Future[Outcome]":
        """Give the job to a free worker, preferably the last one that worked on the trial."""
        free = [process for process in self._processes if process.free]
        process = next((process for process in free if process.last_trial == task.job.trial), free[0])
        return process.submit(task)


def visible_gpus() -> list[str]:
    """Names of the GPUs this process may use, as ``CUDA_VISIBLE_DEVICES`` writes them."""
    names = os.environ.get("CUDA_VISIBLE_DEVICES")
    if names is not None:
        return [name.strip() for name in names.split(",") if name.strip()]
    import torch  # noqa: PLC0415  # heavy

    return [str(index) for index in range(torch.cuda.device_count())]


def gpu_shares(gpus: Sequence[str], workers: int, devices_per_trial: int) -> list[str | None]:
    """Deal GPUs to workers.

    Args:
        gpus: names of all GPUs.
        workers: number of workers; with more workers than shares, several use the same GPUs.
        devices_per_trial: GPUs in a share.

    Returns:
        For each worker the ``CUDA_VISIBLE_DEVICES`` to set, or None without GPUs.

    Raises:
        ValueError: if there are GPUs, but fewer than ``devices_per_trial``.

    Example:
        >>> gpu_shares(["0", "1", "2", "3"], 3, 2)
        ['0,1', '2,3', '0,1']
    """
    if not gpus:
        return [None] * workers
    if len(gpus) < devices_per_trial:
        raise ValueError(f"`devices_per_trial` is {devices_per_trial}, but only {len(gpus)} GPUs are visible.")
    count = len(gpus) // devices_per_trial
    starts = [(worker % count) * devices_per_trial for worker in range(workers)]
    return [",".join(gpus[start : start + devices_per_trial]) for start in starts]
