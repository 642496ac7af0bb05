"""What a trial trains, from its parameters: module, data and arguments of the Trainer, new for every job."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_hpo.space import SearchSpace

if TYPE_CHECKING:
    import lightning.pytorch as pl


@dataclass(frozen=True)
class Built:
    """What one job trains.

    Args:
        module: untrained.
        data: or None if the module brings its own loaders.
        trainer: arguments of the Trainer, without those that are the tuner's own.
    """

    module: "pl.LightningModule"
    data: "pl.LightningDataModule | None"
    trainer: dict[str, Any]


class Builder(ABC):
    """Builds what a trial trains. Names in ``params`` are those of the space.

    A tuner's ``fit`` makes one from classes or functions;
    :class:`lightning_hpo.training.config_builder.ConfigBuilder` is the one of a ``LightningCLI``.
    """

    identity: Any = None
    """What the trials of a study have in common, as JSON; None is the name of the model's class."""

    code: Sequence[Any] = ()
    """Classes whose code is part of what a study measures."""

    @property
    def of_values(self) -> "Builder":
        """The builder that takes values as the module receives them, not as a study stores them."""
        return self

    @property
    def surroundings(self) -> Mapping[str, Any]:
        """New values for those of :data:`~lightning_hpo.training.ranks.SURROUNDINGS` that are given."""
        return {}

    @abstractmethod
    def check_space(self, names: SearchSpace) -> None:
        """Raise ValueError if the space (name -> distribution) names what cannot be set, or a value that is refused."""

    @abstractmethod
    def build(self, params: Mapping[str, Any]) -> Built:
        """Build everything anew with a trial's parameters."""

    @abstractmethod
    def build_model(self, params: Mapping[str, Any]) -> "pl.LightningModule":
        """Build the module only."""

    @abstractmethod
    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Return what ``best.yaml`` holds for these parameters, as plain values."""


class ValueBuilder(Builder):
    """Gives another builder the values that a study's labels stand for.

    Args:
        builder: that builds.
        space: that knows the values.
    """

    def __init__(self, builder: Builder, space: SearchSpace) -> None:
        self._builder, self._space = builder, space
        self.identity, self.code = builder.identity, builder.code

    @property
    def of_values(self) -> Builder:
        """The other builder."""
        return self._builder

    @property
    def surroundings(self) -> Mapping[str, Any]:
        """As the other builder has them."""
        return self._builder.surroundings

    def check_space(self, names: SearchSpace) -> None:
        """Let the other builder check."""
        self._builder.check_space(names)

    def build(self, params: Mapping[str, Any]) -> Built:
        """Build everything with the values."""
        return self._builder.build(self._space.deliver(params))

    def build_model(self, params: Mapping[str, Any]) -> "pl.LightningModule":
        """Build the module with the values."""
        return self._builder.build_model(self._space.deliver(params))

    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Write the values where YAML has a form for them, else their labels."""
        return self._builder.config(self._space.plain(params), max_steps)
