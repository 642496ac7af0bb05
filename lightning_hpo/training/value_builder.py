"""Translates what a study stores into what the user's module receives, around any builder."""

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl

from lightning_hpo.space import SearchSpace
from lightning_hpo.training.builder import Builder, TrialComponents


class ValueBuilder(Builder):
    """Gives another builder the values that a study's labels stand for, which a space knows."""

    def __init__(self, builder: Builder, space: SearchSpace) -> None:
        self._builder, self._space = builder, space
        self.identity, self.code = builder.identity, builder.code

    @property
    def of_values(self) -> Builder:
        """The other builder."""
        return self._builder

    @property
    def distributed_arguments(self) -> Mapping[str, Any]:
        """As the other builder has them."""
        return self._builder.distributed_arguments

    @property
    def logger(self) -> Any:
        """As the other builder has it."""
        return self._builder.logger

    @property
    def loader_head(self) -> str:
        """As the other builder has it."""
        return self._builder.loader_head

    def takes(self, name: str) -> bool:
        """As the other builder does."""
        return self._builder.takes(name)

    def check_space(self, names: Mapping[str, Any]) -> None:
        """Let the other builder check."""
        self._builder.check_space(names)

    def build(self, params: Mapping[str, Any]) -> TrialComponents:
        """Build everything with the values."""
        return self._builder.build(self._space.deliver(params))

    def build_model(self, params: Mapping[str, Any]) -> pl.LightningModule:
        """Build the module with the values."""
        return self._builder.build_model(self._space.deliver(params))

    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Write the values where YAML has a form for them, else their labels."""
        return self._builder.config(self._space.plain(params), max_steps)
