"""What changes in a module, its data and its callbacks while they train, and stands in no ``state_dict``.

Lightning's checkpoint holds weights, optimizers, LR schedules, and what callbacks declare. A module that anneals a
coefficient, unfreezes a layer, counts epochs or keeps a running value does so in plain attributes; torchmetrics keep
their sums in such attributes too. :class:`LiveState` notes what has changed since training began and puts it back.

Kept are plain values (numbers, texts, None, tensors, and lists, tuples and dictionaries of them), whether a parameter
requires a gradient, whether a submodule trains or evaluates, non-persistent buffers, what Lightning has accumulated of
an epoch's metrics, its ``accumulate_grad_batches`` and ``should_stop``. Limit: other objects (a queue, a dataset's own
attributes).
"""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar
from lightning_utilities.core.apply_func import apply_to_collection

State = dict[str, Any]
_PLAIN = (bool, int, float, str, type(None))
_LARGEST = 1_000_000  # elements of a tensor attribute; more is taken for a cache
_LIGHTNINGS = frozenset(vars(pl.LightningModule())) | frozenset(vars(pl.LightningDataModule()))


class LiveState:
    """The state of one Trainer's module, data and callbacks beyond their ``state_dict``.

    Create it when training begins, before anything has changed.

    Args:
        trainer: inside ``fit``.
        module: that it trains.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer: Any = trainer
        self._module = module
        self._before = {key: _marks(_attributes(owner)) for key, owner in self._owners()}
        self._gradients = {name: one.requires_grad for name, one in module.named_parameters()}
        self._buffers = {name: _mark(buffer) for name, buffer in self._other_buffers()}

    def modes(self) -> dict[str, bool]:
        """Whether each submodule trains; a validation changes it for a while."""
        return {name: one.training for name, one in self._module.named_modules()}

    def state(self, modes: Mapping[str, bool] | None = None) -> State:
        """Return what has changed.

        Args:
            modes: as from :meth:`modes`, to be kept in place of those of now.
        """
        attributes = {key: self._changed(key, owner) for key, owner in self._owners()}
        gradients = {name: one.requires_grad for name, one in self._module.named_parameters()}
        return {
            "attributes": {key: values for key, values in attributes.items() if values},
            "requires_grad": {name: flag for name, flag in gradients.items() if self._gradients.get(name) != flag},
            "training": dict(self.modes() if modes is None else modes),
            "buffers": {name: one for name, one in self._other_buffers() if self._buffers.get(name) != _mark(one)},
            "metrics": {name: float(value) for name, value in self._trainer.callback_metrics.items()},
            "accumulate_grad_batches": self._trainer.accumulate_grad_batches,
            "should_stop": self._trainer.should_stop and not self._trainer.stopped_by_job,
            "epoch": _epoch_sums(self._trainer),
        }

    def restore(self, state: State) -> None:
        """Put back what :meth:`state` returned."""
        owners = dict(self._owners())
        for key, values in state["attributes"].items():
            for name, value in values.items() if key in owners else ():
                self._put_back(vars(owners[key]), name, value)
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(state["requires_grad"].get(name, self._gradients[name]))
        for name, submodule in self._module.named_modules():
            submodule.training = state["training"].get(name, submodule.training)
        for name, buffer in self._other_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
        self._trainer.callback_metrics.update({name: torch.tensor(value) for name, value in state["metrics"].items()})
        self._trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        self._trainer.should_stop = state["should_stop"]  # wanted by a callback, but held back by min_epochs

    def _put_back(self, attributes: dict[str, Any], name: str, value: Any) -> None:
        now = attributes.get(name)
        device = now.device if isinstance(now, torch.Tensor) else self._module.device
        value = apply_to_collection(copy.deepcopy(value), torch.Tensor, _moved, device)
        # A list that others hold too stays the same object; one that has grown elsewhere is not the trial's own.
        if isinstance(value, list) and isinstance(now, list):
            if len(now) in (0, len(value)):
                now[:] = value
        elif isinstance(value, dict) and isinstance(now, dict):
            if len(now) in (0, len(value)):
                now.clear()
                now.update(value)
        else:
            attributes[name] = value

    def _owners(self) -> Iterator[tuple[str, Any]]:
        for name, submodule in self._module.named_modules():
            yield f"model.{name}", submodule
        if (data := getattr(self._trainer, "datamodule", None)) is not None:
            yield "data", data
        for index, callback in enumerate(self._trainer.callbacks):
            if _keeps_no_state(callback):
                yield f"callback.{index}.{type(callback).__qualname__}", callback

    def _changed(self, key: str, owner: Any) -> State:
        before = self._before.get(key, {})
        return {name: one for name, one in _attributes(owner).items() if before.get(name, _NOTHING) != _mark(one)}

    def _other_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, submodule in self._module.named_modules():
            for name in submodule._non_persistent_buffers_set:  # noqa: SLF001  # torch has no public name for it
                buffer = submodule._buffers.get(name)  # noqa: SLF001  # as above
                if buffer is not None:
                    yield f"{prefix}.{name}", buffer


_NOTHING = object()


def add_epoch_sums(trainer: Any, sums: Mapping[str, Any]) -> None:
    """Add what was accumulated of an epoch's training metrics before a cut, after the first batch behind it."""
    for key, item in trainer.fit_loop.epoch_loop._results.items():  # noqa: SLF001  # Lightning has no public name
        if key not in sums:
            continue
        value, weight = sums[key]
        value = value.to(item.value.device)
        if item.meta.is_max_reduction or item.meta.is_min_reduction:
            item.value = item.meta.reduce_fx(value, item.value)
        else:
            item.value = value + item.value
        if item.meta.is_mean_reduction:
            item.cumulated_batch_size = item.cumulated_batch_size + weight
        item._computed = None  # noqa: SLF001  # torchmetrics' cache


