"""Trials that train on several devices, in a worker process that starts the other ranks itself."""

import os
import pickle
import socket
import sys
import tempfile
import threading
from collections.abc import Callable
from multiprocessing import connection, util
from pathlib import Path
from typing import Any

from lightning_hpo.errors import UNFORESEEN, RankLostError
from lightning_hpo.executors.distributed import Leader, follow
from lightning_hpo.executors.worker import SPAWN
from lightning_hpo.records import Outcome, Task, Work
from lightning_hpo.text import say
from lightning_hpo.training.ranks import Ranks


class RankGroup:
    """Work that this process and others carry out together; it starts them at its first job.

    A rank that is lost ends this process and with it the group: torch's process group cannot be mended. The executor
    then fails or retries the job, in a new process.

    Args:
        work: carries out a job on rank 0.
        others: the same on the other ranks.
        size: number of ranks.
    """

    def __init__(self, work: Work, others: Work, size: int) -> None:
        self._work, self._others, self._size = work, others, size
        self._together: Callable[..., Outcome] | None = None

    def __call__(self, task: Task, should_pause: Callable[[], bool]) -> Outcome:
        """Carry out a job."""
        if self._together is None:
            self._together = self._start()
        try:
            return self._together(task, should_pause)
        except RankLostError as error:
            _leave(str(error))
            raise

    def _start(self) -> Callable[..., Outcome]:
        folder = Path(tempfile.mkdtemp(prefix="lightning_hpo."))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        _become_rank(0, port)
        # In a process of Ray or submitit, classes of the script are known by value only.
        loaded = (sys.modules.get(name) for name in ("ray.cloudpickle", "cloudpickle"))
        pickler: Any = next(filter(None, loaded), pickle)
        others = pickler.dumps(self._others)
        leader = Leader(folder, Ranks(0, self._size, _always))
        leader.__enter__()
        processes = [
            SPAWN.Process(target=_follow, args=(folder, rank, self._size, port, others), daemon=False)
            for rank in range(1, self._size)
        ]
        for process in processes:
            process.start()
        over = threading.Event()

        def end() -> None:
            over.set()
            leader.__exit__(None, None, None)
            folder.rmdir()

        def watch() -> None:
            connection.wait([process.sentinel for process in processes])
            if not over.is_set():
                _leave("a process of a trial's other ranks has ended")

        threading.Thread(target=watch, daemon=True).start()
        util.Finalize(None, end, exitpriority=10)  # before this process waits for its children
        return leader.lead_work(self._work)


def _always() -> bool:
    return True


def _become_rank(rank: int, port: int) -> None:
    """Let Lightning take this process for one that was started as a rank."""
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ.pop("SLURM_NTASKS", None)  # these ranks are not SLURM's


def _follow(folder: Path, rank: int, size: int, port: int, work: bytes) -> None:
    """Run as another rank."""
    _become_rank(rank, port)
    follow(folder, Ranks(rank, size, _always), pickle.loads(work), None)  # noqa: S301  # of the process that started this one


def _leave(reason: str) -> None:
    say(f"lightning_hpo: {reason}; its worker ends", sys.stderr)
    os._exit(UNFORESEEN)
