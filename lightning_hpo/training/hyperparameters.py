"""Hyperparameters of a module that trains: the values that each of them changes, and how they are set and read back.

A name of the space is bound to the values that change with it: the module is built again with other hyperparameters,
and the name stands for everything in which the builds differ. So ``lr`` finds the groups that are built with a
tenth of it and a schedule's ``max_lr``, ``dropout`` finds attention, recurrent layers and ``self.p``, and a layer that
happens to hold the same value is left alone. To change values, a new build with them is compared with a new build
with those before, both at the step of the live schedules, and the differences are copied.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.space import SearchSpace, from_unit, split_name
from lightning_hpo.space.names import part
from lightning_hpo.training.leaves import Fixed, Path, copy_of, get, leaves, put, put_and_check, same, text
from lightning_hpo.training.places import (
    BATCH_SIZE,
    TRAINER,
    Loaders,
    batch_size_in_use,
    batch_size_paths,
    group_paths,
    trainer_path,
)
from lightning_hpo.training.random_state import seeded
from lightning_hpo.training.rebuild import (
    Effect,
    Rebuild,
    Roots,
    advance,
    differing,
    is_rate,
    live_roots,
    note_base_lrs,
    of_module,
    other_values,
    twin,
    with_share,
)

HOOK = "on_hyperparameters"


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
        space: SearchSpace,
        trainer: pl.Trainer,
        module: pl.LightningModule,
        rebuild: Rebuild | None = None,
    ) -> None:
        self._trainer: Any = trainer
        self._module = module
        self._owners: dict[str, Any] = {"model": module, "data": getattr(trainer, "datamodule", None)}
        note_base_lrs(trainer.optimizers)
        self._rebuild = rebuild or of_module(trainer, module, space)
        self._deliver = space.deliver
        self._direct: dict[str, list[Path]] = {}  # of names whose value itself stands at these paths
        self._in_builds: list[str] = []  # names whose values show in a build
        self._paths: set[Path] = set()  # of the values that they change
        rest = [name for name in space if not self._bind_by_name(name)]
        if self._rebuild is not None:
            self._rebuild.find_effects(rest, space, trainer)
        for name in rest:
            self._bind(name, space)
        self._applied: Mapping[str, Any] = {} if self._rebuild is None else self._rebuild.params
        self._written: dict[Path, Any] = {}
        self._last_read: dict[Path, Any] = {}
        self._data: Mapping[str, Any] = {}
        self._loaders = Loaders(self._trainer)
        self._batch_sizes: dict[str, int] = {}  # that the loader of the next epoch must have

    def apply(self, params: Mapping[str, Any], *, copied: bool = False) -> None:
        """Set the values of the hyperparameters, and call ``on_hyperparameters`` of module and data module.

        Args:
            params: all of them.
            copied: whether weights and optimizer state of another member have just been taken over.

        Raises:
            ParameterMismatchError: if a value that was asked for is not in effect afterwards.
        """
        values = self._deliver(params)
        self._write_direct(values, self._direct)
        self._change_data(params)
        self._write_built(params, copied=copied)
        self._tell("model", values)
        live = self._roots()
        for name, paths in self._direct.items():
            for effective in (get(live, path) for path in paths):
                if not same(effective, values[name]):
                    raise ParameterMismatchError(f"{name}={values[name]!r} was asked for, {effective!r} is in effect.")

    def restored(self, params: Mapping[str, Any]) -> None:
        """Take note that a checkpoint was restored that was written with ``params``."""
        self._applied = {**self._applied, **params}

    def prepare(self, params: Mapping[str, Any]) -> bool:
        """Set only the values that a new epoch needs before it begins, ahead of :meth:`apply`.

        Returns:
            Whether the loaders of the next epoch are to be made again.
        """
        renewed = self._write_direct(self._deliver(params), [name for name in self._direct if _is_batch_size(name)])
        return self._change_data(params) or renewed

    def of_epoch(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the hyperparameters that :meth:`prepare` changes."""
        batch_sizes = [name for name in self._direct if _is_batch_size(name)]
        return {name: value for name, value in params.items() if split_name(name)[0] == "data" or name in batch_sizes}

    def read_back(self, params: Mapping[str, Any]) -> None:
        """Check that the last changes are in effect.

        A value that the user's own schedule, callback or code changes in training is no mismatch. A value that stays
        where it was although the hyperparameter has changed is.

        Raises:
            ParameterMismatchError: naming the value.
        """
        live = self._roots()
        now = {path: _value(live, path) for path in self._paths}
        for path, wanted in self._written.items():
            stays = path in self._last_read and same(now.get(path), self._last_read[path])
            if stays and not same(now.get(path), wanted) and not is_rate(path):
                raise ParameterMismatchError(
                    f"{text(path)}={wanted!r} was asked for, {now[path]!r} is in effect as before: something sets it in"
                    " training. Let it use the hyperparameter, or take the name out of the space."
                )
        self._last_read = {path: copy_of(value) for path, value in now.items()}

    def on_epoch_start(self) -> None:
        """Read back the values that take effect with a new epoch only."""
        self._loaders.restore()
        asked, self._batch_sizes = self._batch_sizes, {}
        for size in asked.values():
            if (in_use := batch_size_in_use(self._trainer)) != size:
                raise ParameterMismatchError(
                    f"{BATCH_SIZE}={size!r} was asked for, the loader has {in_use!r}: "
                    f"let train_dataloader() read self.{BATCH_SIZE}."
                )

    def _roots(self) -> Roots:
        return {**live_roots(self._trainer, self._module), "trainer": [self._trainer]}

    def _hook_roots(self) -> Roots:
        """Roots of all values that ``on_hyperparameters`` may set."""
        return {**live_roots(self._trainer, self._module), "callbacks": list(self._trainer.callbacks)}

    def _bind_by_name(self, name: str) -> bool:
        head, key = split_name(name)
        if head == "trainer":
            if key not in TRAINER:
                raise MisconfigurationException(
                    f"{name!r} cannot change while training; of the Trainer only {', '.join(TRAINER)} can."
                )
            self._direct[name] = [trainer_path(key)]
        elif _is_batch_size(name) and head in self._owners:
            self._direct[name] = batch_size_paths(head, self._owners[head])
            if not self._direct[name]:
                raise MisconfigurationException(
                    f"{name!r} needs a data module whose train_dataloader() reads self.batch_size."
                )
        return name in self._direct

    def _bind(self, name: str, space: SearchSpace) -> None:
        effect = None if self._rebuild is None else self._rebuild.effects.get(name)
        if effect is not None and effect.paths and not effect.fixed:
            live = self._roots()
            if all(_value(live, path) is not _MISSING for path in effect.paths):
                self._in_builds.append(name)
                self._paths |= effect.paths | effect.unread
                return
        if space[name].single():
            return
        if hasattr(self._owners.get(split_name(name)[0]), HOOK):
            owner = self._owners[split_name(name)[0]]
            if not _hook_uses(name, space, owner, self._hook_roots):
                raise MisconfigurationException(
                    f"{name!r} is in the space, but {HOOK}(self, hparams) changes nothing with it. Let it set the"
                    f" value that hparams[{split_name(name)[1]!r}] stands for, or take the name out of the space."
                )
            return
        paths = [] if effect is not None else group_paths(name, self._trainer)
        if not paths:
            raise MisconfigurationException(_why_not(name, effect, self._trainer))
        self._direct[name] = paths

    def _write_direct(self, params: Mapping[str, Any], names: Iterable[str]) -> bool:
        """Write values at their paths, and say whether the loader is to be made again for a batch size."""
        live, renewed = self._roots(), False
        for name in names:
            for path in self._direct[name]:
                put(live, path, params[name])
            if _is_batch_size(name):
                self._batch_sizes[name] = params[name]
                if self._trainer.train_dataloader is not None and batch_size_in_use(self._trainer) != params[name]:
                    self._loaders.renew()
                    renewed = True
        return renewed

    def _builds(self, params: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return the arguments of a build as it is in effect, and of one with ``params``."""
        assert self._rebuild is not None
        before = {
            **self._rebuild.params,
            **{name: self._applied[name] for name in self._in_builds if name in self._applied},
        }
        return before, {**before, **{name: params[name] for name in self._in_builds if name in params}}

    def _write_built(self, params: Mapping[str, Any], *, copied: bool) -> None:
        if self._rebuild is None or not self._in_builds:
            return
        before, after = self._builds(params)
        self._applied = dict(after)
        if before == after and not copied:
            return
        live = self._roots()
        old, new = (twin(self._trainer, self._rebuild.build, values) for values in (before, after))
        for build in (old, new):
            advance(build.roots["schedules"], live["schedules"])
        was, wanted = old.leaves(), new.leaves()
        paths = {path for path in differing(was, wanted) if path[0] != ("item", "data")}
        if copied:  # another member's values came along with its groups and buffers
            paths |= {path for path in self._paths if _COPIED & set(path)}
        self._written = {}
        self._write(live, paths, was, wanted)
        for schedule in live["schedules"]:
            if hasattr(schedule, "_last_lr"):
                schedule._last_lr = [copy_of(group["lr"]) for group in schedule.optimizer.param_groups]  # noqa: SLF001

    def _write(self, live: Roots, paths: set[Path], was: Mapping[Path, Any], wanted: Mapping[Path, Any]) -> None:
        """Write the values of a new build at paths where it differs from a build of the values in effect."""
        for path in sorted(paths, key=repr):
            value = wanted.get(path, _MISSING)
            if value is _MISSING or isinstance(value, Fixed):
                raise ParameterMismatchError(
                    f"{text(path)} needs a new module with {self._applied!r}: the hyperparameters cannot change"
                    " together."
                )
            if is_rate(path) and (current := _value(live, path)) is not _MISSING:
                value = with_share(value, current, was.get(path))
            put_and_check(live, path, value)
            self._written[path] = copy_of(value)

    def _change_data(self, params: Mapping[str, Any]) -> bool:
        """Change the data module, once for each change; say whether the loaders are to be made again for it."""
        own = {name: value for name, value in params.items() if split_name(name)[0] == "data"}
        if own == self._data or not own:
            return False
        rebuilt = any(name in self._in_builds for name in own)
        if rebuilt and self._rebuild is not None:
            with seeded():
                old, new = (self._rebuild.build(values)[1] for values in self._builds(own))
            was, wanted = leaves({"data": [old]}), leaves({"data": [new]})
            self._write(self._roots(), differing(was, wanted), was, wanted)
        self._tell("data", self._deliver(params))
        self._data = own
        renewed = rebuilt or hasattr(self._owners["data"], HOOK)  # workers then see the new values
        if renewed:
            self._loaders.renew()
        return renewed

    def _tell(self, head: str, params: Mapping[str, Any]) -> None:
        """Put the values that no build puts there into ``hparams``, and call ``on_hyperparameters``."""
        owner, own = self._owners[head], part(params, head)
        if owner is None or not own:
            return
        rebuilt = part(dict.fromkeys(self._in_builds), head)
        owner.hparams.update({key: own[key] for key in own if key in owner.hparams and key not in rebuilt})
        hook: Callable[[dict[str, Any]], None] | None = getattr(owner, HOOK, None)
        if hook is not None:
            hook(own)


_MISSING = object()
_COPIED = {("attribute", "param_groups"), ("attribute", "_buffers")}


def _hook_uses(
    name: str,
    space: SearchSpace,
    owner: Any,
    roots: Callable[[], Roots],
) -> bool:
    """Call the owner's hook with the first value, another, and the first again, and compare the values that it sets."""
    head, key = split_name(name)
    middle = space.deliver({other: from_unit(distribution, 0.5) for other, distribution in space.items()})
    first, *others = (space.deliver({name: value})[name] for value in other_values(space[name]))

    def set_by(value: Any) -> dict[Path, Any]:
        getattr(owner, HOOK)({**part(middle, head), key: value})
        return {path: copy_of(found) for path, found in leaves(roots()).items()}

    before = set_by(first)
    for other in others:
        moved = differing(before, set_by(other))
        if moved - differing(before, set_by(first)):  # what moves with every call does not depend on the value
            return True
    return False


def _why_not(name: str, effect: Effect | None, trainer: Any) -> str:
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


def _is_batch_size(name: str) -> bool:
    return split_name(name)[1] == BATCH_SIZE
