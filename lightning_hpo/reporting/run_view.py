"""Reads a run from its files, finished or at work.

Only the study and the files of the run are read; nothing that its config names is imported.
"""

import json
import os
import platform
import time
from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import BaseDistribution
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from lightning_hpo.errors import StorageError
from lightning_hpo.records import Mode
from lightning_hpo.reporting.run import Run
from lightning_hpo.reporting.view import Plan, changed_at, is_alive, view_from_outside
from lightning_hpo.schedulers.scores import ScoreRule
from lightning_hpo.space import joined
from lightning_hpo.study.journal import JOURNAL, read_journal
from lightning_hpo.study.locks import OWNER
from lightning_hpo.study.progress import FILE as PROGRESS
from lightning_hpo.study.rows import FAILURE, FINGERPRINT, row_of
from lightning_hpo.study.storage_errors import readable, renamed_text, sqlite_url
from lightning_hpo.study.trial_folders import STUDY_ID
from lightning_hpo.text import HIDDEN, hide_passwords, is_secret, one_line

_QUIET = 600  # seconds without a change, after which a process of another machine counts as gone


def read_run(path: str | Path, storage: str | None = None) -> Run:
    """Read a run folder, finished or at work.

    Args:
        path: of the run folder, ``runs/<name>``.
        storage: URL of the study if it is not in the folder.

    Raises:
        StorageError: if there is no study.
    """
    path = Path(path).resolve()
    opened: str | BaseStorage
    if storage is not None:
        opened = storage
    elif (file := path / JOURNAL).is_file():
        opened = read_journal(file)
    elif (file := path / "study.db").is_file():  # of the first edition of this package
        opened = sqlite_url(file)
    else:
        raise StorageError(f"{path} holds no {JOURNAL}: give the folder of a run, runs/<name>, or its storage.")
    try:
        with readable(path):
            study = optuna.load_study(study_name=path.name, storage=opened)
            trials, attributes = study.get_trials(deepcopy=False), study.user_attrs
    except KeyError:
        names = optuna.get_all_study_names(opened)
        if storage is None and names:
            raise StorageError(f"{renamed_text(path, names)}.") from None
        raise StorageError(
            f"the storage of {path} holds no study with the name {path.name!r}, but {', '.join(map(repr, names))}."
            if names else f"the storage of {path} holds no study."
        ) from None  # fmt: skip
    return _run(path, study.directions, trials, attributes)


def view_run(study: optuna.Study, path: Path) -> Run:
    """Return a study as a run."""
    return _run(path, study.directions, study.get_trials(deepcopy=False), study.user_attrs)


def _run(
    path: Path, directions: Sequence[StudyDirection], trials: Sequence[FrozenTrial], attributes: Mapping[str, Any]
) -> Run:
    settings = attributes.get(FINGERPRINT, {})
    monitor = settings.get("monitor") or "score"
    max_steps = settings.get("scheduler", {}).get("max_steps", 1)
    mode: Mode = "min" if directions[0] is StudyDirection.MINIMIZE else "max"
    rows, owner = [row_of(trial, max_steps) for trial in trials], _owner(path)
    at_work = owner not in (None, os.getpid())
    return Run(
        path,
        rows,
        mode,
        ScoreRule.read(settings.get("score", "last")).label(monitor if isinstance(monitor, str) else str(monitor[0])),
        {trial.number: str(trial.user_attrs.get(FAILURE, "")) for trial in trials if trial.state is TrialState.FAIL},
        _joined(named for trial in trials for named in trial.distributions.items()),
        owner,
        attributes.get(STUDY_ID, ""),
        trials,
        directions,
        settings,
        tuple(view_from_outside(rows, Plan(), "", mode, path=path, at_work=at_work).running),
    )


def _joined(distributions: Iterable[tuple[str, BaseDistribution]]) -> dict[str, BaseDistribution]:
    """The distribution of each name, with the values of all trials; the last one where they cannot be joined."""
    found: dict[str, BaseDistribution] = {}
    for name, new in distributions:
        old = found.get(name, new)
        found[name] = new if old is new or old == new else joined(old, new) or new
    return found


def read_best(run: Run) -> str:
    """Return the text of ``best.yaml``, without the values of secrets; a comment if it cannot be read.

    Raises:
        StorageError: if there is none yet.
    """
    path = run.path / "best.yaml"
    if not path.exists():
        raise StorageError(f"{run.path} holds no best.yaml yet: no trial has succeeded.")
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)  # nothing is constructed
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        return f"# {path.name} is not shown: it is no YAML ({type(error).__name__})\n"
    _hide_secrets(node)
    comments = [hide_passwords(line) for line in takewhile(lambda line: line.startswith("#"), text.splitlines())]
    shown = yaml.serialize(node, Dumper=yaml.SafeDumper, allow_unicode=True, width=1000)
    return lines_of("\n".join([*comments, shown])) + "\n"


def _owner(path: Path) -> int | None:
    """Process at work on a run; one of another machine counts as long as files of the run change."""
    try:
        owner = json.loads((path / OWNER).read_text())
        pid, here = int(owner["pid"]), owner.get("host", platform.node()) == platform.node()
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    if here:
        return pid if is_alive(pid) else None
    files = (path / OWNER, path / JOURNAL, *path.glob(f"trials/*/{PROGRESS}"))
    return pid if time.time() - max(map(changed_at, files)) < _QUIET else None


def lines_of(text: str) -> str:
    """Text of several lines, without other control characters."""
    return "\n".join(map(one_line, text.splitlines()))


def _hide_secrets(node: Any, name: str = "") -> None:
    """Replace the scalars of a YAML document that are secrets, by the names of the mappings they are in."""
    match node:
        case yaml.MappingNode():
            for key, value in node.value:
                inner = str(key.value)
                _hide_secrets(value, f"{inner}.{name}" if is_secret(name) else inner)
        case yaml.SequenceNode():
            for value in node.value:
                _hide_secrets(value, name)
        case yaml.ScalarNode(tag=tag, value=text):
            is_number = tag.endswith((":int", ":float"))
            node.value = HIDDEN if is_secret(name, 0 if is_number else text) else hide_passwords(text)
