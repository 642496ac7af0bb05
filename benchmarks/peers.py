"""Peers behind one interface, and the interface: Optuna's HyperbandPruner with TPE, Syne Tune's ASHA, DEHB."""

import itertools
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import optuna
from curves import Problem, from_cube
from optuna.samplers import TPESampler


@dataclass(frozen=True)
class Work:
    """Train the configuration of one trial from an epoch to an epoch."""

    trial: Any
    params: Mapping[str, Any]
    start: int
    stop: int


def following(work: Work, rungs: Sequence[int]) -> Work:
    """The same trial, from its rung to the next one."""
    return Work(work.trial, work.params, work.stop, rungs[rungs.index(work.stop) + 1])


class Method(Protocol):
    """What the simulator plays with; a new one per run."""

    def ask(self) -> Work | None: ...

    def tell(self, work: Work, value: float) -> None: ...


def rungs_up_to(max_epochs: int) -> list[int]:
    """Epochs 1, 3, 9, ... and the full budget."""
    return [*(3**i for i in range(9) if 3**i < max_epochs), max_epochs]


class OptunaHyperband:
    """TPE with HyperbandPruner: a trial runs on while it is not pruned."""

    def __init__(self, of: Problem, seed: int, *, constant_liar: bool = False) -> None:
        self.rungs = rungs_up_to(of.max_epochs)
        self.study = optuna.create_study(
            study_name=f"seed{seed}",  # the bracket is a hash of the name
            sampler=TPESampler(seed=seed, constant_liar=constant_liar),
            pruner=optuna.pruners.HyperbandPruner(1, of.max_epochs, 3),
        )
        self.space = of.space
        self.running: list[Work] = []

    def ask(self) -> Work:
        if self.running:
            return self.running.pop()
        trial = self.study.ask(self.space)
        return Work(trial, trial.params, 0, self.rungs[0])

    def tell(self, work: Work, value: float) -> None:
        trial = work.trial
        trial.report(value, work.stop)
        if work.stop == self.rungs[-1]:
            self.study.tell(trial, value)
        elif trial.should_prune():
            self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            self.running.append(following(work, self.rungs))


class SyneTuneASHA:
    """Syne Tune's ASHA (stopping type): a trial runs on while it is not stopped."""

    def __init__(self, of: Problem, seed: int) -> None:
        from syne_tune.backend.trial_status import Trial
        from syne_tune.config_space import uniform
        from syne_tune.optimizer.baselines import ASHA as Peer

        np.random.seed(seed)  # it draws its bracket from the global generator
        names = list(of.space)
        self.scheduler = Peer(
            config_space={name: uniform(0.0, 1.0) for name in names},
            metric="loss",
            time_attr="epoch",
            max_t=of.max_epochs,
            random_seed=seed,
        )
        self.make = Trial
        self.of = of
        self.count = itertools.count()
        self.rungs = rungs_up_to(of.max_epochs)
        self.running: list[Work] = []

    def ask(self) -> Work:
        if self.running:
            return self.running.pop()
        import datetime

        config = self.scheduler.suggest().config
        trial = self.make(next(self.count), config, datetime.datetime(2000, 1, 1))
        self.scheduler.on_trial_add(trial)
        return Work(trial, from_cube(self.of.space, list(config.values())), 0, self.rungs[0])

    def tell(self, work: Work, value: float) -> None:
        result = {"loss": value, "epoch": work.stop}
        decision = self.scheduler.on_trial_result(work.trial, result)
        if work.stop == self.rungs[-1]:
            self.scheduler.on_trial_complete(work.trial, result)
        elif decision == "CONTINUE":
            self.running.append(following(work, self.rungs))
        else:
            self.scheduler.on_trial_remove(work.trial)


class PeerDEHB:
    """DEHB through ask and tell; a promoted configuration continues, a mutant starts anew."""

    def __init__(self, of: Problem, seed: int) -> None:
        from dehb import DEHB

        self.folder = tempfile.TemporaryDirectory()
        self.dehb = DEHB(
            dimensions=len(of.space),
            configspace=False,
            min_fidelity=1,
            max_fidelity=of.max_epochs,
            eta=3,
            n_workers=1,  # of its own; more than one starts Dask
            seed=seed,
            output_path=self.folder.name,
            save_freq="end",
            log_level="ERROR",
        )
        self.of = of
        self.reached: dict[bytes, int] = {}

    def ask(self) -> Work:
        info = self.dehb.ask()
        stop = max(round(float(info["fidelity"])), 1)
        reached = self.reached.get(np.asarray(info["config"]).tobytes(), 0)
        return Work(info, from_cube(self.of.space, info["config"]), reached if reached < stop else 0, stop)

    def tell(self, work: Work, value: float) -> None:
        key = np.asarray(work.trial["config"]).tobytes()
        self.reached[key] = max(self.reached.get(key, 0), work.stop)
        self.dehb.tell(work.trial, {"fitness": value, "cost": float(work.stop)})
