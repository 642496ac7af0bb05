"""Checkpoints of strategies that write a folder of shards (FSDP, FSDP2): one file, sealed as any other.

Such a strategy writes and reads the folder itself. It is given one beside the checkpoint, whose files then become parts
of the checkpoint, and get a folder again when the checkpoint is restored. So a checkpoint is whole or absent, is
verified, signed, copied and removed as a single file, whatever the strategy.
"""

import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lightning_hpo.errors import StorageError
from lightning_hpo.text import one_line

_PLACE = "lightning_hpo_shards"  # key in a checkpoint
_META = "meta.pt"  # what Lightning keeps beside the shards
_WEIGHTS = ("state_dict", "model")  # where they are among the shards of FSDP2 and of FSDP


@dataclass(frozen=True)
class Shards:
    """Files of a folder as tensors of bytes, by their names.

    It is a class so that a checkpoint which holds one is read only with the signature of its run: torch executes what
    some of these files say.
    """

    files: Mapping[str, Any]

    def write(self, folder: Path) -> None:
        """Make the folder again."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name, content in self.files.items():
            content.numpy().tofile(folder / Path(name).name)


def writes_folder(strategy: Any) -> bool:
    """Whether a strategy writes a checkpoint as a folder of shards; no public name of Lightning's tells."""
    is_sharded = getattr(strategy, "_state_dict_type", None) == "sharded"
    return is_sharded or bool(getattr(strategy, "_save_distributed_checkpoint", False))


def save(strategy: Any, content: dict[str, Any], path: Path, storage_options: Any = None) -> None:
    """Let a strategy write its folder of shards, and make one file of it.

    Args:
        strategy: of the Trainer that saves; each of its ranks calls this.
        content: of the checkpoint.
        path: of the file.
        storage_options: as the strategy takes them.

    Raises:
        OSError: on each rank, if one of them could not write. Any other error of a rank is raised there.
    """
    import torch.distributed  # noqa: PLC0415  # heavy, and a search over a plain function reads no checkpoint
    from torch.distributed.checkpoint.api import CheckpointException  # noqa: PLC0415  # as above

    folder = path.with_name(f".{path.name}.shards.tmp")
    failed: BaseException | None = None
    if strategy.is_global_zero:  # before the strategy tells the other ranks where to write
        shutil.rmtree(folder, ignore_errors=True)
    try:
        strategy.save_checkpoint(content, folder, storage_options=storage_options)
        if strategy.is_global_zero:
            strategy.checkpoint_io.save_checkpoint(_pack(folder), path)
    except (Exception, CheckpointException) as error:  # noqa: BLE001  # raised below, once no rank waits for this one
        failed = error
    any_failed = strategy.reduce_boolean_decision(failed is not None, all=False)
    room = _room(path) if any_failed else ""  # before the shards are removed
    if strategy.is_global_zero:
        shutil.rmtree(folder, ignore_errors=True)
    if not any_failed:
        return
    of_disk = isinstance(failed, OSError | RuntimeError | CheckpointException)  # torch raises the last two for one
    others = torch.OutOfMemoryError, torch.distributed.DistError
    if failed is not None and (not of_disk or isinstance(failed, others)):
        raise failed
    reason = "another rank failed" if failed is None else one_line(f"{type(failed).__name__}: {failed}")
    raise OSError(f"{path} or its shards could not be written ({reason}); {room}") from failed


def _room(path: Path) -> str:
    """Say how full the disk of a file is, as torch does not say that it is full."""
    return f"{shutil.disk_usage(path.parent).free / 1e6:.1f} MB are free on the disk"


def _pack(folder: Path) -> dict[str, Any]:
    """Return the content of a checkpoint that a strategy has written as a folder; tensors stay in its files."""
    import torch  # noqa: PLC0415  # heavy, and a search over a plain function reads no checkpoint

    content: dict[str, Any] = torch.load(folder / _META, map_location="cpu", weights_only=False)  # of this process
    files = {
        path.name: torch.from_file(str(path), size=path.stat().st_size, dtype=torch.uint8)
        for path in sorted(folder.iterdir())
        if path.name != _META
    }
    return {**content, _PLACE: Shards(files)}


def let_strategy_load(strategy: Any, content: dict[str, Any] | None) -> None:
    """Let a strategy that reads checkpoints itself read one that was verified, from a folder if it needs one.

    Args:
        strategy: of the Trainer that restores.
        content: of the checkpoint; shards are taken out of it.
    """
    if content is not None and strategy.restore_checkpoint_after_setup:
        strategy.load_checkpoint = partial(_load, strategy, strategy.load_checkpoint, content)


def _load(strategy: Any, own: Any, content: dict[str, Any], path: Path, weights_only: bool | None = None) -> Any:  # noqa: ARG001  # the file was verified: what is in it may be read
    """Load by the strategy's own means; it broadcasts the path first, so no rank looks before the folder is there."""
    shards = content.pop(_PLACE, None)
    if shards is None:
        return own(path, weights_only=False)
    folder, failed = path.with_name(f".{path.name}.shards.tmp"), None
    if strategy.is_global_zero:
        import torch  # noqa: PLC0415  # as above

        try:
            shards.write(folder)
            torch.save(content, folder / _META)
        except (OSError, RuntimeError) as error:
            failed = error
    if strategy.reduce_boolean_decision(failed is not None, all=False):
        room = _room(path)
        shutil.rmtree(folder, ignore_errors=True)
        raise StorageError(f"the shards of {path}, to be restored, could not be written beside it; {room}") from failed
    loaded = own(folder, weights_only=False)
    strategy.barrier("lightning_hpo.shards")
    if strategy.is_global_zero:
        shutil.rmtree(folder)
    return loaded


def weights_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the weights of a checkpoint, put together from shards if it has any."""
    if _PLACE not in content:
        weights: dict[str, Any] = content["state_dict"]
        return weights
    import torch  # noqa: PLC0415  # as above
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save  # noqa: PLC0415  # as above

    with tempfile.TemporaryDirectory() as temporary:
        folder, whole = Path(temporary) / "shards", Path(temporary) / "whole.pt"
        content[_PLACE].write(folder)
        dcp_to_torch_save(folder, whole)
        put_together: dict[str, Any] = torch.load(whole, map_location="cpu", weights_only=False)
    return next(put_together[name] for name in _WEIGHTS if name in put_together)
