"""The arguments by which data, or a model with loaders of its own, are told their fold."""

from lightning_hpo.training.builder import Builder


def fold_arguments(builder: Builder | None, fold: int | None, folds: int) -> dict[str, int]:
    """Return the arguments ``fold`` and ``folds`` of what brings the loaders, of those that it takes.

    Args:
        builder: of the trial; None of a function.
        fold: None for a job without one.
        folds: how many.
    """
    if fold is None or builder is None or not builder.takes(f"{(head := builder.loader_head)}.fold"):
        return {}
    return {f"{head}.fold": fold, **({f"{head}.folds": folds} if builder.takes(f"{head}.folds") else {})}
