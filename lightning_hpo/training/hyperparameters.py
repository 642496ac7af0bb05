"""Hyperparameters of a module that trains: what each of them changes, how to change it, what is in effect.

A name of the space is bound to what changes when it changes: the module is built again with other values, and
everything in which the builds differ is what the name stands for. So ``lr`` finds the groups that are built with a
tenth of it and a schedule's ``max_lr``, ``dropout`` finds attention, recurrent layers and ``self.p``, and a layer that
happens to hold the same value is left alone. To change values, a new build with them is compared with a new build
with those before, both at the step of the schedules at work, and what differs is copied.
"""

from collections.abc import Callable, Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from optuna.distributions import BaseDistribution

from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.space import SearchSpace, from_unit, split_name
from lightning_hpo.training.leaves import Fixed, Path, get, leaves, put, same, text
from lightning_hpo.training.places import BatchSize, Loaders, Setting, TrainerSetting
from lightning_hpo.training.rebuild import (
    Effect,
    Rebuild,
    differing,
    is_rate,
    live_roots,
    note_base_lrs,
    of_module,
    other_values,
    own_random_numbers,
    twin,
)

HOOK = "on_hyperparameters"
# Settings of the Trainer that it reads at every step.
_TRAINER = ("gradient_clip_val",)


class Hyperparameters:
    """All hyperparameters of a space, bound to a Trainer and its module.

    Create it in ``on_fit_start``, before a checkpoint is restored.

    Args:
        space: name -> distribution.
        trainer: with its optimizers.
        module: that it trains.
        rebuild: how to build the module again. Default: from its class and its saved hparams, if they allow it.

    Raises:
        MisconfigurationException: if a hyperparameter changes nothing that can change while training.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        trainer: pl.Trainer,
        module: pl.LightningModule,
        rebuild: Rebuild | None = None,
    ) -> None:
        self._trainer: Any = trainer
        self._module = module
        self._owners: dict[str, Any] = {"model": module, "data": getattr(trainer, "datamodule", None)}
        note_base_lrs(trainer.optimizers)
        self._rebuild = rebuild or of_module(trainer, module, space)
        self._deliver = space.deliver if isinstance(space, SearchSpace) else dict
        self._places: dict[str, TrainerSetting | BatchSize | Setting] = {}
        self._built: list[str] = []
        self._paths: set[Path] = set()
        rest = [name for name in space if not self._bind_place(name)]
        if self._rebuild is not None:
            self._rebuild.find_effects(rest, space, trainer)
        for name in rest:
            self._bind(name, space)
        self._applied: Mapping[str, Any] = {} if self._rebuild is None else self._rebuild.params
        self._written: dict[Path, Any] = {}
        self._found: dict[Path, Any] = {}
        self._data: Mapping[str, Any] = {}
        self._loaders = Loaders(self._trainer)

    def apply(self, params: Mapping[str, Any], *, copied: bool = False) -> None:
        """Change what the hyperparameters stand for, and call ``on_hyperparameters`` of module and data module.

        Args:
            params: all of them.
            copied: whether weights and optimizer state of another member have just been taken over.

        Raises:
            ParameterMismatchError: if a value that was asked for is not in effect afterwards.
        """
        values = self._deliver(params)
        for name, place in self._places.items():
            place.write(values[name])
        self._change_data(params)
        self._write_built(params, copied=copied)
        self._tell("model", values)
        self._check_places(values)

    def restored(self, params: Mapping[str, Any]) -> None:
        """Take note that a checkpoint was restored that was written with ``params``."""
        self._applied = {**self._applied, **params}

    def prepare(self, params: Mapping[str, Any]) -> None:
        """Change only what a new epoch needs before it begins, ahead of :meth:`apply`."""
        for name, place in self._places.items():
            if isinstance(place, BatchSize):
                place.write(params[name])
        self._change_data(params)

    def read_back(self, params: Mapping[str, Any]) -> None:
        """Look whether what was changed last is in effect.

        A value that the user's own schedule, callback or code changes in training is no mismatch. One that stays where
        it was although the hyperparameter has changed is.

        Raises:
            ParameterMismatchError: naming the value.
        """
        live = live_roots(self._trainer, self._module)
        now = {path: _value(live, path) for path in self._paths}
        for path, wanted in self._written.items():
            stays = path in self._found and same(now.get(path), self._found[path])
            if stays and not same(now.get(path), wanted) and not is_rate(path):
                raise ParameterMismatchError(
                    f"{text(path)}={wanted!r} was asked for, {now[path]!r} is in effect as before: something sets it in"
                    " training. Let it use the hyperparameter, or take the name out of the space."
                )
        self._found = {path: _copied(value) for path, value in now.items()}

    def on_epoch_start(self) -> None:
        """Read back what takes effect with a new epoch only."""
        self._loaders.restore()
        for place in self._places.values():
            if isinstance(place, BatchSize):
                place.check_loader()

    def _bind_place(self, name: str) -> bool:
        head, key = split_name(name)
        if head == "trainer":
            if key not in _TRAINER:
                raise MisconfigurationException(
                    f"{name!r} cannot change while training; of the Trainer only {', '.join(_TRAINER)} can."
                )
            self._places[name] = TrainerSetting(self._trainer, key)
        elif key == "batch_size" and head in self._owners:
            owner = self._owners[head]
            if not (hasattr(owner, key) or key in getattr(owner, "hparams", {})):
                raise MisconfigurationException(
                    f"{name!r} needs a data module whose train_dataloader() reads self.batch_size."
                )
            self._places[name] = BatchSize(self._trainer, owner, key)
        return name in self._places

    def _bind(self, name: str, space: Mapping[str, BaseDistribution]) -> None:
        effect = None if self._rebuild is None else self._rebuild.effects.get(name)
        if effect is not None and effect.paths and not effect.fixed:
            live = live_roots(self._trainer, self._module)
            gone = [path for path in effect.paths if _value(live, path) is _MISSING]
            if not gone:
                self._built.append(name)
                self._paths |= effect.paths | effect.unread
                return
        if space[name].single():
            return
        if hasattr(self._owners.get(split_name(name)[0]), HOOK):
            if not self._hook_takes(name, space):
                raise MisconfigurationException(
                    f"{name!r} is in the space, but {HOOK}(self, hparams) changes nothing with it. Let it set what"
                    f" hparams[{split_name(name)[1]!r}] is about, or take the name out of the space."
                )
            return
        setting = None if effect is not None else Setting.of(name, self._trainer)
        if setting is None:
            raise MisconfigurationException(_refusal(name, effect, self._trainer))
        self._places[name] = setting

    def _hook_takes(self, name: str, space: Mapping[str, BaseDistribution]) -> bool:
        """Call the hook with one value, another, and the first again; what follows is what it sets."""
        head, key = split_name(name)
        owner = self._owners[head]
        middle = self._deliver({one: from_unit(space[one], 0.5) for one in space})
        own = {split_name(one)[1]: value for one, value in middle.items() if split_name(one)[0] == head}
        values = [self._deliver({name: value})[name] for value in other_values(space[name])]

        def looks(value: Any) -> dict[Path, Any]:
            getattr(owner, HOOK)({**own, key: value})
            live = {**live_roots(self._trainer, self._module), "callbacks": list(self._trainer.callbacks)}
            return {path: _copied(one) for path, one in leaves(live).items()}

        first = looks(values[0])
        return any(
            not same(first.get(path), value) for other in values[1:] for path, value in looks(other).items()
            if same(first.get(path), looks(values[0]).get(path))
        )  # fmt: skip

    def _write_built(self, params: Mapping[str, Any], *, copied: bool) -> None:
        if self._rebuild is None or not self._built:
            return
        before = {**self._rebuild.params, **{n: v for n, v in self._applied.items() if n in self._built}}
        after = {**self._rebuild.params, **{name: params[name] for name in self._built}}
        self._applied = dict(after)
        if before == after and not copied:
            return
        live = live_roots(self._trainer, self._module)
        old, new = (twin(self._trainer, self._rebuild.build, one) for one in (before, after))
        for one in (old, new):
            one.advance(live["schedules"])
        was, wanted = old.leaves(), new.leaves()
        paths = {path for path in differing(was, wanted) if path[0] != ("item", "data")}
        if copied:  # another member's values came along with its groups and buffers
            paths |= {path for path in self._paths if _COPIED & set(path)}
        self._written = {}
        for path in sorted(paths, key=repr):
            self._write(live, path, was.get(path), wanted.get(path, _MISSING))
        for schedule in live["schedules"]:
            if hasattr(schedule, "_last_lr"):
                schedule._last_lr = [_copied(group["lr"]) for group in schedule.optimizer.param_groups]  # noqa: SLF001

    def _write(self, live: Any, path: Path, was: Any, wanted: Any) -> None:
        if wanted is _MISSING or isinstance(wanted, Fixed):
            raise ParameterMismatchError(
                f"{text(path)} needs a new module with {self._applied!r}: the hyperparameters cannot change together."
            )
        value = wanted
        if is_rate(path):
            current = _value(live, path)
            if current is not _MISSING and not same(current, was) and was is not None and float(was) != 0:
                # Moved by the user's own code or by ReduceLROnPlateau: keep that, as a share.
                value = float(current) * (float(wanted) / float(was))
        try:
            put(live, path, value)
            effective = get(live, path)
        except LookupError as error:
            raise ParameterMismatchError(f"{text(path)}={value!r} was asked for, and cannot be set: {error}") from error
        if not same(effective, value) and not (is_rate(path) and abs(float(effective) / float(value) - 1) < 1e-6):
            raise ParameterMismatchError(f"{text(path)}={value!r} was asked for, {effective!r} is in effect.")
        self._written[path] = _copied(value)

    def _change_data(self, params: Mapping[str, Any]) -> None:
        """Change the data module, once for each change: the loaders are made again, so workers see the new values."""
        own = {name: value for name, value in params.items() if split_name(name)[0] == "data"}
        if own == self._data or not own:
            return
        built = [name for name in own if name in self._built]
        if built and self._rebuild is not None:
            live = live_roots(self._trainer, self._module)
            before = {
                **self._rebuild.params,
                **{name: self._applied.get(name) for name in built if name in self._applied},
            }
            with own_random_numbers():
                old, new = (self._rebuild.build(one)[1] for one in (before, {**before, **{n: own[n] for n in built}}))
            was, wanted = leaves({"data": [old]}), leaves({"data": [new]})
            for path in sorted(differing(was, wanted), key=repr):
                self._write(live, path, was.get(path), wanted.get(path, _MISSING))
        self._tell("data", self._deliver(params))
        self._data = own
        if built or hasattr(self._owners["data"], HOOK):
            self._loaders.renew()

    def _tell(self, head: str, params: Mapping[str, Any]) -> None:
        """Put into ``hparams`` what no build puts there, and call ``on_hyperparameters``."""
        owner = self._owners[head]
        own = {split_name(name)[1]: value for name, value in params.items() if split_name(name)[0] == head}
        if owner is None or not own:
            return
        built = {split_name(name)[1] for name in self._built if split_name(name)[0] == head}
        owner.hparams.update({name: one for name, one in own.items() if name in owner.hparams and name not in built})
        hook: Callable[[dict[str, Any]], None] | None = getattr(owner, HOOK, None)
        if hook is not None:
            hook(own)

    def _check_places(self, params: Mapping[str, Any]) -> None:
        for name, place in self._places.items():
            for effective in place.read():
                if not same(effective, params[name]):
                    raise ParameterMismatchError(f"{name}={params[name]!r} was asked for, {effective!r} is in effect.")


_MISSING = object()
_COPIED = {("attribute", "param_groups"), ("attribute", "_buffers")}


def _refusal(name: str, effect: Effect | None, trainer: Any) -> str:
    head, key = split_name(name)
    owner = "data module" if head == "data" else "module"
    hook = f"define {HOOK}(self, hparams) in the {owner}"
    if effect is None:
        return (
            f"{name!r}: it cannot be found out what it changes, as the {owner} cannot be built again with another"
            f" value. Call self.save_hyperparameters() in its __init__, with {key!r} among the arguments, or {hook}."
        )
    if effect.error is not None:
        return f"{name!r}: the {owner} cannot be built with other values of it: {effect.error}"
    if effect.fixed:
        return (
            f"{name!r} cannot change while training: it needs a new module (as a hidden size does), which does not"
            " belong into the space of a population."
        )
    moved = any(getattr(config.scheduler, "cycle_momentum", False) for config in trainer.lr_scheduler_configs)
    if moved and key in ("momentum", "beta1", "betas"):
        return f"{name!r} is in the space, but the LR schedule moves the momentum: give it cycle_momentum=False."
    only = ", only the initial weights" if effect.weights else ""
    return (
        f"{name!r} changes nothing that training reads{only}: no optimizer setting, schedule, layer or attribute."
        f" Take it out of the space, use it in the {owner}, or {hook}."
    )


def _value(live: Any, path: Path) -> Any:
    try:
        return get(live, path)
    except LookupError:
        return _MISSING


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
