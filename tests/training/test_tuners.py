"""Tuners from the outside: what a search finds, keeps, continues and refuses."""

import functools
import math
import subprocess
import sys

import optuna
import pytest
import yaml

from lightning_hpo import (
    FullBudget,
    Hyperband,
    HyperbandTuner,
    RandomTuner,
    SuccessiveHalving,
    Tuner,
    checkpoints,
)
from lightning_hpo.errors import SearchFailedError, StudyMismatchError
from tests.support.small import Data, Net
from tests.support.studies import study_of

CPU = {"accelerator": "cpu", "log_every_n_steps": 1}
XY = {"x": "uniform(0, 1)", "y": "loguniform(1e-3, 1)", "kind": "choice(a, b)"}


def loss(job, params):
    return (params["x"] - 0.3) ** 2 + math.log10(params["y"]) ** 2 / 9 + 1 / job.max_steps + (params["kind"] == "b")


def recorded(result):
    """All that a study remembers of its trials."""
    trials = result.study.get_trials(deepcopy=False)
    return [(t.number, t.params, t.intermediate_values, t.state.name, t.values) for t in trials]


class TestOptimize:
    def test_finds_and_keeps(self, tmp_path):
        result = HyperbandTuner(XY, max_steps=81, min_steps=1, root=tmp_path, name="f").optimize(loss)
        assert len(result.trials()) == 143
        assert result.best_params["kind"] == "a"
        assert result.best_score == loss(type("Job", (), {"max_steps": 81}), result.best_params)
        assert result.best_score == result.study.best_value
        assert result.best_trial == result.study.best_trial.number
        assert result.best_checkpoint is None
        states = [trial.state.name for trial in result.study.trials]
        assert states.count("COMPLETE") >= 10
        assert states.count("COMPLETE") + states.count("PRUNED") == 143
        plain = study_of(tmp_path / "f")
        assert plain.best_params == result.best_params

    def test_the_same_seed_gives_the_same_study_and_another_seed_another(self, tmp_path):
        studies = [
            recorded(RandomTuner(XY, max_steps=1, n_trials=5, seed=seed, root=tmp_path, name=name).optimize(loss))
            for seed, name in [(0, "a"), (0, "b"), (1, "c")]
        ]
        assert studies[0] == studies[1] != studies[2]

    def test_maximise(self, tmp_path):
        low = HyperbandTuner(XY, max_steps=9, root=tmp_path, name="low").optimize(loss)
        high = HyperbandTuner(XY, max_steps=9, mode="max", root=tmp_path, name="high").optimize(
            lambda j, p: -loss(j, p)
        )
        assert [dict(row.params) for row in low.trials()] == [dict(row.params) for row in high.trials()]
        assert low.best_trial == high.best_trial
        assert low.best_score == -high.best_score

    @pytest.mark.parametrize(
        "make",
        [
            optuna.samplers.TPESampler,
            optuna.samplers.GPSampler,
            optuna.samplers.CmaEsSampler,
            optuna.samplers.NSGAIISampler,
            optuna.samplers.QMCSampler,
            optuna.samplers.BruteForceSampler,
        ],
        ids=lambda make: make.__name__,
    )
    @pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")
    def test_any_optuna_sampler(self, tmp_path, make):
        """Interrupted after every few jobs, each in a new tuner, it equals the uninterrupted search."""
        space = {"x": "uniform(0, 1, step=0.01)", "n": "int(1, 9)"}
        if make is optuna.samplers.CmaEsSampler:
            pytest.importorskip("cmaes")
        if make is optuna.samplers.QMCSampler:
            make = functools.partial(make, seed=0)
        f = lambda job, params: (params["x"] - 0.3) ** 2 + params["n"]  # noqa: E731
        whole = RandomTuner(space, max_steps=1, n_trials=14, sampler=make(), root=tmp_path, name="w").optimize(f)
        for n_trials in (5, 9, 14):
            parts = RandomTuner(
                space, max_steps=1, n_trials=n_trials, sampler=make(), root=tmp_path, name="p"
            ).optimize(f)
        assert recorded(parts) == recorded(whole)
        may_repeat = make is optuna.samplers.CmaEsSampler
        assert may_repeat or len({str(row.params) for row in whole.trials()}) == 14


