"""The number of processes that a Trainer trains in, and the rank of this process."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lightning_hpo.quiet import CHATTY, known_warnings_hidden, warnings_only
from lightning_hpo.records import never

DISTRIBUTED_ARGUMENTS = ("accelerator", "devices", "num_nodes", "strategy")
"""Arguments of the Trainer that say in how many processes a trial trains."""


@dataclass(frozen=True)
class Ranks:
    """Rank of this process, and the number of processes.

    Args:
        rank: of this process; rank 0 decides.
        size: processes that train each trial together.
        started: whether the others are there: from outside (torchrun, SLURM), or since the first fit has started them.
        address: of the machine of rank 0.
    """

    rank: int = 0
    size: int = 1
    started: Callable[[], bool] = never
    address: str = "127.0.0.1"


def ranks_of(trainer: Mapping[str, Any]) -> Ranks:
    """Ask Lightning in how many processes a Trainer with these arguments trains, and which of them this is.

    Raises:
        ValueError: for a strategy that trains in processes which do not run the script.
    """
    given = {"devices": 1, **{name: trainer[name] for name in DISTRIBUTED_ARGUMENTS if trainer.get(name) is not None}}
    alone = {"devices": (1, "1"), "num_nodes": (1,), "strategy": ("auto",)}
    if all(name not in given or given[name] in values for name, values in alone.items()):
        return Ranks()
    import lightning.pytorch as pl  # noqa: PLC0415  # heavy, and rarely needed
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher  # noqa: PLC0415

    with known_warnings_hidden(), warnings_only(*CHATTY):
        probe = pl.Trainer(
            **given, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        )
    launcher: Any = probe.strategy.launcher  # FSDP has none where the processes are started from outside
    if not isinstance(launcher, _SubprocessScriptLauncher | None):
        raise ValueError(
            f"`trainer` has the strategy {trainer.get('strategy')!r}, which trains in processes that the tuner cannot "
            "see into; take one that runs the whole script in each process, such as 'ddp' or 'fsdp'."
        )
    environment: Any = getattr(probe.strategy, "cluster_environment", None)
    if environment is None or probe.world_size == 1:
        return Ranks()
    return Ranks(
        probe.global_rank, probe.world_size, lambda: environment.creates_processes_externally, environment.main_address
    )
