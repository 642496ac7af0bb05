"""What a study was made with: the code and what it holds, and the sampler. The same call is never refused."""

import dataclasses
import enum
import functools
import importlib.util
import itertools
import os
import pathlib
import subprocess
import sys
import warnings
from collections import defaultdict, deque

import numpy as np
import optuna
import pytest
import torch
from torch import nn

from lightning_hpo import ASHATuner, BayesianTuner, HyperbandTuner, KernelDensitySampler, OptunaTuner, RandomTuner
from lightning_hpo.errors import StudyMismatchError
from lightning_hpo.study import code_identity
from lightning_hpo.study.code_identity import code_parts, comparable
from tests.support.small import Data, Net
from tests.support.studies import study_of

LR = {"lr": "loguniform(1e-3, 1)"}
X = {"x": "uniform(0, 1)"}


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclasses.dataclass
class Config:
    width: int = 3
    depths: list = dataclasses.field(default_factory=lambda: [1, 2])


def fit(root, model, **options):
    options = {"max_steps": 3, "n_trials": 1, "monitor": "val_loss", "root": root, "name": "r", **options}
    return RandomTuner(LR, trainer={"accelerator": "cpu"}, verbose=False, **options).fit(model, datamodule=Data)


def made(value):
    """The same class with another attribute."""
    return type("Made", (Net,), {"__module__": __name__, "__qualname__": "Made", "held": value})


PAIRS = [
    ([64, 32], [64, 16]),
    ({"a": 1}, {"a": 2}),
    ({1, 2}, {1, 3}),
    ((1, [2]), (1, [3])),
    (deque([1]), deque([2])),
    (np.array([1.0, 2.0]), np.array([1.0, 3.0])),
    (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])),
    (torch.float32, torch.float16),
    (nn.ReLU, nn.GELU),
    ([nn.ReLU], [nn.GELU]),
    (torch.tanh, torch.relu),
    (nn.functional.cross_entropy, nn.functional.mse_loss),
    (Colour.RED, Colour.BLUE),
    (Config(3), Config(4)),
    (functools.partial(nn.Linear, 3), functools.partial(nn.Linear, 4)),
    (range(3), range(4)),
    (pathlib.Path("a"), pathlib.Path("b")),
    (defaultdict(list, a=[1]), defaultdict(list, a=[2])),
    (nn.Linear(2, 3), nn.Linear(2, 4)),
    (1.5, 2.5),
]


@pytest.mark.parametrize(("before", "after"), PAIRS, ids=lambda one: type(one).__name__)
def test_what_a_class_an_argument_a_closure_or_a_partial_holds_is_part_of_the_code(before, after):
    def default(lr, held=before):
        return Net(lr)

    def keyword(lr, *, held=before):
        return Net(lr)

    def closure(held):
        return lambda lr: (Net(lr), held)

    class Build:
        def __init__(self, held):
            self.held = held

        def __call__(self, lr):
            return Net(lr)

        def method(self, lr):
            return Net(lr)

    def changed(function, held):
        function.__defaults__ = function.__defaults__ and (held,)
        function.__kwdefaults__ = function.__kwdefaults__ and {"held": held}
        return function

    for make in (
        made,
        closure,
        Build,
        lambda held: Build(held).method,
        lambda held: functools.partial(Net, held=held),  # type: ignore[call-arg]  # never called
        lambda held: functools.partial(Net, 0.1, held),
        lambda held: changed(default, held),
        lambda held: changed(keyword, held),
    ):
        one, again, other = code_parts([make(before)]), code_parts([make(before)]), code_parts([make(after)])
        assert one == again
        assert one != other


def test_a_list_of_a_class_is_seen_when_the_study_is_continued(tmp_path):
    fit(tmp_path, made([64, 32]))
    assert len(fit(tmp_path, made([64, 32])).trials()) == 1
    with pytest.raises(StudyMismatchError, match="the code of Made changed"):
        fit(tmp_path, made([64, 16]))


def test_fields_of_a_dataclass_count():
    def config(width, depths):
        @dataclasses.dataclass
        class Settings:
            width: int = 3
            depths: list = dataclasses.field(default_factory=lambda: [1, 2])

        Settings.__init__.__defaults__ = (width, Settings.__init__.__defaults__[1])
        if depths:

            @dataclasses.dataclass
            class Settings:  # type: ignore[no-redef]  # in place of the one above
                width: int = 3
                depths: list = dataclasses.field(default_factory=lambda: [1, 3])

        return Settings

    parts = [code_parts([config(*arguments)]) for arguments in ((3, False), (3, False), (4, False), (3, True))]
    assert parts[0] == parts[1]
    assert parts[2] != parts[0] != parts[3]


