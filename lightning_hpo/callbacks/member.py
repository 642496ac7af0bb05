"""A member of a population as a callback: reports its score, takes over a donor's state, applies its hyperparameters.

When it happens matters. A decision falls in ``on_validation_end``, where the score is fresh, and is applied at the next
``on_train_batch_start``: earlier, ModelCheckpoint and EarlyStopping would file the donor's weights under the own score.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from optuna.distributions import BaseDistribution

from lightning_hpo.shared_folder import Graft
from lightning_hpo.space import nearest
from lightning_hpo.training.hyperparameters import Hyperparameters
from lightning_hpo.training.rebuild import Rebuild
from lightning_hpo.training.state_transfer import State, capture, transplant

Answer = TypeVar("Answer")


class Population(Protocol):
    """What a member needs of its population."""

    def join(self, step: int, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """Take the member's place and return its hyperparameters."""

    def report(self, step: int, score: float, capture: Callable[[], State]) -> Graft | None:
        """Write down a score, and say how to go on."""

    def decide(self, step: int, capture: Callable[[], State]) -> Graft | None:
        """Say again how to go on after a step that was reported before; None if it was not."""

    def applied(self, step: int, graft: Graft) -> None:
        """Write down that the member goes on as the graft says."""

    def beat(self) -> None:
        """Give a sign of life."""

    def leave(self, status: str, reason: str) -> None:
        """End the member's part."""

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint of the member keeps."""


class Member(pl.Callback):
    """Makes a Trainer a member of a population.

    Args:
        population: of the member; only the first process of the Trainer talks to it.
        space: name -> distribution of the hyperparameters.
        monitor: metric that the module logs in validation.
        interval: optimizer steps between decisions; a decision falls at the first validation after so many.
    """

    def __init__(
        self, population: Population, space: Mapping[str, BaseDistribution], *, monitor: str, interval: int
    ) -> None:
        self._population = population
        self._space = space
        self._monitor = monitor
        self._interval = interval
        self._earlier: dict[str, Any] | None = None
        self._effects: Hyperparameters | None = None
        self.rebuild: Rebuild | None = None
        """How to build the module again; None builds it from its saved hparams."""
        self._params: dict[str, Any] = {}
        self._decided_at = 0
        self._pending: Graft | None = None

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, lineage, and the step of the last decision."""
        return {"params": self._params, "decided_at": self._decided_at, "population": self._population.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as the member that wrote the checkpoint."""
        self._earlier = state_dict

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find where each hyperparameter takes effect, and join the population."""
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            kind = type(trainer.strategy).__name__
            raise MisconfigurationException(f"a population needs whole weights in every process, got {kind}; use DDP.")
        self._effects = Hyperparameters(self._space, trainer, pl_module, self.rebuild)
        earlier = self._earlier
        self._decided_at = 0 if earlier is None else earlier["decided_at"]
        population = None if earlier is None else earlier["population"]
        self._params = self._ask(trainer, lambda: self._population.join(self._decided_at, population))
        self._effects.apply(self._params)  # a batch size must be there before the first loader is made

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the hyperparameters over restored ones; decide again what a killed run had decided but not done."""
        if self._earlier is not None:
            self._bound().restored(self._earlier["params"])
        self._bound().apply(self._params)
        if self._earlier is not None and trainer.global_step > 0:
            self._decide(trainer, pl_module, self._population.decide)
        self._earlier = None
        self._log(trainer, parent=None)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read back what takes effect with an epoch."""
        self._bound().on_epoch_start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do what was decided."""
        if trainer.is_global_zero:
            self._population.beat()
        graft, self._pending = self._pending, None
        if graft is None:
            return
        if graft.state is not None:
            transplant(graft.state, trainer, pl_module)
        self._params = dict(graft.params)
        self._bound().apply(self._params, copied=graft.state is not None)
        if trainer.is_global_zero:
            self._population.applied(trainer.global_step, graft)
        self._log(trainer, parent=graft.parent)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the score and decide."""
        if (
            trainer.sanity_checking
            or trainer.state.fn != "fit"
            or trainer.global_step - self._decided_at < self._interval
        ):
            return
        if self._monitor not in trainer.callback_metrics:
            logged = sorted(trainer.callback_metrics)
            raise MisconfigurationException(
                f"`monitor` {self._monitor!r} is not logged in validation; logged: {', '.join(logged) or 'nothing'}."
                f"{nearest(self._monitor, logged)}"
            )
        self._bound().read_back(self._params)
        value = trainer.callback_metrics[self._monitor].detach().float().to(trainer.strategy.root_device)
        score = float(trainer.strategy.reduce(value, reduce_op="mean"))  # ranks may have logged their own share
        self._decided_at = trainer.global_step

        def report(step: int, collect: Callable[[], State]) -> Graft | None:
            return self._population.report(step, score, collect)

        self._decide(trainer, pl_module, report)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the population."""
        if trainer.is_global_zero:
            self._population.leave("finished", f"step {trainer.global_step}: finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others, so that nobody waits."""
        if trainer.is_global_zero:
            self._population.leave("failed", f"step {trainer.global_step}: {type(exception).__name__}: {exception}")

    def _decide(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        question: Callable[[int, Callable[[], State]], Graft | None],
    ) -> None:
        """Ask in one process, tell all: every rank gets the same hyperparameters and the same weights."""
        step = trainer.global_step
        last = 0 <= trainer.max_steps <= step
        graft = self._ask(trainer, lambda: question(step, lambda: capture(trainer, pl_module)))
        self._pending = None if last else graft
        if self._pending is not None:
            self._bound().prepare(self._pending.params)

    def _ask(self, trainer: pl.Trainer, question: Callable[[], Answer]) -> Answer:
        told: Answer = trainer.strategy.broadcast(question() if trainer.is_global_zero else None)  # type: ignore[assignment]  # rank 0 has it
        return told

    def _log(self, trainer: pl.Trainer, *, parent: int | None) -> None:
        numbers = {f"pbt/{name}": float(v) for name, v in self._params.items() if isinstance(v, int | float)}
        if parent is not None:
            numbers["pbt/parent"] = float(parent)
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)

    def _bound(self) -> Hyperparameters:
        assert self._effects is not None
        return self._effects
