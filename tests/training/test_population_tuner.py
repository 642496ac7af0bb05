"""A whole population in one process: repeatable, killed and continued, and what its lineage says."""

import itertools
import math
import os
import random
import shutil
import signal
import threading
from itertools import pairwise

import lightning.pytorch as pl
import optuna
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_hpo import checkpoints
from lightning_hpo.__main__ import main
from lightning_hpo.errors import StorageError, StudyMismatchError
from lightning_hpo.space import parse_space
from lightning_hpo.study.lineage import ReplayLR, lineage, plot, replay, schedule_of, to_study, winner
from lightning_hpo.tuners.population import PopulationTuner
from tests.faults.test_kill import in_a_child
from tests.support.studies import study_of
from tests.training.test_population_callback import Data, Net

SPACE = {"lr": "loguniform(1e-2, 1)", "dropout": "uniform(0.05, 0.5)", "weight_decay": "loguniform(1e-5, 1e-1)"}
SIZE, INTERVAL, STEPS = 4, 15, 75


BEFORE_A_STEP = []  # called with the module; a study notices if the module's own code changes


class Small(Net):
    def __init__(self, lr=0.1, weight_decay=1e-3, dropout=0.1, schedule="LambdaLR"):
        super().__init__(lr=lr, weight_decay=weight_decay, dropout=dropout, schedule=schedule)

    def training_step(self, batch, batch_idx):
        for action in BEFORE_A_STEP:
            action(self)
        return super().training_step(batch, batch_idx)


def tune(root, model=Small, **options):
    arguments = {"population_size": SIZE, "interval": INTERVAL, "max_steps": STEPS, "monitor": "val_loss", "seed": 1}
    trainer = {"accelerator": "cpu", "logger": False}
    tuner = PopulationTuner(SPACE, root=root, name="run", verbose=False, trainer=trainer, **{**arguments, **options})
    return tuner.fit(model, datamodule=Data)


def history(result):
    rows = [(row.params, dict(row.values), row.parent, row.state) for row in result.rows]
    return rows, [segment.notes() for segment in lineage(result)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    return tune(tmp_path_factory.mktemp("whole"))


def test_the_population_and_its_lineage_are_whole(uninterrupted):
    segments = lineage(uninterrupted)
    assert len(segments) > SIZE
    for member in range(SIZE):
        own = [segment for segment in segments if segment.member == member]
        assert own[0].start == 0
        assert own[0].parent is None
        steps = sorted(step for segment in own for step in segment.values)
        assert steps == list(range(INTERVAL, STEPS + 1, INTERVAL))  # each step is told once, by one segment
        for before, after in pairwise(own):
            assert before.stop == after.start
            assert segments[after.parent].member != member
            assert after.start in segments[after.parent].values
    assert uninterrupted.best_score == min(segment.values[STEPS] for segment in segments if STEPS in segment.values)
    module = uninterrupted.best_model()
    (scores,) = pl.Trainer(logger=False, accelerator="cpu", enable_progress_bar=False).validate(
        module, datamodule=Data()
    )
    assert scores["val_loss"] == pytest.approx(uninterrupted.best_score, rel=1e-5)


def test_the_same_call_gives_the_same_bits(uninterrupted, tmp_path):
    torch.manual_seed(99)
    assert history(tune(tmp_path)) == history(uninterrupted)
    before = torch.get_rng_state()
    again = tune(tmp_path)
    assert history(again) == history(uninterrupted)
    assert not list((tmp_path / "run").glob(".best*"))
    assert torch.equal(before, torch.get_rng_state())


def die_after(steps, delay):
    """Kill this process some time after it has begun so many training steps, whosever they are."""
    count = itertools.count(1)

    def die(module):
        if next(count) == steps:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()

    BEFORE_A_STEP.append(die)


def test_killed_ten_times_and_continued_equals_uninterrupted(uninterrupted, tmp_path):
    generator = random.Random(0)
    for _ in range(10):
        steps, delay = generator.randint(5, 35), generator.uniform(0, 0.02)

        def run(steps=steps, delay=delay):
            die_after(steps, delay)
            tune(tmp_path)

        assert os.waitstatus_to_exitcode(os.waitpid(in_a_child(run), 0)[1]) == -signal.SIGKILL
    assert history(tune(tmp_path)) == history(uninterrupted)


def test_the_study_is_a_journal_that_optuna_and_the_command_line_read(uninterrupted, capsys):
    run = uninterrupted.best_checkpoint.parent
    plain = study_of(run)
    assert [segment.params for segment in lineage(plain)] == [segment.params for segment in lineage(uninterrupted)]
    assert main(["show", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"{SIZE} complete" in out
    assert f"; {SIZE * STEPS} optimizer steps" in out  # a segment's steps are counted from where it began
    assert "<svg" in (run / "report.html").read_text()


def test_a_torn_line_of_the_journal_is_set_aside_and_a_damaged_one_is_named(uninterrupted, tmp_path, caplog):
    shutil.copytree(uninterrupted.best_checkpoint.parent, tmp_path / "run")
    journal = tmp_path / "run" / "study.journal"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-1]) + lines[-1][:20])
    assert history(tune(tmp_path)) == history(uninterrupted)
    (aside,) = journal.parent.glob("study.journal.corrupt-*")
    assert aside.read_bytes() == lines[-1][:20]
    assert aside.name in caplog.text
    journal.write_bytes(b"")
    with pytest.raises(StorageError, match=r"study.journal is not a study: it is empty"):
        tune(tmp_path)
    journal.write_bytes(whole.replace(lines[5], lines[5][:9] + b"\x00" + lines[5][10:]))
    with pytest.raises(StorageError, match=r"study.journal is damaged"):
        tune(tmp_path)


