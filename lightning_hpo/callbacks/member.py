"""A member of a population as a callback: reports its score, takes over a donor's state, applies its hyperparameters.

When it happens matters. A decision falls in ``on_validation_end``, where the score is fresh, and is applied at the next
``on_train_batch_start``: earlier, ModelCheckpoint and EarlyStopping would file the donor's weights under the own score.

EarlyStopping says that a member has nothing to gain from training on as it is. In a population such a member copies.
"""

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from optuna.distributions import BaseDistribution

from lightning_hpo.records import Kept, Mode
from lightning_hpo.schedulers.scores import ScoreRule
from lightning_hpo.study.population_folder import NextPhase
from lightning_hpo.study.shared_folder import SharedFolder
from lightning_hpo.training.hyperparameters import Hyperparameters
from lightning_hpo.training.member_job import log_hyperparameters, require_logged, require_whole_weights
from lightning_hpo.training.state_transfer import State, capture, restart_early_stopping, transplant

Answer = TypeVar("Answer")


class Member(pl.Callback):
    """Makes a Trainer a member of a population.

    Args:
        population: of the member; only the first process of the Trainer talks to it.
        space: name -> distribution of the hyperparameters.
        monitor: metric that the module logs in validation.
        interval: optimizer steps between decisions: a decision falls at each validation that comes at least so many
            optimizer steps (``trainer.global_step``) after the one before, and is recorded at the step where it falls.
        rule: that makes the score of the validations since the hyperparameters were changed last.
        mode: whether lower or higher values are better.
    """

    def __init__(
        self,
        population: SharedFolder,
        space: Mapping[str, BaseDistribution],
        *,
        monitor: str,
        interval: int,
        rule: ScoreRule,
        mode: Mode,
    ) -> None:
        self._population = population
        self._space = space
        self._monitor = monitor
        self._interval = interval
        self._rule, self._mode = rule, mode
        self._kept: Kept = ()  # validations that the score is made of
        self._earlier: dict[str, Any] | None = None
        self._effects: Hyperparameters | None = None
        self._params: dict[str, Any] = {}
        self._decided_at = 0
        self._pending: NextPhase | None = None
        self._metrics_before: set[str] = set()
        self._validated: set[str] = set()  # metrics that validation logs

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, lineage, the step of the last decision, and what the score is made of."""
        state = {"params": self._params, "decided_at": self._decided_at, "population": self._population.state_dict()}
        return {**state, "kept": [list(validation) for validation in self._kept]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue as the member that wrote the checkpoint."""
        self._earlier = state_dict
        self._kept = tuple((step, value) for step, value in state_dict.get("kept", ()))  # older checkpoints have none

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let EarlyStopping judge a validation before the population does, wherever it was given."""
        callbacks: list[pl.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Trainer
        own = callbacks.index(self)
        later = [callback for callback in callbacks[own:] if isinstance(callback, EarlyStopping)]
        rest = [callback for callback in callbacks[own:] if callback not in later]
        # A new list: Lightning is going through the old list.
        trainer.callbacks = [*callbacks[:own], *later, *rest]  # type: ignore[attr-defined]  # as above

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find where each hyperparameter takes effect, and join the population."""
        require_whole_weights(trainer)
        self._effects = Hyperparameters(self._space, trainer, pl_module)
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
        log_hyperparameters(trainer, self._params, None, trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read back what takes effect with an epoch."""
        self._bound().on_epoch_start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do what was decided."""
        if trainer.is_global_zero:
            self._population.heartbeat()
        following, self._pending = self._pending, None
        if following is None:
            return
        if following.state is not None:
            transplant(following.state, trainer, pl_module)
        self._params, self._kept = dict(following.params), ()
        self._bound().apply(self._params, copied=following.state is not None)
        if trainer.is_global_zero:
            self._population.applied(trainer.global_step, following)
        log_hyperparameters(trainer, self._params, following.parent, trainer.global_step)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Remember what training has logged."""
        self._metrics_before = set(trainer.callback_metrics)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Report the score and decide."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._validated |= set(trainer.callback_metrics) - self._metrics_before
        self._stop_here(trainer, pl_module)
        if self._monitor in trainer.callback_metrics:
            value = trainer.callback_metrics[self._monitor].detach().float().to(trainer.strategy.root_device)
            mean = float(trainer.strategy.reduce(value, reduce_op="mean"))  # ranks may have logged their own share
            self._kept = self._rule.add(self._kept, trainer.global_step, mean, self._mode)
        if trainer.global_step - self._decided_at < self._interval:
            return
        require_logged(self._monitor, trainer.callback_metrics)
        self._bound().read_back(self._params)
        score = self._rule.score(self._kept)
        self._decided_at = trainer.global_step
        stopped = self._was_asked_to_stop(trainer)

        def report(step: int, collect: Callable[[], State]) -> NextPhase | None:
            return self._population.report(step, score, collect, stopped=stopped)

        self._decide(trainer, pl_module, report)
        if stopped:
            self._answer_stop(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the population."""
        if trainer.is_global_zero:
            self._population.leave("finished", f"step {trainer.global_step}: finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others, so that nobody waits."""
        if trainer.is_global_zero:
            self._population.leave("failed", f"step {trainer.global_step}: {type(exception).__name__}: {exception}")

    def _stop_here(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Let EarlyStopping judge a validation of an epoch's end now, not after the decision that follows from it."""
        if trainer.val_check_interval == 1.0 and trainer.check_val_every_n_epoch == 1:
            for callback in trainer.early_stopping_callbacks:
                if callback._check_on_train_epoch_end and callback.monitor in self._validated:  # noqa: SLF001  # no public name
                    callback._check_on_train_epoch_end = False  # noqa: SLF001  # as above
                    callback.on_validation_end(trainer, pl_module)

    def _was_asked_to_stop(self, trainer: pl.Trainer) -> bool:
        """Whether EarlyStopping has asked; the Trainer is the user's, and what else stops it has other reasons."""
        reasons = {callback.stopping_reason for callback in trainer.early_stopping_callbacks}
        return trainer.should_stop and bool(reasons - {EarlyStoppingReason.NOT_STOPPED})

    def _answer_stop(self, trainer: pl.Trainer) -> None:
        """Train on if there is somebody to copy from; else the Trainer stops, as it was asked to."""
        if self._pending is not None and self._pending.state is not None:
            restart_early_stopping(trainer)
            trainer.should_stop = False

    def _decide(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        question: Callable[[int, Callable[[], State]], NextPhase | None],
    ) -> None:
        """Ask in one process, tell all: every rank gets the same hyperparameters and the same weights."""
        step = trainer.global_step
        last = 0 <= trainer.max_steps <= step
        following = self._ask(trainer, lambda: question(step, lambda: capture(trainer, pl_module)))
        self._pending = None if last else following
        if self._pending is not None:
            self._bound().prepare(self._pending.params)

    def _ask(self, trainer: pl.Trainer, question: Callable[[], Answer]) -> Answer:
        told: Answer = trainer.strategy.broadcast(question() if trainer.is_global_zero else None)  # type: ignore[assignment]  # rank 0 has it
        return told

    def _bound(self) -> Hyperparameters:
        assert self._effects is not None
        return self._effects
