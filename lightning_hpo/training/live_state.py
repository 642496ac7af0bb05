"""State of a module, its data and its callbacks that changes in training and stands in no ``state_dict``.

Lightning's checkpoint holds weights, optimizers, LR schedules, and the states that callbacks declare. A module that
anneals a coefficient, unfreezes a layer, counts epochs or keeps a running value does so in plain attributes;
torchmetrics keep their sums there too.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from torch.nn.modules.lazy import LazyModuleMixin
from torchmetrics import Metric

from lightning_hpo.training.attributes import Attributes, missing, put_back, with_helpers
from lightning_hpo.training.loaders import followed_objects
from lightning_hpo.training.lr_schedule import nested
from lightning_hpo.training.packing import mark_of
from lightning_hpo.training.trial_info import resume_in

State = dict[str, Any]
# Arguments of `self.log`, as Lightning keeps them, that are plain values.
_HOW = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx",
        "metric_attribute")  # fmt: skip
_REDUCTIONS = (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)  # all that `self.log` takes
# Its folder, what its `state_dict` leaves out, and what decides whether it saves at the end.
_OF_MODEL_CHECKPOINT = (
    "dirpath", "_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation",
)  # fmt: skip
# Of a Trainer, that hooks of a module change and Lightning reads at each step or epoch.
_SETTINGS = ("gradient_clip_val", "gradient_clip_algorithm", "check_val_every_n_epoch")


class LiveState:
    """The state of one Trainer's module, data and callbacks beyond their ``state_dict``.

    Create it when training begins, before anything has changed: it notes changes, and puts them back. They are
    attributes (see :mod:`lightning_hpo.training.attributes`), hyperparameters, whether a parameter requires a gradient,
    whether a submodule trains or evaluates, non-persistent buffers, what an epoch has logged, the Trainer's
    ``should_stop``, and those of its settings that hooks change. Datasets and samplers belong to their loaders
    (:mod:`lightning_hpo.training.loaders`).
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._trainer: Any = trainer
        self._module = module
        self._attributes = Attributes(self._owners)
        self._kinds = {name: type(submodule) for name, submodule in module.named_modules()}
        self._gradients = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
        self._buffers = {name: mark_of(buffer) for name, buffer in _other_buffers(self._module)}
        self._settings = self._settings_now()

    def modes(self) -> dict[str, bool]:
        """Whether each submodule trains; a validation changes it for a while."""
        return {name: submodule.training for name, submodule in self._module.named_modules()}

    def state(self, modes: Mapping[str, bool] | None = None) -> State:
        """Return the changes, maybe with :meth:`modes` of an earlier moment in place of those of now."""
        gradients = {name: parameter.requires_grad for name, parameter in self._module.named_parameters()}
        marks = self._buffers
        return {
            "attributes": self._attributes.changed(),
            "iterators": self._attributes.iterators(),
            "code": [*self._attributes.other_code(), *self._other_submodules()],
            "requires_grad": {name: flag for name, flag in gradients.items() if self._gradients.get(name) != flag},
            "training": dict(self.modes() if modes is None else modes),
            "buffers": {k: buffer for k, buffer in _other_buffers(self._module) if marks.get(k) != mark_of(buffer)},
            "metrics": {
                k: torch.as_tensor(v).detach().cpu().clone() for k, v in self._trainer.callback_metrics.items()
            },
            "accumulate_grad_batches": self._trainer.accumulate_grad_batches,
            "should_stop": self._trainer.should_stop and not self._trainer.stopped_by_job,
            "logged": _logged(self._trainer.fit_loop.epoch_loop._results),  # noqa: SLF001  # no public name
            "saved": {
                found.state_key: {name: getattr(found, name) for name in _OF_MODEL_CHECKPOINT}
                for found in self._model_checkpoints()
            },
            "settings": {k: now for k, now in self._settings_now().items() if now != self._settings[k]},
        }

    def restore(self, state: State, *, with_stop: bool = True) -> None:
        """Put the result of :meth:`state` back; the Trainer's ``should_stop`` too if ``with_stop``."""
        put_back(self._owners(), state["attributes"], self._module.device)
        lost = [*state.get("code", ()), *missing(self._owners(), state["attributes"])]
        if not with_stop and lost:  # the last hooks at the start have run
            warnings.warn(
                f"{', '.join(lost)}: replaced or made in training, and a checkpoint holds no functions, and no objects "
                "that a new module does not have, so this trial goes on without them, unlike an uninterrupted trial. "
                "Choose a function by an attribute that is a number or a text, and make objects in __init__ or setup.",
                stacklevel=2,
            )
        if with_stop and (names := state.get("iterators")):
            warnings.warn(
                f"{', '.join(names)}: a checkpoint holds no position of an iterator, so what this trial reads from it "
                "is not what an uninterrupted trial reads. Return its loader from `train_dataloader` too, in a list.",
                stacklevel=2,
            )
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(state["requires_grad"].get(name, self._gradients[name]))
        for name, submodule in self._module.named_modules():
            submodule.training = state["training"].get(name, submodule.training)
        put_back_buffers(self._module, state["buffers"])
        if "logged" in state:  # older checkpoints have none of the three
            _log_again(self._trainer, self._module, state["logged"])
            vars(self._trainer).update(state["settings"])
            for callback in self._model_checkpoints():
                saved = state["saved"].get(callback.state_key, {})
                if saved.get("dirpath") == callback.dirpath:  # else its files are not those of this trial
                    vars(callback).update(saved)
        metrics = {name: torch.as_tensor(value).clone() for name, value in state["metrics"].items()}
        self._trainer.callback_metrics.update(metrics)
        self._trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        if with_stop:
            self._trainer.should_stop = state["should_stop"]  # a callback has asked for it, and min_epochs delays it

    def _model_checkpoints(self) -> list[ModelCheckpoint]:
        return [callback for callback in self._trainer.callbacks if isinstance(callback, ModelCheckpoint)]

    def _other_submodules(self) -> list[str]:
        """Names of submodules of another class than when training began."""
        now = {name: type(submodule) for name, submodule in self._module.named_modules()}
        return [
            f"model.{name}"
            for name, kind in now.items()
            if (before := self._kinds.get(name, kind)) is not kind and not issubclass(before, LazyModuleMixin)
        ]

    def _settings_now(self) -> dict[str, Any]:
        return {name: getattr(self._trainer, name) for name in _SETTINGS}

    def _owners(self) -> Iterator[tuple[str, Any]]:
        owners: list[tuple[str, Any]] = _parts_of(self._module)
        if (data := getattr(self._trainer, "datamodule", None)) is not None:
            owners += [("data", data), ("data hparams", data.hparams)]
        for index, callback in enumerate(self._trainer.callbacks):
            if _keeps_no_state(callback):
                owners.append((f"callback.{index}.{type(callback).__qualname__}", callback))
        schedules = (inner for config in self._trainer.lr_scheduler_configs for inner in nested(config.scheduler))
        loaders = followed_objects(self._trainer.train_dataloader)
        others = {id(other) for other in (*loaders, *self._trainer.optimizers, *schedules)}
        seen = others | {id(owner) for _, owner in owners}
        for key, owner in owners:
            seen.discard(id(owner))
            yield from with_helpers(key, owner, seen)


