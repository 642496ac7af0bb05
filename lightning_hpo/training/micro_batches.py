"""Out of memory: a trial goes on with smaller batches, of which it accumulates as many gradients as it takes.

A batch of ``b`` samples is trained as ``n`` micro-batches of ``b / n``, and ``accumulate_grad_batches`` is multiplied
by ``n``; ``n`` divides ``b``, so the samples of each optimizer step are the same. What counts batches grows alike, so
epochs, optimizer steps, budgets and validations stand where they did. A checkpoint is of a moment between two
optimizer steps, so its place in the epoch is a whole number of batches, whatever their size.

The gradient of a step is that of the whole batch, up to rounding, for a loss that is a mean over samples. It is another
one for what a module computes of a batch as a whole (batch norm, dropout masks, contrastive losses), and the shorter
last batch of an epoch weighs less if its parts differ in size.
"""

import contextlib
import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_hpo.errors import free_frames
from lightning_hpo.training.builder import TrialComponents, as_list
from lightning_hpo.training.leaves import get, put
from lightning_hpo.training.places import BATCH_SIZE, batch_size_paths

Answer = TypeVar("Answer")
_ACCUMULATE = "accumulate_grad_batches"
_TEXTS = (
    "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDA out of memory", "MPS backend out of memory",
    "OutOfMemoryError: ",
)  # fmt: skip
MICRO_BATCH = "micro_batch"
"""User attribute of a trial that was out of memory: what it trains with."""


