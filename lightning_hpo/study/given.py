"""A study that the user has made: compared with the search that is to go on with it, before anything trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.errors import StudyMismatchError
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.study.opening import compare, validate_distributions
from lightning_hpo.study.rows import FINGERPRINT, OWNER, SEED


def adopt(study: optuna.Study, asked: Mapping[str, Any], *, allow_changed: bool = False) -> None:
    """Compare a study that was given with the settings of a search, and note them in it.

    Args:
        study: with its trials, those of other programs included.
        asked: fingerprint of the search.
        allow_changed: continue although code, space or sampler differ, and write down from which trial on.

    Raises:
        StudyMismatchError: if another search has begun it, or if trials of another program have other kinds of
            parameters, or reports that the pruner of the search would take for those of its own trials.
    """
    where = f"the study {study.study_name!r}"
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state is not TrialState.WAITING]
    noted = FINGERPRINT in study.user_attrs
    if noted and trials:
        compare(where, "Give another `study`", study, asked, allow_changed=allow_changed)
    foreign = [trial for trial in trials if OWNER not in trial.system_attrs and SEED not in trial.user_attrs]
    validate_distributions(where, foreign, asked["space"], may_grow=False)
    _validate_reports(where, foreign, asked)
    if not (noted and trials):
        study.set_user_attr(FINGERPRINT, dict(asked))


def _validate_reports(where: str, foreign: Sequence[FrozenTrial], asked: Mapping[str, Any]) -> None:
    """Refuse a pruner that would compare what was reported at a number with what this search reports there.

    Trials with the same budget that report now and then come to at least half of it, and to no more than it.
    """
    pruner = asked.get("sampler", {}).get("pruner", {}).get("type", "NopPruner")
    prunes = asked["trains"] is not None and isinstance(asked["mode"], str) and pruner != "NopPruner"
    complete = (trial for trial in foreign if trial.state is TrialState.COMPLETE)
    ends = [max(trial.intermediate_values) for trial in complete if trial.intermediate_values]
    steps = {step for trial in foreign for step in trial.intermediate_values}
    full, unit = asked["scheduler"]["max_steps"], Unit.from_settings(asked.get("unit"))
    if not prunes or not steps or (min(steps) > 0 and (not ends or full / 2 <= max(ends) <= full)):
        return
    raise StudyMismatchError(
        f"{where} has trials of another program that were reported at the steps {min(steps)} to {max(steps)}, but this "
        f"search reports the end of its trials at {full} ({unit.amount(full)}) and nothing at 0, so {pruner} would "
        "compare different moments of training: give `pruner=optuna.pruners.NopPruner()`, or a budget and reports that "
        "are counted alike."
    )