def test_a_population_in_another_storage(tmp_path):
    result = tune(tmp_path, storage=f"sqlite:///{tmp_path}/s.db", population_size=2, max_steps=30)
    assert not (tmp_path / "run" / "study.journal").exists()
    again = optuna.load_study(study_name="run", storage=f"sqlite:///{tmp_path}/s.db")
    assert [segment.notes() for segment in lineage(again)] == [segment.notes() for segment in lineage(result)]


def test_a_damaged_checkpoint_costs_an_interval(uninterrupted, tmp_path):
    def stop(module):
        if module.global_step == 50:
            raise KeyboardInterrupt

    BEFORE_A_STEP.append(stop)
    try:
        with pytest.raises((SystemExit, KeyboardInterrupt)):
            tune(tmp_path)
    finally:
        BEFORE_A_STEP.clear()
    file = tmp_path / "run" / "trials" / "0000" / "last.ckpt"
    file.write_bytes(file.read_bytes()[:-100])
    result = tune(tmp_path)
    assert list(file.parent.glob("last.ckpt.corrupt-*"))
    assert {segment.member for segment in lineage(result) if STEPS in segment.values} == set(range(SIZE))


def test_a_failing_member_does_not_stop_the_others(tmp_path):
    class Fails(Small):
        def training_step(self, batch, batch_idx):
            if "002" in self.trainer.default_root_dir and self.global_step == 40:
                raise RuntimeError("out of luck")
            return super().training_step(batch, batch_idx)

    result = tune(tmp_path, Fails)
    failed = [row for row in result.rows if row.state == "failed"]
    assert len(failed) == 1
    assert "out of luck" in result.study.trials[failed[0].number].user_attrs["failure"]
    assert {segment.member for segment in lineage(result) if STEPS in segment.values} == {0, 1, 3}


def test_a_nan_member_is_replaced(tmp_path):
    class Breaks(Small):
        def training_step(self, batch, batch_idx):
            bad = "001" in self.trainer.default_root_dir and self.global_step == 5
            return super().training_step(batch, batch_idx) * (float("nan") if bad else 1)

    result = tune(tmp_path, Breaks)
    second = [segment for segment in lineage(result) if segment.member == 1][1]
    assert second.start == INTERVAL
    assert all(map(math.isfinite, second.values.values()))


