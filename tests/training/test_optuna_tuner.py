"""Optuna's samplers, pruners, storages and studies in OptunaTuner."""

import json
import multiprocessing
import subprocess
import sys
import threading
import urllib.request
from wsgiref.simple_server import make_server

import optuna
import pytest
import torch
from optuna.pruners import MedianPruner, NopPruner

from lightning_hpo import Objective, OptunaTuner, PopulationTuner, create_optuna_study
from lightning_hpo.errors import StudyMismatchError
from tests.support.small import Data, Net
from tests.support.studies import journal_of
from tests.training.test_tuners import CPU, recorded

SPACE = {"lr": "loguniform(1e-3, 1)", "hidden": "logint(4, 32)"}
EVERY_5 = {**CPU, "val_check_interval": 5, "check_val_every_n_epoch": None, "logger": False}
XY = {"x": "uniform(0, 1)", "y": "uniform(0, 1)"}


class Broken(Net):
    def validation_step(self, batch, index):
        raise RuntimeError("a mistake")


def tuner(tmp_path, space=SPACE, **options):
    arguments = {"monitor": "val_loss", "max_steps": 20, "n_trials": 6, "root": tmp_path, "trainer": EVERY_5}
    return OptunaTuner(space, **{**arguments, "name": "s", "verbose": False, **options})


