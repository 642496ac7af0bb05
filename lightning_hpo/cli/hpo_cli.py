"""``LightningCLI`` with one more subcommand: ``tune`` searches over any path of the config.

``train.py`` is ``HPOCLI(LitModel, LitData)``; then::

    python train.py tune -c fit.yaml --space.model.lr "loguniform(1e-5, 1e-1)" \
        --tuner HyperbandTuner --tuner.max_steps 900 --tuner.monitor val_acc --tuner.mode max
    python train.py fit -c runs/<name>/best.yaml
"""

import sys
from collections.abc import Mapping
from typing import Any

try:
    from jsonargparse import ArgumentParser, Namespace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("HPOCLI needs jsonargparse: pip install 'lightning-hpo-suite[cli]'") from error
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import lightning_hpo
from lightning_hpo.cli.dry_run import price
from lightning_hpo.cli.messages import plain
from lightning_hpo.cli.spaces import flat, whole_names
from lightning_hpo.errors import UNFORESEEN, exit_code, leave
from lightning_hpo.executors.ray import RayExecutor
from lightning_hpo.executors.submitit_executor import SubmititExecutor
from lightning_hpo.reporting.console import Console
from lightning_hpo.space import GRAMMAR, parse_space
from lightning_hpo.text import masked_config, say
from lightning_hpo.training.config_builder import ConfigBuilder
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.prepare import say_plan

for _name in {*lightning_hpo.__all__} - {"HPOCLI"}:  # a class must be imported for its short name on the command line
    getattr(lightning_hpo, _name)

SPACE_HELP = (
    f"What to search over: path in the config -> {GRAMMAR}. Floats: uniform, loguniform; integers, both ends included: "
    "int, logint; a grid: uniform(0, 1, step=0.1), int(16, 128, step=16); choices are text, numbers, True, False or "
    "None, lists and tuples; choice(small={...}, large={...}) names its values. A condition stands behind if: "
    "\"uniform(0.8, 0.99) if model.optimizer == 'sgd'\"; [16, 32] is a choice, 16 a fixed value. As flags, "
    '--space.model.lr "loguniform(1e-5, 1e-1)" --space.data.batch_size "choice(16, 32)"; as a file, '
    "--space space.yaml with a line 'model.lr: loguniform(1e-5, 1e-1)' for each; or under 'space:' in a config."
)
_DESCRIPTION = (
    "Searches over paths of the config for the best value of a logged metric. Everything is kept in runs/<name>; the "
    "same line again continues an interrupted search. The answer is runs/<name>/best.yaml, which `fit -c` takes. "
    "Exit codes: 0 finished, 2 a mistake in this call or a study in use, 3 trials failed, 4 the run folder or storage "
    "cannot be used, 130, 143 and 129 paused."
)
_OWN = ("space", "tuner", "dry_run")


class _Parser(LightningArgumentParser):
    """Says plainly what is wrong with an option of the tuner."""

    def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
        """Print a message and exit, as ever."""
        return super().error(plain(message), *args, **kwargs)