def test_a_hidden_size_is_refused_before_training(tmp_path):
    with pytest.raises(MisconfigurationException, match="hidden size"):
        PopulationTuner(
            {"hidden": "choice(8, 16)"}, max_steps=20, interval=10, monitor="val_loss", root=tmp_path, verbose=False
        ).fit(Net, datamodule=Data)


def test_wrong_arguments_and_another_population_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"multiple of `interval` 15, got 70; e.g. 75"):
        PopulationTuner(SPACE, interval=15, max_steps=70)
    with pytest.raises(ValueError, match="population_size"):
        PopulationTuner(SPACE, population_size=1, max_steps=200)
    with pytest.raises(ValueError, match="`timeout` means nothing for a population"):
        PopulationTuner(SPACE, max_steps=200, timeout=3.0)
    with pytest.raises(ValueError, match="val_check_interval"):
        PopulationTuner(SPACE, max_steps=200, trainer={"val_check_interval": 5})
    tune(tmp_path, population_size=2, max_steps=15)
    with pytest.raises(StudyMismatchError, match="quantile"):
        tune(tmp_path, population_size=2, max_steps=15, quantile=0.2)


def test_the_winner_is_replayed_by_a_plain_trainer(uninterrupted, tmp_path):
    segments = lineage(uninterrupted)
    found = replay(uninterrupted)
    assert found.max_steps == STEPS
    assert dict(found.params) == dict(uninterrupted.best_params)
    assert found.phases == schedule_of(winner(segments), segments)
    schedule = found.schedule("lr")

    class Plain(Net):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            shape = lambda step: 1 / (1 + step / 20)  # noqa: E731  # what the members trained with
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": ReplayLR(optimizer, schedule, shape), "interval": "step"},
            }

    net = Plain(lr=schedule[0][1])
    pl.Trainer(
        max_steps=found.max_steps,
        logger=False,
        accelerator="cpu",
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    ).fit(net, datamodule=Data())
    assert len(net.rates) == STEPS
    for step, rates in enumerate(net.rates):
        asked = next(value for start, value in reversed(schedule) if start <= step) / (1 + step / 20)
        assert rates == pytest.approx([asked, asked / 10])


def test_replay_continues_from_a_checkpoint_and_checks_its_input():
    def make():
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
        return optimizer, ReplayLR(optimizer, [(0, 0.5), (3, 0.1), (6, 0.2)])

    optimizer, schedule = make()
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.5] * 3 + [0.1] * 3 + [0.2] * 2)
    again, continued = make()
    for _ in range(4):
        again.step()
        continued.step()
    state = continued.state_dict()
    third, fresh = make()
    fresh.load_state_dict(state)
    third.load_state_dict(again.state_dict())
    third.step()
    fresh.step()
    assert third.param_groups[0]["lr"] == pytest.approx(0.1)
    with pytest.raises(ValueError, match="begin at step 0"):
        ReplayLR(optimizer, [(2, 0.1)])


def test_lineage_as_a_study_and_a_plot(uninterrupted):
    segments = lineage(uninterrupted)
    copied = lineage(to_study(segments, parse_space(SPACE)))
    assert [segment.params for segment in copied] == [
        segment.params for segment in sorted(segments, key=lambda s: (s.start, s.number))
    ]
    assert sum(segment.parent is not None for segment in copied) == sum(
        segment.parent is not None for segment in segments
    )
    figure = plot(segments, "lr")
    assert len(figure.axes[0].lines) >= len(segments)


def test_what_is_left_is_sealed_and_nothing_that_nobody_needs(uninterrupted):
    """The winner's last two checkpoints; during the search, each member has its last two."""
    run = uninterrupted.best_checkpoint.parent
    (winner_home,) = {row.home for row in uninterrupted.rows if row.number == uninterrupted.best_trial}
    left = sorted(run.rglob("*.ckpt"))
    names = ["best.ckpt", f"trials/{winner_home:04d}/last.ckpt", f"trials/{winner_home:04d}/last.previous.ckpt"]
    assert [str(file.relative_to(run)) for file in left] == names
    for file in left:
        checkpoints.verify(file)
