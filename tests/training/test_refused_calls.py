"""Calls that are refused before anything is trained."""

import functools
import os
import re
import resource
import signal
import stat
import subprocess
import sys
import warnings

import lightning.pytorch as pl
import optuna
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch import nn

from lightning_hpo import (
    BayesianTuner,
    Hyperband,
    HyperbandTuner,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Tuner,
)
from lightning_hpo.errors import StorageError, StudyInUseError, StudyMismatchError
from lightning_hpo.training.directions import Directions
from tests.support.small import Data, Net
from tests.support.studies import study_of
from tests.training.test_tuners import CPU, XY, loss, recorded


class Plateau(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams.lr)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": "val_acc"}}


def test_a_mode_against_the_search_or_against_the_name_of_its_metric_is_warned_of(tmp_path):
    space, given = {"lr": "loguniform(1e-3, 1)"}, {"max_steps": 2, "n_trials": 1, "root": tmp_path, "trainer": CPU}
    callbacks = [EarlyStopping("val_acc"), EarlyStopping("val_loss"), ModelCheckpoint(monitor="val_loss", mode="max")]

    def warned(**more):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            RandomTuner(space, **given, verbose=False, **more).fit(Plateau, datamodule=Data)
        return [str(warning.message) for warning in caught if "mode=" in str(warning.message)]

    of_search = "follows 'val_acc' with mode='min', but the search has mode='max' for it: give it mode='max'."
    by_name = "follows 'val_loss' with mode='max', although its name suggests that lower is better"
    assert warned(name="acc", monitor="val_acc", mode="max", callbacks=callbacks) == [
        f"EarlyStopping {of_search}", f"ModelCheckpoint {by_name}: give it mode='min' if that is not meant.",
        f"ReduceLROnPlateau {of_search}",
    ]  # fmt: skip
    first = warned(name="loss", monitor="val_loss", mode="max")[0]
    assert re.match(r"the search has mode='max' for 'val_loss', .* lower is better: give it mode='min' if", first)


@pytest.mark.parametrize(("metric", "mode"), [("val_fid_score", "min"), ("anomaly_score", "min"), ("margin", "max")])
def test_a_mode_that_a_name_says_little_about_is_not_warned_of(metric, mode):
    trainer = pl.Trainer(accelerator="cpu", logger=False, callbacks=[ModelCheckpoint(monitor=metric, mode=mode)])
    for searched in (metric, "val_loss"):
        check = Directions(searched, mode if searched == metric else "min")
        check.on_fit_start(trainer, Net())
        assert not check.warnings


