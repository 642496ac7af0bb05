"""Training loaders that know their position, so that an epoch can be interrupted anywhere and continued exactly.

After an interruption inside an epoch, Lightning starts a loader at its first batch again. A followed loader starts the
epoch with the random numbers that it was started with, passes over the batches that were trained on, and goes on with
the random numbers of the moment of the interruption.

Lightning fetches one batch ahead from a loader without length, unless ``limit_train_batches`` is a number of batches;
that batch is drawn again with the random numbers of the moment in which it was drawn.

Exact for every loader, inside a ``CombinedLoader`` too, or of another class than torch's ``DataLoader``: sized or not,
shuffled or not, with the global generator or its own, with workers, persistent workers included. The attributes of
dataset and samplers (:mod:`lightning_hpo.training.attributes`), such as a counter of epochs, are put back too. Limit:
a dataset that draws random numbers inside persistent workers, whose generators run on from epoch to epoch and cannot
be set from outside, or a dataset that changes its attributes in any workers.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.utilities import CombinedLoader
from torch.utils._pytree import tree_flatten

from lightning_hpo.training.attributes import Attributes, Changes, put_back, with_helpers
from lightning_hpo.training.random_state import rng_state, set_rng_state

State = dict[str, Any]


def follow(loaders: Any, limit: float, restored: list[State] | None = None) -> Any:
    """Let every loader in a collection tell its position.

    Args:
        loaders: result of ``train_dataloader()``: a loader or a collection of them. A loader with a ``state_dict``
            of its own keeps it.
        limit: ``limit_train_batches``: an integer is a number of batches, a float a fraction.
        restored: positions from a checkpoint, in the order of the loaders, or None.
    """
    flat = _flat(loaders)
    for loader in flat:
        if not hasattr(loader, "state_dict") and hasattr(loader, "__dict__"):
            # The loader stays an instance of the user's class, so that Lightning treats it as before.
            loader.__class__ = _followed_kind(type(loader))
    ahead = not isinstance(limit, int) and not _is_sized(loaders)
    with_state = [loader for loader in flat if hasattr(loader, "state_dict")]
    together = _followed(loaders)
    for place, loader in enumerate(together):
        loader.begin_to_follow(together, place, ahead=ahead)
    for loader, state in zip(with_state, restored or (), strict=False):
        if isinstance(loader, FollowedLoader):
            loader.load_state_dict(state)
    return loaders


def rewind(loaders: Any, *, reloads: bool = False) -> None:
    """Tell every followed loader that its epoch is over, and whether Lightning makes another one for the next epoch."""
    for loader in _followed(loaders):
        loader.fetched, loader.reloads = 0, reloads


def followed_objects(loaders: Any) -> list[Any]:
    """Return the loaders in a collection that are followed, with all objects whose attributes they keep."""
    return [found for loader in _followed(loaders) for _, found in loader.objects()]


def _followed_kind(kind: type) -> type:
    overridden = {name: vars(FollowedLoader)[name] for name in ("__iter__", "state_dict", "load_state_dict")}
    own = {"_own_iter": kind.__iter__, "__module__": kind.__module__}  # type: ignore[attr-defined]  # of a loader
    # The user's class comes first: Python lets an object change its class only to a class of the same layout.
    return type(kind.__name__, (kind, FollowedLoader), {**overridden, **own})


def _flat(loaders: Any) -> list[Any]:
    return list(loaders.flattened if isinstance(loaders, CombinedLoader) else tree_flatten(loaders)[0])


def _followed(loaders: Any) -> list["FollowedLoader"]:
    return [loader for loader in _flat(loaders) if isinstance(loader, FollowedLoader)]


class FollowedLoader:
    """Mixed into the class of a user's loader: counts its batches, and passes over them after a restore."""

    fetched = 0  # batches of this epoch
    fetched_ahead = False  # whether Lightning holds a batch that it has not trained on
    reloads = False  # whether another loader takes its place in the next epoch
    _exhausted = False
    _starts_workers = False
    _epochs = 0  # that were begun
    _restored: State | None = None  # until its batches are passed over
    _passed: Iterator[Any] | None = None  # the batches that follow
    _together: list["FollowedLoader"]  # all that are read in one epoch
    _place: int  # among them
    _created: State | None = None  # random numbers before the first iterator was made
    _started: State | None = None  # random numbers before this epoch's
    _attributes_started: Changes = {}  # noqa: RUF012  # replaced, never changed
    _before_last: State | None = None  # random numbers before the last fetch
    _after_last: State  # and after it
    batch_sampler: Any
    _own_iter: Callable[[], Iterator[Any]]  # __iter__ of the user's class
    _attributes: Attributes  # of dataset and samplers

    def begin_to_follow(self, together: list["FollowedLoader"], place: int, *, ahead: bool) -> None:
        """Note the state before the first epoch, and whether Lightning fetches one batch ahead."""
        # The class of the loader is its own. It keeps them for the loader that Lightning may make of this one.
        for name, value in {"_together": together, "_place": place, "fetched_ahead": ahead}.items():
            setattr(self, name, value)
            setattr(type(self), name, value)
        self._attributes = Attributes(self.objects, _OWN)

    def _take_place(self) -> None:
        """Replace the loader that this loader was made from: for another sampler, Lightning makes a loader anew."""
        if self._together[self._place] is not self:
            self._together[self._place] = self
            self._attributes = Attributes(self.objects, _OWN)

    def objects(self) -> Iterator[tuple[str, Any]]:
        """The loader, its dataset and samplers, and their helper objects."""
        seen: set[int] = set()
        batch_sampler = getattr(self, "batch_sampler", None)
        sampler = getattr(batch_sampler, "sampler", getattr(self, "sampler", None))
        parts = {"dataset": getattr(self, "dataset", None), "sampler": sampler, "batches": batch_sampler}
        for name, part in parts.items():
            if hasattr(part, "__dict__"):
                yield from with_helpers(name, part, seen)
        yield from with_helpers("loader", self, seen)

    def __iter__(self) -> Any:
        """Begin an epoch, at its first fetch: hooks before it may draw random numbers."""
        self._take_place()
        return self._batches()

    def state_dict(self) -> State:
        """Position and random numbers of now; Lightning stores it with the training loop."""
        self._take_place()
        started = self.fetched > 0
        return {
            "fetched": self.fetched,
            "reloads": self.reloads,
            "exhausted": self._exhausted,
            "epochs": self._epochs - started,
            "created": self._created,
            "started": self._started if started else None,
            "batch_size": getattr(getattr(self, "batch_sampler", None), "batch_size", None) if started else None,
            "attributes": self._attributes.changed(),
            "attributes_started": self._attributes_started if started else {},
            "before_last": self._before_last if started and self.fetched_ahead else None,
            "now": self._random(),
        }

    def load_state_dict(self, state: State) -> None:
        """Continue there at the next iteration."""
        self._take_place()
        self._restored = state
        self._created = state["created"]
        self._epochs = state["epochs"]
        self._starts_workers = self._epochs > 0 and getattr(self, "persistent_workers", False)
        self._set_own(state["now"])
        if state["batch_size"] is not None:  # a population may have changed it for the epochs to come
            self.batch_sampler.batch_size = state["batch_size"]
        if not state["fetched"]:  # otherwise when its batches are passed over
            self._put_back(state["attributes"])

    def _batches(self) -> Iterator[Any]:
        if self._starts_workers:
            # The epochs before were read by workers that were started once; a new epoch resets them.
            self._starts_workers = False
            assert self._created is not None
            now = self._random()
            self._set_random(self._created)
            self._own_iter()
            self._set_random(now)
        if self._passed is None and self._restored is not None and self._restored["fetched"]:
            now = self._restored["now"]["global"]
            for loader in self._together:  # each draws the same again, and then all go on from the same moment
                loader.pass_over()
            set_rng_state(now)
        passed, self._passed = self._passed, None
        state, self._restored = self._restored, None
        if passed is not None:
            yield from passed
        elif state is not None and self.fetched_ahead:  # Lightning asks for the first batch before it calls any hook
            self._set_random(state["now"])
            if state.get("reloads"):  # Lightning fetches ahead from a new loader, and then begins the epoch
                next(self._begin(), None)
            iterator = self._begin()
            yield next(iterator)
            self._set_random(self._after_last)
            yield from iterator
        else:
            yield from self._begin()

    def pass_over(self) -> None:
        """Come to where the checkpoint was taken, if that is still to be done."""
        state = self._restored
        if state is None or not state["fetched"]:
            return
        self._restored = None
        self._set_random(state["started"])
        self._put_back(state["attributes_started"])
        iterator = self._begin()
        ahead = self.fetched_ahead and not state["exhausted"]
        for _ in range(state["fetched"] - ahead):
            next(iterator, None)
        fetched = []
        if ahead:
            self._set_random(state["before_last"])
            fetched.append(next(iterator))
        self._set_own(state["now"])
        self._put_back(state["attributes"])
        self._passed = itertools.chain(fetched, iterator)

    def _begin(self) -> Iterator[Any]:
        self._started, self._attributes_started = self._random(), self._attributes.changed()
        if self._created is None:
            self._created = self._started
        self._epochs += 1
        self.fetched, self._exhausted = 0, False
        iterator = self._own_iter()
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

    def _put_back(self, changes: Changes) -> None:
        put_back(self.objects(), changes, torch.device("cpu"))

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
        generators = [getattr(owner, "generator", None) for owner in owners]
        return list({id(own): own for own in generators if isinstance(own, torch.Generator)}.values())


_OWN = frozenset(name for name in vars(FollowedLoader) | FollowedLoader.__annotations__ if not name.startswith("__"))


def _is_sized(loaders: Any) -> bool:
    """Whether Lightning knows how many batches the loaders have together."""
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders)
    lengths = [sized_len(loader) for loader in combined.flattened]
    some_are_enough = combined._mode == "min_size"  # noqa: SLF001  # there is no public name
    return (any if some_are_enough else all)(length is not None for length in lengths)
