"""Checks of the names in a search space, by building twice: names without an effect, or without one in training."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
from optuna.distributions import IntDistribution

from lightning_hpo.errors import ParameterMismatchError
from lightning_hpo.space import SearchSpace, parse_space, split_name
from lightning_hpo.training.builder import Builder, TrialComponents, fold_arguments
from lightning_hpo.training.folds import METHODS, has_attribute, has_methods
from lightning_hpo.training.hyperparameters import Hyperparameters
from lightning_hpo.training.leaves import same
from lightning_hpo.training.rebuild import Build, Rebuild, unread_names
from lightning_hpo.training.usage import BUILDING, reads


class NameCheck(pl.Callback):
    """Checks the names of a space when a fit starts, whose module was built with ``params``."""

    def __init__(self, builder: Builder, space: SearchSpace, params: Mapping[str, Any]) -> None:
        self._builder = builder
        self._space = space
        self._params = params
        self.unused: list[str] = []
        """Sentences to warn with; the check may be in another process."""


class UnusedNames(NameCheck):
    """Finds each name whose values change nothing that training reads."""

    words = (
        "{name!r} is in the space, but nothing that training reads changes with it: every value gives the same "
        "training. Use it in the module or its optimizer, or take it out of the space."
    )

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Build with other values and compare.

        Raises:
            ParameterMismatchError: if a name changes nothing, and the module says itself that it holds another value.
        """
        building = BUILDING - {"setup", "prepare_data", "configure_callbacks", "on_hyperparameters"}
        rebuild = Rebuild(build_of(self._builder), self._params, building=building)
        values = self._space.deliver(self._params)
        for name in unread_names(self._space, rebuild, trainer):
            head, key = split_name(name)
            held = {"model": pl_module}.get(head, getattr(trainer, "datamodule", None))
            hparams = getattr(held, "hparams", {})
            asked = values.get(name)
            if key in hparams and name in self._params and not same(hparams[key], asked):
                raise ParameterMismatchError(
                    f"{name}={asked!r} was asked for, but hparams hold {hparams[key]!r}, and other values"
                    " change nothing."
                )
            self.unused.append(self.words.format(name=name))


class UnusedFold(UnusedNames):
    """Says whether the argument ``fold`` of the data changes nothing."""

    words = (
        "nothing that training reads changes with the argument {name!r}, so each fold would train on the same data: "
        "let the loaders, or `setup`, read it."
    )


def fold_checks(
    builder: Builder, space: Mapping[str, Any], params: Mapping[str, Any], components: TrialComponents, folds: int
) -> list[NameCheck]:
    """Check that data can be told their fold, and return a check of whether the argument ``fold`` has an effect.

    ``components`` were built with ``params``, the fold included.

    Raises:
        ValueError: for data that cannot be told, or a space that names the fold too.
    """
    arguments = fold_arguments(builder, 0, folds)
    for name in arguments:
        if name in space:
            raise ValueError(f"`space` has the name {name!r}, which `folds` sets: leave one of them out.")
    if has_methods(components.data):
        return []
    if not arguments:
        kind = type(components.loader_owner)
        owner = kind.__name__
        if has_attribute(components.loader_owner):
            if reads(kind, "fold"):
                return []
            raise ValueError(
                f"`folds` is {folds}, but {owner} is told its fold when it has been made, and only its constructor "
                "reads `fold`: give the class as `datamodule`, or let `setup` or the loaders read it."
            )
        methods = "" if components.data is None else f", or the methods {METHODS[0]}(folds) and {METHODS[1]}(fold)"
        raise ValueError(
            f"`folds` is {folds}, but {owner} cannot be told which part of the data validates: give it the arguments "
            f"`fold` and `folds`{methods}; or cut a plain dataset: datamodule=lightning_hpo.KFold(dataset)."
        )
    name = next(iter(arguments))
    return [UnusedFold(builder, parse_space({name: IntDistribution(0, folds - 1)}), params)]


class ChangeableNames(NameCheck):
    """Raises an error for a name that cannot change while a module trains, as a population needs it."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bind the names and apply their values, as a member does.

        Raises:
            MisconfigurationException: with the name that cannot change.
        """
        rebuild = Rebuild(build_of(self._builder), self._params)
        Hyperparameters(self._space, trainer, pl_module, rebuild).apply(self._params)


def build_of(builder: Builder) -> Build:
    """Return a function that builds module and data module of hyperparameters."""

    def build(params: Mapping[str, Any]) -> tuple[pl.LightningModule, pl.LightningDataModule | None]:
        components = builder.build(params)
        return components.module, components.data

    return build
