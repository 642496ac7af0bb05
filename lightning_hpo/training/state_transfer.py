"""Everything that a member hands on with its weights, and how another one takes it over in place.

Taken over are weights and buffers, what the module adds to a checkpoint, the optimizer's state (in its parameter groups
too), precision scalers, weight averages, and schedules that follow a metric. Not taken over are clocks: step, epoch,
place in the data, and the place on an LR schedule are a member's own, so a late member still ends its schedule where
its training ends. Hyperparameters are applied afterwards.
"""

import copy
import math
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning import __version__
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.types import LRSchedulerConfig
from lightning_utilities.core.apply_func import apply_to_collection
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_hpo.training.live_state import put_back_buffers

State = dict[str, Any]

# What an LR schedule keeps in a parameter group.
_OF_SCHEDULES = ("params", "initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")


def capture(trainer: pl.Trainer, module: pl.LightningModule) -> State:
    """Refer to the state of a live Trainer; nothing is copied, so it must not train before the state is used."""
    saved, added = module.state_dict(), {}
    if is_overridden("on_save_checkpoint", module, pl.LightningModule):
        checkpoint = {**_of_lightning(trainer, module), "state_dict": saved}
        before = {name: _items(value) for name, value in checkpoint.items()}
        module.on_save_checkpoint(checkpoint)
        saved = checkpoint.pop("state_dict")
        added = {name: value for name, value in checkpoint.items() if before.get(name) != _items(value)}
    return {
        "module": saved,
        "buffers": {name: buffer for name, buffer in module.named_buffers() if name not in saved},
        "added": added,
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "kinds": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "plateaus": [config.scheduler.state_dict() for config in _plateaus(trainer)],
        "metrics": {name: float(value) for name, value in trainer.callback_metrics.items()},
        "precision": trainer.precision_plugin.state_dict(),
        "averages": [average.state_dict() for average in _averages(trainer)],
    }


@torch.no_grad()
def transplant(state: State, trainer: pl.Trainer, module: pl.LightningModule) -> None:
    """Take over what :func:`capture` refers to, or what was read from a file; shares no tensor with it afterwards.

    Gradients that were being accumulated are dropped, and EarlyStopping counts anew: both belong to other weights.

    Raises:
        RuntimeError: if the donor's module or optimizers are built in another way.
    """
    kinds = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    if state["kinds"] != kinds:
        raise RuntimeError(f"the donor trains with {state['kinds']}, this member with {kinds}.")
    _take_module(trainer, module, state)
    for optimizer, donor in zip(trainer.optimizers, state["optimizers"], strict=True):
        _take_moments(optimizer, donor)
        _take_groups(optimizer, donor, [config.scheduler for config in trainer.lr_scheduler_configs])
        optimizer.zero_grad()
    for config, values in zip(_plateaus(trainer), state["plateaus"], strict=True):
        _take_plateau(config, values, state["metrics"])
    trainer.precision_plugin.load_state_dict(state["precision"])
    for average, values in zip(_averages(trainer), state["averages"], strict=True):
        average.load_state_dict(values)
    restart_early_stopping(trainer)


def restart_early_stopping(trainer: pl.Trainer) -> None:
    """Let EarlyStopping count anew from the next validation."""
    for callback in trainer.early_stopping_callbacks:
        callback.wait_count = 0
        callback.best_score = torch.tensor(math.inf if callback.mode == "min" else -math.inf)
        callback.stopping_reason = EarlyStoppingReason.NOT_STOPPED
        callback.stopping_reason_message = None
        callback.stopped_epoch = 0


def _take_module(trainer: pl.Trainer, module: pl.LightningModule, state: State) -> None:
    """Load as Lightning loads a checkpoint, whose hook may change or read what was saved."""
    weights = state["module"]
    if is_overridden("on_load_checkpoint", module, pl.LightningModule):
        checkpoint = {**_of_lightning(trainer, module), **copy.deepcopy(state["added"]), "state_dict": dict(weights)}
        parameters = dict(module.named_parameters())
        module.on_load_checkpoint(checkpoint)
        _keep_parameters(module, parameters)
        weights = checkpoint["state_dict"]
    module.load_state_dict(weights, strict=module.strict_loading)
    put_back_buffers(module, state["buffers"])