class TestTuner:
    def test_prunes_in_training_and_ends_normally(self, tmp_path):
        ended = []

        class Ends(Net):
            def on_train_end(self):
                ended.append(self.trainer.global_step)

            def on_fit_end(self):
                ended.append("fit")

        pruner = MedianPruner(n_startup_trials=2, n_warmup_steps=0)
        result = tuner(tmp_path, n_trials=8, pruner=pruner).fit(Ends, datamodule=Data)
        trials = result.study.trials
        states = [trial.state.name for trial in trials]
        assert {"PRUNED", "COMPLETE"} == set(states)
        for trial in trials:
            steps = list(trial.intermediate_values)
            assert steps == list(range(5, max(steps) + 1, 5))
            assert (max(steps) == 20) == (trial.state.name == "COMPLETE")
            assert trial.value == trial.intermediate_values[max(steps)]
            saved = torch.load(tmp_path / "s" / "trials" / f"{trial.number:04d}" / "last.ckpt", weights_only=True)
            assert saved["global_step"] == max(steps)
        assert ended == [part for trial in trials for part in (max(trial.intermediate_values), "fit")]
        assert result.best_trial == result.study.best_trial.number
        assert torch.load(result.best_checkpoint, weights_only=True)["global_step"] == 20

    @pytest.mark.parametrize("make", [optuna.samplers.TPESampler, optuna.samplers.NSGAIISampler])
    def test_a_continued_study_equals_the_uninterrupted_one(self, tmp_path, make):
        def search(name, kill_at=100, n_trials=14):
            calls = iter([False] * kill_at + [True])

            def f(job, params):
                if next(calls, False):
                    raise KeyboardInterrupt
                return (params["x"] - 0.3) ** 2 + params["y"]

            return tuner(tmp_path, XY, name=name, sampler=make(), n_trials=n_trials, max_steps=1).optimize(f)

        whole = search("whole")
        with pytest.raises(KeyboardInterrupt):
            search("parts", kill_at=4)
        assert len(search("parts", n_trials=12).rows) == 12
        assert recorded(search("parts")) == recorded(whole)
        assert len({str(row.params) for row in whole.rows}) == 14

    def test_an_interrupted_fit_continues_in_its_trial(self, tmp_path):
        at = [13]

        class Dies(Net):
            def on_train_batch_start(self, batch, batch_idx):
                if self.global_step in at:
                    raise KeyboardInterrupt

        with pytest.raises((KeyboardInterrupt, SystemExit)):
            tuner(tmp_path, n_trials=2, checkpoint_every=5).fit(Dies, datamodule=Data)
        at.clear()
        result = tuner(tmp_path, n_trials=2, checkpoint_every=5).fit(Dies, datamodule=Data)
        whole = tuner(tmp_path, n_trials=2, checkpoint_every=5, name="whole").fit(Dies, datamodule=Data)
        assert recorded(result) == recorded(whole)

    def test_a_study_of_the_users_with_enqueued_trials(self, tmp_path):
        study = optuna.create_study(direction="maximize", pruner=NopPruner())
        study.enqueue_trial({"lr": 0.25, "hidden": 8})
        result = tuner(tmp_path, study=study, monitor="val_acc", mode="max", n_trials=2).fit(Net, datamodule=Data)
        assert result.study is study
        assert study.trials[0].params == {"lr": 0.25, "hidden": 8}
        assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
        assert len({row.seed for row in result.rows} - {None}) == 2
        assert (
            len(tuner(tmp_path, study=study, mode="max", monitor="val_acc", n_trials=3).fit(Net, datamodule=Data).rows)
            == 3
        )
        with pytest.raises(StudyMismatchError, match="directions"):
            tuner(tmp_path, study=study)
        with pytest.raises(TypeError, match=r"got 'net': write optuna\.load_study"):
            tuner(tmp_path, study="net")

    def test_a_study_of_the_users_is_compared_and_has_a_report(self, tmp_path):
        study, calls = optuna.create_study(), []

        def search(space=XY, **options):
            more = {"study": study, "max_steps": 2, "n_trials": 2, **options}
            return tuner(tmp_path, space, **more).optimize(lambda job, params: calls.append(job) or params["x"])

        search()
        assert "<svg" in (tmp_path / "s" / "report.html").read_text()
        wide = {**XY, "x": "uniform(0, 2)"}
        for options, text in (
            ({"max_steps": 3}, 'now "max_steps": 3'),
            ({"space": wide}, r'now "x": "uniform\(0.0, 2.0\)".*allow_changed'),
            ({"sampler": optuna.samplers.RandomSampler()}, 'now "type": "RandomSampler"'),
            ({"max_steps": None, "max_epochs": 2}, r"now the budget in epochs \(`max_epochs`\)"),
        ):
            with pytest.raises(StudyMismatchError, match=text):
                search(n_trials=3, **options)
        assert len(calls) == 2
        with pytest.warns(UserWarning, match="the study '.*' has changed"):
            assert len(search(wide, n_trials=3, allow_changed=True).rows) == 3

    def test_a_trial_of_another_program_has_its_value_at_the_full_budget(self, tmp_path):
        study = optuna.create_study()
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1) - 2, n_trials=1)
        search = tuner(tmp_path, {"x": "uniform(0, 1)"}, study=study, max_steps=3, n_trials=2)
        result = search.optimize(lambda job, params: params["x"])
        assert result.rows[0].values == {3: study.trials[0].value}
        assert result.best_trial == 0

    def test_trials_of_another_program_are_not_taken_for_those_of_the_search(self, tmp_path):
        def other(trial):
            lr = trial.suggest_float("lr", 1e-3, 1, log=True)
            for epoch in range(10):
                trial.report(lr, epoch)
            return lr * 1e-4

        study = optuna.create_study()
        study.optimize(other, n_trials=3)
        lr = {"lr": SPACE["lr"]}
        options = {"study": study, "max_steps": None, "max_epochs": 1, "n_trials": 4}
        with pytest.raises(StudyMismatchError, match="at the steps 0 to 9.*1 epoch.*MedianPruner would.*NopPruner"):
            tuner(tmp_path, lr, **options).fit(Net, datamodule=Data)
        with pytest.raises(StudyMismatchError, match="another kind of distribution for 'lr'"):
            tuner(tmp_path, {"lr": "int(1, 3)"}, **options).fit(Net, datamodule=Data)
        with pytest.raises(StudyMismatchError, match="would take for means over folds: give a new study"):
            tuner(tmp_path, lr, folds=2, **options).fit(Net, datamodule=Data)
        assert len(study.trials) == 3
        with pytest.raises(RuntimeError, match="a mistake"):
            tuner(tmp_path, lr, pruner=NopPruner(), **options).fit(Broken, datamodule=Data)
        result = tuner(tmp_path, lr, pruner=NopPruner(), **options).fit(Net, datamodule=Data)  # nothing had begun
        assert (len(result.rows), result.best_checkpoint) == (4, None)
        best = (tmp_path / "s" / "best.yaml").read_text()
        assert f"trial {result.best_trial} was trained by another program" in best
        assert "max_epochs: 1" in best
        assert "max_steps" not in best

    def test_trials_of_an_objective_in_a_loop_are_compared_too(self, tmp_path):
        study, lr = optuna.create_study(), {"lr": SPACE["lr"]}
        study.optimize(Objective(Net, lr, data=Data, monitor="val_loss", max_epochs=2, trainer=CPU), n_trials=1)
        with pytest.raises(StudyMismatchError, match="at the steps 1 to 2, but this search reports .* at 60"):
            tuner(tmp_path, lr, study=study, max_steps=60).fit(Net, datamodule=Data)

    def test_define_by_run(self, tmp_path):
        def space(trial):
            params = {"lr": trial.suggest_float("lr", 1e-3, 1, log=True)}
            if trial.suggest_categorical("wide", [True, False]):
                params["hidden"] = trial.suggest_int("hidden", 20, 32)
            return params

        result = tuner(tmp_path, space).fit(Net, datamodule=Data)
        for trial in result.study.trials:
            assert ("hidden" in trial.params) == trial.params["wide"]
        with pytest.raises(StudyMismatchError, match="space"):
            tuner(tmp_path, SPACE).fit(Net, datamodule=Data)

    def test_several_objectives_and_constraints(self, tmp_path):
        class Two(Net):
            def validation_step(self, batch, batch_idx):
                super().validation_step(batch, batch_idx)
                self.log("size", float(self.hparams.hidden))
                self.log("too_big", float(self.hparams.hidden) - 16)

        options = {"monitor": ("val_loss", "size"), "mode": ("min", "min"), "constraints": ["too_big"]}
        result = tuner(tmp_path, **options).fit(Two, datamodule=Data)
        assert all(trial.values[1] == trial.params["hidden"] for trial in result.study.trials)
        assert all(trial.constraints == {"too_big": trial.params["hidden"] - 16} for trial in result.study.trials)
        assert result.study.best_trials
        with pytest.raises(ValueError, match="'sizze' is not logged"):
            tuner(tmp_path, monitor=("val_loss", "sizze"), name="t").fit(Two, datamodule=Data)

    def test_failures_are_kept_with_their_reason(self, tmp_path):
        def f(job, params):
            return {0: 1 / 0 if job.trial == 0 else 1.0}[0] if job.trial != 1 else float("nan")

        result = tuner(tmp_path, XY, n_trials=4).optimize(f)
        reasons = [trial.user_attrs.get("failure", "").splitlines()[:1] for trial in result.study.trials]
        assert reasons[0] == ["ZeroDivisionError: division by zero"]
        assert reasons[1] == ["the val_loss is nan"]
        assert result.best_trial == 2

    @pytest.mark.parametrize(
        ("options", "text"),
        [
            ({"mode": ("min", "max")}, "one for each `monitor`"),
            ({"mode": "up"}, "'up'"),
            ({"pruner": "median"}, "`pruner` must be an Optuna pruner"),
            ({"sampler": "tpe"}, "`sampler` must be an Optuna sampler"),
        ],
    )
    def test_wrong_arguments(self, tmp_path, options, text):
        with pytest.raises((ValueError, TypeError), match=text):
            tuner(tmp_path, **options)


