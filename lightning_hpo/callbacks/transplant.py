"""Everything that a member hands on with its weights, and how another one takes it over in place.

Taken over are weights and buffers, the optimizer's state, precision scalers, weight averages, and schedules that follow
a metric. Not taken over are clocks: step, epoch, place in the data, and the place on an LR schedule are a member's own,
so a late member still ends its schedule where its training ends.
"""

import math
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from lightning_utilities.core.apply_func import apply_to_collection
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

State = dict[str, Any]


def capture(trainer: pl.Trainer, module: pl.LightningModule) -> State:
    """Refer to the state of a live Trainer; nothing is copied, so it must not train before the state is used."""
    return {
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "kinds": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "plateaus": [schedule.state_dict() for schedule in _plateaus(trainer)],
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
    module.load_state_dict(state["module"])
    for optimizer, donor in zip(trainer.optimizers, state["optimizers"], strict=True):
        _take_moments(optimizer, donor)
        optimizer.zero_grad()
    for schedule, values in zip(_plateaus(trainer), state["plateaus"], strict=True):
        schedule.load_state_dict(values)
        index = trainer.optimizers.index(schedule.optimizer)
        for group, donor in zip(
            schedule.optimizer.param_groups, state["optimizers"][index]["param_groups"], strict=True
        ):
            group.update({name: donor[name] for name in ("lr", "initial_lr") if name in donor})
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


def _take_moments(optimizer: Optimizer, donor: State) -> None:
    """Copy per-parameter state into the buffers that are there; settings of the groups stay."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    own = {index: optimizer.state.get(parameter, {}) for index, parameter in enumerate(parameters)}
    fits = all(
        set(values) == set(own[index]) and all(_fits(own[index][name], value) for name, value in values.items())
        for index, values in donor["state"].items()
    ) and all(index in donor["state"] or not values for index, values in own.items())
    if not fits:  # one of the two has not taken a step yet, or keeps other things than tensors
        copied = apply_to_collection(donor["state"], torch.Tensor, torch.clone)
        optimizer.load_state_dict({"state": copied, "param_groups": optimizer.state_dict()["param_groups"]})
        return
    for index, values in donor["state"].items():
        for name, value in values.items():
            own[index][name].copy_(value)


def _fits(own: Any, value: Any) -> bool:
    return isinstance(own, torch.Tensor) and isinstance(value, torch.Tensor) and own.shape == value.shape


def _plateaus(trainer: pl.Trainer) -> list[ReduceLROnPlateau]:
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
    return [schedule for schedule in schedules if isinstance(schedule, ReduceLROnPlateau)]


def _averages(trainer: pl.Trainer) -> list[torch.nn.Module]:
    callbacks = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]  # set by Trainer
    models = [one._average_model for one in callbacks]  # noqa: SLF001  # WeightAveraging has no public name for it
    return [model for model in models if model is not None]
