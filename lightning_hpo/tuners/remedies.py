"""What to write instead of an argument that a tuner does not have: the words of other tools, missing and extra ones."""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from lightning_hpo.errors import explained
from lightning_hpo.text import nearest, one_line

Function = TypeVar("Function", bound=Callable[..., Any])
_NEAR = 0.75  # similarity from which a name is taken for another one misspelt

# Our argument -> the words that other tools have for it.
_SYNONYMS = {
    "monitor": "metric metrics metric_name objective objective_name score score_name target_metric eval_metric",
    "mode": "direction directions goal maximize minimize higher_is_better greater_is_better",
    "max_steps": "steps n_steps num_steps train_steps max_t max_resource max_budget max_iter resource max_iterations",
    "max_epochs": "epochs n_epochs num_epochs max_epoch",
    "min_steps": "grace_period min_t min_resource min_budget",
    "max_samples": "max_examples num_examples",
    "eta": "reduction_factor halving_factor",
    "n_trials": "num_samples max_trials n_iter num_trials trials max_evals n_calls n_samples max_num_trials",
    "workers": "n_jobs num_workers max_concurrent_trials max_concurrent n_workers parallelism num_processes",
    "devices_per_trial": "gpus gpus_per_trial num_gpus resources_per_trial gpu_per_trial devices resources",
    "sampler": "search_alg searcher search_algorithm algorithm algo suggester",
    "name": "study_name experiment_name run_name exp_name project_name experiment",
    "root": "local_dir storage_path output_dir save_dir log_dir dir folder directory results_dir default_root_dir",
    "seed": "random_state random_seed rng seed_everything",
    "timeout": "time_budget_s time_budget time_limit walltime max_duration",
    "max_failed": "max_failures max_fail max_errors",
    "max_retries": "retries num_retries",
    "checkpoint_every": "checkpoint_freq save_every every_n_train_steps checkpoint_frequency",
    "keep_checkpoints": "save_checkpoints keep_checkpoints_num",
    "population_size": "population num_members n_members",
    "interval": "perturbation_interval",
    "factor": "perturbation_factor perturbation_factors",
    "quantile": "quantile_fraction truncation",
    "resample": "resample_probability",
    "total_steps": "total_budget budget max_total_steps",
    "start": "points_to_evaluate initial_points x0 initial_configs start_points initial_params enqueue",
    "folds": "cv n_splits num_folds n_folds k_folds kfold kfolds fold cross_validation",
    "from_run": "warm_start warm_start_from previous_run earlier_run prior_run prior source_study transfer_from",
}
_OURS = {word: ours for ours, words in _SYNONYMS.items() for word in words.split()}

