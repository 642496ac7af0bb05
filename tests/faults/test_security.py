"""What must not get in, and what must not get out."""

import contextlib
import os
import pathlib
import re
import stat
import sys
import tomllib

import pytest

import lightning_hpo
from lightning_hpo import RandomTuner, checkpoints
from lightning_hpo.__main__ import main
from lightning_hpo.errors import StorageError
from lightning_hpo.reporting.report import to_html
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.study.run_folder import RunFolder
from tests.faults.scripts import run
from tests.support.small import Data, Net

X = {"x": "uniform(0, 1)"}
SOURCE = pathlib.Path(lightning_hpo.__file__).parent
ODD = [
    "", ".", "/", "../x", "/abs", "CON", "\0", "x" * 600, "🙂", "<script>alert(1)</script>", "'; DROP TABLE trials; --",
    '"><img onerror=alert(1) src=x>', "=HYPERLINK(\"http://a\")", "\x1b[31mred", "a|b", "two\nlines",
]  # fmt: skip

NAMES = [name for name in ODD if all(name.split("."))]  # the others are refused


def tune(root, function=lambda job, params: params["x"], space=X, n_trials=3, **options):
    return RandomTuner(
        space, max_steps=1, n_trials=n_trials, root=root, name="r", **{"verbose": False, **options}
    ).optimize(function)


class TestWhatIsWritten:
    FORBIDDEN = re.compile(
        r"pickle|dill\b|joblib\.load|weights_only=False|yaml\.load\(|eval\(|exec\(|shell=True|os\.system"
    )

    # origin.py names no class, it replaces each by an inert one; apart.py talks to a copy of its own process, and
    # rank_group.py to processes that it has started; shards.py reads what its own process has written a moment before,
    # from a checkpoint whose signature was compared, or to make one. script_classes.py asks cloudpickle which classes
    # it knows, and queued_jobs.py removes files of submitit; neither reads any.
    MAY_PICKLE = ("origin.py", "apart.py", "rank_group.py", "shards.py", "script_classes.py", "queued_jobs.py")

    def test_no_state_that_executes_and_no_shell(self):
        files = [path for path in SOURCE.rglob("*.py") if path.name not in self.MAY_PICKLE]
        assert len(files) > 30
        found = [
            (path.name, line) for path in files for line in path.read_text().splitlines() if self.FORBIDDEN.search(line)
        ]
        assert found == []

    def test_files_of_torch_are_read_where_the_signature_is_compared_first(self):
        """See ``tests/training/test_planted_checkpoints.py``; shards.py reads what its own process has written."""
        reads = [
            path.relative_to(SOURCE).as_posix()
            for path in SOURCE.rglob("*.py")
            for line in path.read_text().splitlines()
            if re.search(r"(?<!`)torch\.load\(|pl_load\(|load_from_checkpoint\(", line)
        ]
        assert {*reads} == {"checkpoints/files.py", "checkpoints/shards.py"}

    def test_versions_with_known_holes_are_excluded(self):
        project = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())["project"]
        assert {"lightning>=2.6.6,<3", "torch>=2.10,<3"} <= set(project["dependencies"])


class TestCheckpoints:
    @pytest.mark.parametrize("where", ["_instantiator", "_class_path"])
    def test_a_class_named_in_hyperparameters_is_not_imported(self, tmp_path, where):
        """CVE-2026-58659: such a checkpoint passes ``weights_only``."""
        target = {"_instantiator": "os.system", "_class_path": "antigravity.X"}[where]
        content = {
            "state_dict": Net().state_dict(),
            "pytorch-lightning_version": "2.6.6",
            "hyper_parameters": {"lr": 0.1, "command": f"touch {tmp_path}/executed", where: target},
        }
        path = tmp_path / "last.ckpt"
        checkpoints.save(content, path)
        assert checkpoints.load(path)["hyper_parameters"][where] == target  # text, and nothing else
        with contextlib.suppress(Exception):  # Lightning refuses it or takes it for a plain value
            Net.load_from_checkpoint(path, weights_only=True)
        assert not (tmp_path / "executed").exists()
        assert "antigravity" not in sys.modules

    def test_an_address_is_not_fetched(self):
        with pytest.raises(FileNotFoundError):
            checkpoints.load("http://127.0.0.1:9/evil.ckpt")


