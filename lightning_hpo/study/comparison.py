"""A study that is continued is compared with the search that continues it: its settings, and the trials it has."""

import difflib
import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution, check_distribution_compatibility
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.errors import StudyMismatchError
from lightning_hpo.schedulers.units import Unit
from lightning_hpo.space import parse_space
from lightning_hpo.study.code_identity import comparable
from lightning_hpo.study.rows import FINGERPRINT, OWNER, SEED
from lightning_hpo.text import hide_passwords

CHANGES = "lightning_hpo_changes"
_MAY_CHANGE = {"space", "code", "sampler"}  # if the user says so; other settings decide what a value means

# Arguments that a fingerprint leaves out at their default -> that default, in words.
_LEFT_OUT = {"score": "'last'", "on_oom": "'fail'", "constraints": "no constraint", "start": "no starting point",
             "from_run": "no earlier run"}  # fmt: skip


def compare(
    where: str, remedy: str, study: optuna.Study, asked: Mapping[str, Any], *, allow_changed: bool
) -> None:  # fmt: skip
    """Refuse a study that was made with other settings, or write down that it goes on with these.

    Raises:
        StudyMismatchError: naming each difference.
    """
    different = differences(study.user_attrs[FINGERPRINT], asked)
    if not different:
        return
    changed = {*different}
    listed = hide_passwords("; ".join(text for name in sorted(different) for text in different[name]))
    # A function is often the same computation with a counter or a print around it; its change is written down.
    tolerated = _MAY_CHANGE if allow_changed else {"code"} if asked["trains"] is None else set()
    if not changed <= tolerated:
        more = (
            ", or continue all the same with `allow_changed=True`; the study keeps a note of it"
            if changed <= _MAY_CHANGE
            else ""
        )
        raise StudyMismatchError(
            f"{where} was made with other settings: {listed}. "
            f"{remedy}, or go back to the old settings to continue it{more}."
        )
    trials = study.get_trials(deepcopy=False)
    validate_distributions(where, trials, asked["space"])
    warnings.warn(f"from trial {len(trials)} on, {where} has changed: {listed}", stacklevel=2)
    notes = [*study.user_attrs.get(CHANGES, []), {"from_trial": len(trials), "changes": listed}]
    study.set_user_attr(CHANGES, notes)
    study.set_user_attr(FINGERPRINT, dict(asked))


def differences(stored: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what differs between two fingerprints: name of a setting -> each difference in words for people."""
    found = {name: _differences(name, stored.get(name), asked.get(name)) for name in {**stored, **asked}}
    return {name: texts for name, texts in found.items() if texts}


def _differences(name: str, stored: Any, asked: Any) -> list[str]:
    if name == "sampler" and not stored:  # of an older study
        return []
    if name == "code":
        if not stored or not asked or "python" in stored:  # older studies have none, or hashes of bytecode
            return []
        old, new = stored["parts"], asked["parts"]
        words = {(True, True): "changed", (True, False): "is gone", (False, True): "is new"}
        return [
            f"the code of {part} {words[part in old, part in new]}"
            for part in sorted({**old, **new})
            if old.get(part) != new.get(part) and comparable(old.get(part), new.get(part))
        ]
    units = [unit["name"] if unit else "steps" for unit in (stored, asked)] if name == "unit" else ["", ""]
    if units[0] != units[1]:
        return [f"{word} the budget in {unit} (`max_{unit}`)" for word, unit in zip(("was", "now"), units, strict=True)]
    if (stored is None) != (asked is None) and name != "trains":
        given = f'"{name}": {json.dumps(asked if stored is None else stored)}'
        default = f"`{name}` left out ({_LEFT_OUT[name]})" if name in _LEFT_OUT else f"`{name}` left out"
        return [f"was {default if stored is None else given}", f"now {given if stored is None else default}"]
    before, after = (json.dumps({name: setting}, indent=1, sort_keys=True).splitlines() for setting in (stored, asked))
    return [
        f"{'was' if line[0] == '-' else 'now'} {line[1:].strip().rstrip(',')}"
        for line in difflib.unified_diff(before, after, lineterm="", n=0)
        if line[0] in "+-" and line[:3] not in ("---", "+++")
    ]


def validate_distributions(
    where: str, trials: Iterable[FrozenTrial], space: Mapping[str, Any], *, may_grow: bool = True
) -> None:  # fmt: skip
    """Refuse a space with another kind of distribution than the trials have, with which Optuna could not go on.

    Raises:
        StudyMismatchError: naming the parameter.
    """
    known = parse_space(space)
    for name, old in (named for trial in trials for named in trial.distributions.items()):
        new = known.get(name, old)
        try:
            if not (may_grow and isinstance(old, CategoricalDistribution) and isinstance(new, CategoricalDistribution)):
                check_distribution_compatibility(old, new)
        except ValueError as error:
            raise StudyMismatchError(
                f"{where} cannot take another kind of distribution for {name!r}: it has {old}, not {new} ({error})"
            ) from None  # fmt: skip


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
    marks = {OWNER, SEED} if FINGERPRINT in study.user_attrs else {OWNER}  # an Objective in a loop has seeds too
    foreign = [trial for trial in trials if not marks & {*trial.system_attrs, *trial.user_attrs}]
    if begun := FINGERPRINT in study.user_attrs and len(foreign) < len(trials):
        compare(where, "Give another `study`", study, asked, allow_changed=allow_changed)
    validate_distributions(where, foreign, asked["space"], may_grow=False)
    _validate_reports(where, foreign, asked)
    if not begun:  # a call that has failed before its first trial has begun nothing
        study.set_user_attr(FINGERPRINT, dict(asked))


def _validate_reports(where: str, foreign: Sequence[FrozenTrial], asked: Mapping[str, Any]) -> None:
    """Refuse a search that would compare what was reported at a number with what it reports there itself.

    Trials with the same budget that report now and then come to at least half of it, and to no more than it.
    """
    pruner = asked.get("sampler", {}).get("pruner", {}).get("type", "NopPruner")
    prunes = asked["trains"] is not None and isinstance(asked["mode"], str) and pruner != "NopPruner"
    complete = (trial for trial in foreign if trial.state is TrialState.COMPLETE)
    ends = [max(trial.intermediate_values) for trial in complete if trial.intermediate_values]
    steps = {step for trial in foreign for step in trial.intermediate_values}
    if steps and "folds" in asked["scheduler"]:
        raise StudyMismatchError(
            f"{where} has trials of another program with reports, which a search with `folds` would take for means "
            "over folds: give a new study, and add their parameters and values with study.add_trials(...)."
        )
    full, unit = asked["scheduler"]["max_steps"], Unit.from_settings(asked.get("unit"))
    if not prunes or not steps or (min(steps) > 0 and (not ends or full / 2 <= max(ends) <= full)):
        return
    raise StudyMismatchError(
        f"{where} has trials of another program that were reported at the steps {min(steps)} to {max(steps)}, but this "
        f"search reports the end of its trials at {full} ({unit.amount(full)}) and nothing at 0, so {pruner} would "
        "compare different moments of training: give `pruner=optuna.pruners.NopPruner()`, or a budget and reports that "
        "are counted alike."
    )
