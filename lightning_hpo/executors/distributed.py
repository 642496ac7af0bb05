"""A search whose trials train in several processes: rank 0 decides, records and prints; the other ranks follow.

Every process of a distributed strategy runs the whole script, the tuner in it included. Rank 0 searches as in a single
process, and sends each job to the other ranks before it starts. The other ranks hold no lock and write nothing: they
run the same jobs, which synchronise in ``Trainer.fit``. The messages go through a key-value store of torch in the
process of rank 0; its port is in the run folder. When that process ends, for whatever reason, the other ranks end too.
"""

import gc
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]  # public, but not listed

from lightning_hpo.atomic import atomic_write
from lightning_hpo.errors import RankLostError
from lightning_hpo.interrupts import PAUSING, LocalHandler
from lightning_hpo.records import Job, Outcome, Task, Work, never
from lightning_hpo.text import say
from lightning_hpo.training.ranks import Ranks

_ADDRESS = "ranks.json"
_HOST = "127.0.0.1"
_FOREVER = timedelta(days=1000)
_GRACE = timedelta(seconds=60)  # for all ranks to come out of a job that failed in one of them
_PATIENCE = 600.0  # seconds for rank 0 to open the run
T = TypeVar("T")


class Leader:
    """Rank 0: sends its jobs to the other ranks while the block runs.

    Args:
        folder: of the run.
        ranks: of which this process is the first.
    """

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self._address = folder / _ADDRESS
        self._ranks = ranks
        self._told = 0

    def __enter__(self) -> Self:
        self._store = TCPStore(_HOST, 0, is_master=True, wait_for_workers=False)
        token = uuid4().hex  # another store may have had the port before
        self._store.set("token", token)
        atomic_write(self._address, json.dumps({"port": self._store.port, "token": token}))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._address.unlink(missing_ok=True)
        if isinstance(error, KeyboardInterrupt | RankLostError):
            return  # the end of this process ends the others, wherever they are
        self._tell(op="over", found=kind is None)
        self._store.set("over", "")
        if self._ranks.started():
            with suppress(DistError):  # ranks that arrive later get no answer
                self._store.wait(self._from_each("seen"), _GRACE)

    def lead_work(self, work: Callable[..., Outcome]) -> Callable[..., Outcome]:
        """Return work that all ranks carry out together; the outcome of rank 0 counts."""

        def together(task: Task, should_pause: Callable[[], bool], **options: Any) -> Outcome:
            return self._together(lambda: work(task, should_pause, **options), op="job", **message_of(task))

        return together

    def lead_check(self, check: Callable[[], object]) -> Callable[[], object]:
        """Return a check that all ranks do together."""
        return lambda: self._together(check, op="check")

    def _together(self, call: Callable[[], T], **message: Any) -> T:
        number = self._tell(**message)
        try:
            return call()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt) or isinstance(error.__context__, KeyboardInterrupt):
                raise  # a second Ctrl-C: end at once
            if self._ranks.started():
                try:
                    self._store.wait(self._from_each(f"ended/{number}"), _GRACE)
                except DistError:
                    raise RankLostError(f"a rank was lost: here, {type(error).__name__}: {error}") from error
            raise
        finally:
            self._store.set(f"done/{number}", "")

    def _tell(self, **message: Any) -> int:
        self._store.set(f"message/{self._told}", json.dumps(message))
        self._told += 1
        return self._told - 1

    def _from_each(self, key: str) -> list[str]:
        return [f"{key}/{rank}" for rank in range(1, self._ranks.size)]


def follow(folder: Path, ranks: Ranks, work: Work, check: Callable[[], object] | None) -> None:
    """Run the jobs that rank 0 sends, until its search is over.

    A job that fails here and not on rank 0 would leave rank 0 waiting for this process: then this process ends with
    exit code 1, which Lightning and torchrun take as the end of all.

    Args:
        folder: of the run.
        ranks: of which this process is not the first.
        work: carries out a job.
        check: what rank 0 does before its first job.

    Raises:
        SystemExit: with code 0 if rank 0 leaves without an answer (a pause, say; its own exit code tells).
    """
    store, watch = _connect(folder / _ADDRESS, ranks)
    watch.start()
    number = 0
    with _signals_left_to_rank_0():
        while True:
            message = json.loads(store.get(f"message/{number}"))
            if message["op"] == "over":
                break
            try:
                if message["op"] == "job":
                    work(task_of(message), never)
                elif check is not None:
                    check()
            except BaseException:  # noqa: BLE001  # rank 0 says what follows
                store.set(f"ended/{number}/{ranks.rank}", "")
                try:
                    store.wait([f"done/{number}"], _GRACE)
                except DistError:
                    say(f"lightning_hpo: rank {ranks.rank} failed alone:", sys.stderr)
                    traceback.print_exc()
                    raise SystemExit(1) from None
            gc.collect()  # a Trainer and its module refer to each other
            number += 1
    watch.join()
    store.set(f"seen/{ranks.rank}", "")
    if not message["found"]:
        raise SystemExit(0)


def _connect(address: Path, ranks: Ranks) -> tuple[TCPStore, threading.Thread]:
    """Find the store of rank 0, and make a thread that ends this process if that of rank 0 ends."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            given = json.loads(address.read_text())
            stores = [
                TCPStore(ranks.address, given["port"], is_master=False, timeout=timedelta(seconds=5)) for _ in range(2)
            ]
            if stores[0].get("token").decode() == given["token"]:
                break
        except (OSError, ValueError, DistError) as error:  # not there yet, or left behind by a process that was killed
            if time.monotonic() > deadline:
                raise RankLostError(
                    f"rank {ranks.rank} waited {_PATIENCE:g} s for rank 0, whose port is to be in {address} and whose "
                    f"machine is {ranks.address}: all nodes must see one run folder ({type(error).__name__}: {error})"
                ) from error
        time.sleep(0.1)
    for store in stores:
        store.set_timeout(_FOREVER)
    store, other = stores

    def watch() -> None:
        try:
            other.get("over")
        except DistError:
            os.kill(
                os.getpid(), signal.SIGKILL
            )  # this rank may be waiting in a collective operation for the rank that is gone

    return store, threading.Thread(target=watch, daemon=True)


@contextmanager
def _signals_left_to_rank_0() -> Iterator[None]:
    """Ignore the signals that mean pause: rank 0 acts on them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in PAUSING}
    for number, handler in before.items():
        signal.signal(number, LocalHandler(lambda *_: None, handler))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def message_of(task: Task) -> dict[str, Any]:
    """Return what other ranks need of a task, as JSON."""
    source = None if task.source is None else str(task.source)
    job = {name: getattr(task.job, name) for name in ("max_steps", "trial", "parent", "confirms", "seed", "fold")}
    places = {"folder": str(task.folder), "source": source, "member": task.member}
    return {"job": job, "params": dict(task.params), **places}


def task_of(message: Mapping[str, Any]) -> Task:
    """Return the task of a message."""
    source = message["source"]
    job = Job(**message["job"], params=message["params"])
    source = None if source is None else Path(source)
    return Task(job, message["params"], Path(message["folder"]), source, member=message["member"])