def _epoch_sums(trainer: Any) -> dict[str, Any]:
    """Value and weight of each training metric that is accumulated over the epoch."""
    return {
        key: (item.value.detach().cpu().clone(), int(getattr(item, "cumulated_batch_size", 0)))
        for key, item in trainer.fit_loop.epoch_loop._results.items()  # noqa: SLF001  # as above
        if item.is_tensor and item.meta.on_epoch and not item.has_reset
    }


def _keeps_no_state(callback: pl.Callback) -> bool:
    kind = type(callback)
    return (
        kind.state_dict is pl.Callback.state_dict
        and kind.on_save_checkpoint is pl.Callback.on_save_checkpoint
        and not isinstance(callback, ProgressBar)
        and not hasattr(kind, "__deepcopy__")  # one instance serves all trials
        and not kind.__module__.startswith("lightning_hpo.")
    )


def _attributes(owner: Any) -> State:
    return {
        name: value
        for name, value in vars(owner).items()
        if name != "training" and name not in _LIGHTNINGS and _is_plain(value)
    }


def _is_plain(value: Any) -> bool:
    kind = type(value)
    if kind in _PLAIN:
        return True
    if kind is torch.Tensor:
        return bool(value.numel() <= _LARGEST)
    if kind in (list, tuple):
        return all(map(_is_plain, value))
    return kind is dict and all(type(key) in _PLAIN and _is_plain(one) for key, one in value.items())


def _marks(values: State) -> State:
    return {name: _mark(value) for name, value in values.items()}


class _TensorMark:
    """Tells whether a tensor is still the same object with the same content: torch counts in-place changes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self._tensor = tensor  # kept, so that its identity is not given to another one
        self._version = 0 if tensor.is_inference() else tensor._version  # noqa: SLF001  # its documented name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _TensorMark) and (self._tensor is other._tensor) and self._version == other._version

    __hash__ = None  # type: ignore[assignment]  # compared only


def _moved(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    return tensor.to(device)


def _mark(value: Any) -> Any:
    """What tells later whether a value has changed."""
    kind = type(value)
    if isinstance(value, torch.Tensor):
        return _TensorMark(value)
    if kind in (list, tuple):
        return (kind.__name__, *map(_mark, value))
    if kind is dict:
        return ("dict", *((key, _mark(one)) for key, one in value.items()))
    return (kind.__name__, value)