_SPACE = "the search space is the first argument: {'lr': 'loguniform(1e-5, 1e-1)'}"
_FIT = "it belongs to fit: tuner.fit(Model, datamodule=Data)"
_STOPPING = "a callback of the Trainer: trainer={'callbacks': [EarlyStopping(...)]}"
_RUNGS = "only HyperbandTuner and ASHATuner judge trials before their full budget"
_DATA = "write train_dataloaders=..., val_dataloaders=..., or datamodule=Data"
_SAME_CALL = "the same call continues a run that was stopped; another `name` starts a new one"
_SENTENCES = {
    **dict.fromkeys(["space_def", "search_space", "param_space", "params", "parameters", "config"], _SPACE),
    **dict.fromkeys(["hyperparameters", "param_distributions", "hyperparam_mutations", "configspace"], _SPACE),
    **dict.fromkeys(["model", "datamodule", "data", "train_dataloaders", "val_dataloaders"], _FIT),
    **dict.fromkeys(["patience", "early_stopping", "early_stopping_rounds"], _STOPPING),
    **dict.fromkeys(["resume", "load_if_exists", "restore", "continue_from"], _SAME_CALL),
    **dict.fromkeys(["restart", "reset"], "write overwrite=True to begin anew"),
    **dict.fromkeys(["silent", "quiet", "progress_bar", "show_progress_bar", "verbosity"], "write verbose=False"),
    "pruner": "only OptunaTuner has a pruner; HyperbandTuner and ASHATuner stop bad trials by themselves",
    "study": "only OptunaTuner takes a study; storage='sqlite:///...' keeps one anywhere",
    "scheduler": "a tuner brings its own scheduler; to choose one, write Tuner(space, scheduler)",
    "n_startup_trials": "an argument of BayesianTuner, or of a sampler: sampler=TPESampler(n_startup_trials=5)",
    "catch": "a trial that fails does not end the search; `max_failed` in a row do",
}
# Our argument -> what a tuner without it has instead.
_ELSEWHERE = {
    "n_trials": "HyperbandTuner plans its trials by itself; `iterations` repeats its brackets, `total_steps` "
    "and `timeout` end it. ASHATuner and RandomTuner take n_trials",
    "max_epochs": "the scheduler has the budget: Tuner(space, FullBudget(27, n_trials=20), unit='epochs')",
    **dict.fromkeys(["min_steps", "min_epochs", "min_samples"], _RUNGS),
    "iterations": "only HyperbandTuner repeats its brackets",
    "eta": "only HyperbandTuner and ASHATuner have `eta`",
    "population_size": "only PopulationTuner has a population",
    "interval": "only PopulationTuner has an interval",
    "factor": "only PopulationTuner perturbs hyperparameters",
    "quantile": "only PopulationTuner has a quantile",
    "resample": "only PopulationTuner resamples hyperparameters",
}
_MISSING = {
    "space": "name the hyperparameters to search, e.g. {'lr': 'loguniform(1e-5, 1e-1)'}",
    "scheduler": "say which trial gets how many steps, e.g. FullBudget(900, n_trials=20), or use RandomTuner",
    "n_trials": "say how many trials to run, e.g. n_trials=50",
    "function": "give a function of a job and its parameters that returns the score",
}
_OF_FIT = {
    **dict.fromkeys(["data", "data_module", "dm"], "write datamodule=..."),
    **dict.fromkeys(["train_dataloader", "train_loader", "train_loaders", "dataloader", "dataloaders"], _DATA),
    **dict.fromkeys(["loader", "loaders", "val_dataloader", "val_loader", "val_loaders", "valid_dataloaders"], _DATA),
    "ckpt_path": "every trial starts from scratch, and the same call continues a stopped run",
    "trainer": "give Trainer arguments to the tuner: trainer={'accelerator': 'gpu'}",
}


def checked_call(function: Function) -> Function:
    """Decorate a method of a tuner: a call that does not fit its signature is answered with what to write."""

    @functools.wraps(function)
    def called(self: Any, *args: Any, **kwargs: Any) -> Any:
        with explained(None):
            validate_call(function, self, args, kwargs)
        return function(self, *args, **kwargs)

    return called  # type: ignore[return-value]  # functools.wraps keeps the signature


