"""Builds the components of a trial from the config of a ``LightningCLI``, with the trial's values put in.

The parsed config is the base, and a trial's values are parsed on top of it, so types, links, short names and class
paths mean what they mean on the command line. Model, data, callbacks, optimizer and LR schedule are then made by the
CLI itself, with all that a subclass has overridden.
"""

import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import lightning.pytorch as pl
import yaml
from jsonargparse import ArgumentError, Namespace
from lightning.pytorch.cli import LightningCLI
from optuna.distributions import BaseDistribution, CategoricalDistribution

from lightning_hpo.space import SearchSpace, from_unit
from lightning_hpo.text import masked, nearest
from lightning_hpo.training.builder import Builder, TrialComponents, as_list
from lightning_hpo.training.ranks import DISTRIBUTED_ARGUMENTS

# Arguments that the tuner decides, and arguments that say where a run runs and what it shows, not what it computes.
_BUDGET = ("max_steps", "max_epochs", "default_root_dir")
_NOT_COMPUTED = (*_BUDGET, "accelerator", "devices", "logger", "enable_progress_bar", "enable_model_summary")
_NO_PATH = ("seed_everything", "ckpt_path", "config", "weights_only")
# Results of the CLI's parsing; another process makes them again.
_MADE = (
    "parser", "_subcommand_parsers", "_subcommand_method_arguments",
    "config", "config_init", "config_dump", "model", "datamodule", "trainer",
)  # fmt: skip


