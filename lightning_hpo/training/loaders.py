"""Training loaders that know their position, so that an epoch can be cut anywhere and continued exactly.

After a cut inside an epoch, Lightning starts a loader at its first batch again. A followed loader starts the epoch with
the random numbers that it was started with, passes over the batches that were trained on, and goes on with the random
numbers of the moment of the cut.

Lightning fetches one batch ahead from a loader without length; that batch is drawn again with the random numbers of the
moment in which it was drawn.

Exact for every ``torch.utils.data.DataLoader``, sized or not, shuffled or not, with the global generator or one of
its own, with workers, persistent ones included. Limit: a dataset that draws random numbers inside persistent workers,
whose generators run on from epoch to epoch and cannot be set from outside.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from lightning_utilities.core.apply_func import apply_to_collection
from torch.utils.data import DataLoader

from lightning_hpo.training.random_state import rng_state, set_rng_state

State = dict[str, Any]


def follow(loaders: Any, restored: list[State] | None = None) -> Any:
    """Let every DataLoader in a collection tell its position.

    Args:
        loaders: what ``train_dataloader()`` returned: a loader, a collection of them, or anything else, which passes
            unchanged. A loader with a ``state_dict`` of its own keeps it.
        restored: positions from a checkpoint, in the order of the loaders, or None.
    """
    followed: list[DataLoader[Any]] = []

    def one(loader: DataLoader[Any]) -> DataLoader[Any]:
        if not hasattr(loader, "state_dict"):
            # The loader stays an instance of the user's class, so that Lightning treats it as before.
            kind = type(loader)
            loader.__class__ = type(kind.__name__, (FollowedLoader, kind), {"__module__": kind.__module__})
        followed.append(loader)
        return loader

    made = apply_to_collection(loaders, DataLoader, one)
    ahead = not all(_is_sized(loader) for loader in followed)
    for loader in followed:
        if isinstance(loader, FollowedLoader):
            loader.fetched_ahead = ahead
    for loader, state in zip(followed, restored or (), strict=False):
        if isinstance(loader, FollowedLoader):
            loader.load_state_dict(state)
    return made


def rewind(loaders: Any) -> None:
    """Tell every followed loader in a collection that its epoch is over."""

    def one(loader: FollowedLoader) -> FollowedLoader:
        loader.fetched = 0
        return loader

    apply_to_collection(loaders, FollowedLoader, one)


class FollowedLoader(DataLoader[Any]):
    """Mixed into a user's DataLoader: counts its batches, and passes over them after a restore."""

    fetched = 0  # batches of this epoch
    fetched_ahead = False  # whether Lightning holds a batch that it has not trained on
    _exhausted = False
    _starts_workers = False
    _epochs = 0  # that were begun
    _restored: State | None = None
    _created: State | None = None  # random numbers before the first iterator was made
    _started: State | None = None  # random numbers before this epoch's
    _before_last: State | None = None  # random numbers before the last fetch
    _after_last: State  # and after it

    def __iter__(self) -> Any:
        """Begin an epoch, at its first fetch: hooks before it may draw random numbers."""
        state, self._restored = self._restored, None
        return self._batches(state)

    def state_dict(self) -> State:
        """Position and random numbers of now; Lightning stores it with the training loop."""
        started = self.fetched > 0
        return {
            "fetched": self.fetched,
            "exhausted": self._exhausted,
            "epochs": self._epochs - started,
            "created": self._created,
            "started": self._started if started else None,
            "before_last": self._before_last if started and self.fetched_ahead else None,
            "now": self._random(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue there at the next iteration."""
        self._restored = state
        self._created = state["created"]
        self._epochs = state["epochs"]
        self._starts_workers = self._epochs > 0 and getattr(self, "persistent_workers", False)
        self._set_own(state["now"])

    def _batches(self, state: State | None) -> Iterator[Any]:
        if self._starts_workers:
            # The epochs before were read by workers that were started once; a new epoch resets them.
            self._starts_workers = False
            assert self._created is not None
            now = self._random()
            self._set_random(self._created)
            super().__iter__()
            self._set_random(now)
        if state is None or not (state["fetched"] or self.fetched_ahead):
            yield from self._begin()
            return
        if not state["fetched"]:  # Lightning asks for the first batch before it calls any hook
            self._set_random(state["now"])
            iterator = self._begin()
            yield next(iterator)
            self._set_random(self._after_last)
            yield from iterator
            return
        self._set_random(state["started"])
        iterator = self._begin()
        waiting = self.fetched_ahead and not state["exhausted"]
        for _ in range(state["fetched"] - waiting):
            next(iterator, None)
        if waiting:
            self._set_random(state["before_last"])
            yield next(iterator)
        self._set_random(state["now"])
        yield from iterator

    def _begin(self) -> Iterator[Any]:
        self._started = self._random()
        if self._created is None:
            self._created = self._started
        self._epochs += 1
        self.fetched, self._exhausted = 0, False
        iterator = super().__iter__()
        while True:
            if self.fetched_ahead:
                self._before_last = self._random()
            try:
                batch = next(iterator)
            except StopIteration:
                self._exhausted = True
                return
            self.fetched += 1
            if self.fetched_ahead:
                self._after_last = self._random()
            yield batch

    def _random(self) -> State:
        return {"global": rng_state(), "own": [generator.get_state() for generator in self._generators()]}

    def _set_random(self, state: Mapping[str, Any]) -> None:
        set_rng_state(state["global"])
        self._set_own(state)

    def _set_own(self, state: Mapping[str, Any]) -> None:
        for generator, own in zip(self._generators(), state["own"], strict=True):
            generator.set_state(own)

    def _generators(self) -> list[torch.Generator]:
        """Generators of the loader's own: its ``generator``, and those of its samplers where they differ."""
        batch_sampler = getattr(self, "batch_sampler", None)
        owners = (self, getattr(self, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
        found = [getattr(owner, "generator", None) for owner in owners]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def _is_sized(loader: DataLoader[Any]) -> bool:
    try:
        len(loader)
    except TypeError:
        return False
    return True
