"""The components of a trial: module, data and arguments of the Trainer, built from its parameters for every job."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True)
class TrialComponents:
    """The parts that a job trains with.

    Args:
        module: untrained.
        data: or None if the module brings its own loaders.
        trainer: arguments of the Trainer, without those that are the tuner's own.
    """

    module: "pl.LightningModule"
    data: "pl.LightningDataModule | None"
    trainer: dict[str, Any]

    @property
    def loader_owner(self) -> Any:
        """The data module, or the module that brings its own loaders."""
        return self.module if self.data is None else self.data


def accepts(factory: Callable[..., Any], argument: str) -> bool:
    """Whether a class or function takes an argument of this name, maybe as one of ``**arguments``."""
    parameters = inspect.signature(factory).parameters
    return argument in parameters or any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())


def as_list(given: Any) -> list[Any]:
    """Return the callbacks, loggers or plugins that a Trainer accepts as one, as several or as None."""
    return [] if given is None else list(given) if isinstance(given, list | tuple) else [given]


class Coded:
    """A part of a search that says itself what code it consists of."""

    code: Sequence[Any] = ()
    """Classes and functions whose code, and the values that they hold, decide what a study measures."""


class Builder(Coded, ABC):
    """Builds the components of a trial. Names in ``params`` are those of the space.

    A tuner's ``fit`` makes a :class:`~lightning_hpo.training.callable_builder.CallableBuilder`; for a ``LightningCLI``
    there is :class:`~lightning_hpo.training.config_builder.ConfigBuilder`.
    """

    identity: Any = None
    """The common settings of all trials of a study, as JSON; None stands for the name of the model's class."""

    @property
    def of_values(self) -> "Builder":
        """The builder that takes values as the module receives them, not as a study stores them."""
        return self

    @property
    def distributed_arguments(self) -> Mapping[str, Any]:
        """New values of the given :data:`~lightning_hpo.training.ranks.DISTRIBUTED_ARGUMENTS`."""
        return {}

    @property
    def logger(self) -> Any:
        """The ``logger`` among the given arguments of the Trainer; None if there is none."""
        return None

    @property
    def loader_head(self) -> str:
        """Head of the names of what brings the loaders: ``"data"``, or ``"model"``."""
        return "model"

    def takes(self, name: str) -> bool:
        """Whether model, data or Trainer have an argument of this name, such as ``data.fold``."""
        return False

    @abstractmethod
    def check_space(self, names: Mapping[str, Any]) -> None:
        """Raise ValueError if the space (name -> distribution) has an argument or a value that cannot be set."""

    def defaults(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return what names of a space are where nothing is searched, as the module receives it; not None."""
        return {}

    @abstractmethod
    def build(self, params: Mapping[str, Any]) -> TrialComponents:
        """Build everything anew with a trial's parameters."""

    @abstractmethod
    def build_model(self, params: Mapping[str, Any]) -> "pl.LightningModule":
        """Build the module only."""

    @abstractmethod
    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Return the content of ``best.yaml`` for these parameters, as plain values."""


def fold_arguments(builder: Builder | None, fold: int | None, folds: int) -> dict[str, int]:
    """Return ``fold`` and ``folds`` as arguments of what brings the loaders, of those that it takes.

    There are none for a function, which has no builder, and for a job without a fold.
    """
    if fold is None or builder is None or not builder.takes(f"{(head := builder.loader_head)}.fold"):
        return {}
    return {f"{head}.fold": fold, **({f"{head}.folds": folds} if builder.takes(f"{head}.folds") else {})}
