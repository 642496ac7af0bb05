"""Kill a search at random moments, start it again, and count what was lost, repeated and left behind."""

import collections
import dataclasses
import itertools
import os
import random
import signal
import time
from collections.abc import Callable, Mapping

import torch

from lightning_hpo import checkpoints
from lightning_hpo.checkpoints.key import Key
from lightning_hpo.study.run_folder import RunFolder
from tests.faults.test_kill import in_a_child
from tests.support.small import Data, Net, digits
from tests.support.studies import study_of

CPU = {"accelerator": "cpu", "logger": False}
SPACE = {"lr": "loguniform(1e-3, 1)", "hidden": "logint(4, 32)"}
LINE = 60  # about the length of a line in the log of steps


class Logged(Net):
    """Writes a line per step to the file that an environment variable names: workers inherit it."""

    def __init__(self, lr, hidden):
        super().__init__(lr, hidden, step_log=os.environ.get("STEP_LOG"))


@dataclasses.dataclass
class Search:
    """A search that can be started again.

    Args:
        make: the tuner's class.
        arguments: of the tuner.
        planned: trials of a finished study; None where only the uninterrupted search says so.
        every: steps between checkpoints.
        spacing: steps between kills, at most.
        model: class of the module; it writes a line per step.
        data: builds the data module.
        space: of the search.
    """

    make: type
    arguments: dict
    planned: int | None
    every: int
    spacing: int
    model: type = Logged
    data: Callable = Data
    space: Mapping = dataclasses.field(default_factory=lambda: SPACE)

    def __call__(self, root, name, **more):
        options = {"monitor": "val_loss", "root": root, "name": name, "trainer": CPU, "verbose": False, **more}
        if "interval" not in self.arguments:  # members of a population are saved after each
            options["checkpoint_every"] = self.every
        tuner = self.make(self.space, **self.arguments, **options)
        return tuner.fit(self.model, datamodule=self.data)


@dataclasses.dataclass
class Damage:
    """What a campaign of kills has done."""

    kills: int = 0
    studies: int = 0
    trials: int = 0
    lost: int = 0
    duplicated: int = 0
    stuck: int = 0
    steps: int = 0
    repeated: int = 0
    most_repeated: int = 0
    torn: int = 0
    left_over: int = 0
    unequal: int = 0

    def __iadd__(self, other):
        for field in dataclasses.fields(self):
            combine = max if field.name == "most_repeated" else int.__add__
            setattr(self, field.name, combine(getattr(self, field.name), getattr(other, field.name)))
        return self


def kill_and_restart(search, root, name, *, kills, chance, processes=1, **more):
    """Start a search in so many processes, kill one at a time, start it again; until it ends. Returns the kills."""
    log = root / f"{name}.steps"
    log.touch()
    os.environ["STEP_LOG"] = str(log)

    def start():
        return in_a_child(lambda: search(root, name, **more))

    children, done = [start() for _ in range(processes)], 0
    while done < kills:
        if chance.random() < 0.2:  # while it starts
            time.sleep(chance.uniform(0, 0.05))
        else:  # anywhere: a step, a validation, a save, a write to the study
            goal = log.stat().st_size + chance.uniform(0, search.spacing) * LINE
            while log.stat().st_size < goal and all(map(running, children)):
                time.sleep(0.001)
            time.sleep(chance.uniform(0, 0.01))
        victim = chance.randrange(processes)
        if not all(map(running, children)):
            break  # the search is over
        os.kill(children[victim], signal.SIGKILL)
        os.waitpid(children[victim], 0)
        done += 1
        children[victim] = start()
    for child in children:
        code = ENDED.pop(child, None)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) if code is None else code
        assert code == 0, f"a process ended with {code}"
    return done


ENDED = {}


def running(child):
    if child in ENDED:
        return False
    pid, status = os.waitpid(child, os.WNOHANG)
    if pid:
        ENDED[child] = os.waitstatus_to_exitcode(status)
    return not pid


def count(search, root, name, kills, whole=None):
    """What a killed study and its folder hold."""
    folder = RunFolder(root, name)
    trials = study_of(folder.path).get_trials(deepcopy=False)
    states = collections.Counter(trial.state.name for trial in trials)
    by_trial = collections.defaultdict(list)
    for line in (root / f"{name}.steps").read_text().splitlines():
        place, step = line.rsplit(" ", 1)
        by_trial[place].append(int(step))
    # A process that went on from step b after step a had been done repeats what lies between.
    repeats = [a - b + 1 for steps in by_trial.values() for a, b in itertools.pairwise(steps) if b <= a]
    key = Key.of(folder.path)
    intact = [checkpoints.newest_intact(path, key)[0] == path for path in folder.path.glob("trials/*/last.ckpt")]
    return Damage(
        kills=kills,
        studies=1,
        trials=len(trials),
        lost=search.planned - states["COMPLETE"] - states["PRUNED"],
        duplicated=len(trials) - len({str(sorted(trial.params.items())) for trial in trials}),
        stuck=states["RUNNING"] + states["WAITING"],
        steps=sum(len(set(steps)) for steps in by_trial.values()),
        repeated=sum(len(steps) - len(set(steps)) for steps in by_trial.values()),
        most_repeated=max(repeats, default=0),
        torn=intact.count(False),
        left_over=len(list(folder.path.rglob(".*.tmp"))),
        unequal=0 if whole is None else int(not equal(folder, trials, whole)),
    )


def equal(folder, trials, whole):
    """Whether two studies have the same record and the same weights in the checkpoints that both keep."""
    if [as_recorded(trial) for trial in trials] != [as_recorded(trial) for trial in whole.study.get_trials()]:
        return False
    for path in folder.path.glob("trials/*/last.ckpt"):
        other = whole.best_checkpoint.parent / path.relative_to(folder.path)
        if not other.exists():
            return False
        one, two = (checkpoints.load(file, key=Key.of(file.parents[2])) for file in (path, other))
        if one["global_step"] != two["global_step"] or not same(one["state_dict"], two["state_dict"]):
            return False
    return True


def same(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def as_recorded(trial):
    ended = trial.user_attrs.get("ended")
    return trial.number, trial.params, trial.intermediate_values, trial.state.name, trial.values, ended


def campaign(search, root, *, kills, seed=0, compare=True, **more):
    """As many studies as it takes to place so many kills."""
    digits()
    os.environ.pop("STEP_LOG", None)
    whole = search(root, "whole") if compare else None
    if search.planned is None:
        search = dataclasses.replace(search, planned=len(whole.rows))
    chance, damage = random.Random(seed), Damage()
    while damage.kills < kills:
        name = f"killed{damage.studies}"
        done = kill_and_restart(search, root, name, kills=kills - damage.kills, chance=chance, **more)
        damage += count(search, root, name, done, whole)
    return damage
