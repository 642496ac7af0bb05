"""The plugin through which a Trainer saves and loads: checkpoints that are whole or absent."""

from pathlib import Path
from typing import Any

from lightning.pytorch.plugins.io import CheckpointIO

from lightning_hpo.checkpoints import files as checkpoints
from lightning_hpo.checkpoints.key import NO_KEY, Key


class SealedCheckpointIO(CheckpointIO):
    """Saves and loads every checkpoint of a Trainer through :mod:`lightning_hpo.checkpoints`.

    Args:
        path: of a checkpoint that has been loaded already, or None.
        content: of that checkpoint; returned by the first load, and then dropped.
        key: of the run: checkpoints are signed with it, and a checkpoint that it has signed may hold objects of any
            class.
    """

    def __init__(self, path: Path | None = None, content: dict[str, Any] | None = None, key: Key = NO_KEY) -> None:
        super().__init__()
        self._key = key
        self._path = path
        self._content = content
        self.closed = False
        """Whether checkpoints are neither saved nor removed any more."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write atomically; raises OSError where Lightning's own plugin can lose the file without a word."""
        if storage_options is not None:
            raise TypeError(f"`storage_options` are not supported, got {storage_options!r}.")
        if not self.closed:
            checkpoints.save(checkpoint, path, self._key)

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = True) -> dict[str, Any]:
        """Verify the hash, and load more than tensors and plain values only from a file that the run has signed.

        ``weights_only`` is ignored: the caller cannot know who wrote the file.
        """
        content, self._content = self._content, None
        if content is not None and path == self._path and map_location is None:
            return content
        return checkpoints.load(path, map_location=map_location or "cpu", key=self._key)

    def remove_checkpoint(self, path: Any) -> None:
        """Delete the checkpoint and its predecessor."""
        if not self.closed:
            checkpoints.remove(path)
