"""What a tuner asks of an objective, beside what users give it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightning_hpo.records import Mode
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.training.attachments import Attachments
from lightning_hpo.training.name_checks import NameCheck, UnusedNames


@dataclass(frozen=True)
class ObjectiveOptions:
    """What a tuner asks of an objective, beside what users give it.

    Args:
        unit: of the budget, if the scheduler counts parts of the unit that the budget was given in.
        mode: whether lower or higher values of the metric are better; None goes by the study, or the metric's name.
        also: further metrics that must be logged in validation: those of several objectives.
        constraints: metrics that must be logged in validation, and are at most 0 in a feasible trial.
        folds: number of folds that each trial is trained on; 0 trains on all data.
        halves: whether a trial that is out of memory goes on with smaller batches.
        check_on_one: whether the check uses one device although trials use several, which only workers have.
        check_names: called with builder, space and parameters; makes what checks the names of the space.
        attached: loggers and callbacks of each trial.
    """

    unit: Unit | None = None
    mode: Mode | None = None
    also: Sequence[str] = ()
    constraints: Sequence[str] = ()
    folds: int = 0
    halves: bool = False
    check_on_one: bool = False
    check_names: Callable[..., NameCheck] = UnusedNames
    attached: Attachments = field(default_factory=Attachments)
