"""Whether a lower or a higher value of a metric is better, as far as its name says so."""

import re
import warnings
from collections.abc import Iterable

from lightning_hpo.records import Mode

# Words in the names of metrics. torchmetrics says of its own which are better when higher; the others are common.
_HIGHER_IS_BETTER = {
    "acc", "accuracy", "ami", "ap", "ari", "auc", "auprc", "auroc", "bleu", "calinski", "chrf", "cider", "cindex",
    "coef", "coefficient", "completeness", "concordance", "corr", "correlation", "cramers", "dcg", "dice",
    "distortionratio", "dunn", "elbo", "em", "exact", "explained", "f1", "f2", "fbeta", "fidelity", "fitness",
    "fowlkes", "gain", "hit", "hits", "homogeneity", "iou", "jaccard", "kappa", "kendall", "lift", "likelihood",
    "logp", "logprob", "map", "mar", "matthews", "mcc", "meteor", "miou", "mrr", "msssim", "mutual", "ndcg", "nmi",
    "noiseratio", "npv", "pearson", "pesq", "ppv", "precision", "predictive", "profit", "psnr", "purity", "quality",
    "r2", "rand", "recall", "return", "returns", "reward", "rewards", "roc", "rouge", "rsquared", "score", "sdr",
    "sensitivity", "sharpe", "silhouette", "similarity", "snr", "spearman", "specificity", "squad", "ssim", "stoi",
    "success", "theils", "throughput", "tnr", "top", "tpr", "tschuprows", "uqi", "utility", "vif", "vmeasure",
    "win", "winrate", "wins",
}  # fmt: skip
_LOWER_IS_BETTER = {
    "bouldin", "brier", "cost", "deviance", "distance", "divergence", "err", "error", "errors", "loss", "losses",
    "lpips", "mae", "mape", "mse", "msle", "nll", "patchsimilarity", "perplexity", "probabilityscore", "regret",
    "rmse", "rmsle", "smape",
}  # fmt: skip
_NEGATED = {"neg", "negative", "minus"}
_LONG = 6  # letters of a word that is also found within another, as in "balancedaccuracy"
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")


def direction(monitor: str | None, mode: Mode | None) -> Mode:
    """Whether lower or higher values are better.

    Args:
        monitor: name of the metric, or None.
        mode: as the user has given it; None is ``"min"``, unless the name says otherwise.

    Raises:
        ValueError: for another mode; or if none is given for a metric of which, by its name, more is better.

    Example:
        >>> direction("val_loss", None), direction("val_acc", "max")
        ('min', 'max')
    """
    if mode not in ("min", "max", None):
        raise ValueError(f"`mode` must be 'min' or 'max', got {mode!r}.")
    if mode is None and monitor is not None and _more_is_better(monitor):
        raise ValueError(
            f"`mode` must be given for `monitor` {monitor!r}: 'max', because its name suggests that higher is better, "
            "or 'min'."
        )
    return mode or "min"


def as_study(direction: str, monitor: str, known: Mode | None = None) -> Mode:
    """Return the mode of a study, with a warning if the metric's name says the other one.

    Args:
        direction: of the study, as Optuna names it.
        monitor: name of the metric.
        known: mode of an earlier trial, after which there is no second warning.
    """
    mode, other = ("min", "maximize") if direction == "MINIMIZE" else ("max", "minimize")
    if mode != known and suggested(monitor) not in (None, mode):
        warnings.warn(
            f"the study {direction.lower()}s {monitor!r}, against what its name says: if that is not meant, make it "
            f"with optuna.create_study(direction={other!r})",
            stacklevel=3,
        )
    return "min" if mode == "min" else "max"


def suggested(monitor: str) -> Mode | None:
    """Return the mode that the name of a metric suggests, or None.

    Example:
        >>> suggested("val_acc"), suggested("val_loss"), suggested("wave")
        ('max', 'min', None)
    """
    words = _words(monitor)
    if _more_is_better(monitor):
        return "max"
    return "min" if _says_lower(words) and not words & _NEGATED and not _says_higher(words) else None


def _says_higher(words: Iterable[str]) -> bool:
    return any(_has(word, _HIGHER_IS_BETTER) for word in words)


def _says_lower(words: Iterable[str]) -> bool:
    return any(_has(word, _LOWER_IS_BETTER) or word.endswith(("loss", "error")) for word in words)


def _more_is_better(name: str) -> bool:
    """Whether a metric's name has a word that says so: ``val_acc``, ``MulticlassAUROC``, ``valAcc``, ``mAP``, ..."""
    words = _words(name)
    higher, lower = _says_higher(words), _says_lower(words)
    if words & _NEGATED and "predictive" not in words:  # neg_mean_squared_error, negative_log_likelihood
        return lower
    return higher and not lower


def _words(name: str) -> set[str]:
    """Parts of a name between signs and at capitals, in lower case, and up to three neighbours joined: io, u, iou."""
    plain = re.split(r"[^a-z0-9]+", name.lower())
    parts = [part.lower() for part in _HUMP.split(name)]
    joined = {"".join(parts[start:end]) for start in range(len(parts)) for end in range(start + 1, start + 4)}
    words = {*plain, *joined}
    return words | {word.rstrip("0123456789") for word in words}  # acc5


def _has(word: str, known: Iterable[str]) -> bool:
    return word in known or any(long in word for long in known if len(long) >= _LONG)
