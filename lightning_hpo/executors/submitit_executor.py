"""What a user says about jobs of SLURM. Nothing is imported from submitit before a search begins."""

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_hpo.errors import WRONG_CALL
from lightning_hpo.text import require_int


class SubmititExecutor:
    """Runs each job of a tuner as a job of SLURM: ``executor=SubmititExecutor(workers=16, parameters={...})``.

    The process that calls ``fit`` decides, records, and queues each job when it is decided. There the job imports
    everything, trains and ends; its trial goes on in another one, from its checkpoint. The nodes must see the run
    folder. submitit queues a preempted job again.

    Args:
        workers: jobs that are queued or at work, at most.
        parameters: of a job, as ``submitit.AutoExecutor.update_parameters`` takes them: ``{"timeout_min": 240,
            "gpus_per_node": 1, "slurm_partition": "gpu"}``.
        cluster: ``"local"`` runs the jobs as processes of this machine, to try a script.

    Raises:
        TypeError, ValueError: for a wrong argument.
    """

    def __init__(self, workers: int, parameters: Mapping[str, Any] | None = None, cluster: str = "slurm") -> None:
        require_int("workers", workers, 1)
        if not isinstance(parameters, Mapping | None):
            raise TypeError(f"`parameters` must be a dictionary such as {{'timeout_min': 60}}, got {parameters!r}.")
        for name, number in (parameters or {}).items():
            if name.endswith(("nodes", "tasks_per_node")) and number != 1:
                raise ValueError(
                    f"`parameters` has {name!r}: {number!r}, but a job is one process: leave it out; several GPUs for "
                    "a trial are 'gpus_per_node', and `devices_per_trial` of the tuner."
                )
        self.workers, self.parameters, self.cluster = workers, dict(parameters or {}), cluster

    def __repr__(self) -> str:
        return f"SubmititExecutor(workers={self.workers}, parameters={self.parameters!r}, cluster={self.cluster!r})"

    def validate(self) -> None:
        """Raise ImportError without submitit, and ValueError for a cluster or parameters that it does not take."""
        if importlib.util.find_spec("submitit") is None:
            error = ImportError("a SubmititExecutor needs submitit: pip install 'lightning-hpo-suite[slurm]'")
            error.exit_code = WRONG_CALL  # type: ignore[attr-defined]  # read by errors.exit_code
            raise error
        try:
            self.queue(Path(tempfile.gettempdir()))
        except Exception as refused:  # of many classes
            local = "" if self.cluster == "local" else "; cluster='local' runs the jobs on this machine"
            raise ValueError(f"submitit does not take `executor`={self!r}: {refused}{local}") from refused

    def queue(self, folder: Path) -> Any:
        """Return submitit's executor, which writes into a folder."""
        import submitit  # noqa: PLC0415  # an extra

        queue = submitit.AutoExecutor(folder, cluster=self.cluster)
        queue.update_parameters(**{"name": "lightning_hpo", **self.parameters})
        return queue
