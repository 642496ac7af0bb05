"""HyperbandTuner and ASHATuner: asynchronous, with a model, continued bit for bit."""

import functools
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler
from optuna.storages import InMemoryStorage

from lightning_hpo import HPOCLI, ASHATuner, HyperbandTuner, Job, RandomTuner
from tests.cli.test_cli import QUIET, Batches, Plain
from tests.support.small import Data, Net
from tests.training.test_tuners import XY, loss, recorded

BOTH = pytest.mark.parametrize("tuner", [HyperbandTuner, ASHATuner])


def rungs(tuner):
    return [[(rung.trials, rung.max_steps) for rung in bracket.rungs] for bracket in tuner.plan()]


class TestPlan:
    def test_the_default_brackets(self):
        assert rungs(HyperbandTuner(XY, max_steps=900)) == [
            [(27, 33), (9, 99), (3, 297), (1, 900)],
            [(12, 99), (4, 297), (1, 900)],
            [(6, 297), (2, 900)],
            [(4, 900)],
        ]
        assert rungs(ASHATuner(XY, max_steps=900)) == [[(108, 33), (36, 99), (12, 297), (4, 900)]]

    @BOTH
    def test_steps_to_spend_decide_how_many_trials_there_are(self, tuner):
        once = sum(bracket.steps for bracket in tuner(XY, max_steps=27, min_steps=1).plan())
        for total in (1, once, 7 * once):
            made = tuner(XY, max_steps=27, min_steps=1, total_steps=total)
            assert total < sum(bracket.steps for bracket in made.plan())
            assert made.planned_steps() == total
        assert tuner(XY, max_steps=27, timeout=9.0).plan_covers == "round"
        assert tuner(XY, max_steps=27, timeout=9.0).planned_steps() == 0

    @BOTH
    def test_what_is_printed_is_what_happens_at_least(self, tmp_path, capsys, tuner):
        made = tuner(XY, max_steps=9, min_steps=1, root=tmp_path, name="f", storage=InMemoryStorage())
        rows = made.optimize(loss).trials()
        trials, jobs, steps = (
            sum(getattr(bracket, what) for bracket in made.plan()) for what in ("trials", "jobs", "steps")
        )
        assert f"  in all: {trials} trials, at least {jobs} jobs, {steps:,} optimizer steps" in capsys.readouterr().out
        assert len(rows) == trials
        assert sum(len(row.values) for row in rows) >= jobs
        assert sum(max(row.values) for row in rows) >= steps

    @BOTH
    def test_limits_are_printed_and_kept(self, tmp_path, capsys, tuner):
        make = functools.partial(tuner, XY, max_steps=27, min_steps=1, root=tmp_path, storage=InMemoryStorage())
        rows = make(total_steps=200, name="f").optimize(loss).trials()
        assert "  no new job once 200 optimizer steps are recorded" in capsys.readouterr().out
        assert 200 <= sum(max(row.values) for row in rows if row.values) < 227
        make(timeout=0.2, name="t").optimize(loss)
        printed = capsys.readouterr().out
        assert "each round: " in printed
        assert "  rounds follow each other until the search is stopped" in printed
        assert "  no new job after 0.2 s" in printed

    def test_rounds_that_repeat_are_printed_once(self, tmp_path, capsys):
        options = {"root": tmp_path, "name": "f", "storage": InMemoryStorage()}
        HyperbandTuner(XY, max_steps=9, min_steps=1, iterations=3, total_steps=1, **options).optimize(loss)
        printed = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in printed if " @ " in line and line.startswith("  ")] == ["bracket", *"1234"]
        assert "  the same 3 times" in printed

    @BOTH
    @pytest.mark.parametrize(
        ("arguments", "text"),
        [
            ({"max_steps": 9.5}, "`max_steps` must be an int >= 1, got 9.5"),
            ({"max_steps": 9, "min_steps": 10}, "max_steps=9 < min_steps=10"),
            ({"max_steps": 9, "eta": 1}, "`eta` must be an int >= 2, got 1"),
            ({"max_steps": 9, "eta": 0}, "`eta` must be an int >= 2, got 0"),
            ({"max_steps": 9, "total_steps": 0}, "`total_steps` must be above 0"),
            ({"max_steps": 9, "total_steps": -500}, "`total_steps` must be above 0, got -500"),
        ],
    )
    def test_wrong_arguments_are_named(self, tuner, arguments, text):
        with pytest.raises(ValueError, match=text):
            tuner(XY, **arguments)