def validate_call(function: Callable[..., Any], owner: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise TypeError if a call does not fit, with the remedy."""
    parameters = dict(inspect.signature(function).parameters)
    parameters.pop("self")
    is_init = function.__name__ == "__init__"
    name = type(owner).__name__ if is_init else function.__name__
    variable = next((parameter for parameter in parameters.values() if parameter.kind is parameter.VAR_KEYWORD), None)
    known = [*parameters]
    if variable is not None:
        del parameters[variable.name]
        known = [*parameters, *type(owner).shared_arguments]
    is_ours = variable is None or function.__module__.startswith("lightning_hpo.")  # another one may take anything
    unknown = [key for key in kwargs if key not in known and is_ours]
    if unknown:
        raise TypeError(
            unknown_argument(name, unknown[0], known, kwargs[unknown[0]])
            if is_init
            else _of_method(name, unknown[0], known)
        )
    positional = [key for key, parameter in parameters.items() if parameter.kind is parameter.POSITIONAL_OR_KEYWORD]
    if len(args) > len(positional):
        extra = args[len(positional)]
        named = [key for key in parameters if key not in positional and key not in kwargs]
        required = [key for key in named if parameters[key].default is inspect.Parameter.empty]
        first = "max_steps" if "max_steps" in named else [*required, *named, "name"][0]
        example = "train_dataloaders=..., val_dataloaders=..." if len(args) > 2 and name == "fit" else None
        raise TypeError(
            f"{name} takes {', '.join(positional)} by position and all else by name, e.g. "
            f"{example or f'{first}={_shown(extra)}'}."
        )
    given = {*positional[: len(args)], *kwargs}
    for parameter in parameters.values():
        if parameter.default is parameter.empty and parameter.name not in given:
            remedy = _MISSING.get(parameter.name, f"give {parameter.name}=...")
            raise TypeError(f"`{parameter.name}` is missing in {name}: {remedy}.")


def unknown_argument(tuner: str, name: str, known: Sequence[str], value: Any = inspect.Parameter.empty) -> str:
    """Say what to write instead of an argument that a tuner does not have.

    Example:
        >>> unknown_argument("RandomTuner", "metric", ["monitor", "max_retries"], "val_loss")
        "RandomTuner has no argument 'metric': write monitor='val_loss'."
    """
    remedy = _remedy(name, known, value)
    if remedy:
        return f"{tuner} has no argument {name!r}: {remedy}."
    return f"{tuner} has no argument {name!r}.{nearest(name, known, _NEAR)}"


def validate_trainer(trainer: Any) -> None:
    """Raise TypeError unless the Trainer's arguments are given as a mapping."""
    if trainer is not None and not isinstance(trainer, Mapping):
        what = "a class" if isinstance(trainer, type) else f"a {type(trainer).__name__}"
        raise TypeError(
            f"`trainer` must be a dictionary of Trainer arguments, got {what}: every trial has a Trainer of its own. "
            "Write trainer={'accelerator': 'gpu', 'callbacks': [...]}."
        )


def validate_function(function: Any) -> None:
    """Raise TypeError unless a function can be called with a job and its parameters."""
    if not callable(function):
        raise TypeError(f"`function` must be callable with a job and its parameters, got {function!r}.")
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # of a built-in function
        return
    try:
        signature.bind(None, None)
    except TypeError:
        name = getattr(function, "__name__", "function")
        raise TypeError(
            f"`optimize` calls {name}(job, params), but it takes {signature}: job.max_steps is the budget, params the "
            "values by name."
        ) from None


def _of_method(name: str, argument: str, known: Sequence[str]) -> str:
    remedy = _OF_FIT.get(argument, "") if name == "fit" else ""
    if not remedy and argument in {*_OURS, *_OURS.values()}:
        remedy = "give it to the tuner's constructor"
    return f"{name} has no argument {argument!r}" + (
        f": {remedy}." if remedy else f".{nearest(argument, known, _NEAR)}"
    )


def _remedy(name: str, known: Sequence[str], value: Any) -> str:
    """What to write for a word that we know; empty for another one."""
    if name in _SENTENCES:
        return _SENTENCES[name]
    ours = _OURS.get(name, name)
    if ours == "n_trials" and "population_size" in known:
        ours = "population_size"
    if ours in known:
        return f"write {ours}={_value(ours, name, value)}"
    if ours in _ELSEWHERE:
        return _ELSEWHERE[ours]
    if _is_of_trainer(name):
        shown = "..." if value is inspect.Parameter.empty else _shown(value)
        return f"it is an argument of the Trainer: trainer={{{name!r}: {shown}}}"
    return ""


def _value(ours: str, name: str, value: Any) -> str:
    """The value to write for our argument."""
    if ours == "mode":
        low = str(value).lower()
        if name in ("maximize", "higher_is_better", "greater_is_better"):
            low = "max" if value else "min"
        if name == "minimize":
            low = "min" if value else "max"
        return "'max'" if low.startswith("max") else "'min'" if low.startswith("min") else "'min' or 'max'"
    if ours == "start":
        return "[{...}]"
    simple = isinstance(value, str | int | float) and value is not inspect.Parameter.empty
    return _shown(value) if simple else "..."


def _shown(value: Any) -> str:
    text = one_line(getattr(value, "__name__", None) or repr(value))
    return text if len(text) <= 40 else "..."


def _is_of_trainer(name: str) -> bool:
    import lightning.pytorch as pl  # noqa: PLC0415  # for a message only

    return name in inspect.signature(pl.Trainer).parameters
