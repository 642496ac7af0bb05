"""Values of any type, nested names and spaces that change: what the module receives, a study stores, files say."""

import argparse
import enum
import types
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import ArgumentParser
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from torch import nn

from lightning_hpo import BayesianTuner, RandomTuner, choice
from lightning_hpo.cli.spaces import flat, whole_names
from lightning_hpo.errors import StudyMismatchError
from lightning_hpo.space import parse_space, replaced
from lightning_hpo.space import suggest as suggest_params
from tests.support.small import Data, Net

TRAINER = {"accelerator": "cpu", "logger": False}


class Norm(enum.Enum):
    NONE = "none"
    LAYER = "layer"


@dataclass(frozen=True)
class Opt:
    lr: float = 0.1
    beta: float = 0.9


@dataclass
class Cfg:
    opt: Opt = field(default_factory=Opt)
    dropout: dict = field(default_factory=lambda: {"p": 0.1})


DEFAULT = Cfg()
EXTRA = types.SimpleNamespace(scale=1.0)
SEEN = []


class Configured(Net):
    """Takes a config, a class and an enum."""

    def __init__(self, cfg=DEFAULT, act=nn.ReLU, norm=Norm.NONE, sizes=(16,), extra=EXTRA):
        super().__init__(cfg.opt.lr, sizes[0], cfg.dropout["p"])
        self.net[1] = act()
        self.scale = extra.scale
        SEEN.append((cfg, act, norm, sizes, extra))

    def training_step(self, batch, batch_idx):
        return self.scale * super().training_step(batch, batch_idx)


class TestDelivery:
    SPACE = {
        "cfg.opt.lr": "loguniform(1e-3, 1e-1)",
        "model.cfg.dropout.p": "uniform(0.2, 0.5)",
        "extra.scale": [2.0, 3.0],
        "act": [nn.ReLU, nn.GELU],
        "norm": Norm.LAYER,
        "sizes": [(8,), (12,)],
        "data.batch_size": 32,
    }

    @pytest.mark.parametrize("workers", [1, 2])
    def test_each_value_arrives_as_it_was_given_and_shared_defaults_stay(self, tmp_path, workers):
        SEEN.clear()
        space = {name.replace("cfg.", "model.cfg.", name.startswith("cfg.")): v for name, v in self.SPACE.items()}
        space["model.extra.scale"] = space.pop("extra.scale")
        for n_trials in (3, 4)[workers - 1 :]:  # with one worker also continued
            result = RandomTuner(
                space, monitor="val_loss", max_steps=3, n_trials=n_trials, root=tmp_path, name="r", trainer=TRAINER,
                workers=workers, verbose=False,
            ).fit(Configured, datamodule=Data)  # fmt: skip
        assert [row.state for row in result.trials()] == ["complete"] * 4
        assert {row.params["act"] for row in result.trials()} <= {"ReLU", "GELU"}
        assert {row.params["sizes"] for row in result.trials()} <= {"(8,)", "(12,)"}
        assert {row.params["data.batch_size"] for row in result.trials()} == {32}
        best = result.best_params
        assert best["act"] in (nn.ReLU, nn.GELU)
        assert best["norm"] is Norm.LAYER
        result.best_model()
        cfg, act, norm, sizes, extra = SEEN[-1]
        assert (act, norm, sizes) == (best["act"], Norm.LAYER, best["sizes"])
        assert (cfg.opt.lr, cfg.opt.beta) == (best["model.cfg.opt.lr"], 0.9)
        assert cfg.dropout == {"p": best["model.cfg.dropout.p"]}
        assert extra.scale == best["model.extra.scale"]
        assert Cfg() == DEFAULT
        written = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
        assert written["model"]["cfg"]["opt"]["lr"] == best["model.cfg.opt.lr"]
        assert written["model"]["sizes"] == list(best["sizes"])
        assert written["model"]["act"] == best["act"].__name__
        assert isinstance(result.study.trials[0].params["act"], str)

    def test_a_function_receives_values_too(self, tmp_path):
        got = []
        RandomTuner(
            {"cfg": choice(small={"depth": 1}, large={"depth": [2]}), "k": "choice(1, True)"}, max_steps=1,
            n_trials=12, root=tmp_path, verbose=False,
        ).optimize(lambda job, params: got.append(params) or 0.0)  # fmt: skip
        assert {str(params["cfg"]) for params in got} == {"{'depth': 1}", "{'depth': [2]}"}
        assert {type(params["k"]) for params in got} == {int, bool}
        assert len({id(params["cfg"]) for params in got}) == len(got)


@pytest.mark.parametrize(
    "holder", [{"a": {"b": 1}}, types.SimpleNamespace(a={"b": 1}), argparse.Namespace(a=types.SimpleNamespace(b=1))]
)
def test_a_value_inside_is_replaced_in_a_copy(holder):
    before = repr(holder)
    assert repr(replaced(holder, "a.b", 2)) == before.replace("1", "2")
    assert repr(holder) == before
    with pytest.raises(LookupError, match="has no 'c'; it has b"):
        replaced(holder, "a.c", 2)