@BOTH
def test_killed_after_any_job_and_continued_it_is_the_same_study(tmp_path, tuner):
    options = {"root": tmp_path, "storage": InMemoryStorage(), "verbose": False}
    make = functools.partial(tuner, XY, max_steps=9, min_steps=1, **options)
    calls = []
    whole = make(name="whole").optimize(lambda job, params: calls.append(job) or loss(job, params))
    assert recorded(make(name="again").optimize(loss)) == recorded(whole)
    assert recorded(make(name="other", seed=1).optimize(loss)) != recorded(whole)
    for kill_at in range(1, len(calls), 4):
        count = iter(range(1000))

        def killed(job, params, kill_at=kill_at, count=count):
            if next(count) == kill_at:
                raise KeyboardInterrupt
            return loss(job, params)

        with pytest.raises(KeyboardInterrupt):
            make(name=f"killed{kill_at}").optimize(killed)
        assert recorded(make(name=f"killed{kill_at}").optimize(killed)) == recorded(whole)


def test_trials_above_the_lowest_rung_come_from_the_model(tmp_path):
    """Trials that enter above the lowest rung are good more often than those at the lowest, which are random."""
    quick = {"root": tmp_path, "storage": InMemoryStorage(), "verbose": False}
    rows = HyperbandTuner(XY, max_steps=81, min_steps=1, **quick).optimize(loss).trials()
    drawn = RandomTuner(XY, max_steps=1, n_trials=81, **quick).optimize(loss).trials()
    assert [row.params for row in rows[:81]] == [row.params for row in drawn]
    cheap, dear = (
        [loss(Job(81), row.params) for row in rows if (min(row.values) == 1) == lowest] for lowest in (True, False)
    )
    good = sorted(cheap)[len(cheap) // 20]  # one in twenty random trials is as good
    assert sum(value < good for value in dear) / len(dear) > 0.15
    least = 1 / 81  # of the loss
    assert min(dear) - least < (min(cheap) - least) / 10


def test_a_given_sampler_proposes_two_thirds_of_the_trials(tmp_path):
    class Middle(RandomSampler):
        def sample_independent(self, study, trial, param_name, param_distribution):
            return 0.5

    for tuner in (HyperbandTuner, ASHATuner):
        search = tuner(
            {"x": "uniform(0, 1)"}, max_steps=27, min_steps=1, sampler=Middle(), root=tmp_path, verbose=False
        )
        rows = search.optimize(lambda job, params: params["x"]).trials()
        share = sum(row.params["x"] == 0.5 for row in rows) / len(rows)
        assert 0.5 < share < 0.8


@BOTH
def test_checkpoints_of_trials_that_are_over_go_and_nothing_else(tmp_path, tuner):
    class Strangers(Net):
        def on_fit_start(self):
            folder = Path(self.trainer.default_root_dir)
            for name in ("mine.ckpt", "last.ckpt.bak", "notes.txt", "last.previous.ckpt.old"):
                (folder / name).touch()

    search = tuner(
        {"lr": "loguniform(1e-3, 1)"},
        max_steps=9,
        min_steps=1,
        monitor="val_loss",
        root=tmp_path,
        name="f",
        trainer={"accelerator": "cpu", "logger": False},
        verbose=False,
    )
    result = search.fit(Strangers, datamodule=Data)
    trials = tmp_path / "f" / "trials"
    assert {path.parent.name for path in trials.glob("*/last*.ckpt")} == {f"{result.best_trial:04d}"}
    for row in result.trials():
        kept = {path.name for path in (trials / f"{row.number:04d}").iterdir()}
        assert {"mine.ckpt", "last.ckpt.bak", "notes.txt", "last.previous.ckpt.old"} <= kept


@BOTH
def test_from_the_command_line(tmp_path, capsys, tuner):
    line = ["tune", *QUIET, "--optimizer", "SGD", "--optimizer.lr", "0.1", "--space.model.hidden", "int(4, 8)"]
    line += ["--tuner", tuner.__name__, "--tuner.max_steps", "9", "--tuner.eta", "3", "--tuner.min_steps", "3"]
    line += ["--tuner.total_steps", "30", "--tuner.monitor", "val_loss", "--tuner.root", str(tmp_path)]
    assert HPOCLI(Plain, Batches, args=[*line, "--dry-run"]).result is None
    printed = capsys.readouterr().out
    assert "  no new job once 30 optimizer steps are recorded" in printed
    assert "expected: 0 min" in printed
    assert not list(tmp_path.iterdir())
    result = HPOCLI(Plain, Batches, args=line).result
    assert 30 <= sum(max(row.values) for row in result.trials() if row.values) < 39
