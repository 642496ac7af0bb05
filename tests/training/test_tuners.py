"""Tuners from the outside: what a search finds, keeps, continues and refuses."""

import functools
import math
import os
import resource
import signal
import stat
import subprocess
import sys
from concurrent.futures import Future

import optuna
import pytest
import torch
import yaml
from torch import nn

from lightning_hpo import (
    BayesianTuner,
    FullBudget,
    Hyperband,
    HyperbandTuner,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    SuccessiveHalving,
    Tuner,
    checkpoints,
)
from lightning_hpo.errors import SearchFailedError, StorageError, StudyInUseError, StudyMismatchError
from lightning_hpo.tuners.parts import Parts
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
        assert len({str(row.params) for row in whole.trials()}) == 14


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
        (note,) = make(iterations=2).optimize(other).study.user_attrs["lightning_hpo_changes"]
        assert note == {"from_trial": 17, "changes": "the code of f changed"}

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
        with pytest.raises(SearchFailedError):
            HyperbandTuner(XY, max_steps=81, timeout=1e-9, root=tmp_path, name="t").optimize(loss)


class TestFailures:
    def test_a_trial_that_fails_is_kept_with_its_reason_and_the_search_goes_on(self, tmp_path, capsys):
        def sometimes(job, params):
            match job.trial:
                case 0:
                    raise RuntimeError("out of luck")
                case 1:
                    return math.nan
                case 2:
                    return math.inf
                case 3:
                    return "0.5!"
                case 4:
                    return 10**400
                case 6:
                    sys.exit(0)
                case 7:
                    return torch.tensor(0.25)
            return loss(job, params) + 1

        tuner = RandomTuner(XY, max_steps=1, n_trials=10, root=tmp_path, name="f", max_failed=6)
        result = tuner.optimize(sometimes)
        reasons = {t.number: t.user_attrs["failure"] for t in result.study.trials if t.state.name == "FAIL"}
        assert set(reasons) == {0, 1, 2, 3, 4, 6}
        assert reasons[0].startswith("RuntimeError: out of luck\nTraceback")
        assert reasons[1] == "the score is nan"
        assert reasons[2] == "the score is inf"
        assert "'0.5!'" in reasons[3]
        assert reasons[6].startswith("SystemExit: 0")
        assert result.best_trial == 7
        assert result.best_score == 0.25
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("trial ")]
        assert "failed: RuntimeError: out of luck" in lines[0]
        assert "failed: the score is nan" in lines[1]

    def test_too_many_in_a_row(self, tmp_path):
        with pytest.raises(SearchFailedError, match=r"5 trials in a row failed, the last one with: ZeroDivisionError"):
            RandomTuner(XY, max_steps=1, n_trials=50, root=tmp_path, name="f").optimize(lambda job, params: 1 / 0)

    def test_a_function_that_returns_nothing(self, tmp_path):
        for tuner in (RandomTuner, OptunaTuner):
            with pytest.raises(SearchFailedError, match="the function returned None; it must return a number"):
                tuner(XY, max_steps=1, n_trials=9, root=tmp_path, name=tuner.__name__).optimize(lambda *_: None)

    def test_too_large_a_share(self, tmp_path):
        def every_other(job, params):
            return math.nan if job.trial % 2 else params["x"]

        tuner = RandomTuner(XY, max_steps=1, n_trials=50, root=tmp_path, name="f", max_failed=0.5)
        with pytest.raises(SearchFailedError, match=r"5 of 10 trials failed, the last one with: the score is nan"):
            tuner.optimize(every_other)

    def test_a_rung_in_which_all_fail_ends_its_bracket_not_the_search(self, tmp_path):
        result = HyperbandTuner(XY, max_steps=9, min_steps=1, root=tmp_path, name="f", max_failed=99).optimize(
            lambda job, params: math.nan if job.trial < 9 else loss(job, params)
        )
        assert [row.state for row in result.trials()[:9]] == ["failed"] * 9
        assert len(result.trials()) == 17


class Together:
    """An executor whose jobs all end at the same moment."""

    def __init__(self, work, workers):
        self.workers, self._work, self._waiting = workers, work, []

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def submit(self, task):
        self._waiting.append((Future(), task))
        if len(self._waiting) == self.workers:
            for future, one in self._waiting:
                try:
                    future.set_result(self._work(one, lambda: False))
                except Exception as error:
                    future.set_exception(error)
        return self._waiting[-1][0]


def test_results_that_come_together_are_all_recorded_also_if_one_of_them_ends_the_search(tmp_path):
    at_once = Parts(executor=lambda work, options, interrupts: Together(work, 4))

    def unlucky(job, params):
        if job.trial == 1:
            raise RuntimeError("no luck")
        return job.trial

    tuner = Tuner(XY, FullBudget(1, 4), parts=at_once, max_failed=1, root=tmp_path, name="f", verbose=False)
    with pytest.raises(SearchFailedError, match="1 trials in a row failed, the last one with: RuntimeError: no luck"):
        tuner.optimize(unlucky)
    study = study_of(tmp_path / "f")
    assert [trial.values for trial in study.trials] == [[0.0], None, [2.0], [3.0]]
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]


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
    assert RandomTuner(XY, max_steps=1, n_trials=1, timeout=text)._limits.timeout == expected


@pytest.mark.parametrize("text", ["8 hours", "", "h", "10", "-3m", "1h30"])
def test_a_timeout_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match=r"`timeout` must be a number of seconds, or a text such as '8h' or '1h30m'"):
        RandomTuner(XY, max_steps=1, n_trials=1, timeout=text)


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