def test_a_pydantic_model_is_replaced_and_checked():
    pydantic = pytest.importorskip("pydantic")

    class Inner(pydantic.BaseModel):  # type: ignore[name-defined]  # of a package that may be missing
        lr: float = pydantic.Field(0.1, gt=0)

    class Outer(pydantic.BaseModel):  # type: ignore[name-defined]
        opt: Inner = Inner()

    holder = Outer()
    assert replaced(holder, "opt.lr", 0.2).opt.lr == 0.2
    assert holder.opt.lr == 0.1
    with pytest.raises(ValueError, match="greater than 0"):
        replaced(holder, "opt.lr", -1.0)


@pytest.mark.parametrize("kind", [RandomTuner, BayesianTuner])
def test_a_choice_may_grow_and_a_range_may_change_where_that_is_allowed(tmp_path, kind):
    def search(space, n_trials, **more):
        return kind(
            space, max_steps=1, n_trials=n_trials, mode="min", root=tmp_path, name="r", verbose=False, **more
        ).optimize(lambda job, params: params["x"] + len(str(params["act"])))

    search({"x": "uniform(0, 1)", "act": ["relu", (1,)]}, 4)
    grown = {"x": "uniform(0, 2)", "act": ["relu", (1,), "gelu", (1, 2)], "new": "int(1, 2) if act == 'gelu'"}
    with pytest.raises(StudyMismatchError, match="allow_changed=True"):
        search(grown, 30)
    with pytest.warns(UserWarning, match="from trial 4 on, .* has changed"):
        result = search(grown, 30, allow_changed=True)
    later = [row.params for row in result.trials()[4:]]
    assert {params["act"] for params in later} == {"relu", "(1,)", "gelu", "(1, 2)"}
    assert all(("new" in params) == (params["act"] == "gelu") for params in later)
    assert max(params["x"] for params in later) > 1
    result.report(tmp_path / "report.html")


TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=6)
PLAIN = st.one_of(st.integers(-9, 9), st.floats(-1e3, 1e3, allow_nan=False), st.booleans(), st.none(), TEXTS)
VALUES = st.one_of(PLAIN, st.lists(PLAIN, max_size=2), st.tuples(PLAIN), st.dictionaries(TEXTS, PLAIN, max_size=2))
RANGES = st.sampled_from(
    ["uniform(0.0, 1.0)", "loguniform(0.001, 1.0)", "int(1, 4)", "logint(1, 64)", "int(2, 8, step=2)"]
)
NAMES = ["lr", "model.cfg.opt.lr", "data.batch_size", "trainer.x", "act", "deep.a.b.c"]


@st.composite
def spaces(draw):
    """Random nested spaces with labels and conditions on earlier names."""
    space = {}
    for name in draw(st.lists(st.sampled_from(NAMES), min_size=1, unique=True)):
        if draw(st.booleans()):
            space[name] = draw(RANGES)
        else:
            values = draw(st.lists(VALUES, min_size=1, max_size=4, unique_by=repr))
            labels = draw(st.booleans())
            space[name] = choice(**{f"v{i}": value for i, value in enumerate(values)}) if labels else choice(*values)
    try:
        texts = parse_space(space).texts()
    except ValueError:  # texts such as "1" and "'1'" can collide
        texts = dict.fromkeys(space, "int(1, 4)")
    conditional = {}
    for name, text in texts.items():
        parents = [other for other in conditional if conditional[other].startswith("int(1, 4)")]
        if parents and draw(st.booleans()):
            test = draw(st.sampled_from(["> 1", "in (1, 2)", "!= 3"]))
            conditional[name] = f"{text} if {draw(st.sampled_from(parents))} {test}"
        else:
            conditional[name] = text
    return parse_space(conditional)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(spaces())
def test_spaces_go_to_text_yaml_and_flags_and_back(space):
    assert parse_space(space.texts()) == space
    assert parse_space(yaml.safe_load(yaml.safe_dump(space.texts(), sort_keys=False))) == space
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--space", type=dict[str, Any], default={})
    flags = [part for name, text in space.texts().items() for part in (f"--space.{name}", text)]
    read = parse_space(dict(flat(parser.parse_args(whole_names(flags)).space)))
    assert read == space
    assert list(read) == list(space)


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(spaces())
def test_parameters_go_through_a_stored_study_unchanged(tmp_path_factory, space):
    file = tmp_path_factory.mktemp("study") / "study.journal"
    study = optuna.create_study(storage=JournalStorage(JournalFileBackend(str(file))), study_name="s")
    trials = [study.ask() for _ in range(3)]
    params = [suggest_params(trial, space) for trial in trials]
    for trial in trials:
        study.tell(trial, 0.0)
    stored = optuna.load_study(storage=JournalStorage(JournalFileBackend(str(file))), study_name="s").trials
    for kept, given_params in zip(stored, params, strict=True):
        assert kept.params == given_params
        assert space.fits(kept.params)
        delivered = space.deliver(trial.params)
        assert space.starting_point(delivered) == trial.params
        assert space.known_part(delivered) == trial.params
        written = yaml.safe_load(yaml.safe_dump(space.plain(trial.params), sort_keys=False))  # lists for tuples
        assert repr(space.plain(space.starting_point(written))) == repr(space.plain(trial.params))
