"""What a trial trains, from its parameters: module, data and arguments of the Trainer, new for every job."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_hpo.space import split_name

if TYPE_CHECKING:
    import lightning.pytorch as pl


def part_of(params: Mapping[str, Any], head: str) -> dict[str, Any]:
    """Return the arguments of one receiver, by their own names.

    Example:
        >>> part_of({"lr": 0.1, "data.size": 2}, "data")
        {'size': 2}
    """
    return {key: value for name, value in params.items() for owner, key in [split_name(name)] if owner == head}


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
    def surroundings(self) -> Mapping[str, Any]:
        """New values for those of :data:`~lightning_hpo.training.ranks.SURROUNDINGS` that are given."""
        return {}

    @abstractmethod
    def check_space(self, names: Mapping[str, Any]) -> None:
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
