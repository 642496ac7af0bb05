"""Secrets among hyperparameters and in URLs: in no output, page, figure or error text."""

import pytest
import yaml

from lightning_hpo import BayesianTuner, OptunaTuner, RandomTuner
from lightning_hpo.__main__ import main
from lightning_hpo.errors import StudyMismatchError
from lightning_hpo.reporting.report import to_html
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.text import hide_passwords, is_secret
from tests.faults.scripts import run

LONG = " ".join(f"S3CRET{index:02}" for index in range(40))  # YAML folds it over several lines
NAMES = ["data.api_key", "wandbApiKey", "hf_token_value", "client_secret_2", "db_password", "access.token", "pwd"]


def shown(tmp_path, capsys):
    assert main(["show", str(tmp_path / "r")]) == 0
    assert main(["best", str(tmp_path / "r")]) == 0
    printed = capsys.readouterr()
    return printed.out, printed.err, to_html(read_run(tmp_path / "r"))


@pytest.mark.parametrize("kind", [RandomTuner, BayesianTuner, OptunaTuner])
def test_long_values_are_shown_nowhere_and_kept_where_training_needs_them(tmp_path, capsys, kind):
    space = {"x": "uniform(0, 1)", **{name: f"choice('{LONG}', 'S3CRET, {name}')" for name in NAMES}}

    def function(job, params):
        if job.trial == 1:
            raise ValueError(f"401: not accepted: {params['data.api_key']}, {params['pwd']}")
        return params["x"]

    options = {"max_steps": 1, "n_trials": 4, "root": tmp_path, "name": "r"}
    result = kind(space, **options).optimize(function)
    printed, err, page = shown(tmp_path, capsys)
    assert "S3CRET" not in printed + err + page
    assert "S3CRET" not in (tmp_path / "r" / "report.html").read_text()
    assert "401: not accepted: ***, ***" in page
    assert "they are in" in err
    assert result.best_params["data.api_key"].startswith("S3CRET")
    config = yaml.safe_load((tmp_path / "r" / "best.yaml").read_text())
    assert config["data"]["api_key"] == result.best_params["data.api_key"]
    with pytest.raises(StudyMismatchError) as caught:
        kind({**space, "pwd": "choice('S3CRET, another')"}, **options).optimize(function)
    assert "S3CRET" not in str(caught.value)
    assert "pwd" in str(caught.value)


def test_numbers_and_words_that_are_no_secrets_are_shown(tmp_path, capsys):
    space = {"token_dim": "choice(64, 128)", "tokenizer": "choice(bpe, chars)", "num_keys": "int(1, 3)"}
    RandomTuner(space, max_steps=1, n_trials=2, root=tmp_path, name="r").optimize(
        lambda job, params: params["num_keys"]
    )
    printed, _, page = shown(tmp_path, capsys)
    assert "***" not in printed + page


def test_a_wrong_range_of_a_secret_is_not_repeated():
    for text in ("choice(sk-S3CRET)", "S3CRET", "choice('S3CRET', {1})", "choice(S3CRET, S3CRET)"):
        with pytest.raises(ValueError, match="space\\['api_key'\\] = '\\*\\*\\*' is not") as caught:
            RandomTuner({"api_key": text}, max_steps=1, n_trials=1)
        assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "cannot connect to postgresql://me:S3C/RET@host/db",
        "postgresql://me:S3C@RET/S3CRET@host:5432/db",
        "postgresql://host/db?user=me&password=S3CRET",
        "mysql+pymysql://host/db?passwd=S3CRET&ssl=1",
        "Could not parse 'redis://:S3CRET@host:6379'",
        "host=h password=S3CRET user=me",
        "storage = RDBStorage(URL, password='S3C\\'RET')",
        'Net(lr=0.1, api_key="S3CRET\nS3CRET")',
        "{'lr': 0.1, 'data.hf_token': 'S3CRET'}",
        '"db_password": "choice(\'S3CRET\')"',
        "https://api/v1?token=S3CRET",
    ],
)
def test_secrets_in_a_text(text):
    hidden = hide_passwords(text)
    assert "S3C" not in hidden
    assert "RET" not in hidden
    assert "***" in hidden


@pytest.mark.parametrize(
    "text",
    ["sorted(names, key='abc')", "http://host:80/a b@c", "max_tokens=64", "KeyError: 'api_key'", "x = 3", "a@b.c: d"],
)
def test_other_text_is_left_as_it_is(text):
    assert hide_passwords(text) == text


def test_long_texts_cost_no_time():
    for text in ("a" * 100_000, "a=" * 50_000, "a='" * 20_000, "a://b:" + "c" * 100_000, 'a="\\' * 20_000):
        assert hide_passwords(text) is not None
    assert not is_secret("x" * 10_000)


@pytest.mark.parametrize("tuner", ["RandomTuner", "OptunaTuner"])
@pytest.mark.parametrize(
    "url", ["postgresql://me:S3C/RET@localhost:1/db", "postgresql://localhost:1/db?password=S3CRET"]
)
def test_the_password_of_a_storage_that_cannot_be_reached(tmp_path, tuner, url):
    code, out, err = run(
        tmp_path, f"{tuner}(X, max_steps=1, n_trials=1, root=ROOT, name='r', storage={url!r}).optimize(f)"
    )
    assert code != 0
    assert "S3C" not in out + err, err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert not [path for path in files if b"S3C" in path.read_bytes()]


def test_a_config_of_any_depth(tmp_path, capsys):
    RandomTuner({"x": "uniform(0, 1)"}, max_steps=1, n_trials=1, root=tmp_path, name="r").optimize(lambda *_: 0.0)
    config = {
        "data": {"init_args": {"api_key": {"id": "S3CRET", "parts": ["S3CRET", 5]}, "files": ["redis://:S3CRET@h"]}},
        "trainer": {"logger": [{"class_path": "W", "init_args": {"token": f"{LONG}", "name": "kept"}}]},
    }
    (tmp_path / "r" / "best.yaml").write_text(yaml.safe_dump(config))
    printed, _, page = shown(tmp_path, capsys)
    assert "S3CRET" not in printed + page
    assert "name: kept" in printed
    (tmp_path / "r" / "best.yaml").write_text("a: [S3CRET")
    assert "is no YAML" in shown(tmp_path, capsys)[0]