class ConfigBuilder(Builder):
    """Builds from the config of a CLI.

    The hook ``before_instantiate_classes`` is called for every trial; ``after_instantiate_classes`` and the hooks
    around subcommands are not. Values of ``trainer`` that equal the Trainer's own defaults count as not given.

    Args:
        cli: with its config parsed: made with ``run=False``, or a running :class:`~lightning_hpo.HPOCLI`.
        config: to start from. Default: the parsed config of ``cli``.
    """

    def __init__(self, cli: LightningCLI, config: Namespace | None = None) -> None:
        if not isinstance(cli, LightningCLI):
            raise TypeError(f"`cli` must be a LightningCLI made with run=False, got {cli!r}.")
        self._cli = cli
        self._parser = cli._parser(cli.subcommand)  # noqa: SLF001  # the CLI's own way from a subcommand to its parser
        whole = cli.config if config is None else config
        self._base = whole.get(str(cli.subcommand), whole).clone()
        if type(cli).after_instantiate_classes is not LightningCLI.after_instantiate_classes:
            warnings.warn(f"{type(cli).__name__}.after_instantiate_classes is not called in a search.", stacklevel=3)
        made_by = cli.trainer_class
        if made_by.__module__.partition(".")[0] not in ("lightning", "pytorch_lightning"):
            warnings.warn(
                f"`trainer_class`={getattr(made_by, '__name__', made_by)} of the CLI is not used in a search: trials "
                "train with a Trainer of the tuner's own. Put what it does into callbacks.",
                stacklevel=3,
            )
        self.__name__ = _class_name(cli, self._base)  # a run folder is named after it
        self.code = _classes(cli, self._base)

    def __getstate__(self) -> dict[str, Any]:
        """Return the CLI's class and settings, and the config as data: a worker process needs no more."""
        settings = {name: value for name, value in vars(self._cli).items() if name not in _MADE}
        instantiators = bool(self._cli.parser._instantiators)  # noqa: SLF001  # `load_from_checkpoint_support` is kept nowhere else
        return {"kind": type(self._cli), "settings": settings, "instantiators": instantiators, "base": self._base}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the parser again, as the CLI's constructor does."""
        cli: Any = state["kind"].__new__(state["kind"])
        vars(cli).update(state["settings"])
        cli.setup_parser(cli.subcommand is not None, *cli._setup_parser_kwargs(cli.parser_kwargs))  # noqa: SLF001
        if state["instantiators"]:
            cli._add_instantiators()  # noqa: SLF001
        self._cli, self._base = cli, state["base"]
        self._parser = cli._parser(cli.subcommand)  # noqa: SLF001
        self.__name__ = _class_name(cli, self._base)

    @property
    def identity(self) -> dict[str, Any]:
        """The config that all trials share, without the arguments that do not change results."""
        dumped = self._dump(self._base)
        trainer = {k: v for k, v in self._given(dumped["trainer"]).items() if k not in _NOT_COMPUTED}
        return {**{k: v for k, v in dumped.items() if k not in _NO_PATH and v is not None}, "trainer": trainer}

    @property
    def distributed_arguments(self) -> Mapping[str, Any]:
        """The values of the config; a strategy that is given as a class is made."""
        given = {
            name: value for name, value in self._given(self._base.trainer).items() if name in DISTRIBUTED_ARGUMENTS
        }
        if isinstance(strategy := self._base.trainer.strategy, Namespace):
            given["strategy"] = _made(strategy)
        return given

    @property
    def logger(self) -> Any:
        """The loggers of the config, which are made; one that needs other objects is left to the CLI."""
        given = self._base.trainer.get("logger")
        made = [_made(logger) for logger in as_list(given)]
        return made if isinstance(given, list) else made[0] if made else None

    @property
    def replaced(self) -> dict[str, Any]:
        """Trainer arguments of the config that a search does not use, because the tuner has its own."""
        return {name: value for name, value in self._given(self._base.trainer).items() if name in _BUDGET}

    @property
    def loader_head(self) -> str:
        """The data, if the CLI or its config names a class."""
        return "model" if self._cli.subclass_mode_data and self._base.get("data") is None else "data"

    def takes(self, name: str) -> bool:
        """Look for the path."""
        return name in _paths(self._base)

    def check_space(self, names: Mapping[str, BaseDistribution]) -> None:
        """Parse each bound and choice, and compare the values of the config with those of the space."""
        owners: dict[str, str] = {}
        for name in names:
            path = ".".join(_full_path(self._base, name))
            if owners.setdefault(path, name) != name:
                raise ValueError(f"`space` names {path!r} twice: as {owners[path]!r} and as {name!r}.")
            head, _, rest = name.partition(".")
            if head == "trainer" and rest in _BUDGET:
                raise ValueError(f"`space` has the name {name!r}, but that is the tuner's own.")
            for value in _probes(names, name):
                try:
                    config = self._parse({name: value})
                except (ArgumentError, KeyError, TypeError, ValueError) as error:
                    raise ValueError(self._why(name, value, error)) from error
                if (held := _held(config, name)) != value:
                    raise ValueError(
                        f"`space` has {name!r} with the value {masked(name, value)!r}, but the config makes it "
                        f"{masked(name, held)!r}."
                    )

    def defaults(self, names: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values of the config."""
        held = {name: _held(self._base, name) for name in names}
        return {
            name: value.as_dict() if isinstance(value, Namespace) else value
            for name, value in held.items()
            if value is not None
        }

    def build(self, params: Mapping[str, Any]) -> TrialComponents:
        """Let the CLI make everything from its config and a trial's values."""
        cli = self._instantiate(params)
        given = self._given(cli.trainer)
        arguments = {name: value for name, value in given.items() if name not in _BUDGET}
        return TrialComponents(cli.model, cli.datamodule, arguments)

    def build_model(self, params: Mapping[str, Any]) -> pl.LightningModule:
        """Build everything and return the module."""
        module: pl.LightningModule = self._instantiate(params).model
        return module

    def config(self, params: Mapping[str, Any], max_steps: int) -> dict[str, Any]:
        """Return the whole config, with the best values and the budget: ``fit -c`` takes it."""
        config = self._parse(params)
        config.trainer.max_steps = max_steps
        config.trainer.max_epochs = None
        return self._dump(config)

    def _instantiate(self, params: Mapping[str, Any]) -> Any:
        cli: Any = self._cli
        config = self._parse(params)
        cli.config = config
        if cli.subcommand:
            cli.config = Namespace(**{cli.subcommand: config}, subcommand=cli.subcommand)  # type: ignore[no-untyped-call]  # jsonargparse leaves it untyped
        # The CLI gives modules their hparams from a dump that it makes once: without this they are those of the base.
        cli.config_dump = self._dump(config, skip_unset=False, skip_link_targets=False)
        kept = cli.trainer_class, cli.save_config_callback
        cli.trainer_class, cli.save_config_callback = dict, None  # its arguments are wanted, not a Trainer
        try:
            cli.before_instantiate_classes()
            cli.instantiate_classes()
        finally:
            cli.trainer_class, cli.save_config_callback = kept
        return cli

    def _parse(self, params: Mapping[str, Any]) -> Namespace:
        nested: dict[str, Any] = {}
        for name, value in params.items():
            *path, last = _full_path(self._base, name)
            place = nested
            for key in path:
                place = place.setdefault(key, {})
            place[last] = value
        before, self._parser.exit_on_error = self._parser.exit_on_error, False
        try:
            parsed: Namespace = self._parser.parse_object(nested, namespace=self._base.clone())
        finally:
            self._parser.exit_on_error = before
        return parsed

    def _dump(self, config: Namespace, **options: Any) -> dict[str, Any]:
        dumped: dict[str, Any] = yaml.safe_load(self._parser.dump(config, **options))
        dumped.pop("config", None)
        return dumped

    def _given(self, arguments: Mapping[str, Any] | Namespace) -> dict[str, Any]:
        defaults = inspect.signature(pl.Trainer).parameters
        items = arguments.as_dict() if isinstance(arguments, Namespace) else arguments
        return {k: v for k, v in items.items() if k not in defaults or v != defaults[k].default}

    def _why(self, name: str, value: Any, error: Exception) -> str:
        paths = [path for path in _paths(self._base) if path.partition(".")[0] not in _NO_PATH]
        if name in paths:
            return (
                f"`space` has {name!r} with the value {masked(name, value)!r}, which the config refuses: {_gist(error)}"
            )
        same = [path for path in paths if path.rpartition(".")[2] == name.rpartition(".")[2]]
        hint = nearest(name, same or paths, 0 if same else 0.6)
        return f"`space` has the name {name!r}, which is no path of the config.{hint} ({_gist(error)})"


def _classes(cli: LightningCLI, base: Namespace) -> list[Any]:
    """Classes of model and data, given to the CLI or named in its config."""
    model = _imported(base.get("model.class_path")) if cli.subclass_mode_model else cli.model_class
    data = _imported(base.get("data.class_path")) if cli.subclass_mode_data else cli.datamodule_class
    return [found for found in (model, data) if found is not None]


def _imported(path: str | None) -> Any:
    """Return the class at a path; the CLI has imported it already."""
    module, _, name = (path or "").rpartition(".")
    return getattr(sys.modules.get(module), name, None)


def _made(given: Any) -> Any:
    """Make an object of a config; anything else stays as it is."""
    if not isinstance(given, Namespace):
        return given
    module, _, name = given.class_path.rpartition(".")
    return getattr(importlib.import_module(module), name)(**dict(given.get("init_args") or {}))


def _class_name(cli: Any, base: Namespace) -> str:
    given = base.get("model.class_path") if cli.subclass_mode_model else cli.model_class.__name__
    return str(given).rpartition(".")[2]


def _probes(space: Mapping[str, BaseDistribution], name: str) -> list[Any]:
    distribution = space[name]
    deliver = space.deliver if isinstance(space, SearchSpace) else dict
    if isinstance(distribution, CategoricalDistribution):
        return [deliver({name: choice})[name] for choice in distribution.choices]
    return [from_unit(distribution, place) for place in (0.0, 0.5, 1.0)]


def _full_path(config: Namespace, name: str) -> list[str]:
    """Return the keys from the root of the config, where ``optimizer.lr`` may stand for ``optimizer.init_args.lr``."""
    path: list[str] = []
    place: Any = config
    for key in name.split("."):
        known = isinstance(place, Namespace)
        if known and key not in place and "init_args" in place:
            path.append("init_args")
            place = place["init_args"]
        path.append(key)
        place = place.get(key) if known and isinstance(place, Namespace) else None
    return path


def _held(config: Namespace, name: str) -> Any:
    return config[".".join(_full_path(config, name))]


def _paths(config: Namespace) -> Iterator[str]:
    for name in config.keys():  # noqa: SIM118  # a Namespace yields its leaves only here
        yield name
        if ".init_args." in name:
            yield name.replace(".init_args.", ".")


def _gist(error: Exception) -> str:
    """Return the lines of jsonargparse's message that name the cause, as one line."""
    lines = [line.strip(" -") for line in str(error).splitlines()]
    return "; ".join(line for line in lines if line and not line.startswith(("Given value", "Errors:")))[:400]
