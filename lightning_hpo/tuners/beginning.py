"""What a search begins with: configurations to try first, and the trials of an earlier run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class Beginning:
    """What a search begins with; see :class:`~lightning_hpo.tuners.options.Options`.

    Args:
        start: configurations to try first.
        from_run: folder of another run, whose trials the sampler learns from.

    Raises:
        TypeError: for arguments of another form.
    """

    start: Sequence[Mapping[str, Any]] | Literal["defaults"] | None = None
    from_run: str | Path | None = None

    def __post_init__(self) -> None:
        start = self.start
        is_list = isinstance(start, Sequence) and all(isinstance(point, Mapping) for point in start)
        if start not in (None, "defaults") and not (is_list and not isinstance(start, str)):
            shown = "a dictionary" if isinstance(start, Mapping) else repr(start)
            raise TypeError(f"`start` must be a list, start=[{{'lr': 1e-3}}, ...], or 'defaults', got {shown}.")
        if self.from_run is not None and not isinstance(self.from_run, str | Path):
            raise TypeError(f"`from_run` must be the folder of a run, such as 'runs/earlier', got {self.from_run!r}.")

    def settings(self, starts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Return what must not change while a study goes on, as plain values; nothing where nothing was given."""
        run = {} if self.from_run is None else {"from_run": Path(self.from_run).name}
        return {**({"start": [*map(dict, starts)]} if starts else {}), **run}