PLAIN = """
import json, sys
sys.modules["lightning_hpo"] = None
import matplotlib
matplotlib.use("Agg")
import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.visualization import matplotlib as plots
optuna.logging.set_verbosity(optuna.logging.ERROR)
folder = sys.argv[1]
studies = {
    "s": f"sqlite:///{folder}/s/study.db",
    "j": JournalStorage(JournalFileBackend(f"{folder}/j/study.journal")),
    "p": JournalStorage(JournalFileBackend(f"{folder}/p/study.journal")),
}
seen = {}
for name, storage in studies.items():
    study = optuna.load_study(study_name=name, storage=storage)
    for plot in ("optimization_history", "intermediate_values", "parallel_coordinate", "slice", "edf", "timeline",
                 "rank", "param_importances"):
        getattr(plots, f"plot_{plot}")(study)
        matplotlib.pyplot.close("all")
    seen[name] = {
        "states": [trial.state.name for trial in study.trials],
        "reports": [len(trial.intermediate_values) for trial in study.trials],
        "importances": sorted(optuna.importance.get_param_importances(study)),
        "best": study.best_trial.number,
        "parents": [trial.user_attrs.get("parent") for trial in study.trials],
        "failures": [trial.user_attrs.get("failure", "")[:12] for trial in study.trials],
    }
print(json.dumps(seen))
"""


