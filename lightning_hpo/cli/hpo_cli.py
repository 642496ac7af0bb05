"""``LightningCLI`` with one more subcommand: ``tune`` searches over any path of the config.

``train.py`` is ``HPOCLI(LitModel, LitData)``; then::

    python train.py tune -c fit.yaml --space.model.lr "loguniform(1e-5, 1e-1)" \
        --tuner HyperbandTuner --tuner.max_steps 900 --tuner.monitor val_acc --tuner.mode max
    python train.py fit -c runs/<name>/best.yaml
"""

import copy
import re
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

try:
    from jsonargparse import ArgumentParser, Namespace
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("HPOCLI needs jsonargparse: pip install 'lightning-hpo-suite[cli]'") from error
from lightning.pytorch import Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI
from lightning.pytorch.utilities import rank_zero_only

import lightning_hpo
from lightning_hpo.cli.spaces import flat, whole_names
from lightning_hpo.errors import UNFORESEEN, exit_code, leave
from lightning_hpo.executors.ray import RayExecutor
from lightning_hpo.records import CHECKPOINT, Job, Outcome, Task
from lightning_hpo.reporting.console import Console
from lightning_hpo.schedulers.units import STEPS
from lightning_hpo.space import GRAMMAR, parse_space
from lightning_hpo.text import hide_passwords, masked_config, say
from lightning_hpo.training.builder import Builder
from lightning_hpo.training.config_builder import ConfigBuilder
from lightning_hpo.training.ranks import ranks_of
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.options import arguments_of
from lightning_hpo.tuners.remedies import unknown_argument

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
_TIMED_STEPS = 10
_KEY = re.compile(r"Parser key \"(?P<name>\w+)\":\s+(?P<why>(?!Does not validate against any of the Union subtypes\s+"
                  r"Subtypes: \[<class 'lightning_hpo).*)", re.DOTALL)  # fmt: skip
_UNKNOWN = re.compile(r"given class_path '(?P<kind>[\w.]+)':\s+Option '(?P<name>\w+)' is not accepted")


class _Parser(LightningArgumentParser):
    """Says plainly what is wrong with an option of the tuner."""

    def error(self, message: str, *args: Any, **kwargs: Any) -> Any:
        """Print a message and exit, as ever."""
        return super().error(_plain(message), *args, **kwargs)


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
            _say_price(made, builder)
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
    try:
        made: Tuner = parser.instantiate(config, instantiators=[(make, Tuner, True), (make, RayExecutor, True)]).tuner
    except Exception:
        if mistakes:  # said plainly, without what the parser adds
            raise mistakes[0] from None
        raise
    return made


def _say_price(tuner: Tuner, builder: Builder) -> None:
    """Print the plan of a search, and what it would cost: optimizer steps, time, disk.

    The time is an estimate from a trial in the middle of the space: one job of 1 and one of 11 optimizer steps, each
    with its validation and checkpoint.

    Raises:
        ValueError: for every mistake that a search would find before its first training step.
    """
    objective = tuner.objective(builder)
    console = Console(objective.monitor, tuner.mode, verbose=True, unit=tuner.unit)
    tuner.say_plan(console, f"plan of {type(tuner).__name__}; nothing is written", ())
    if (size := ranks_of(builder.distributed_arguments).size) > 1:
        console.line(f"  not timed, as each trial trains in {size} processes")
        return
    objective.check()
    params = objective.middle()
    per_count = 1.0 if objective.checked_steps is None else objective.checked_steps / objective.max_steps
    in_steps = copy.copy(objective)
    in_steps.unit, in_steps.max_steps = STEPS, objective.checked_steps or objective.max_steps
    fold = 0 if objective.folds else None
    with tempfile.TemporaryDirectory() as folder:

        def timed(name: str, steps: int) -> tuple[float, Outcome]:
            start = time.perf_counter()
            task = Task(Job(min(steps, in_steps.max_steps), trial=0, fold=fold), params, Path(folder) / name)
            outcome = in_steps.run(task)
            return time.perf_counter() - start, outcome

        timed("warm-up", 1)
        (short, first), (long, last) = timed("short", 1), timed("long", 1 + _TIMED_STEPS)
        size = (Path(folder) / "long" / CHECKPOINT).stat().st_size
    step = max(long - short, 0.0) / max(last.step - first.step, 1)
    plan = tuner.plan()
    jobs, counts = (sum(getattr(bracket, what) for bracket in plan) for what in ("jobs", "steps"))
    steps = per_count * counts
    share = tuner.planned_steps() / max(counts, 1)  # a limit can end the search before its plan does
    job = max(short - step, 0.0)
    console.line(
        f"  a step takes {1e3 * step:.1f} ms, a job {1e3 * job:.0f} ms besides, a checkpoint {size / 1e6:.1f} MB"
    )
    if last.finished_early:
        console.line(f"  a trial ends by itself ({last.ended}), so the plan is more than will be spent")
    if plan and share:
        console.line(f"  expected: {_clock(share * (jobs * job + steps * step))}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min {rest:02} s"


def _plain(message: str) -> str:
    """Return jsonargparse's message, in short if it is about an option of the tuner."""
    message = hide_passwords(message)
    if not message.startswith('Parser key "tuner"'):
        return message
    if unknown := _UNKNOWN.search(message):
        kind, name = unknown["kind"].rpartition(".")[2], unknown["name"]
        known = arguments_of(getattr(lightning_hpo, kind)) if kind in lightning_hpo.__all__ else []
        what = unknown_argument(kind, name, known).partition(f" {name!r}")[2].removesuffix(".")
        return f"--tuner.{name} is no option of {kind}{what}.".replace("?.", "?")
    wrong = _KEY.search(message, len("Parser key"))
    if wrong is None:
        return message
    *accepted, _ = re.findall(r"Expected an? (.+?)(?:\. Got value|$)", wrong["why"], re.MULTILINE)  # the last: no tuner
    value = re.search(r"(?:Got|Given) value: (.*)", wrong["why"])
    if not accepted or value is None:
        return message
    return f"--tuner.{wrong['name']} must be {' or '.join(map(_type_name, accepted))}, got {value[1]}."


def _type_name(text: str) -> str:
    """A type for people."""
    if literal := re.fullmatch(r"typing\.Literal\[(.*)\]", text):
        return f"one of {literal[1]}"
    return re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", text).replace("NoneType", "None")
