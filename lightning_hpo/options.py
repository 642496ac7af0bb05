"""The arguments that all tuners share, and what is said of one that no tuner has."""

import inspect
import re
from collections.abc import Iterable, Mapping
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage

from lightning_hpo.schedulers import Mode
from lightning_hpo.schedulers.base import require_int
from lightning_hpo.space import nearest

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
    "mae", "mape", "mse", "msle", "nll", "perplexity", "probabilityscore", "regret", "rmse", "rmsle", "smape",
}  # fmt: skip
_NEGATED = {"neg", "negative", "minus"}
_LONG = 6  # letters of a word that is also found within another, as in "balancedaccuracy"
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+")


class Options(TypedDict, total=False):
    """Arguments that all tuners share; see :class:`~lightning_hpo.Tuner`."""

    monitor: str | None
    mode: Mode | None
    sampler: BaseSampler | None
    seed: int
    name: str | None
    storage: str | BaseStorage | None
    root: str | Path
    trainer: Mapping[str, Any] | None
    checkpoint_every: int
    keep_checkpoints: bool
    workers: int
    devices_per_trial: int
    timeout: float | None
    total_steps: int | None
    max_failed: int | float
    trial_timeout: float | None
    max_retries: int
    stop_on_nan: bool
    isolate: bool
    allow_changed: bool
    shared: bool
    verbose: bool


def arguments_of(kind: type) -> list[str]:
    """Names of the arguments that a tuner takes."""
    own = [name for name, one in inspect.signature(kind).parameters.items() if one.kind is not one.VAR_KEYWORD]
    return [*own, *(name for name in Options.__annotations__ if name not in own)]


def refuse_unknown(kind: type, options: Mapping[str, Any]) -> None:
    """Raise TypeError if there is an option that no tuner has."""
    for name in options:
        if name not in Options.__annotations__:
            raise TypeError(f"{kind.__name__} has no argument {name!r}.{nearest(name, arguments_of(kind))}")


def refuse_wrong(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for an option outside its range, with its value and what is accepted."""
    if options["sampler"] is not None and not isinstance(options["sampler"], BaseSampler):
        raise TypeError(f"`sampler` must be an Optuna sampler, got {options['sampler']!r}.")
    refuse_wrong_limits(options)
    for name, least in (("seed", 0), ("workers", 1), ("devices_per_trial", 1), ("max_retries", 0)):
        require_int(name, options[name], least)


def refuse_wrong_limits(options: Mapping[str, Any]) -> None:
    """Raise TypeError or ValueError for a limit that is no number above 0."""
    for name in ("timeout", "total_steps", "max_failed", "trial_timeout"):
        value = options.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, Real)):
            raise TypeError(f"`{name}` must be a number above 0, got {value!r}.")
        if value is not None and not float(value) > 0:
            raise ValueError(f"`{name}` must be above 0, got {value!r}.")


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
            f"`mode` must be given for `monitor` {monitor!r}: 'max', as more of it is better by its name, or 'min'."
        )
    return mode or "min"


def _more_is_better(name: str) -> bool:
    """Whether a metric's name has a word that says so: ``val_acc``, ``MulticlassAUROC``, ``valAcc``, ``mAP``, ..."""
    words = _words(name)
    higher = any(_has(word, _HIGHER_IS_BETTER) for word in words)
    lower = any(_has(word, _LOWER_IS_BETTER) or word.endswith(("loss", "error")) for word in words)
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
