"""A summary of a run as text."""

from typing import Any

from lightning_hpo.errors import StorageError
from lightning_hpo.records import best_row, spent
from lightning_hpo.reporting.best import disagreement
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.run import Run
from lightning_hpo.space import SearchSpace, parse_space
from lightning_hpo.study.trial_folders import identity_of


def show(run: Run) -> None:
    """Print a summary, and compare the files of the best trial with the study.

    Raises:
        StorageError: if ``best.ckpt`` or ``best.yaml`` is of another trial or step than the study's best, and no
            process is at work that may be about to write it.
    """
    console = Console(run.monitor, run.mode, verbose=True, unit=run.unit)
    console.line(f"{run.path}  ({f'process {run.owner} is running' if run.owner else 'not running'})")
    console.line(f"{run.counts}; {run.amount(spent(run.rows))}")
    console.table(run.rows)
    for number, reason in run.failures.items():
        console.line(f"trial {number} failed: {(reason.splitlines() or ['no reason given'])[0]}")
    for name in ("best.yaml", "best.ckpt"):
        if (run.path / name).exists():
            console.line(f"{name}: {run.path / name}")
    best = best_row(run.rows, run.mode)
    if best is not None and run.owner is None:
        identity = identity_of(run.study_id, best.number, best.params) if run.study_id else {}
        what = disagreement(
            best, identity, run.path / "best.ckpt", run.path / "best.yaml", _space(run.settings.get("space"))
        )
        if what is not None:
            raise StorageError(f"{run.path}: {what}, so it is not the study's best: run the search again to mend it")


def _space(texts: Any) -> SearchSpace | None:
    """Space of a study as its fingerprint has it; None for a function of a trial, or where it cannot be read."""
    try:
        return parse_space(texts)
    except (TypeError, ValueError):
        return None
