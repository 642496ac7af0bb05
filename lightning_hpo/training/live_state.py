"""State of a module, its data and its callbacks that changes in training and stands in no ``state_dict``.

Lightning's checkpoint holds weights, optimizers, LR schedules, and the states that callbacks declare. A module that
anneals a coefficient, unfreezes a layer, counts epochs or keeps a running value does so in plain attributes;
torchmetrics keep their sums there too. :class:`LiveState` notes the changes since training began and puts them back.

It covers attributes (see :mod:`lightning_hpo.training.attributes`), whether a parameter requires a gradient, whether a
submodule trains or evaluates, non-persistent buffers, Lightning's sums of an epoch's metrics, its
``accumulate_grad_batches`` and ``should_stop``. Datasets and samplers belong to their loaders
(:mod:`lightning_hpo.training.loaders`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ProgressBar

from lightning_hpo.training.attributes import Attributes, mark_of, with_helpers
from lightning_hpo.training.loaders import followed_objects

State = dict[str, Any]


class LiveState:
    """The state of one Trainer's module, data and callbacks beyond their ``state_dict``.

    Create it when training begins, before anything has changed.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer: Any = trainer
        self._module = module
        self._attributes = Attributes(self._owners)
        self._gradients = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        self._buffers = {name: mark_of(buffer) for name, buffer in self._other_buffers()}

    def modes(self) -> dict[str, bool]:
        """Whether each submodule trains; a validation changes it for a while."""
        return {name: submodule.training for name, submodule in self._module.named_modules()}

    def state(self, modes: Mapping[str, bool] | None = None) -> State:
        """Return the changes.

        Args:
            modes: as from :meth:`modes`, to be kept in place of those of now.
        """
        gradients = {name: parameter.requires_grad for name, parameter in self._module.named_parameters()}
        marks = self._buffers
        return {
            "attributes": self._attributes.changed(),
            "requires_grad": {name: flag for name, flag in gradients.items() if self._gradients.get(name) != flag},
            "training": dict(self.modes() if modes is None else modes),
            "buffers": {k: buffer for k, buffer in self._other_buffers() if marks.get(k) != mark_of(buffer)},
            "metrics": {name: float(value) for name, value in self._trainer.callback_metrics.items()},
            "accumulate_grad_batches": self._trainer.accumulate_grad_batches,
            "should_stop": self._trainer.should_stop and not self._trainer.stopped_by_job,
            "epoch": _epoch_sums(self._trainer),
        }

    def restore(self, state: State, *, with_stop: bool = True) -> None:
        """Put the result of :meth:`state` back; the Trainer's ``should_stop`` too if ``with_stop``."""
        self._attributes.put_back(state["attributes"], self._module.device)
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(state["requires_grad"].get(name, self._gradients[name]))
        for name, submodule in self._module.named_modules():
            submodule.training = state["training"].get(name, submodule.training)
        put_buffers(self._module, dict(self._other_buffers()), state["buffers"])
        self._trainer.callback_metrics.update({name: torch.tensor(value) for name, value in state["metrics"].items()})
        self._trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        if with_stop:
            self._trainer.should_stop = state["should_stop"]  # a callback has asked for it, and min_epochs delays it

    def _owners(self) -> Iterator[tuple[str, Any]]:
        owners = [(f"model.{name}", submodule) for name, submodule in self._module.named_modules()]
        if (data := getattr(self._trainer, "datamodule", None)) is not None:
            owners.append(("data", data))
        for index, callback in enumerate(self._trainer.callbacks):
            if _keeps_no_state(callback):
                owners.append((f"callback.{index}.{type(callback).__qualname__}", callback))
        others = {id(other) for other in followed_objects(self._trainer.train_dataloader)}
        seen = others | {id(owner) for _, owner in owners}
        for key, owner in owners:
            seen.discard(id(owner))
            yield from with_helpers(key, owner, seen)

    def _other_buffers(self) -> Iterator[tuple[str, torch.Tensor]]:
        for prefix, submodule in self._module.named_modules():
            for name in submodule._non_persistent_buffers_set:  # noqa: SLF001  # torch has no public name for it
                buffer = submodule._buffers.get(name)  # noqa: SLF001  # as above
                if buffer is not None:
                    yield f"{prefix}.{name}".lstrip("."), buffer


def put_buffers(module: pl.LightningModule, own: Mapping[str, torch.Tensor], values: State) -> None:
    """Put values into a module's own buffers, and register those that were registered in training."""
    for name, value in values.items():
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)
        else:
            owner, _, key = name.rpartition(".")
            module.get_submodule(owner).register_buffer(key, value.clone().to(module.device), persistent=False)


def add_epoch_sums(trainer: Any, sums: Mapping[str, Any]) -> None:
    """Add sums of an epoch's training metrics from before an interruption, after the first batch that follows."""
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
