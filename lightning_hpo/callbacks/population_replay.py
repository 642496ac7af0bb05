"""The callback that trains with the hyperparameters that a population found."""

from collections.abc import Mapping, Sequence
from typing import Any

import lightning.pytorch as pl

from lightning_hpo.space import parse_space
from lightning_hpo.training.hyperparameters import Hyperparameters


class PopulationReplay(pl.Callback):
    """Changes hyperparameters at the optimizer steps at which the winner of a population changed them.

    A :class:`~lightning_hpo.PopulationTuner` writes it into ``best.yaml``. Each value is proven to take effect, as in
    the population.

    Args:
        schedule: name -> (first step, value) of each phase, as from
            :meth:`lightning_hpo.study.lineage.Replay.schedule`.
        space: name -> distribution, as text, of these names.

    Raises:
        ValueError: if a schedule is empty or does not begin at step 0, or its name is not in the space.
        ParameterMismatchError: at the start of fit, if a hyperparameter cannot be changed.

    Example:
        >>> replay = PopulationReplay({"lr": [(0, 0.1), (50, 0.02)]}, {"lr": "loguniform(1e-4, 1)"})
        >>> replay.schedule
        {'lr': [(0, 0.1), (50, 0.02)]}
    """

    def __init__(self, schedule: Mapping[str, Sequence[tuple[int, Any]]], space: Mapping[str, str]) -> None:
        self.schedule = {name: [(int(step), value) for step, value in phases] for name, phases in schedule.items()}
        for name, phases in self.schedule.items():
            if not phases or phases[0][0] != 0 or name not in space:
                raise ValueError(
                    f"`schedule` of {name!r} must begin at step 0, and `space` must have it; got {phases}."
                )
        self.space = dict(space)
        self._effects: Hyperparameters
        self._params: dict[str, Any] = {}

    def _at(self, step: int) -> dict[str, Any]:
        return {
            name: next(value for start, value in reversed(phases) if start <= step)
            for name, phases in self.schedule.items()
        }

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find where each hyperparameter takes effect; a batch size must be there before the first loader is made."""
        own = {name: text for name, text in self.space.items() if name in self.schedule}
        self._effects = Hyperparameters(parse_space(own), trainer, pl_module)
        self._params = self._at(trainer.global_step)
        self._effects.apply(self._params)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply them over restored ones."""
        self._params = self._at(trainer.global_step)
        self._effects.apply(self._params)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read back what takes effect with an epoch."""
        self._effects.on_epoch_start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Apply those of the next phase."""
        if (params := self._at(trainer.global_step)) != self._params:
            self._params = params
            self._effects.apply(params)