class TestFiles:
    def test_a_checkpoint_of_somebody_else_is_not_deleted(self, tmp_path):
        folder = RunFolder(tmp_path / "runs", "r")
        for number in range(3):
            folder.trial(number).mkdir(parents=True)
            (folder.trial(number) / "last.ckpt").write_bytes(b"mine" * 100)
        with pytest.warns(UserWarning, match="its checkpoint of that step is not there"):
            tune(tmp_path / "runs")
        assert [(folder.trial(number) / "last.ckpt").read_bytes() for number in range(3)] == [b"mine" * 100] * 3

    def test_a_symbolic_link_out_of_the_run_is_not_followed_to_delete(self, tmp_path):
        folder = RunFolder(tmp_path / "runs", "r")
        outside = tmp_path / "outside"
        outside.mkdir()
        checkpoints.save({"step": 1}, outside / "last.ckpt")
        for number in range(3):
            folder.trial(number).symlink_to(outside)
        tune(tmp_path / "runs")
        assert (outside / "last.ckpt").exists()

    def test_permissions_are_those_of_the_umask_and_nothing_is_left_elsewhere(self, tmp_path, monkeypatch):
        temporary = tmp_path / "tmp"
        temporary.mkdir()
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        before = os.umask(0o077)
        try:
            RandomTuner(
                {"lr": "loguniform(1e-3, 1)"}, max_steps=3, n_trials=2, monitor="val_loss", root=tmp_path / "runs",
                name="r", trainer={"accelerator": "cpu"}, verbose=False,
            ).fit(Net, datamodule=Data)  # fmt: skip
        finally:
            os.umask(before)
        assert list(temporary.iterdir()) == []
        assert [path for path in (tmp_path / "runs").rglob("*") if stat.S_IMODE(path.stat().st_mode) & 0o077] == []

    def test_odd_names_of_parameters_are_kept_and_create_nothing(self, tmp_path):
        space = dict.fromkeys(NAMES, "uniform(0, 1)")
        result = tune(tmp_path / "runs", lambda job, params: sum(params.values()), space)
        assert set(result.best_params) == set(space)
        assert set(os.listdir(tmp_path)) == {"runs"}
        assert os.listdir(tmp_path / "runs") == ["r"]
        again = tune(tmp_path / "runs", lambda job, params: sum(params.values()), space)
        assert [row.params for row in again.trials()] == [row.params for row in result.trials()]


class TestWhatIsShown:
    def test_a_report_and_a_terminal_full_of_odd_text(self, tmp_path, capsys):
        choices = ", ".join(repr(name) for name in ODD)
        space = {**dict.fromkeys(NAMES, "uniform(0, 1)"), "kind": f"choice({choices})"}

        def odd(job, params):
            if job.trial == 0:
                raise RuntimeError("".join(ODD))
            return job.trial

        tune(tmp_path, odd, space, n_trials=len(ODD), verbose=True)
        main(["show", str(tmp_path / "r")])
        main(["best", str(tmp_path / "r")])
        printed = capsys.readouterr().out
        assert "\x1b" not in printed
        assert "\0" not in printed
        assert "\\x1b[31mred" in printed
        page = to_html(read_run(tmp_path / "r"))
        assert "\x1b" not in page
        shown = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
        assert {tag.lower() for tag in re.findall(r"<(\w+)", shown)} <= {
            "html", "head", "meta", "title", "style", "body", "header", "h1", "h2", "p", "strong", "details", "summary",
            "pre", "div", "button", "table", "thead", "tbody", "tr", "th", "td",
        }  # fmt: skip
        figures = re.search(r'id="figures">(.*?)</script>', page)[1]
        assert "<" not in figures
        assert "alert(1)>" not in figures.replace("\\u003c", "<")  # names and choices are escaped for plotly as well

    def test_secrets_among_hyperparameters(self, tmp_path, capsys):
        space = {**X, "data.hf_token": "choice('S3CRET')", "password": "choice('S3CRET', 'S3CRET2')"}
        result = tune(tmp_path, space=space, verbose=True)
        main(["show", str(tmp_path / "r")])
        assert "S3CRET" not in capsys.readouterr().out + (tmp_path / "r" / "report.html").read_text()
        assert result.best_params["data.hf_token"] == "S3CRET"

    def test_the_password_of_a_storage(self, tmp_path, capsys):
        """In output and files of calls that fail; no server is needed for that."""
        url = "postgresql://user:S3CRET@localhost:1/db"
        calls = [
            f"RandomTuner(X, max_steps=1, n_trials=1, root=ROOT, name='r', storage={url!r}).optimize(f)",
            f"OptunaTuner(X, max_steps=1, n_trials=1, root=ROOT, name='r', storage={url!r}).optimize(f)",
        ]
        for call in calls:
            code, out, err = run(tmp_path, call)
            assert code != 0
            assert "S3CRET" not in out + err, err
        assert main(["show", str(tmp_path), "--storage", url]) == 4
        printed = capsys.readouterr()
        assert "S3CRET" not in printed.out + printed.err

        def failing(job, params):
            raise ConnectionError(f"cannot reach {url}")

        with pytest.raises(RuntimeError, match="no trial succeeded"):
            tune(tmp_path / "failed", failing, n_trials=2)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) > 3
        assert [path for path in files if b"S3CRET" in path.read_bytes()] == []


class TestLimits:
    def test_a_study_that_would_fill_the_memory_is_refused(self, tmp_path):
        tune(tmp_path)
        with (tmp_path / "r" / "study.journal").open("a") as journal:
            journal.write(f'{{"op_code":2,"worker_id":"","study_id":0,"user_attr":{{"a":"{"x" * 17 * 2**20}"}}}}\n')
        with pytest.raises(StorageError, match="line .* cannot be read; a line must be below 16,777,216 bytes"):
            tune(tmp_path)
        assert main(["show", str(tmp_path / "r")]) == 4

    def test_five_hundred_parameters(self, tmp_path):
        space = {f"p{index}": "uniform(0, 1)" for index in range(500)}
        tune(tmp_path, lambda job, params: params["p0"], space, n_trials=2)
        lines = [(tmp_path / "r" / "study.journal").read_bytes().count(b"\n")]
        tune(tmp_path, lambda job, params: params["p0"], space, n_trials=7, allow_changed=True)
        lines.append((tmp_path / "r" / "study.journal").read_bytes().count(b"\n"))
        assert lines[1] - lines[0] < 5 * 10  # a line for each parameter would be 5 * 500