class TestRefuses:
    def test_a_call_that_was_wrong_before_its_first_trial_may_be_corrected(self, tmp_path):
        make = functools.partial(RandomTuner, {"lr": "loguniform(1e-3, 1)"}, max_steps=2, n_trials=1, trainer=CPU)
        make = functools.partial(make, root=tmp_path, name="net")
        with pytest.raises(ValueError, match="val_los' is not logged"):
            make(monitor="val_los", mode="max").fit(Net, datamodule=Data)
        result = make(monitor="val_loss").fit(Net, datamodule=Data)
        assert result.study.direction.name == "MINIMIZE"
        with pytest.raises(StudyMismatchError, match='now "seed": 1'):
            make(monitor="val_loss", seed=1).fit(Net, datamodule=Data)

    def test_a_study_made_by_somebody_else_for_the_other_direction(self, tmp_path):
        storage = f"sqlite:///{tmp_path}/s.db"
        optuna.create_study(study_name="f", storage=storage, direction="maximize")
        with pytest.raises(StudyMismatchError, match=r"has the directions \['max'\], but `mode` is \['min'\]"):
            RandomTuner(XY, max_steps=1, n_trials=1, storage=storage, root=tmp_path, name="f").optimize(loss)

    def test_a_model_whose_code_has_changed(self, tmp_path):
        class Other(Net):
            def validation_step(self, batch, batch_idx):
                self.log("val_loss", 2 * nn.functional.cross_entropy(self.net(batch[0]), batch[1]))

        Other.__name__, Other.__qualname__ = Net.__name__, Net.__qualname__
        Other.validation_step.__qualname__ = Net.validation_step.__qualname__
        make = functools.partial(
            RandomTuner, {"lr": "loguniform(1e-3, 1)"}, max_steps=2, monitor="val_loss", root=tmp_path, name="net"
        )
        make(n_trials=1, trainer=CPU).fit(Net, datamodule=Data)
        with pytest.raises(StudyMismatchError, match=r"the code of Net.validation_step changed.*`allow_changed=True`"):
            make(n_trials=2, trainer=CPU).fit(Other, datamodule=Data)
        with pytest.warns(UserWarning, match=r"from trial 1 on, .* the code of Net.validation_step changed"):
            result = make(n_trials=2, trainer=CPU, allow_changed=True).fit(Other, datamodule=Data)
        assert len(result.trials()) == 2

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"space": {**XY, "x": "uniform(0, 2)"}}, ['was "x": "uniform(0.0, 1.0)"', 'now "x": "uniform(0.0, 2.0)"']),
            ({"space": {"x": "uniform(0, 1)"}}, ['was "kind"']),
            ({"mode": "max"}, ['was "mode": "min"', 'now "mode": "max"']),
            ({"seed": 1}, ['now "seed": 1']),
            ({"max_steps": 27}, ['was "max_steps": 9', 'now "max_steps": 27']),
            ({"monitor": "val_acc", "mode": "min"}, ['now "monitor": "val_acc"']),
        ],
    )
    def test_a_study_with_other_settings(self, tmp_path, changes, words):
        arguments = {"space": XY, "max_steps": 9, "min_steps": 1, "root": tmp_path, "name": "f", "verbose": False}
        HyperbandTuner(**arguments).optimize(loss)
        before = (tmp_path / "f" / "study.journal").read_bytes()
        with pytest.raises(StudyMismatchError) as caught:
            HyperbandTuner(**{**arguments, **changes}).optimize(loss)
        assert all(word in str(caught.value) for word in words), caught.value
        assert (tmp_path / "f" / "study.journal").read_bytes() == before

    def test_a_damaged_study(self, tmp_path):
        tuner = HyperbandTuner(XY, max_steps=9, root=tmp_path, name="f")
        tuner.optimize(loss)
        (tmp_path / "f" / "study.journal").write_bytes(b"")
        with pytest.raises(StorageError, match=r"study\.journal is not a study"):
            tuner.optimize(loss)

    @pytest.mark.parametrize("share", [0.5, 0.9])
    def test_a_truncated_study_goes_on_from_its_last_whole_line(self, tmp_path, share, caplog):
        tuner = RandomTuner(XY, max_steps=1, n_trials=40, root=tmp_path, name="f", verbose=False)
        whole = recorded(tuner.optimize(loss))
        file = tmp_path / "f" / "study.journal"
        file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        lines, _, unfinished = file.read_bytes().rpartition(b"\n")
        assert recorded(tuner.optimize(loss)) == whole
        assert file.read_bytes().startswith(lines)
        (aside,) = file.parent.glob("study.journal.corrupt-*")
        assert aside.read_bytes() == unfinished
        assert f"moved to {aside.name}" in caplog.text

    def test_a_full_disk(self, tmp_path):
        """What was acknowledged is readable, and the search continues once there is room."""
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            tuner = RandomTuner(XY, max_steps=1, n_trials=300, root=tmp_path, name="f", verbose=False)
            try:
                resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
                tuner.optimize(loss)
            except StorageError:
                os._exit(4)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 4
        kept = study_of(tmp_path / "f").trials
        assert 5 < len(kept) < 300
        result = RandomTuner(XY, max_steps=1, n_trials=len(kept) + 3, root=tmp_path, name="f").optimize(loss)
        assert [row.state for row in result.trials()] == ["complete"] * (len(kept) + 3)

    def test_a_read_only_folder(self, tmp_path):
        if os.geteuid() == 0:  # root ignores permissions: a file where the folder should be has the same effect
            (tmp_path / "runs").touch()
        else:
            (tmp_path / "runs").mkdir(mode=stat.S_IREAD | stat.S_IEXEC)
        with pytest.raises(StorageError, match="the run folder cannot be written"):
            HyperbandTuner(XY, max_steps=9, root=tmp_path / "runs", name="f").optimize(loss)

    def test_a_study_at_work_in_another_process(self, tmp_path):
        code = (
            "from lightning_hpo import RandomTuner\n"
            "import time\n"
            f"RandomTuner({XY!r}, max_steps=1, n_trials=2, root={str(tmp_path)!r}, name='f')"
            ".optimize(lambda job, params: print('at work', flush=True) or time.sleep(60))"
        )
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
            try:
                while "at work" not in other.stdout.readline():
                    pass
                with pytest.raises(StudyInUseError, match=f"in use by process {other.pid}"):
                    RandomTuner(XY, max_steps=1, n_trials=2, root=tmp_path, name="f").optimize(loss)
            finally:
                other.kill()
        free = RandomTuner(XY, max_steps=1, n_trials=2, root=tmp_path, name="f")
        with pytest.warns(UserWarning, match="has changed: the code of"):
            assert len(free.optimize(loss).trials()) == 2

    @pytest.mark.parametrize("name", ["../x", "/abs", "", "a b", "x" * 101, ".hidden", "<script>", 3])
    def test_odd_names(self, tmp_path, name):
        with pytest.raises(ValueError, match="`name` must be 1 to 100 of"):
            RandomTuner(XY, max_steps=1, n_trials=1, root=tmp_path / "runs", name=name).optimize(loss)
        assert not (tmp_path / "runs").exists()

    @pytest.mark.parametrize("folder", ["with space", "ünï", "100%", "a?b=c", "a#b", "a{b}"])
    def test_odd_folders_work(self, tmp_path, folder):
        root = tmp_path / folder
        RandomTuner(XY, max_steps=1, n_trials=2, root=root, name="f").optimize(loss)
        assert (root / "f" / "study.journal").stat().st_size > 0
        assert sorted(os.listdir(tmp_path)) == [folder]
        assert len(RandomTuner(XY, max_steps=1, n_trials=3, root=root, name="f").optimize(loss).trials()) == 3

    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"max_steps": 9, "min_steps": 27}, "max_steps=9 < min_steps=27"),
            ({"max_steps": 9, "mode": "maximize"}, "'maximize'"),
            ({"max_steps": 9, "seed": -1}, "`seed`"),
            ({"max_steps": 9, "timeout": 0}, "`timeout` must be above 0"),
            (
                {"max_steps": 9, "timeout": "10"},
                "`timeout` must be a number of seconds, or a text such as '8h' or '1h30m', got '10'",
            ),
            ({"max_steps": 9, "total_steps": "9"}, "`total_steps` must be a number above 0, got '9'"),
            ({"max_steps": 9, "max_failed": True}, "`max_failed` must be a number above 0, got True"),
            ({"max_steps": 9, "sampler": "tpe"}, "`sampler` must be an Optuna sampler, got 'tpe'"),
        ],
    )
    def test_wrong_arguments(self, arguments, text):
        with pytest.raises((ValueError, TypeError), match=text):
            HyperbandTuner(XY, **arguments)

    @pytest.mark.parametrize("kind", [RandomTuner, HyperbandTuner, BayesianTuner, OptunaTuner, PopulationTuner])
    def test_an_argument_that_no_tuner_has(self, kind):
        needed = {"max_steps": 400} if kind in (HyperbandTuner, PopulationTuner) else {"max_steps": 4, "n_trials": 2}
        with pytest.raises(TypeError, match=f"{kind.__name__} has no argument 'monitr'. Did you mean 'monitor'"):
            kind(XY, **needed, monitr="val_loss")
        with pytest.raises(TypeError, match=f"{kind.__name__} has no argument 'max_step'. Did you mean 'max_steps'"):
            kind(XY, **needed, max_step=9)

    @pytest.mark.parametrize("monitor", ["val_acc", "val/Accuracy", "top_acc5", "f1", "val_f1_score", "AUROC", "mIoU"])
    def test_a_metric_that_is_better_when_it_is_higher_needs_a_mode(self, monitor):
        for kind in (RandomTuner, BayesianTuner, OptunaTuner):
            make = functools.partial(kind, XY, max_steps=4, n_trials=2, monitor=monitor)
            with pytest.raises(ValueError, match=r"`mode` must be given for `monitor` '.*': 'max'"):
                make()
            assert make(mode="min").mode == "min"
            assert make(mode="max").mode == "max"

    @pytest.mark.parametrize("monitor", [None, "val_loss", "dice_loss", "acc_error", "perplexity", "macc", "mapping"])
    def test_other_metrics_are_minimised(self, monitor):
        assert RandomTuner(XY, max_steps=4, n_trials=2, monitor=monitor).mode == "min"

    def test_modes_that_differ(self):
        with pytest.raises(ValueError, match="'max' for the tuner and 'min' for its scheduler"):
            Tuner(XY, Hyperband(9), mode="max")
