"""Studies of run folders, as plain Optuna reads them."""

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend


def journal_of(run):
    """Optuna's own storage over the journal of a run folder."""
    return JournalStorage(JournalFileBackend(str(run / "study.journal")))


def study_of(run):
    """The study of a run folder."""
    return optuna.load_study(study_name=run.name, storage=journal_of(run))
