"""What a user says about a Ray cluster. Nothing here needs Ray."""

import importlib.util
from typing import Any

from lightning_hpo.errors import WRONG_CALL
from lightning_hpo.text import require_int


class RayExecutor:
    """Runs the jobs of a tuner on a Ray cluster: ``executor=RayExecutor(workers=16, address="auto")``.

    The study, its decisions and ``best.ckpt`` stay with the process that calls ``fit``; actors train. They are started
    when there are jobs for them, as far as the cluster has room, and more as it grows. An actor or a node that is lost
    fails the job that it was at work on, or has it started again, with ``max_retries``, from its last checkpoint.

    Args:
        workers: actors at most, so jobs at a time.
        address: of the cluster: ``"auto"`` for the one that this machine belongs to, or ``"host:port"``. None starts
            Ray on this machine for the time of the search, or uses the Ray that your script has initialised.
        resources: of each actor: ``"CPU"``, ``"GPU"`` (0.5 lets two share one), ``"memory"`` in bytes, and your own.
            Its Trainer sees its own GPUs only. Default: a CPU, and where the cluster has GPUs, ``devices_per_trial``.
        runtime_env: of the actors, as Ray takes it: files and packages that other machines lack.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    def __init__(
        self,
        workers: int,
        address: str | None = None,
        resources: dict[str, float] | None = None,
        runtime_env: dict[str, Any] | None = None,
    ) -> None:
        require_int("workers", workers, 1)
        if address is not None and (not isinstance(address, str) or not address):
            raise TypeError(f"`address` must be 'auto', 'host:port' or None, got {address!r}.")
        for name, amount in ({} if resources is None else resources).items():
            if isinstance(amount, bool) or not isinstance(amount, int | float) or not amount >= 0:
                raise ValueError(f"`resources` must be numbers >= 0, as in {{'CPU': 1}}, got {name!r}: {amount!r}.")
        self.workers = workers
        self.address = address
        self.resources = resources
        self.runtime_env = runtime_env

    @staticmethod
    def validate() -> None:
        """Raise ImportError without Ray."""
        if importlib.util.find_spec("ray") is None:
            error = ImportError("`executor` is a RayExecutor, which needs Ray: pip install 'lightning-hpo-suite[ray]'")
            error.exit_code = WRONG_CALL  # type: ignore[attr-defined]  # read by errors.exit_code
            raise error

    def __repr__(self) -> str:
        """Show the arguments."""
        return f"RayExecutor(workers={self.workers}, address={self.address!r}, resources={self.resources!r})"
