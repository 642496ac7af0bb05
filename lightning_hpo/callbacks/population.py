"""Population-Based Training for Trainers anywhere that see the same folder.

When something happens matters. A decision falls in ``on_validation_end``, where the score is fresh, and is applied at
the next ``on_train_batch_start``: earlier, ModelCheckpoint and EarlyStopping would file the donor's weights under the
own score.

EarlyStopping says that a member has nothing to gain from training on as it is. In a population such a member copies.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack

import lightning.pytorch as pl
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason

from lightning_hpo.errors import explained
from lightning_hpo.records import Kept
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.schedulers.population import RuleOptions, Rules
from lightning_hpo.schedulers.scores import ScoreRule
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.population_folder import NextPhase
from lightning_hpo.study.shared_folder import SharedFolder
from lightning_hpo.text import require_bool
from lightning_hpo.training.hyperparameters import Hyperparameters
from lightning_hpo.training.member_job import log_hyperparameters, require_whole_weights
from lightning_hpo.training.scores import require_logged
from lightning_hpo.training.state_transfer import State, capture, restart_early_stopping, transplant

Answer = TypeVar("Answer")


class PopulationBasedTraining(pl.Callback):
    """Makes a Trainer one member of a population that shares a folder.

    Every member runs the same script with its own ``member``, on one or many machines, whenever it likes. At each
    interval the worst members copy weights, optimizer state and hyperparameters of a good one, and change the
    hyperparameters. The Trainer goes on in place: step, epoch, data and loggers are its own.

    The Trainer stays yours, its validations too. A decision falls at the first validation that comes at least
    ``interval`` optimizer steps after the decision before, and is recorded at the step where the Trainer stands then;
    to have it at exactly each ``interval``, validate there (``val_check_interval`` in batches, and
    ``check_val_every_n_epoch=None``). If EarlyStopping asks to stop at a decision, the member copies a good one and
    goes on, unless nobody is better; at another validation, or asked by another callback, the Trainer stops.

    Args:
        folder: that all members see; made if missing.
        space: dotted name -> distribution (see :mod:`lightning_hpo.space`): whatever differs when the module is built
            again from its saved ``hparams`` with another value, and can change while training (optimizer settings, LR
            schedules, dropout, attributes), ``data.batch_size``, ``trainer.gradient_clip_val``, and anything that the
            module's ``on_hyperparameters(hparams)`` changes.
        member: number of this member, 0 to ``population_size - 1``.
        population_size: members in all, at least 2.
        monitor: metric that the module logs in validation.
        mode: whether a small (``"min"``) or a large (``"max"``) score is good. Default: ``"min"``; it must be given
            for a metric of which, by its name, more is better, such as ``val_acc``.
        score: how the validations since the hyperparameters were changed last make the score of a decision: ``"last"``,
            ``"best"`` or ``"mean(k)"`` (see ``docs/budgets.md``).
        interval: optimizer steps between decisions, at least; see above.
        seed: of all decisions; the same for all members.
        synchronous: wait at every decision for all living members. Default: compare with what they last wrote.
        timeout: seconds without a sign of life after which a member counts as dead.
        **rules: ``quantile``, ``donor``, ``explore``, ``resample`` and ``factor`` of
            :class:`lightning_hpo.schedulers.population.Rules`.

    Raises:
        ValueError: naming an argument outside its range.
        StorageError: while training, if the folder is gone or its disk is full. The same command continues.

    Example:
        >>> pbt = PopulationBasedTraining("runs/pbt", {"lr": "loguniform(1e-4, 1e-1)"}, member=0, population_size=4)
        >>> trainer = Trainer(max_steps=2000, val_check_interval=200, callbacks=[pbt])  # doctest: +SKIP

    Source: Jaderberg et al. 2017, *Population Based Training of Neural Networks*.
    """

    def __init__(
        self,
        folder: str | Path,
        space: Space,
        *,
        member: int,
        population_size: int,
        monitor: str = "val_loss",
        mode: Literal["min", "max"] | None = None,
        score: str = "last",
        interval: int = 200,
        seed: int = 0,
        synchronous: bool = False,
        timeout: float = 600.0,
        **rules: Unpack[RuleOptions],
    ) -> None:
        with explained(None):
            if population_size < 2:
                raise ValueError(f"`population_size` must be an int >= 2, got {population_size!r}.")
            if not 0 <= member < population_size:
                raise ValueError(f"`member` must be an int from 0 to {population_size - 1}, got {member!r}.")
            if interval < 1:
                raise ValueError(f"`interval` must be an int >= 1, got {interval!r}.")
            require_bool("synchronous", synchronous)
            if not timeout > 0:
                raise ValueError(f"`timeout` must be above 0 seconds, got {timeout!r}.")
            self._space, self._rule = parse_space(space), ScoreRule.read(score)
            self._mode = direction(monitor, mode)
            self.folder = SharedFolder(
                folder,
                Rules(self._space, self._mode, seed=seed, **rules),
                member=member,
                population_size=population_size,
                agreed={"space": self._space.texts(), "monitor": self._rule.label(monitor)},
                synchronous=synchronous,
                timeout=timeout,
            )
        self._monitor, self._interval = monitor, interval
        self._kept: Kept = ()  # validations that the score is made of
        self._earlier: dict[str, Any] | None = None
        self._effects: Hyperparameters
        self._params: dict[str, Any] = {}
        self._decided_at = 0
        self._pending: NextPhase | None = None
        self._metrics_before: set[str] = set()
        self._validated: set[str] = set()  # metrics that validation logs

    def state_dict(self) -> dict[str, Any]:
        """Hyperparameters, lineage, the step of the last decision, and what the score is made of."""
        state = {"params": self._params, "decided_at": self._decided_at, "population": self.folder.state_dict()}
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
        self._params = self._ask(trainer, lambda: self.folder.join(self._decided_at, population))
        self._effects.apply(self._params)  # a batch size must be there before the first loader is made

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Apply the hyperparameters over restored ones; decide again what a killed run had decided but not done."""
        if self._earlier is not None:
            self._effects.restored(self._earlier["params"])
        self._effects.apply(self._params)
        if self._earlier is not None and trainer.global_step > 0:
            self._decide(trainer, pl_module, self.folder.decide)
        self._earlier = None
        log_hyperparameters(trainer, self._params, None, trainer.global_step)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Read back what takes effect with an epoch."""
        self._effects.on_epoch_start()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Do what was decided."""
        if trainer.is_global_zero:
            self.folder.heartbeat()
        following, self._pending = self._pending, None
        if following is None:
            return
        if following.state is not None:
            transplant(following.state, trainer, pl_module)
        self._params, self._kept = dict(following.params), ()
        self._effects.apply(self._params, copied=following.state is not None)
        if trainer.is_global_zero:
            self.folder.applied(trainer.global_step, following)
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
        self._effects.read_back(self._params)
        score = self._rule.score(self._kept)
        self._decided_at = trainer.global_step
        stopped = self._was_asked_to_stop(trainer)

        def report(step: int, collect: Callable[[], State]) -> NextPhase | None:
            return self.folder.report(step, score, collect, stopped=stopped)

        self._decide(trainer, pl_module, report)
        if stopped:
            self._answer_stop(trainer)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Leave the population."""
        if trainer.is_global_zero:
            self.folder.leave("finished", f"step {trainer.global_step}: finished")

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Tell the others, so that nobody waits."""
        if trainer.is_global_zero:
            self.folder.leave("failed", f"step {trainer.global_step}: {type(exception).__name__}: {exception}")

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
            self._effects.prepare(self._pending.params)

    def _ask(self, trainer: pl.Trainer, question: Callable[[], Answer]) -> Answer:
        told: Answer = trainer.strategy.broadcast(question() if trainer.is_global_zero else None)  # type: ignore[assignment]  # rank 0 has it
        return told
