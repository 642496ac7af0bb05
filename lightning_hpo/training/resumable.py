"""Training that can be cut after any batch: what Lightning's checkpoint leaves out, and what its restart skips.

Where a checkpoint is taken decides what a restart has to make up for. There are four points:

``batch``
    after a batch behind which no validation is due, inside an epoch. Lightning continues with the next batch.
``validation due``
    after a batch behind which a validation is due, before it. Lightning would skip the validation.
``validated``
    after that validation, inside an epoch. Lightning would skip ``on_validation_model_train`` of the module.
``epoch``
    between two epochs, when all hooks of the one before have run. Lightning would skip the start of the next one.

In each case the restart sets Lightning's progress so that it goes on exactly there, and everything that
:class:`LiveState` holds is put back: state of a module, its data and its callbacks that changes in training and stands
in no ``state_dict``. Lightning's checkpoint holds weights, optimizers, LR schedules, and the states that callbacks
declare. A module that anneals a coefficient, unfreezes a layer, counts epochs or keeps a running value does so in plain
attributes; torchmetrics keep their sums there too.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.core.mixins.hparams_mixin import HyperparametersMixin
from lightning.pytorch.utilities.model_helpers import is_overridden
from torchmetrics import Metric

from lightning_hpo.training.attributes import Attributes, mark_of, put_back, with_helpers
from lightning_hpo.training.loaders import followed_objects, rewind
from lightning_hpo.training.lr_schedule import nested
from lightning_hpo.training.random_state import rng_state, set_rng_state
from lightning_hpo.training.trainer import validation_is_due
from lightning_hpo.training.trial_info import resume_in

Point = Literal["batch", "validation due", "validated", "epoch"]
State = dict[str, Any]
# Arguments of `self.log`, as Lightning keeps them, that are plain values.
_HOW = ("fx", "name", "prog_bar", "logger", "on_step", "on_epoch", "enable_graph", "add_dataloader_idx",
        "metric_attribute")  # fmt: skip
_REDUCTIONS = (torch.mean, torch.sum, torch.max, torch.min, sum, max, min)  # all that `self.log` takes
# What its `state_dict` leaves out, and what decides whether it saves at the end.
_OF_MODEL_CHECKPOINT = ("_last_global_step_saved", "_last_checkpoint_saved", "_defer_save_until_validation")
# Of a Trainer, that hooks of a module change and Lightning reads at each step or epoch.
_SETTINGS = ("gradient_clip_val", "gradient_clip_algorithm", "check_val_every_n_epoch")


class Resumable:
    """Makes training independent of where it is cut, and of validations in between.

    A callback owns it, passes its hooks on, and puts :meth:`state` into its own state. Its ``on_train_start`` should
    come after those of other callbacks, and :meth:`begin` after that of the module.
    """

    def __init__(self) -> None:
        self._after_step: torch.Tensor | None = None
        self._before_validation: dict[str, Any] | None = None
        self._restored: dict[str, Any] | None = None
        self._live: LiveState
        self._module: pl.LightningModule
        self._modes: dict[str, bool] | None = None
        self._restarted = False

    # What a checkpoint keeps

    def state(self, trainer: pl.Trainer, point: Point) -> dict[str, Any]:
        """Return what a checkpoint taken now, at a point of the run, has to hold."""
        loop = trainer.fit_loop
        due = bool(loop._should_reload_train_dl)  # noqa: SLF001  # no public name
        if point == "epoch":
            rewind(trainer.train_dataloader, reloads=due)
        modes = None
        if point == "validated":
            loop.epoch_loop.val_loop._results.reset()  # noqa: SLF001  # Lightning does so a moment later
            modes = None if _returns_to_training(trainer.lightning_module) else self._modes
        live = self._live.state(modes)
        parts = [getattr(trainer, "parts", 1), getattr(trainer, "val_parts", 1)]
        # Of loaders that are made anew now and then; where that is due, the restart does it.
        now_and_then = getattr(trainer, "reload_dataloaders_every_n_epochs", 0) and not due
        reloaded = loop._last_train_dl_reload_epoch if now_and_then else trainer.current_epoch  # noqa: SLF001  # as above
        random = rng_state()
        kept = {"point": point, "random": random, "live": live, "parts": parts}
        return {**kept, "reloaded": reloaded}

    def state_of_module(self, trainer: Any) -> dict[str, Any]:
        """Return what a checkpoint that is not continued has to hold, right after a validation."""
        assert self._live is not None
        trainer.fit_loop.epoch_loop.val_loop._results.reset()  # noqa: SLF001  # Lightning does so a moment later
        return {"live": self._live.state()}

    def load(self, state: dict[str, Any], loops: dict[str, Any]) -> None:
        """Take over what a checkpoint holds, and change the progress that Lightning restores its loops from."""
        self._restored = state
        if state["point"] == "epoch":
            for progress in loops["epoch_progress"].values():  # as if the next one had not been asked for
                progress["ready"] = progress["started"] = progress["processed"] = progress["completed"]
        if state["point"] == "validation due":
            for progress in (loops["epoch_loop.batch_progress"][part] for part in ("total", "current")):
                progress["completed"] = progress["processed"]
            for progress in (loops["epoch_loop.val_loop.batch_progress"][part] for part in ("total", "current")):
                # Lightning finishes a validation of which a batch was begun; in on_validation_start it begins anew.
                progress["started"] = progress["ready"] = progress["completed"] + 1
                progress["processed"] = progress["completed"]

    # Hooks

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        """Put everything back and set Lightning to where the checkpoint was taken."""
        self._live, self._module = LiveState(trainer, module), module
        self._restarted = self._restored is not None
        if self._restored is None:
            return
        set_rng_state(self._restored["random"])
        self._live.restore(self._restored["live"])
        loop = trainer.fit_loop
        if "reloaded" in self._restored:  # older checkpoints have none
            loop._last_train_dl_reload_epoch = self._restored["reloaded"]  # noqa: SLF001  # as in `state`
        if self._restored["point"] == "epoch":
            loop.epoch_loop.restarting = False
        elif self._restored["point"] == "batch":
            loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
        elif self._restored["point"] == "validated" and not validation_is_due(trainer):
            # The job alone has asked for the validation, so Lightning goes on with a batch, not with what follows one.
            loop.epoch_loop.update_lr_schedulers("step", update_plateau_schedulers=True)
            loop.epoch_loop._batches_that_stepped += not loop.epoch_loop._should_accumulate()  # noqa: SLF001  # as above

    def begin(self, *, hparams: bool = True) -> None:
        """Put back what hooks after :meth:`on_train_start` may have reset; what comes next is a batch or an epoch.

        Hyperparameters only with ``hparams``: those of a population have been changed since.
        """
        if self._restored is not None:
            live = self._restored["live"]
            changes = {k: v for k, v in live["attributes"].items() if hparams or not k.endswith(" hparams")}
            self._live.restore({**live, "attributes": changes}, with_stop=False)  # a stop asked for since counts
            set_rng_state(self._restored["random"])
            if self._restored["point"] == "validated" and _returns_to_training(self._module):
                self._module.on_validation_model_train()
            if self._restored["point"] != "validation due":  # that comes first
                self._restored = None

    def on_batch_end(self, trainer: pl.Trainer, *, may_validate: bool = True) -> None:
        """Remember torch's generator: a validation loader draws from it before any validation hook is called."""
        if may_validate:
            self._after_step = torch.get_rng_state()

    def before_validation(self) -> None:
        """Remember which submodules train, for a checkpoint after the validation."""
        self._modes = self._live.modes()

    def on_validation_start(self, trainer: pl.Trainer) -> None:
        """Remember the other generators."""
        restored = self._restored
        if restored is not None and restored["point"] == "validation due":  # the restart makes up for it
            trainer.fit_loop.epoch_loop.val_loop.batch_progress.total.reset_on_restart()
            self._modes = dict(restored["live"]["training"])
            self._before_validation, self._restored = restored["random"], None
        elif self._after_step is not None:
            self._before_validation = {**rng_state(), "torch": self._after_step}

    def on_validation_end(self, trainer: pl.Trainer) -> None:
        """Continue training as if no validation had happened."""
        if self._before_validation is not None:
            set_rng_state(self._before_validation)
            self._before_validation = None

    def on_train_epoch_end(self, trainer: pl.Trainer) -> None:
        """Let Lightning do at the end of a restarted epoch what it does at the end of any."""
        if self._restarted:
            trainer.fit_loop.on_iteration_done()
            self._restarted = False


