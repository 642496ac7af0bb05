"""Population-Based Training for Trainers anywhere that see the same folder."""

from pathlib import Path
from typing import Literal, Unpack

from lightning_hpo.callbacks.member import Member
from lightning_hpo.errors import explained
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.schedulers.population import RuleOptions, Rules
from lightning_hpo.schedulers.scores import ScoreRule
from lightning_hpo.space import Space, parse_space
from lightning_hpo.study.shared_folder import SharedFolder


class PopulationBasedTraining(Member):
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
            if not timeout > 0:
                raise ValueError(f"`timeout` must be above 0 seconds, got {timeout!r}.")
            parsed, rule, better = parse_space(space), ScoreRule.read(score), direction(monitor, mode)
            self.folder = SharedFolder(
                folder,
                Rules(parsed, better, seed=seed, **rules),
                member=member,
                population_size=population_size,
                agreed={"space": parsed.texts(), "monitor": rule.label(monitor)},
                synchronous=synchronous,
                timeout=timeout,
            )
            super().__init__(self.folder, parsed, monitor=monitor, interval=interval, rule=rule, mode=better)