class HPOCLI(LightningCLI):
    """``LightningCLI`` with ``tune`` beside ``fit``, ``validate``, ``test`` and ``predict``.

    Tuners, schedules and callbacks of this package have short names. An LR schedule of this package given as
    ``--lr_scheduler`` is bound to the Trainer: the callback ``LRSchedule`` is added to the config if it has none.
    Arguments are those of ``LightningCLI``. After ``tune``, :attr:`result` holds what was found.
    """

    result: "lightning_hpo.Result | None" = None

    def init_parser(self, **kwargs: Any) -> LightningArgumentParser:
        """Make the parser of this CLI or of a subcommand, as ever, but with our words for mistakes."""
        if self.parser_class is LightningArgumentParser:
            self.parser_class = _Parser
        return super().init_parser(**kwargs)

    def _add_subcommands(self, parser: LightningArgumentParser, **kwargs: Any) -> None:
        super()._add_subcommands(parser, **kwargs)
        trainer = self.trainer_class if isinstance(self.trainer_class, type) else Trainer
        options = {**kwargs.get("fit", {}), "description": _DESCRIPTION}
        tune = self._prepare_subcommand_parser(trainer, "fit", **options)
        tune.add_argument("--space", type=dict[str, Any], default={}, sub_configs=True, help=SPACE_HELP)
        tune.add_subclass_arguments(
            Tuner, "tuner", skip={"space", "trainer", "parts"}, instantiate=False, required=True
        )
        tune.add_argument(
            "--dry_run", "--dry-run", action="store_true", help="Print the plan and its price, and stop there."
        )
        self._subcommand_parsers["tune"] = tune
        action: Any = parser._subcommands_action  # noqa: SLF001  # has no public name
        action.add_subcommand("tune", tune, help="Search for the best hyperparameters.")

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse, and bind an LR schedule of this package to the Trainer."""
        if args is None:
            self.config = parser.parse_args(whole_names(sys.argv[1:]))
        else:
            super().parse_arguments(parser, whole_names(args) if isinstance(args, list) else args)
        self._bind_lr_schedule(parser)

    def instantiate_classes(self) -> None:
        """Instantiate as ever; in ``tune`` each trial has classes of its own."""
        if self.subcommand != "tune":
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        if subcommand != "tune":
            super()._run_subcommand(subcommand)
            return
        try:
            self.result = self.tune()
        except Exception as error:
            if exit_code(error) == UNFORESEEN:
                raise
            leave(error)

    def tune(self) -> "lightning_hpo.Result | None":
        """Search as the command line says; None after a dry run."""
        config = self.config["tune"].clone()
        space, tuner, dry_run = (config.pop(name) for name in _OWN)
        if config.get("ckpt_path") is not None:
            raise ValueError("`ckpt_path` is for fit: every trial of a search starts from scratch.")
        self.subcommand = "fit"  # what a trial does, and what best.yaml is for
        fit = Namespace(fit=config)  # type: ignore[no-untyped-call]  # jsonargparse leaves it untyped
        builder = ConfigBuilder(self, fit)
        made = _make_tuner(tuner, parse_space(dict(flat(space))))
        for name, value in builder.replaced.items():
            shown = masked_config(value, name)
            _say(f"trainer.{name}={shown!r} of the config is not used: the tuner says how long and where a trial runs.")
        if dry_run:
            objective = made.objective(builder)
            console = Console(objective.monitor, made.mode, verbose=True, unit=made.unit)
            say_plan(made.setup, console, f"plan of {type(made).__name__}; nothing is written", ())
            for line in price(objective, made.plan(), made.planned_steps()):
                console.line(line)
            return None
        return made.fit(builder)

    def _bind_lr_schedule(self, parser: LightningArgumentParser) -> None:
        subcommand = self.config.get("subcommand")
        config = self.config[subcommand] if subcommand else self.config
        if not str(config.get("lr_scheduler.class_path")).startswith("lightning_hpo."):
            return
        callbacks = config.trainer.callbacks or []
        if any(str(callback.get("class_path")).endswith(".LRSchedule") for callback in callbacks):
            return
        added = {"trainer": {"callbacks": [*callbacks, {"class_path": "lightning_hpo.LRSchedule"}]}}
        inner = self._subcommand_parsers[subcommand] if subcommand else parser
        bound = inner.parse_object(added, namespace=config)
        if subcommand:
            self.config[subcommand] = bound
        else:
            self.config = bound


@rank_zero_only
def _say(text: str) -> None:
    say(text)


def _make_tuner(config: Namespace, space: Mapping[str, Any]) -> Tuner:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Tuner, "tuner", skip={"space", "trainer", "parts"})

    mistakes: list[Exception] = []

    def make(kind: type, *args: Any, **options: Any) -> Any:
        try:
            return kind(*([space] if issubclass(kind, Tuner) else []), *args, **options)
        except (TypeError, ValueError) as error:
            mistakes.append(error)
            raise

    config = parser.parse_object({"tuner": config})
    kinds = (Tuner, RayExecutor, SubmititExecutor)
    try:
        made: Tuner = parser.instantiate(config, instantiators=[(make, kind, True) for kind in kinds]).tuner
    except Exception:
        if mistakes:  # said plainly, without what the parser adds
            raise mistakes[0] from None
        raise
    return made