def _returns_to_training(module: pl.LightningModule) -> bool:
    """Whether the module has a hook of its own that follows a validation when all others have run."""
    return is_overridden("on_validation_model_train", module)


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
            "requires_grad": {name: flag for name, flag in gradients.items() if self._gradients.get(name) != flag},
            "training": dict(self.modes() if modes is None else modes),
            "buffers": {k: buffer for k, buffer in _other_buffers(self._module) if marks.get(k) != mark_of(buffer)},
            "metrics": {
                k: torch.as_tensor(v).detach().cpu().clone() for k, v in self._trainer.callback_metrics.items()
            },
            "accumulate_grad_batches": self._trainer.accumulate_grad_batches,
            "should_stop": self._trainer.should_stop and not self._trainer.stopped_by_job,
            "logged": _logged(self._trainer.fit_loop.epoch_loop._results),  # noqa: SLF001  # no public name
            "saved": [
                {name: getattr(found, name) for name in _OF_MODEL_CHECKPOINT} for found in self._model_checkpoints()
            ],
            "settings": {k: now for k, now in self._settings_now().items() if now != self._settings[k]},
        }

    def restore(self, state: State, *, with_stop: bool = True) -> None:
        """Put the result of :meth:`state` back; the Trainer's ``should_stop`` too if ``with_stop``."""
        put_back(self._owners(), state["attributes"], self._module.device)
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
        if "logged" in state:  # older checkpoints have neither
            _log_again(self._trainer, self._module, state["logged"])
            vars(self._trainer).update(state["settings"])
            for callback, saved in zip(self._model_checkpoints(), state["saved"], strict=False):
                vars(callback).update(saved)
        metrics = {name: torch.as_tensor(value).clone() for name, value in state["metrics"].items()}
        self._trainer.callback_metrics.update(metrics)
        self._trainer.accumulate_grad_batches = state["accumulate_grad_batches"]
        if with_stop:
            self._trainer.should_stop = state["should_stop"]  # a callback has asked for it, and min_epochs delays it

    def _model_checkpoints(self) -> list[ModelCheckpoint]:
        return [callback for callback in self._trainer.callbacks if isinstance(callback, ModelCheckpoint)]

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