def complete(module: pl.LightningModule, saved: Mapping[str, Any]) -> None:
    """Give a module that has the weights of a checkpoint what the trained module had beside them.

    Attributes, hyperparameters and non-persistent buffers that had changed in training; not the sums of its metrics.
    The content of a checkpoint that no job has saved changes nothing.
    """
    if (live := resume_in(saved).get("live")) is not None:
        parts, seen = [part for part in _parts_of(module) if not isinstance(part[1], Metric)], set[int]()
        owners = [found for key, part in parts for found in with_helpers(key, part, seen)]
        put_back(owners, live["attributes"], module.device)
        put_back_buffers(module, live["buffers"])


def _parts_of(module: pl.LightningModule) -> list[tuple[str, Any]]:
    """A module's submodules, and their hyperparameters."""
    parts: list[tuple[str, Any]] = [(f"model.{name}", submodule) for name, submodule in module.named_modules()]
    return parts + [
        (f"{key} hparams", part.hparams)
        for key, part in parts
        if isinstance(part, HyperparametersMixin) and part.hparams
    ]


def _other_buffers(module: pl.LightningModule) -> Iterator[tuple[str, torch.Tensor]]:
    for prefix, submodule in module.named_modules():
        for name in submodule._non_persistent_buffers_set:  # noqa: SLF001  # torch has no public name for it
            buffer = submodule._buffers.get(name)  # noqa: SLF001  # as above
            if buffer is not None:
                yield f"{prefix}.{name}".lstrip("."), buffer


