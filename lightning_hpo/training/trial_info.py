"""A trial as factories of loggers and callbacks see it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lightning_hpo.text import masked


@dataclass(frozen=True)
class Trial:
    """What factories of loggers and callbacks are given; in a population, the first trial of a member.

    Args:
        number: of the trial in its study.
        params: of the trial; for loggers without the values of secrets.
        folder: of the trial, where a callback may keep files.
        name: of the trial, such as ``digits-0007``.
        study: name of the run folder.
        id: that no other trial has, in any study.
        start: optimizer step at which this job begins; 0 for a new trial.
    """

    number: int
    params: Mapping[str, Any]
    folder: Path
    name: str
    study: str
    id: str
    start: int = 0

    def without_secrets(self) -> "Trial":
        """Return it without the values of secrets."""
        return replace(self, params={name: masked(name, value) for name, value in self.params.items()})


def trial_info(folder: Path, params: Mapping[str, Any], identity: Mapping[str, Any], start: int = 0) -> Trial:
    """Describe a trial in its folder ``runs/<name>/trials/<number>``, with the identity that its checkpoints carry."""
    study = folder.parent.parent.name
    number = int(identity.get("trial", 0))
    name = f"{study}-{number:04d}"
    return Trial(number, params, folder, name, study, f"{str(identity.get('study', study))[:16]}-{number}", start)
