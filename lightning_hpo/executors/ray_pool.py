"""Jobs in actors of a Ray cluster, which stay alive from job to job."""

import secrets
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from lightning_hpo.atomic import atomic_write
from lightning_hpo.errors import JobError
from lightning_hpo.executors.ray import RayExecutor
from lightning_hpo.executors.ray_actor import NotBegunError, RayActor
from lightning_hpo.executors.ray_worker import CONTROL, RayWorker
from lightning_hpo.interrupts import handlers_kept
from lightning_hpo.records import PAUSED, Outcome, Task, Work
from lightning_hpo.text import say

_OPTIONS = {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory"}  # of an actor; others are `resources`
_END = 10.0  # seconds for the thread of an actor that was killed


@dataclass
class _Waiting:
    """A job that no actor has taken yet."""

    task: Task
    future: "Future[Outcome]"
    retries: int


class RayWorkers:
    """The executor that a :class:`RayExecutor` describes. A job goes to the actor that worked on its trial, if idle.

    Args:
        work: as for ``InProcess``; Ray sends it to the actors, classes of the script by value.
        settings: of the cluster.
        devices_per_trial: GPUs of each actor, if ``settings`` do not say.
        trial_timeout: seconds without progress after which an actor is killed. None waits for ever.
        max_retries: how many times a job whose actor died or was killed so is started again.
    """

    def __init__(
        self,
        work: Work,
        settings: RayExecutor,
        *,
        devices_per_trial: int = 1,
        trial_timeout: float | None = None,
        max_retries: int = 0,
    ) -> None:
        import ray  # noqa: PLC0415  # an extra

        self.workers = settings.workers
        self._ray: Any = ray
        self._work, self._settings, self._devices = work, settings, devices_per_trial
        self._limit, self._retries = trial_timeout, max_retries
        self._changed = threading.Condition()  # for the attributes below
        self._queue: list[_Waiting] = []
        self._actors: dict[RayActor, threading.Thread] = {}
        self._idle: list[RayActor] = []
        self._closed = self._pausing = False
        self._news: SimpleQueue[None] = SimpleQueue()  # of a pause or the end; a signal handler may put it
        self._token: tuple[Path, str] | None = None

    def __enter__(self) -> Self:
        """Join the cluster or start one.

        Raises:
            TypeError: if Ray cannot send the work.
            ValueError: if this process uses another cluster, or a node with the resources of an actor cannot be had.
        """
        ray, address = self._ray, self._settings.address
        self._started = not ray.is_initialized()
        if self._started:
            local = {} if address else {"include_dashboard": False}
            with handlers_kept():  # Ray takes SIGTERM for itself
                ray.init(address=address or "local", logging_level="ERROR", **local)
        try:
            self._validate_address()
            self._worker = ray.remote(**self._actor_options())(RayWorker)  # once: Ray sends it to the cluster each time
            try:
                self._sent = ray.put(self._work)
            except TypeError as error:
                raise TypeError(f"Ray cannot send the model, data module or function to its actors: {error}") from None
        except BaseException:
            self._leave()
            raise
        self._teller = threading.Thread(target=self._tell_of_pause, daemon=True)
        self._teller.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._news.put(None)
        for actor in self._actors:
            actor.close()
        for thread in (self._teller, *self._actors.values()):
            thread.join(_END)  # a call of Ray after the end would start it again
        if self._token is not None:
            self._token[0].unlink(missing_ok=True)
        self._leave()

    def pause(self) -> None:
        """Ask all jobs to save and return; a signal handler calls it, so it takes no lock."""
        self._pausing = True
        self._news.put(None)

    def submit(self, task: Task) -> "Future[Outcome]":
        """Queue the job for the next actor that is free, and start one more if there may be more."""
        if self._token is None:
            self._token = task.folder.parent.parent / f".ray.{secrets.token_hex(8)}.tmp", secrets.token_hex(16)
            atomic_write(*self._token)
        waiting = _Waiting(task, Future(), self._retries)
        with self._changed:
            self._queue.append(waiting)
            if len(self._queue) > len(self._idle) and len(self._actors) < self.workers:
                actor = RayActor(self._ray, self._make_actor, self._limit)
                self._actors[actor] = threading.Thread(target=self._serve, args=(actor,), daemon=True)
                self._actors[actor].start()
            self._changed.notify_all()
        if self._pausing:
            self._give_back_queue()
        return waiting.future

    def _make_actor(self) -> Any:
        return self._worker.remote(self._sent, self._token)

    def _serve(self, actor: RayActor) -> None:
        """Give jobs to an actor until there are no more."""
        while not self._closed:
            error: Exception | None = None
            try:
                actor.start()  # before it takes a job: it may have to wait for room
            except Exception as start:  # noqa: BLE001  # the future of a job carries it
                error = start
                error.ends_search = True  # type: ignore[attr-defined]  # read by the loop
            waiting = self._take(actor)
            if waiting is None:
                return
            if error is not None:
                waiting.future.set_exception(error)
            elif actor.alive():
                self._answer(actor, waiting)
            else:  # it died while it was idle
                self._queue_again(waiting)

    def _answer(self, actor: RayActor, waiting: _Waiting) -> None:
        """Let an actor carry out a job, and set the result or exception of its future, or queue it again."""
        try:
            answer = actor.carry_out(waiting.task)
        except Exception as error:  # noqa: BLE001  # the future carries it
            actor.end()
            if self._pausing:  # a signal to all processes has ended the actor too
                waiting.future.set_result(Outcome(None, 0, ended=PAUSED))
            elif isinstance(error, NotBegunError) and not self._closed:
                self._queue_again(waiting)
            elif isinstance(error, JobError) and waiting.retries and not self._closed:
                waiting.retries -= 1
                self._queue_again(waiting)
            else:
                waiting.future.set_exception(error)
            return
        if isinstance(answer, Outcome):
            waiting.future.set_result(answer)
        else:
            waiting.future.set_exception(answer.error())

    def _take(self, actor: RayActor) -> _Waiting | None:
        """Wait for a job of an actor's own trial, or one that no other idle actor has worked on; None at the end."""
        with self._changed:
            self._idle.append(actor)
            try:
                while not self._closed:
                    others = {idle.folder for idle in self._idle if idle is not actor}
                    number = choose([waiting.task.folder for waiting in self._queue], actor.folder, others)
                    if number is not None:
                        return self._queue.pop(number)
                    self._changed.wait()
            finally:
                self._idle.remove(actor)
        return None

    def _queue_again(self, waiting: _Waiting) -> None:
        with self._changed:
            self._queue.insert(0, waiting)
            self._changed.notify_all()

    def _tell_of_pause(self) -> None:
        """Tell the actors once a pause is wanted."""
        self._news.get()
        if not self._pausing:  # the end
            return
        self._give_back_queue()
        for actor in list(self._actors):
            actor.pause()

    def _give_back_queue(self) -> None:
        """Let the jobs that no actor has taken be paused ones."""
        with self._changed:
            queue, self._queue = self._queue, []
        for waiting in queue:
            waiting.future.set_result(Outcome(None, 0, ended=PAUSED))

    def _validate_address(self) -> None:
        own, address = self._ray.get_runtime_context().gcs_address, self._settings.address
        if not self._started and address not in (None, "auto", own):
            raise ValueError(
                f"`address` is {address!r}, but this process uses the Ray at {own!r}: leave `address` out, or call "
                "ray.shutdown() before."
            )

    def _actor_options(self) -> dict[str, Any]:
        """Return the options of an actor.

        Raises:
            ValueError: if Ray was started for this search, and this machine has not the resources of one actor.
        """
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        gpus = {"GPU": self._devices} if any(node.get("GPU") for node in nodes) else {}
        resources = {"CPU": 1, **gpus} if self._settings.resources is None else self._settings.resources
        room = sum(places(node, resources, self.workers) for node in nodes)
        if not room and self._started and self._settings.address is None:
            raise ValueError(f"`resources` of a worker are {resources}, but this machine has only {nodes[0]}.")
        if room < self.workers:
            say(f"Ray has room for {room} of {self.workers} workers of {resources}; more start as it grows", sys.stderr)
        options: dict[str, Any] = {_OPTIONS[name]: amount for name, amount in resources.items() if name in _OPTIONS}
        options["resources"] = {name: amount for name, amount in resources.items() if name not in _OPTIONS}
        if self._settings.runtime_env is not None:
            options["runtime_env"] = self._settings.runtime_env
        return {"num_cpus": 0, **options, "max_restarts": 0, "concurrency_groups": {CONTROL: 1}}

    def _leave(self) -> None:
        if self._started:
            self._ray.shutdown()


def places(node: Mapping[str, float], resources: Mapping[str, float], most: int) -> int:
    """Return how many actors a node has room for.

    Args:
        node: its resources.
        resources: of an actor.
        most: the largest answer.

    Example:
        >>> places({"CPU": 8, "GPU": 2}, {"CPU": 1, "GPU": 0.5}, 16)
        4
    """
    return int(min([most, *(node.get(name, 0) / amount for name, amount in resources.items() if amount)]))


def choose(folders: Sequence[Path], own: Path | None, others: set[Path | None]) -> int | None:
    """Return which of the waiting jobs an idle actor takes.

    Args:
        folders: of the jobs' trials.
        own: folder of the trial that it worked on last.
        others: those of the other idle actors, which will take their own trials.

    Example:
        >>> choose([Path("a"), Path("b"), Path("c")], Path("c"), {Path("a")})
        2
        >>> choose([Path("a"), Path("b")], None, {Path("a")})
        1
    """
    if own in folders:
        return folders.index(own)
    return next((number for number, folder in enumerate(folders) if folder not in others), None)