class TestInterrupted:
    @pytest.mark.parametrize(
        "scheduler", [Hyperband(9), SuccessiveHalving(9), FullBudget(3, 8)], ids=lambda one: type(one).__name__
    )
    def test_after_every_possible_job_equals_the_uninterrupted_study(self, tmp_path, scheduler):
        make = functools.partial(
            Tuner, XY, scheduler, root=tmp_path, verbose=False, sampler=optuna.samplers.TPESampler(n_startup_trials=3)
        )
        calls = []
        whole = make(name="whole").optimize(lambda job, params: calls.append(job) or loss(job, params))
        for kill_at in range(len(calls)):
            count = iter(range(1000))

            def killed(job, params, kill_at=kill_at, count=count):
                if next(count) == kill_at:
                    raise KeyboardInterrupt
                return loss(job, params)

            tuner = make(name=f"killed{kill_at}")
            with pytest.raises(KeyboardInterrupt):
                tuner.optimize(killed)
            assert recorded(make(name=f"killed{kill_at}").optimize(killed)) == recorded(whole)

    def test_a_finished_study_does_nothing(self, tmp_path):
        make = functools.partial(HyperbandTuner, XY, max_steps=9, root=tmp_path, name="f")
        calls = []
        f = lambda job, params: calls.append(job) or loss(job, params)  # noqa: E731
        first, ran = make().optimize(f), len(calls)
        assert recorded(make().optimize(f)) == recorded(first)
        assert len(calls) == ran

    def test_a_function_that_computes_something_else(self, tmp_path):
        make = functools.partial(HyperbandTuner, XY, max_steps=9, root=tmp_path, name="f")

        def tidy(job, params):
            """The same, with other words around it."""
            return loss(job, params)  # and a comment

        def same(job, params):
            return loss(job, params)

        def other(job, params):
            return loss(job, params) + 1

        tidy.__qualname__ = same.__qualname__ = other.__qualname__ = "f"
        first = make().optimize(same)
        assert recorded(make().optimize(tidy)) == recorded(first)
        with pytest.warns(UserWarning, match="from trial 17 on, the study in .* has changed: the code of f changed"):
            make(iterations=2).optimize(other)
        with pytest.warns(UserWarning, match="from trial 52 on"):
            notes = make(iterations=2).optimize(same).study.user_attrs["lightning_hpo_changes"]
        assert notes == [{"from_trial": number, "changes": "the code of f changed"} for number in (17, 52)]

    def test_a_space_that_has_grown_is_continued_if_asked_for(self, tmp_path):
        make = functools.partial(
            RandomTuner, max_steps=1, root=tmp_path, name="f", sampler=optuna.samplers.TPESampler()
        )
        f = lambda job, params: params["x"]  # noqa: E731
        make({"x": "uniform(0, 1)"}, n_trials=12).optimize(f)
        wider = {"x": "uniform(-1, 0.5)", "y": "uniform(0, 1)"}
        with pytest.warns(UserWarning, match=r"from trial 12 on.*now \"x\": \"uniform\(-1.0, 0.5\)\""):
            result = make(wider, n_trials=30, allow_changed=True).optimize(f)
        assert len(result.trials()) == 30
        assert result.best_score < 0
        with pytest.raises(StudyMismatchError, match="another kind of distribution for 'x'"):
            make({"x": "choice(0, 1)"}, n_trials=31, allow_changed=True).optimize(f)
        with pytest.raises(StudyMismatchError, match=r'now "mode": "max"'):
            make(wider, n_trials=31, allow_changed=True, mode="max").optimize(f)

    def test_more_trials_extend_a_study(self, tmp_path):
        make = functools.partial(RandomTuner, XY, max_steps=1, root=tmp_path, name="f")
        make(n_trials=3).optimize(loss)
        assert len(make(n_trials=5).optimize(loss).trials()) == 5

    def test_limits(self, tmp_path):
        result = HyperbandTuner(XY, max_steps=27, min_steps=1, total_steps=100, root=tmp_path, name="s").optimize(loss)
        assert 100 <= sum(max(row.values) for row in result.trials() if row.values) < 127
        assert "running" in {row.state for row in result.trials()}
        result = HyperbandTuner(XY, max_steps=27, min_steps=1, root=tmp_path, name="s").optimize(loss)
        assert len(result.trials()) == 49
        with pytest.raises(SearchFailedError, match="no trial"):
            HyperbandTuner(XY, max_steps=81, timeout=1e-9, root=tmp_path, name="t").optimize(loss)