class Once(Net):
    """Fails in the first trial; the check builds in a process of its own."""

    built = 0

    def __init__(self, lr, hidden):
        super().__init__(lr, hidden)
        Once.built += 1
        self.fails = Once.built == 1 and not self.in_check()

    @staticmethod
    def in_check():
        return multiprocessing.parent_process() is not None

    def training_step(self, batch, batch_idx):
        return 1 / 0 if self.fails else super().training_step(batch, batch_idx)


def test_plain_optuna_and_its_dashboard_read_what_we_wrote(tmp_path):
    """In SQLite, in the journal that two worker processes reported to, and a population's trials with their parents."""
    pruner = MedianPruner(n_startup_trials=2)
    in_sqlite = f"sqlite:///{tmp_path}/s/study.db"
    result = tuner(tmp_path, n_trials=9, pruner=pruner, storage=in_sqlite).fit(Once, datamodule=Data)
    options = {"n_trials": 7, "pruner": pruner, "workers": 2}
    of_two = tuner(tmp_path, name="j", **options).fit(Net, datamodule=Data)
    members = {"population_size": 3, "interval": 5, "max_steps": 15, "monitor": "val_loss", "trainer": CPU}
    population = PopulationTuner({"lr": "loguniform(1e-3, 1)"}, name="p", root=tmp_path, verbose=False, **members)
    forked = population.fit(Steady, datamodule=Data)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLAIN, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout.splitlines()[-1])
    for name, ours in (("s", result), ("j", of_two), ("p", forked)):
        assert seen[name]["states"] == [trial.state.name for trial in ours.study.trials]
        assert seen[name]["best"] == ours.study.best_trial.number
    assert set(seen["s"]["states"]) == {"FAIL", "PRUNED", "COMPLETE"}
    assert seen["s"]["importances"] == seen["j"]["importances"] == ["hidden", "lr"]
    assert seen["s"]["failures"][0] == "ZeroDivision"
    assert seen["s"]["reports"][0] == 0
    assert min(seen["s"]["reports"][1:]) >= 1
    assert len(of_two.rows) == 7
    for trial in of_two.study.trials:
        assert list(trial.intermediate_values) == list(range(5, max(trial.intermediate_values) + 1, 5))
        assert (max(trial.intermediate_values) == 20) == (trial.state.name == "COMPLETE")
    assert [row.parent for row in forked.rows] == seen["p"]["parents"]
    assert any(parent is not None for parent in seen["p"]["parents"])
    with pytest.raises(ValueError, match="in the memory of this process"):
        tuner(tmp_path, study=optuna.create_study(), workers=2).fit(Net, datamodule=Data)

    optuna_dashboard = pytest.importorskip("optuna_dashboard", reason="optuna-dashboard is not installed")
    app = optuna_dashboard.wsgi(journal_of(tmp_path / "j"))
    with make_server("127.0.0.1", 0, app) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        def get(path):
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}{path}") as answer:
                return json.loads(answer.read())

        (study,) = get("/api/studies")["study_summaries"]
        assert study["study_name"] == "j"
        trials = get(f"/api/studies/{study['study_id']}")["trials"]
        server.shutdown()
    assert [len(trial["intermediate_values"]) for trial in trials] == seen["j"]["reports"]
    assert [trial["state"].upper() for trial in trials] == seen["j"]["states"]


class Steady(Net):
    """Without a schedule, so that a population may change its learning rate."""

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def test_objective_is_callable_with_a_function_of_a_trial(tmp_path):
    space = lambda trial: {"lr": trial.suggest_float("lr", 0.1, 0.2)}  # noqa: E731
    objective = Objective(Net, space, data=Data, monitor="val_acc", max_steps=3, trainer=CPU)
    study = optuna.create_study()
    with pytest.warns(UserWarning, match=r"minimizes 'val_acc', against .*direction='maximize'") as warned:
        study.optimize(objective, n_trials=2)
    assert len([warning for warning in warned if "against" in str(warning.message)]) == 1
    assert [sorted(trial.params) for trial in study.trials] == [["lr"]] * 2


def test_create_optuna_study(capsys):
    study = create_optuna_study(lambda config: -((config["x"] - 0.5) ** 2), {"x": "uniform(0, 1)"}, n_trials=12, seed=0)
    assert study.direction.name == "MAXIMIZE"
    assert len(study.trials) == 12
    assert isinstance(study.sampler, optuna.samplers.TPESampler)
    assert isinstance(study.pruner, MedianPruner)
    out = capsys.readouterr().out
    assert f"Best parameters: {study.best_params}" in out
    assert f"Best score: {study.best_value}" in out
