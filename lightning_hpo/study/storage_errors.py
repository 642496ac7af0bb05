"""Exceptions that Optuna's storages raise."""

import sys

from optuna.exceptions import StorageInternalError


def storage_errors() -> tuple[type[Exception], ...]:
    """Return what an ``except`` clause must name; SQLAlchemy, slow to import, counts only once a storage has loaded it.

    Example:
        >>> from sqlalchemy.exc import OperationalError
        >>> issubclass(OperationalError, storage_errors())
        True
    """
    sqlalchemy = sys.modules.get("sqlalchemy.exc")
    return (StorageInternalError,) if sqlalchemy is None else (StorageInternalError, sqlalchemy.SQLAlchemyError)
