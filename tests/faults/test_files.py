"""Symbolic links that somebody planted where files are written: what they name stays as it is."""

import contextlib
import errno
import os
import pathlib

import pytest

from lightning_hpo import PopulationTuner, RandomTuner, atomic
from lightning_hpo.errors import StorageError
from lightning_hpo.reporting.best import keep_best, write_best
from lightning_hpo.reporting.report import write_report
from lightning_hpo.reporting.run_view import read_run
from lightning_hpo.study.journal import open_journal
from lightning_hpo.study.locks import Lock
from tests.support.small import Data, Net

X = {"x": "uniform(0, 1)"}


@pytest.fixture
def other(tmp_path):
    """A file of the same user that has nothing to do with the run."""
    file = tmp_path / "other"
    file.write_text("mine")
    yield file
    assert file.read_text() == "mine"


def tune(root, **options):
    return RandomTuner(X, max_steps=1, n_trials=3, root=root, name="r", verbose=False, **options).optimize(
        lambda job, params: params["x"]
    )


@pytest.mark.parametrize("name", ["owner.json", ".report.html.tmp", ".best.yaml.tmp", "best.yaml", "report.html"])
@pytest.mark.parametrize("dangling", [False, True])
def test_a_link_at_a_file_of_the_run_or_beside_it_is_not_followed(tmp_path, other, name, dangling):
    run = tmp_path / "runs" / "r"
    run.mkdir(parents=True)
    target = tmp_path / "made" if dangling else other
    (run / name).symlink_to(target)
    tune(tmp_path / "runs")
    assert not (tmp_path / "made").exists()
    assert (run / "best.yaml").read_text().startswith("model:")
    assert not (run / "best.yaml").is_symlink()


@pytest.mark.parametrize("name", ["lock", "turn", "trials/0000/lease"])
def test_a_link_at_a_lock_is_refused_with_the_remedy(tmp_path, other, name):
    link = tmp_path / "runs" / "r" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(other)
    with pytest.raises(StorageError, match="it is a symbolic link, which is not followed; remove it"):
        tune(tmp_path / "runs", shared=True)
    link.unlink()
    assert len(tune(tmp_path / "runs", shared=True).trials()) == 3


def test_a_link_at_a_file_of_a_trial_is_not_followed(tmp_path, other, caplog):
    class Planting(Net):
        def on_train_start(self):
            folder = pathlib.Path(self.trainer.default_root_dir)
            for name in ("metrics.csv", ".metrics.csv.tmp", ".last.ckpt.tmp"):
                (folder / name).unlink(missing_ok=True)
                (folder / name).symlink_to(other)

    RandomTuner(
        {"lr": "loguniform(1e-3, 1)"}, max_steps=3, n_trials=1, monitor="val_loss", root=tmp_path, name="r",
        trainer={"accelerator": "cpu"}, verbose=False,
    ).fit(Planting, datamodule=Data)  # fmt: skip
    assert "metrics.csv could not be written" in caplog.text
    assert (tmp_path / "r" / "trials" / "0000" / "metrics.csv").is_symlink()


def test_links_in_the_folder_of_a_population(tmp_path, other):
    run = tmp_path / "r"
    run.mkdir()
    for name in (".best.ckpt.tmp", "best.ckpt", ".study.journal.tmp", "slices.png"):
        (run / name).symlink_to(other)
    PopulationTuner(
        {"lr": "loguniform(1e-3, 1)"}, population_size=2, interval=2, max_steps=4, monitor="val_loss", root=tmp_path,
        name="r", trainer={"accelerator": "cpu"}, verbose=False,
    ).fit(Net, datamodule=Data)  # fmt: skip
    assert (run / "best.ckpt").stat().st_size > 1000


def test_a_journal_that_is_a_link_is_not_written_to(tmp_path, other):
    (tmp_path / "study.journal").symlink_to(other)
    with pytest.raises(OSError, match="symbolic link"):
        open_journal(tmp_path / "study.journal", lambda storage: None)


def test_a_file_is_whole_or_as_before_and_nothing_is_left_beside_it(tmp_path):
    file = tmp_path / "file"
    atomic.atomic_write(file, "ä")
    assert file.read_bytes() == "ä".encode()
    with contextlib.suppress(KeyError), atomic.replacing(file) as opened:
        opened.write(b"half")
        raise KeyError
    assert file.read_bytes() == "ä".encode()
    before = os.umask(0o027)
    try:
        atomic.atomic_write(file, b"new")
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o640
    assert os.listdir(tmp_path) == ["file"]


def test_a_new_file_is_never_one_that_exists(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(OSError) as caught:
        atomic.open_new(tmp_path / "link")
    assert caught.value.errno == errno.EEXIST
    with pytest.raises(OSError) as caught:
        Lock(tmp_path / "link").take()
    assert caught.value.errno == errno.ELOOP
    assert not (tmp_path / "nothing").exists()


def test_best_files_without_hard_links(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EPERM, "no hard links")

    (tmp_path / "last.ckpt").write_bytes(b"weights")
    monkeypatch.setattr(os, "link", refuse)
    keep_best(tmp_path / "last.ckpt", tmp_path / "best.ckpt")
    assert (tmp_path / "best.ckpt").read_bytes() == b"weights"
    write_best({"model": {"x": "ü"}}, tmp_path / "best.yaml")
    assert sorted(os.listdir(tmp_path)) == ["best.ckpt", "best.yaml", "last.ckpt"]


def test_a_report_to_a_path_of_ones_own(tmp_path):
    tune(tmp_path)
    assert write_report(read_run(tmp_path / "r"), tmp_path / "page.html").read_text().startswith("<!doctype html>")
