"""Builds the components of a trial from the classes or functions that are given to ``fit``."""

import contextlib
import copy
import inspect
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from typing import Any

import lightning.pytorch as pl
from optuna import TrialPruned
from torch import nn

from lightning_hpo.errors import JobError
from lightning_hpo.space.names import nested_config, part, replaced, split_name, value_at
from lightning_hpo.text import listed, nearest
from lightning_hpo.training.builder import Builder, TrialComponents, accepts
from lightning_hpo.training.given_data import CopiedData
from lightning_hpo.training.namespaces import is_a, of_lightning
from lightning_hpo.training.plain_fit import plain_arguments
from lightning_hpo.training.ranks import DISTRIBUTED_ARGUMENTS

_OURS = {
    "max_steps": "it is the budget: give `max_steps` to the tuner",
    "default_root_dir": "every trial has a folder of its own: give `root` to the tuner",
}


class CallableBuilder(Builder):
    """Calls the model with the ``model.`` parameters, the data with ``data.``, and gives ``trainer.`` to the Trainer.

    Args:
        model: class of the module, or any callable that returns a module.
        data: class of the data module, any callable that returns a data module, or None.
        trainer: more arguments for every Trainer; copied for each job.

    Raises:
        TypeError: if ``model`` or ``data`` is an instance, not a class or function.
    """

    def __init__(
        self,
        model: Callable[..., pl.LightningModule],
        data: Callable[..., pl.LightningDataModule] | None,
        trainer: Mapping[str, Any] | None,
    ) -> None:
        self._model = _callable("model", model)
        self._data = None if data is None else _callable("datamodule", data)
        self._trainer = dict(trainer or {})

    @property
    def distributed_arguments(self) -> Mapping[str, Any]:
        """Copies, as a strategy can serve a single Trainer only."""
        return {name: copy.deepcopy(self._trainer[name]) for name in DISTRIBUTED_ARGUMENTS if name in self._trainer}

    @property
    def loader_head(self) -> str:
        """The data, if there are any."""
        return "model" if self._data is None else "data"

    def takes(self, name: str) -> bool:
        """Look into the signatures."""
        head, argument = split_name(name)
        factory = {"model": self._model, "data": self._data}.get(head, pl.Trainer)
        return factory is not None and not isinstance(factory, CopiedData) and argument in _named(factory)

    def check_space(self, names: Mapping[str, Any]) -> None:
        """Compare the names with the signatures of model, data and Trainer."""
        targets: dict[str, Callable[..., Any]] = {"model": self._model, "trainer": pl.Trainer}
        if self._data is not None:
            targets["data"] = self._data
        for name in names:
            head, argument = split_name(name)
            if head == "data" and isinstance(self._data, CopiedData):
                raise ValueError(
                    f"`space` has the name {name!r}, but {self._data.words}, whose arguments cannot be searched: give "
                    "the class of a data module, or a function that returns one, as `datamodule`."
                )
            outer, _, inner = argument.partition(".")
            if head not in targets or not accepts(targets[head], outer):
                _refuse_place(name, head, argument, targets)
            _check_argument(f"`space` has the name {name!r}", targets[head], outer, head)
            if inner and f"{head}.{outer}" not in names and outer not in part(names, head):
                _check_inside(f"`space` has the name {name!r}", targets[head], outer, inner)
        for argument in self._trainer:
            _check_argument(f"`trainer` has the argument {argument!r}", pl.Trainer, argument, "trainer")
            if argument in part(names, "trainer"):
                raise ValueError(f"`trainer` and `space` both give a value for 'trainer.{argument}'.")

    def defaults(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return default values of the signatures, and values inside them."""
        found: dict[str, Any] = {}
        for name in names:
            head, argument = split_name(name)
            outer, _, inner = argument.partition(".")
            factory = {"model": self._model, "data": self._data}.get(head, pl.Trainer)
            value = None if factory is None else _default(factory, outer)
            found[name] = value_at(value, inner) if inner and value is not None else value
        return {name: value for name, value in found.items() if value is not None}

    def build(self, params: Mapping[str, Any]) -> TrialComponents:
        """Call both, and copy the arguments of the Trainer."""
        module = self.build_model(params)
        data = None if self._data is None else _call("datamodule", self._data, part(params, "data"))
        arguments = {**copy.deepcopy(self._trainer), **part(params, "trainer")}
        for given in arguments.values():
            of_lightning(given)
        return TrialComponents(module, data, arguments)

    def build_model(self, params: Mapping[str, Any]) -> pl.LightningModule:
        """Call the model."""
        module: pl.LightningModule = _call("model", self._model, part(params, "model"))
        return module

    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Return a block for each receiver, with what ``functools.partial`` holds, and the arguments of the Trainer."""
        config = nested_config(params, max_steps)
        for head, factory in (("model", self._model), ("data", self._data)):
            if held := getattr(factory, "keywords", None):
                config[head] = {**plain_arguments(held), **config.get(head, {})}
        return {**config, "trainer": {**plain_arguments(self._trainer), **config["trainer"]}}


_MOST_LISTED = 10  # arguments in a message
_KINDS: Mapping[str, type] = {"model": pl.LightningModule, "datamodule": pl.LightningDataModule}


def _callable(role: str, factory: Any) -> Callable[..., Any]:
    kind = _KINDS[role]
    if is_a(factory, kind):
        raise TypeError(
            f"`{role}` must be a class or function that builds a new {kind.__name__} for every trial, "
            f"got an instance of {type(factory).__name__}: pass `{type(factory).__name__}` itself, or a function that "
            "returns a new one where arguments must be filled in."
        )
    if not callable(factory):
        raise TypeError(f"`{role}` must be a class or function that builds a {kind.__name__}, got {factory!r}.")
    made: Callable[..., Any] = factory
    return made


def _check_argument(subject: str, factory: Callable[..., Any], argument: str, head: str) -> None:
    if head == "trainer" and argument in _OURS:
        raise ValueError(f"{subject}, but {_OURS[argument]}.")
    if not accepts(factory, argument):
        known = [known for known in inspect.signature(factory).parameters if known not in _OURS]
        more = len(known) - _MOST_LISTED
        takes = ", ".join(known[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "")
        hint = nearest(argument, known)
        raise ValueError(f"{subject}, but {_name_of(factory)} has no argument {argument!r}.{hint} It takes {takes}.")


def _call(role: str, factory: Callable[..., Any], params: Mapping[str, Any]) -> Any:
    try:
        component = of_lightning(factory(**_arguments(factory, params)))
    except (JobError, TrialPruned):
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise ValueError(f"`{role}` cannot be built with {listed(params) or 'no arguments'}: {why}") from error
    if not isinstance(component, kind := _KINDS[role]):
        raise TypeError(f"`{role}` must build a {kind.__module__}.{kind.__name__}, got {type(component)}.")
    return component


def _refuse_place(name: str, head: str, argument: str, targets: Mapping[str, Callable[..., Any]]) -> None:
    """Raise ValueError for a name of which another part of the trial has the argument."""
    outer, last = argument.partition(".")[0], argument.rpartition(".")[2]
    whole = name if head in targets or "." in name else f"{head}.{argument}"
    for place in ("model", "data", "trainer"):
        factory = targets.get(place)
        for found in dict.fromkeys((head, outer, last)):
            if place == head or factory is None or found not in _named(factory) or found in _OURS:
                continue
            rest = f".{argument}" if found == head else argument.removeprefix(outer) if found == outer else ""
            rule = "" if head in targets else f"; it must start with {', '.join(targets)}"
            raise ValueError(
                f"`space` has the name {name!r}{rule}, but {_name_of(factory)} has the argument {found!r}: write "
                f"'{place}.{found}{rest}'."
            )
    if head not in targets:
        hint = " Pass `datamodule=` to search over its arguments." if head == "data" else nearest(head, targets)
        raise ValueError(f"`space` has the name {whole!r}; it must start with {', '.join(targets)}.{hint}")


def _named(factory: Callable[..., Any]) -> list[str]:
    """Arguments that a factory names."""
    parameters = inspect.signature(factory).parameters
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [name for name, parameter in parameters.items() if parameter.kind not in variable]


def _name_of(factory: Callable[..., Any]) -> str:
    return str(getattr(factory, "__name__", repr(factory)))


def _check_inside(what: str, factory: Callable[..., Any], argument: str, path: str) -> None:
    """Look for a path inside the default value of an argument."""
    default = _default(factory, argument)
    if default is None:
        raise ValueError(
            f"{what}, but {_name_of(factory)} has no default value of {argument!r} to change {path!r} in. Give it one, "
            f"or name whole values: '{argument}': lightning_hpo.choice(first=..., second=...)."
        )
    try:
        replaced(default, path, None, check_only=True)
    except LookupError as error:
        raise ValueError(f"{what}, but {error.args[0]}") from None


def _arguments(factory: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a call: the parameters, those inside an argument put into a copy of it."""
    arguments = _own_defaults(factory, params)
    for name, value in sorted(params.items(), key=lambda item: item[0].count(".")):  # outer values first
        outer, _, inner = name.partition(".")
        if inner:
            holder = arguments[outer] if outer in arguments else copy.deepcopy(_default(factory, outer))
            arguments[outer] = replaced(holder, inner, value)
        else:
            arguments[outer] = value
    return arguments


def _default(factory: Callable[..., Any], argument: str) -> Any:
    """Default value of an argument; None if there is none."""
    parameter = inspect.signature(factory).parameters.get(argument)
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


def _own_defaults(factory: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    """Copy default arguments that training may change (a loss, a dictionary): Python shares them among all trials.

    One that cannot be copied, such as a lock, stays shared.
    """
    copies: dict[str, Any] = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        changes = isinstance(parameter.default, nn.Module | list | dict | set) or is_dataclass(parameter.default)
        if changes and name not in params and parameter.kind is not parameter.POSITIONAL_ONLY:
            with contextlib.suppress(TypeError):
                copies[name] = copy.deepcopy(parameter.default)
    return copies