@dataclass(frozen=True)
class MicroBatches:
    """Into how many parts each batch is split, in training and in validation."""

    train: int = 1
    val: int = 1

    def at_least(self, other: "MicroBatches") -> "MicroBatches":
        """Return the larger number of parts of both."""
        return MicroBatches(max(self.train, other.train), max(self.val, other.val))

    def note(self, components: TrialComponents) -> dict[str, Any]:
        """Return what a trial that was split says of itself, as its user attributes."""
        size = batch_size(components)
        if self == WHOLE or size is None:
            return {}
        own = components.trainer.get(_ACCUMULATE) or 1
        note = {BATCH_SIZE: size // self.train, _ACCUMULATE: own * self.train, "val_batch_size": size // self.val}
        return {MICRO_BATCH: note}


WHOLE = MicroBatches()


class TooLargeError(Exception):
    """A trial was out of memory and can be split further."""

    def __init__(self, smaller: MicroBatches) -> None:
        super().__init__()
        self.smaller = smaller


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory could not be had, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def unless_out_of_memory(check: Callable[[], Answer]) -> Answer | None:
    """Return the answer of a check; None, with a warning, if it needs more memory than there is."""
    try:
        return check()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        warnings.warn(f"the check before training was out of memory, and is left out: {error}", stacklevel=2)
        return None


def in_parts(attempt: Callable[..., Answer], *args: Any, **options: Any) -> Answer:
    """Call a function again, with smaller ``parts``, while it raises TooLargeError; what it held is freed before."""
    parts = WHOLE
    while True:
        try:
            return attempt(*args, **options, parts=parts)
        except TooLargeError as error:
            parts = error.smaller
            free_frames(error)
        logging.getLogger(__name__).warning(
            "out of memory: the trial goes on with batches in %d parts, in validation in %d", parts.train, parts.val
        )
        gc.collect()
        if torch.accelerator.is_available():
            torch.accelerator.empty_cache()


@contextlib.contextmanager
def splitting(components: TrialComponents, parts: MicroBatches, trainer: Any = None) -> Iterator[None]:
    """Raise TooLargeError in place of an error that says that memory was out, while a batch can be split further.

    Without the Trainer that trains the components, training and validation are split alike.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        size = batch_size(components) or 1
        in_validation = trainer is not None and trainer.failed_in_validation
        now = parts.val if in_validation else parts.train
        more = next((count for count in range(2 * now, size + 1) if size % count == 0), None)
        if more is None:
            error.add_note("also in micro-batches of 1 sample")
            raise
        changed = {"val" if in_validation else "train": more, **({"val": more} if trainer is None else {})}
        raise TooLargeError(replace(parts, **changed)) from error


def batch_size(components: TrialComponents) -> int | None:
    """Return the batch size that the owner of the training loader holds; None if it has none."""
    owner = components.loader_owner
    paths = batch_size_paths("owner", owner)
    value = get({"owner": [owner]}, paths[0]) if paths else None
    return value if isinstance(value, int) and value > 0 else None


def split(components: TrialComponents, parts: MicroBatches, saved: dict[str, Any] | None = None) -> TrialComponents:
    """Return components whose loaders give smaller batches, and whose Trainer accumulates more of them.

    Args:
        components: with whole batches.
        parts: of each batch.
        saved: content of the checkpoint to continue, whose counts of batches are changed in place; or None.
    """
    if saved is not None and parts_of(saved).train != parts.train:
        _rescale(saved, parts_of(saved).train, parts.train)
    owner, arguments = components.loader_owner, dict(components.trainer)
    if parts.train > 1:
        arguments[_ACCUMULATE] = (arguments.get(_ACCUMULATE) or 1) * parts.train
        object.__setattr__(owner, "train_dataloader", _Split(owner, owner.train_dataloader, _training, parts.train))
    if parts.val > 1 and is_overridden("val_dataloader", owner):
        object.__setattr__(owner, "val_dataloader", _Split(owner, owner.val_dataloader, _validation, parts.val))
    return TrialComponents(components.module, components.data, arguments)


def parts_of(saved: Mapping[str, Any] | None) -> MicroBatches:
    """Return the parts that a checkpoint's trial trained with."""
    found = {} if saved is None else saved["callbacks"].get("RunToStep", {}).get("resume", {})
    return MicroBatches(*found.get("parts", (1, 1)))


def _rescale(saved: dict[str, Any], before: int, parts: int) -> None:
    loop = saved["loops"]["fit_loop"]
    for progress in (loop["epoch_loop.batch_progress"][which] for which in ("total", "current")):
        for key in ("ready", "started", "processed", "completed"):
            progress[key] = -(-progress[key] // before) * parts
    for position in loop["state_dict"].get("combined_loader", []):
        position["fetched"] = -(-position["fetched"] // before) * parts
        if position[BATCH_SIZE] is not None:
            position[BATCH_SIZE] = position[BATCH_SIZE] * before // parts
    live = saved["callbacks"]["RunToStep"]["resume"]["live"]
    live[_ACCUMULATE] = live[_ACCUMULATE] // before * parts


def validate_components(components: TrialComponents) -> Callable[[], Any]:
    """Return the ``train_dataloader``; raise ValueError, before training, for a trial that could not be split."""
    arguments = components.trainer
    owner = components.loader_owner
    why = ""
    if batch_size(components) is None:
        why = f"{type(owner).__name__} has no `self.batch_size` or `self.hparams.batch_size` that its loader reads"
    elif not components.module.automatic_optimization:
        why = "Lightning accumulates no gradients under manual optimization"
    elif any(isinstance(found, GradientAccumulationScheduler) for found in as_list(arguments.get("callbacks"))):
        why = "GradientAccumulationScheduler changes `accumulate_grad_batches` too"
    elif arguments.get("check_val_every_n_epoch", 1) is None:
        why = "`check_val_every_n_epoch=None` counts batches across epochs, whose number would change"
    if why:
        raise ValueError(f"`on_oom='halve'` is not possible: {why}. Write on_oom='fail', or change that.")
    return owner.train_dataloader  # type: ignore[no-any-return]  # of Lightning


def validate_loader(components: TrialComponents, make: Callable[[], Any]) -> None:
    """Raise ValueError, once data are set up, unless the training loader has the batch size that its owner holds.

    ``make`` is its ``train_dataloader``, not split.
    """
    owner, size = components.loader_owner, batch_size(components)
    assert size is not None
    for parts in (1, size):
        with _smaller(owner, parts):
            loader = make()
        held = getattr(loader, BATCH_SIZE, None)
        if not isinstance(loader, DataLoader) or held != size // parts or not sized_len(loader):
            raise ValueError(
                f"`on_oom='halve'` is not possible: train_dataloader() must return a DataLoader with a length and the "
                f"batch size of {type(owner).__name__}, {size // parts}, got {type(loader).__name__} with {held}. "
                "Read self.batch_size there, or write on_oom='fail'."
            )


class _Split:
    """``train_dataloader`` or ``val_dataloader`` of an owner, with smaller batches."""

    def __init__(self, owner: Any, own: Callable[[], Any], count: Callable[..., None], parts: int) -> None:
        self._owner, self._own, self._count, self._parts = owner, own, count, parts
        self._asked: dict[str, Any] = {}  # arguments of the Trainer as they were at first
        self.__code__ = type(self).__call__.__code__  # Lightning looks there for whether it is overridden

    def __call__(self) -> Any:
        with _smaller(self._owner, self._parts) as size:
            made = self._own()
        trainer = self._owner.trainer
        for name in ("limit_train_batches", "limit_val_batches", "val_check_interval"):
            self._asked.setdefault(name, getattr(trainer, name))
        self._count(trainer, made, self._asked, self._parts, size)
        return made

    def __deepcopy__(self, memo: dict[int, Any]) -> "_Split":
        """Return itself for a copy of the module: it holds the module itself."""
        return self


def _training(trainer: Any, loader: Any, asked: Mapping[str, Any], parts: int, size: int) -> None:
    """Let the Trainer count micro-batches where it was to count batches."""
    del size
    whole = len(loader) // parts if loader.drop_last else -(-len(loader) // parts)
    limit = asked["limit_train_batches"]
    batches = min(whole, limit) if isinstance(limit, int) else int(whole * limit)
    trainer.limit_train_batches = batches * parts
    interval = asked["val_check_interval"]
    if isinstance(interval, int):
        trainer.val_check_interval = interval * parts
    elif isinstance(interval, float) and interval < 1:
        trainer.val_check_interval = max(int(batches * interval), 1) * parts


def _validation(trainer: Any, loader: Any, asked: Mapping[str, Any], parts: int, size: int) -> None:
    """Let a limit of validation batches be the same samples, if the loader has smaller batches."""
    if getattr(loader, BATCH_SIZE, None) == size and isinstance(asked["limit_val_batches"], int):
        trainer.limit_val_batches = asked["limit_val_batches"] * parts


@contextlib.contextmanager
def _smaller(owner: Any, parts: int) -> Iterator[int]:
    """Let an owner hold a smaller batch size for a moment; its recorded hyperparameters stay what they are."""
    roots = {"owner": [owner]}
    held = {path: get(roots, path) for path in batch_size_paths("owner", owner)}
    try:
        for path, value in held.items():
            put(roots, path, value // parts)
        yield next(iter(held.values())) // parts
    finally:
        for path, value in held.items():
            put(roots, path, value)