def test_checkpoints_of_the_best_trial_and_of_a_former_best_one_after_a_restart(tmp_path):
    scores = [0.1, 0.5, 0.3, 0.0, 0.2]
    file = lambda number: tmp_path / "f" / "trials" / f"{number:04d}" / "last.ckpt"  # noqa: E731

    def saving(job, params):
        checkpoints.save({"trial": job.trial}, file(job.trial))
        return scores[job.trial]

    def kept_after(n_trials):
        """Each call is a restart: what is shown as best is known from the study only."""
        RandomTuner(XY, max_steps=1, n_trials=n_trials, root=tmp_path, name="f", verbose=False).optimize(saving)
        best = checkpoints.load(tmp_path / "f" / "best.ckpt")["trial"]
        return best, [number for number in range(len(scores)) if file(number).exists()]

    assert kept_after(2) == (0, [0])
    assert kept_after(3) == (0, [0])  # no better one has come
    assert kept_after(4) == (3, [3])
    checkpoints.save({"trial": 0}, file(0))  # as if the process had died before it removed the former best one's
    assert kept_after(5) == (3, [3])


def test_overwrite_begins_anew_and_keeps_the_old_folder(tmp_path):
    def search(**options):
        tuner = RandomTuner(XY, max_steps=1, n_trials=3, root=tmp_path, name="f", verbose=False, **options)
        return tuner.optimize(lambda job, params: params["x"])

    first, again = search(), search(seed=1, overwrite=True)
    assert recorded(first) != recorded(again)
    (old,) = (path for path in tmp_path.iterdir() if path.name.startswith("f.old-"))
    assert (old / "best.yaml").exists()
    assert recorded(search(seed=1)) == recorded(again)
    with pytest.raises(ValueError, match="`overwrite` moves a run folder away, which `storage` does not allow"):
        search(overwrite=True, storage=f"sqlite:///{tmp_path}/s.db")


@pytest.mark.parametrize(("text", "expected"), [("8h", 28800), ("30m", 1800), ("1h 30m", 5400), ("1.5s", 1.5), (2, 2)])
def test_a_timeout_may_be_a_text(text, expected):
    assert RandomTuner(XY, max_steps=1, n_trials=1, timeout=text).setup.limits.timeout == expected


@pytest.mark.parametrize("text", ["8 hours", "", "h", "10", "-3m", "1h30"])
def test_a_timeout_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r"`timeout` must be a number of seconds, or a text such as '8h' or '1h30m'"):
        RandomTuner(XY, max_steps=1, n_trials=1, timeout=text)