def test_what_the_code_itself_collects_or_counts_is_no_change(tmp_path):
    class Collecting(Net):
        seen = []
        by_step = {}

        def training_step(self, batch, batch_idx):
            self.seen.append(batch_idx)
            self.by_step[self.global_step] = batch_idx
            return super().training_step(batch, batch_idx)

    count, calls = 0, []

    def factory(lr, made=[]):  # noqa: B006  # what is tried here
        nonlocal count
        count += 1
        calls.append(lr)
        made.append(lr)
        return Collecting(lr)

    class Build:
        def __init__(self):
            self.count = 0
            self.models = []

        def __call__(self, lr):
            self.count += 1
            self.models.append(lr)
            return Net(lr)

    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", "`isinstance")
        for name, model in (("a", Collecting), ("b", factory), ("c", Build())):
            for n_trials in (1, 2, 2):
                assert len(fit(tmp_path, model, name=name, n_trials=n_trials).trials()) == n_trials
    assert Collecting.seen
    assert count
    assert calls


def test_the_hash_is_the_same_in_another_process():
    code = (
        "from tests.faults.test_identity import *\nprint([code_parts([made(function)]) for function in sum(PAIRS, ())])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code]
    other = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "PYTHONHASHSEED": "1"}
    )
    assert other.stdout.strip() == str([code_parts([made(function)]) for function in sum(PAIRS, ())])


def f(job, params):
    return params["x"]


def random(root, **options):
    return RandomTuner(X, max_steps=1, n_trials=3, root=root, name="r", verbose=False, **options).optimize(f)


def bayesian(root, **options):
    return BayesianTuner(X, max_steps=1, n_trials=3, root=root, name="r", verbose=False, **options).optimize(f)


def of_optuna(root, **options):
    return OptunaTuner(X, max_steps=1, n_trials=3, root=root, name="r", verbose=False, **options).optimize(f)


TPE = optuna.samplers.TPESampler
SEEDS = itertools.count()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (bayesian, random),
        (random, bayesian),
        (random, functools.partial(random, sampler=TPE())),
        (functools.partial(random, sampler=TPE()), functools.partial(random, sampler=TPE(multivariate=True))),
        (of_optuna, functools.partial(of_optuna, sampler=optuna.samplers.RandomSampler())),
        (of_optuna, functools.partial(of_optuna, pruner=optuna.pruners.NopPruner())),
        (bayesian, functools.partial(bayesian, n_startup_trials=4)),
    ],
)
def test_another_sampler_is_a_mismatch_and_may_go_on_on_purpose(tmp_path, first, second):
    before = first(tmp_path)
    assert first(tmp_path).best_params == before.best_params
    with pytest.raises(StudyMismatchError, match=r"was .*now .*`allow_changed=True`"):
        second(tmp_path)
    with pytest.warns(UserWarning, match="has changed"):
        second(tmp_path, allow_changed=True)
    second(tmp_path)


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomTuner(X, max_steps=1, n_trials=4, sampler=KernelDensitySampler(next(SEEDS)), **OPTIONS),
        lambda: RandomTuner(X, max_steps=1, n_trials=4, sampler=optuna.samplers.GridSampler({"x": [0, 1]}), **OPTIONS),
        lambda: BayesianTuner(X, max_steps=1, n_trials=4, **OPTIONS),
        lambda: HyperbandTuner(X, max_steps=9, **OPTIONS),
        lambda: ASHATuner(X, max_steps=9, **OPTIONS),
        lambda: OptunaTuner(X, max_steps=1, n_trials=4, sampler=SHARED[0], pruner=SHARED[1], **OPTIONS),
        lambda: (
            OptunaTuner(X, max_steps=1, n_trials=4, sampler=optuna.samplers.CmaEsSampler(), **OPTIONS)
            if importlib.util.find_spec("cmaes")
            else OptunaTuner(X, max_steps=1, n_trials=4, **OPTIONS)
        ),
    ],
)
def test_the_same_call_is_never_refused(tmp_path, monkeypatch, make):
    monkeypatch.chdir(tmp_path)
    for _ in range(3):
        make().optimize(f)


OPTIONS = {"name": "r", "verbose": False}
SHARED = (TPE(), optuna.pruners.SuccessiveHalvingPruner(min_resource="auto"))


def test_a_study_of_before_the_sampler_was_noted_goes_on(tmp_path):
    result = random(tmp_path)
    noted = dict(result.study.user_attrs["lightning_hpo"])
    del noted["sampler"]
    result.study.set_user_attr("lightning_hpo", noted)
    assert len(random(tmp_path).trials()) == 3
    assert len(bayesian(tmp_path).trials()) == 3


BEFORE = '''
class Model:
    """A model."""

    width = 64
    rate: float = 0.1

    def __init__(self, depth: int = 2, *, bias=True):
        """Make it."""
        self.depth = depth  # layers

    @staticmethod
    def loss(x, y):
        return f"{x!r:>{y}} {y=}" if x else sum((a, b) for a, b in [(1, 2.5), (3, -4j)])


pair = [lambda x: x + 1, lambda x: x + 2]
'''
TIDIED = '''
# A comment.
class Model:
    width: "int" = 8 * 8
    rate = 1e-1

    def __init__(self, depth=2, *, bias: bool = True) -> None:
        self.depth = depth

    @staticmethod
    def loss(x: int, y: int) -> object:
        """Compute it."""
        # Both.
        return (
            f'{x!r:>{y}} {y=}'
            if x
            else sum((a, b) for a, b in [(1, 2.5), (3, -4j)])
        )


pair = [
    lambda x: x + 1,
    lambda x: (x + 2),
]
'''
CHANGES = [
    ("width = 64", "width = 65", "Model"),
    ("rate: float = 0.1", "rate: float = 0.2", "Model"),
    ("depth: int = 2", "depth: int = 3", "Model.__init__"),
    ("bias=True", "bias=False", "Model.__init__"),
    ("self.depth = depth", "self.depth = -depth", "Model.__init__"),
    ("2.5", "2.25", "Model.loss"),
    ("!r", "!s", "Model.loss"),
    ("@staticmethod", "@classmethod", "Model.loss"),
    ("x + 2", "x - 2", "<lambda>"),
]


def parts_of(source, folder):
    """Names and hashes of the code in a module that has the source."""
    file = folder / f"module_{abs(hash(source))}.py"
    file.write_text(source)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return code_parts([module.Model, *module.pair])


def test_comments_docstrings_annotations_and_formatting_do_not_count(tmp_path):
    assert parts_of(TIDIED, tmp_path) == parts_of(BEFORE, tmp_path)


@pytest.mark.parametrize(("old", "new", "name"), CHANGES)
def test_each_change_of_what_code_does_is_found_where_it_is(tmp_path, old, new, name):
    before, after = parts_of(BEFORE, tmp_path), parts_of(BEFORE.replace(old, new), tmp_path)
    assert {part for part in before if before[part] != after[part]} == {name}


def test_code_with_a_source_has_the_same_hash_under_every_version_of_python(tmp_path):
    """Noted under Python 3.11; 3.12 and 3.13 give the same."""
    noted = {
        "Model": "90164a257d65",
        "Model.__init__": "648b8b7c477c",
        "Model.loss": "ad6dceadc689",
        "<lambda>": "551d42f2d078",
    }
    assert parts_of(BEFORE, tmp_path) == noted


def test_code_without_a_source_is_compared_under_the_same_version_of_python_only(tmp_path, monkeypatch):
    def parts(source):
        names = {}
        exec(source, names)
        return code_parts([names["f"]])

    one, two, changed = map(parts, ("def f(x): return x", "def f(x):\n    return x", "def f(x): return -x"))
    assert one == two != changed
    assert comparable(one["f"], changed["f"])
    monkeypatch.setattr(code_identity, "_BYTECODE", "python3.99:")
    later = parts("def f(x): return -x")
    assert not comparable(one["f"], later["f"])
    assert not comparable(one["f"], parts_of(BEFORE, tmp_path)["Model.loss"])
    random(tmp_path)
    noted = dict(random(tmp_path).study.user_attrs["lightning_hpo"])
    study_of(tmp_path / "r").set_user_attr("lightning_hpo", {**noted, "code": {"parts": {"f": one["f"]}}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        random(tmp_path)


def test_decorated_functions_and_lambdas_of_one_line_are_told_apart():
    def doubled(function):
        return functools.wraps(function)(lambda x: 2 * function(x))

    @doubled
    def f(x):
        return x

    first, second = [lambda x: x + 1, lambda x: x + 2]
    assert not any(":" in part for part in [*code_parts([f, first, second]).values()])
    assert code_parts([first]) != code_parts([second])
