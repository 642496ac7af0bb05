"""What a tuner is composed of beside its scheduler."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import optuna
from optuna.pruners import BasePruner
from optuna.storages import InMemoryStorage

from lightning_hpo.records import Work
from lightning_hpo.reporting.events import Observer
from lightning_hpo.tuners.choose_executor import MakeExecutor, make_executor
from lightning_hpo.tuners.proposers import MakeProposer, make_proposer
from lightning_hpo.tuners.run import Run

if TYPE_CHECKING:
    from lightning_hpo.training.name_checks import NameCheck
    from lightning_hpo.training.objective import Objective


def data_of(datamodule: Any, train_dataloaders: Any, val_dataloaders: Any) -> Any:
    """Return what makes the data module of a trial, from what ``fit`` was given."""
    from lightning_hpo.training.given_data import given_data  # noqa: PLC0415  # loads Lightning

    return given_data(datamodule, train_dataloaders, val_dataloaders)


@dataclass(frozen=True)
class Parts:
    """What a tuner is composed of beside its scheduler; presets give it, and so may you.

    Args:
        propose: makes the proposer. Default: the sampler, asked for all parameters at once.
        work: carries out the jobs of an objective. Default: its own.
        executor: makes the executor. Default: this process, or worker processes, as the options say.
        observers: made when the run is open, and told what happens in the search.
        converged: of the study: start no more trials.
        study: a study of the user's own, in place of the run's.
        pruner: Optuna's, which is asked at every validation of a trial.
        check_names: looks at the names of the space in the check. Default: warns of names that change nothing.
        no_function: why there is no :meth:`Tuner.optimize`; empty if there is.
        parts_of_unit: the scheduler counts so many parts of a unit, such as quarters of an epoch.
    """

    propose: MakeProposer = make_proposer
    work: "Callable[[Objective], Work]" = lambda objective: objective.work
    executor: MakeExecutor = make_executor
    observers: Callable[[Run], Sequence[Observer]] = lambda run: ()  # noqa: ARG005  # a name for the reader
    converged: Callable[[optuna.Study], bool] = lambda study: False  # noqa: ARG005  # as above
    study: optuna.Study | None = None
    pruner: BasePruner | None = None
    check_names: "Callable[..., NameCheck] | None" = None
    no_function: str = ""
    parts_of_unit: int = 1


def work_of(run: Run, pruner: BasePruner | None, group: int, *, in_process: bool) -> Work:
    """Return the work of a job: with a pruner, its trial reports validations; a worker may start a group of ranks."""
    work = others = run.target.work
    if pruner is not None:
        if not in_process and isinstance(run.storage, InMemoryStorage):
            raise ValueError(
                "trials are to train in worker processes, but the study is in the memory of this process: give it a "
                "storage that others can report to, a file's or a database's."
            )
        from lightning_hpo.tuners.reports import along, reporting  # noqa: PLC0415  # loads Lightning

        monitor = str(run.goal.monitors[0])
        work, others = reporting(work, run.study, run.storage, monitor), along(work, monitor)
    if group == 1:
        return work
    from lightning_hpo.executors.rank_group import RankGroup  # noqa: PLC0415  # loads torch

    return RankGroup(work, others, group)