def _of_lightning(trainer: pl.Trainer, module: pl.LightningModule) -> State:
    """Return what a checkpoint of Lightning's holds, besides weights and callbacks, when a module's hook sees it."""
    content: State = {
        "epoch": trainer.current_epoch,
        "global_step": trainer.global_step,
        "pytorch-lightning_version": __version__,
        "loops": {"fit_loop": trainer.fit_loop.state_dict()},
        "callbacks": {},
        "optimizer_states": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "lr_schedulers": [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs],
    }
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by Trainer
    for owner in (module, data):
        if owner is not None and owner.hparams:
            content[owner.CHECKPOINT_HYPER_PARAMS_NAME] = owner._hparams_name  # noqa: SLF001  # it has no public name
            content[owner.CHECKPOINT_HYPER_PARAMS_KEY] = dict(owner.hparams)
    return content


def _items(value: Any) -> Any:
    """What tells whether a value was changed, in place too, without comparing tensors."""
    return [(name, id(item)) for name, item in value.items()] if isinstance(value, dict) else id(value)


def _keep_parameters(module: pl.LightningModule, parameters: Mapping[str, torch.nn.Parameter]) -> None:
    """Put back parameters that a hook has replaced together with their module: the optimizer trains these."""
    for name, parameter in parameters.items():
        owner, _, key = name.rpartition(".")
        if module.get_submodule(owner)._parameters.get(key) is not parameter:  # noqa: SLF001  # torch has no other way
            setattr(module.get_submodule(owner), key, parameter)


def _take_groups(optimizer: Optimizer, donor: State, schedules: list[Any]) -> None:
    """Copy what optimizers keep in their groups (a step size that they estimate, sums of weights).

    A learning rate that follows a clock is the member's own; one that has moved otherwise is taken over as a share of
    its base value.
    """
    clocks = [
        schedule
        for schedule in schedules
        if schedule.optimizer is optimizer and not isinstance(schedule, ReduceLROnPlateau)
    ]
    kept = {*_OF_SCHEDULES, "lr"}
    if any(getattr(schedule, "cycle_momentum", False) for schedule in clocks):
        kept |= {"momentum", "betas"}
    for group, other in zip(optimizer.param_groups, donor["param_groups"], strict=True):
        for name, value in other.items():
            if name not in kept:
                group[name] = value.clone() if isinstance(value, torch.Tensor) else copy.deepcopy(value)
        if "lr" in group and not clocks:
            base, of_donor = group.get("initial_lr", group["lr"]), other.get("initial_lr", other["lr"])
            share = float(other["lr"]) / float(of_donor) if float(of_donor) else 1.0
            rate = float(base) if share == 1.0 else float(base) * share
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


def _take_moments(optimizer: Optimizer, donor: State) -> None:
    """Copy per-parameter state into the buffers that are there."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {index: optimizer.state.get(parameter, {}) for index, parameter in enumerate(parameters)}
    fits = all(
        set(values) == set(own[index])
        and all(isinstance(part, torch.Tensor) for part in (*values.values(), *own[index].values()))
        and all(own[index][name].shape == value.shape for name, value in values.items())
        for index, values in donor["state"].items()
    ) and all(index in donor["state"] or not values for index, values in own.items())
    if not fits:  # one of the two has not taken a step yet, or keeps other things than tensors
        copied = apply_to_collection(donor["state"], torch.Tensor, torch.clone)
        optimizer.load_state_dict({"state": copied, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    for index, values in donor["state"].items():
        for name, value in values.items():
            own[index][name].copy_(value)


def _take_plateau(config: LRSchedulerConfig, values: State, metrics: Mapping[str, float]) -> None:
    """Take over a schedule that follows a metric.

    A donor is judged in its validation, before the schedule looks at it; the member's own schedule has looked already.
    """
    schedule: Any = config.scheduler
    looked = schedule.last_epoch
    schedule.load_state_dict(values)
    if config.monitor is not None and looked == schedule.last_epoch + 1 and config.monitor in metrics:
        schedule.step(metrics[config.monitor])


def _plateaus(trainer: pl.Trainer) -> list[LRSchedulerConfig]:
    return [config for config in trainer.lr_scheduler_configs if isinstance(config.scheduler, ReduceLROnPlateau)]


def _averages(trainer: pl.Trainer) -> list[torch.nn.Module]:
    callbacks = [callback for callback in trainer.callbacks if isinstance(callback, WeightAveraging)]  # type: ignore[attr-defined]  # set by Trainer
    models = [callback._average_model for callback in callbacks]  # noqa: SLF001  # WeightAveraging has no public name for it
    return [model for model in models if model is not None]