class TestFit:
    SPACE = {"lr": "loguniform(1e-3, 1)", "hidden": "logint(4, 32)", "data.batch_size": "choice(16, 32)"}

    def tuner(self, tmp_path, **options):
        arguments = {
            "monitor": "val_acc",
            "mode": "max",
            "max_steps": 36,
            "min_steps": 4,
            "root": tmp_path,
            "trainer": CPU,
        }
        return HyperbandTuner(self.SPACE, **{**arguments, **options})

    def test_leaves_the_best_checkpoint(self, tmp_path):
        result = self.tuner(tmp_path, name="net").fit(Net, datamodule=Data)
        assert len(result.trials()) == 17
        assert result.best_checkpoint == tmp_path / "net" / "best.ckpt"
        assert result.best_score == result.study.best_value
        config = yaml.safe_load((tmp_path / "net" / "best.yaml").read_text())
        assert config["model"] == {name: result.best_params[name] for name in ("lr", "hidden")}
        assert config["data"] == {"batch_size": result.best_params["data.batch_size"]}
        assert config["trainer"]["max_steps"] == 36
        import lightning.pytorch as pl

        trainer = pl.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False)
        metrics = trainer.validate(result.best_model(), datamodule=Data(), verbose=False)
        assert metrics[0]["val_acc"] == pytest.approx(result.best_score)
        kept = {path.parent.name for path in (tmp_path / "net" / "trials").glob("*/last.ckpt")}
        assert kept == {f"{result.best_trial:04d}"}

    def test_default_name_and_continuation(self, tmp_path):
        self.tuner(tmp_path, total_steps=60).fit(Net, datamodule=Data)
        result = self.tuner(tmp_path).fit(Net, datamodule=Data)
        whole = self.tuner(tmp_path, name="whole").fit(Net, datamodule=Data)
        assert recorded(result) == recorded(whole)
        assert (tmp_path / "hyperbandtuner-net").is_dir()

    def test_keep_checkpoints(self, tmp_path):
        self.tuner(tmp_path, name="net", keep_checkpoints=True).fit(Net, datamodule=Data)
        assert len(list((tmp_path / "net" / "trials").glob("*/last.ckpt"))) == 17

    def test_mistakes_show_before_training(self, tmp_path):
        steps = []

        class Untrainable(Net):
            def training_step(self, batch, batch_idx):
                steps.append(self.trainer.default_root_dir)  # the check's own batch stays in its own process
                return super().training_step(batch, batch_idx)

        with pytest.raises(ValueError, match="'val_accuracy' is not logged in validation"):
            self.tuner(tmp_path, monitor="val_accuracy").fit(Untrainable, datamodule=Data)
        with pytest.raises(ValueError, match="`monitor` is missing"):
            self.tuner(tmp_path, monitor=None).fit(Untrainable, datamodule=Data)
        with pytest.raises(ValueError, match="takes no|has no argument 'hidden'"):
            self.tuner(tmp_path).fit(lambda lr: Untrainable(lr), datamodule=Data)  # noqa: PLW0108  # an argument is missing
        with pytest.raises(ValueError, match="Pass `datamodule=`"):
            self.tuner(tmp_path).fit(Untrainable)
        assert not steps


def test_memory_stays(tmp_path):
    """In a fresh process: after 50 trials at most 1.2 times what it was after 5; and no trial is warned about."""
    code = f"""
import os, re, torch
torch.set_num_threads(1)
from lightning_hpo import RandomTuner
from tests.support.small import Data, Net
from tests.support.studies import study_of

def resident():
    return int(re.search(r"VmRSS:\\s+(\\d+)", open("/proc/self/status").read()).group(1))

seen = {{}}
class Big(Net):
    def __init__(self, lr, hidden=30_000):
        super().__init__(lr, hidden)
        seen[len(seen)] = resident()

RandomTuner({{"lr": "loguniform(1e-3, 1)"}}, max_steps=2, n_trials=51, monitor="val_loss", root={str(tmp_path)!r},
            trainer={{"accelerator": "cpu"}}, verbose=False).fit(Big, datamodule=Data)
print(seen[50] / seen[5])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.split()[-1]) < 1.2
    assert not done.stderr