def put_back_buffers(module: pl.LightningModule, buffers: Mapping[str, torch.Tensor]) -> None:
    """Put values into a module's buffers, and register those that were registered in training."""
    own = dict(module.named_buffers(remove_duplicate=False))
    for name, value in buffers.items():
        if name in own and own[name].shape == value.shape:
            own[name].copy_(value)
        else:
            owner, _, key = name.rpartition(".")
            module.get_submodule(owner).register_buffer(key, value.clone().to(module.device), persistent=False)


def _logged(results: Any) -> list[dict[str, Any]]:
    """What was logged since the epoch began: how, and with which values; a metric object keeps its own."""
    logged = []
    for item in results.values():
        meta, is_tensor = item.meta, item.is_tensor
        if item.has_reset or meta.sync.group is not None or not (is_tensor or meta.metric_attribute):
            continue
        how = {name: getattr(meta, name) for name in _HOW}
        sync = {"sync_dist": meta.sync.should, "rank_zero_only": meta.sync.rank_zero_only}
        values = {"value": item.value} if is_tensor else {}
        values |= {name: getattr(item, name, None) for name in ("cumulated_batch_size", "_forward_cache")}
        values = {name: value.detach().cpu().clone() for name, value in values.items() if value is not None}
        logged.append({"how": {**how, **sync, "reduce_fx": _REDUCTIONS.index(meta.reduce_fx)}, "values": values})
    return logged


def _log_again(trainer: Any, module: pl.LightningModule, logged: Sequence[Mapping[str, Any]]) -> None:
    """Let the epoch have logged what it had, and nothing that hooks have logged since."""
    results = trainer.fit_loop.epoch_loop._results  # noqa: SLF001  # Lightning has no public name
    results.clear()
    for part in logged:
        how, values = part["how"], part["values"]
        name = how["metric_attribute"]
        value = values["value"].to(module.device) if "value" in values else module.get_submodule(name)
        reduction = _REDUCTIONS[how["reduce_fx"]]  # Lightning compares the function with that of the next call
        results.log(value=value, sync_dist_fn=trainer.strategy.reduce, **{**how, "reduce_fx": reduction})
        item = results[f"{how['fx']}.{how['name']}"]
        for attribute, kept in values.items():
            setattr(item, attribute, kept.to(module.device))
    if logged:
        trainer._logger_connector._first_loop_iter = True  # noqa: SLF001  # as after any batch but the first


def _keeps_no_state(callback: pl.Callback) -> bool:
    kind = type(callback)
    return (
        kind.state_dict is pl.Callback.state_dict
        and kind.on_save_checkpoint is pl.Callback.on_save_checkpoint
        and not isinstance(callback, ProgressBar)
        and not hasattr(kind, "__deepcopy__")  # one instance serves all trials
        and not kind.__module__.startswith("lightning_hpo.")
    )
