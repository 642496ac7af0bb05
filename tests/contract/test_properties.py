"""Whatever the Trainer is given: what is recorded is what was trained, and a cut job equals one that is not."""

import contextlib
import os
import tempfile
from pathlib import Path
from unittest import mock

import lightning.pytorch as pl
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lightning.fabric.utilities.exceptions import MisconfigurationException
from optuna.storages import InMemoryStorage

from lightning_hpo import HyperbandTuner, Job, Objective, checkpoints
from lightning_hpo.quiet import warnings_only
from lightning_hpo.records import BUDGET, CHECKPOINT, PAUSED, Task, spent
from lightning_hpo.training.make_trainer import quiet_and_seeded
from tests.support.random_cases import HOOKS, Asked, Case, Counting, Data, Fails, Killed, Net, Spy, cases

EXAMPLES = int(os.environ.get("HPO_EXAMPLES", "60"))
"""Random modules of each test; more of them look further."""
pytestmark = pytest.mark.filterwarnings(
    "ignore:You requested to overfit but enabled", "ignore:.ModelCheckpoint.monitor='val_loss'.. could not find"
)
PROPERTY = settings(
    deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck), print_blob=True
)


@pytest.fixture(autouse=True, scope="module")
def fast():
    """Nothing here asks what a power cut leaves, or what the check does to the process."""
    apart = mock.patch("lightning_hpo.training.objective.call_apart", lambda function: function())
    with apart, mock.patch("os.fsync"), warnings_only("lightning.pytorch", "optuna"):
        yield


def start_counting():
    Counting.steps.clear()
    Spy.seen.clear()
    Spy.values.clear()


@contextlib.contextmanager
def watched():
    """A folder, with all counts at zero."""
    start_counting()
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def objective(case, max_steps, every=3, dropout=0.0):
    return Objective(
        lambda: Net(optimizers=case.optimizers, dropout=dropout), lambda trial: {}, data=case.data, monitor="val_loss",
        max_steps=max_steps, trainer=case.arguments(Spy()), checkpoint_every=every,
    )  # fmt: skip


def run(objective, target, folder, *more):
    return objective.run(Task(Job(target, trial=0), {}, folder), *more)


def plain(case, max_steps, folder):
    """The step and the weights at which Lightning alone ends; None if it refuses."""
    trainer = pl.Trainer(
        **{"num_sanity_val_steps": 0, **case.arguments(), "max_steps": max_steps, "default_root_dir": folder},
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    if trainer.fast_dev_run:  # takes the place of max_steps, also where that is less
        trainer.fit_loop.epoch_loop.max_steps = min(trainer.max_steps, max_steps)
    module = Net(optimizers=case.optimizers)
    try:
        with quiet_and_seeded(0, 0):
            trainer.fit(module, datamodule=case.data())
    except Exception:
        return None
    return trainer.global_step, module.state_dict()


def refused(case, checked):
    """Whether the combination is refused; then the text names what is at fault."""
    try:
        checked()
    except Exception as error:
        kinds = [kind.__name__ for kind, _, _ in case.callbacks]
        names = [*case.trainer, *kinds, "accumulate_grad_batches", "should_stop"]
        if "overfit_batches" in names:  # is set as these, says Lightning
            names += ["limit_train_batches", "limit_val_batches"]
        if not any(name in str(error) for name in names):
            raise
        return True
    return False


@settings(PROPERTY, max_examples=EXAMPLES)
@given(cases(), st.integers(1, 14))
def test_an_outcome_is_what_was_trained(case, max_steps):
    with watched() as folder:
        made = objective(case, max_steps)
        if refused(case, made.check):
            alone = plain(case, max_steps, folder)  # refuses it too, or trains nothing
            assert alone is None or alone[0] == 0
            return
        start_counting()
        outcome = run(made, max_steps, folder / "0")
        assert outcome.step == Counting.steps[0.5]
        noted = {step: value for _, step, value in Spy.seen}
        assert outcome.values == noted
        assert outcome.score == noted[outcome.step]
        if outcome.ended == BUDGET:
            assert max_steps <= outcome.step < max_steps + (case.optimizers or 1)
        else:
            assert str(outcome.step) in outcome.ended
        saved = checkpoints.load(folder / "0" / CHECKPOINT, key=made.key)
        assert saved["global_step"] == outcome.step
        alone = plain(case, max_steps, folder)
        if alone is not None:  # EarlyStopping of Lightning alone may miss its metric
            assert outcome.step == alone[0]
            torch.testing.assert_close(dict(saved["state_dict"]), dict(alone[1]), rtol=0, atol=0)


@settings(PROPERTY, max_examples=EXAMPLES // 2)
@given(cases(), st.sampled_from([(2, 6, 3), (1, 3, 3), (4, 8, 2), (3, 9, 3)]))
def test_a_study_is_what_was_trained(case, budget):
    least, most, eta = budget
    with watched() as folder:
        tuner = HyperbandTuner(
            {"x": "uniform(0, 1)"}, max_steps=most, min_steps=least, eta=eta, monitor="val_loss", root=folder, name="s",
            storage=InMemoryStorage(), trainer=case.arguments(Spy()), checkpoint_every=3, verbose=False,
        )  # fmt: skip
        tested = tuner.objective(lambda x: Net(x, case.optimizers), datamodule=case.data)
        if refused(case, tested.check):
            return
        with mock.patch("lightning_hpo.training.objective.Objective.check"):
            start_counting()
            result = tuner.fit(lambda x: Net(x, case.optimizers), datamodule=case.data)
        assert spent(result.rows) == Counting.steps.total()
        for row in result.rows:
            seen = {step: value for x, step, value in Spy.seen if x == row.params["x"]}
            assert all(seen[step] == value for step, value in row.values.items())
            assert (row.ended is None) == (row.step >= most or row.state == "pruned")


def cut_and_continued(objective, targets, folder, cuts):
    """The last outcome of a job that is cut again and again."""
    for target in targets:
        ended = PAUSED
        while ended == PAUSED:
            asked = cuts.pop(0) if cuts else None
            task = Task(Job(target, trial=0), {}, folder)
            more = {} if asked is None else {"should_pause": asked} if callable(asked) else {"callbacks": [asked]}
            with contextlib.suppress(Killed):
                outcome = objective.run(task, **more)
                ended = outcome.ended
        if outcome.finished_early:
            break
    return outcome


CUTS = st.one_of(st.integers(1, 9).map(Asked), st.builds(Fails, st.sampled_from(HOOKS), st.integers(0, 12)))


@settings(PROPERTY, max_examples=EXAMPLES)
@given(
    cases(shuffle=True),
    st.lists(st.integers(1, 14), min_size=1, max_size=3, unique=True).map(sorted),
    st.integers(1, 5),
    st.lists(CUTS, max_size=4),
)
def test_a_cut_job_equals_one_that_is_not(case, targets, every, cuts):
    with watched() as folder:
        whole = objective(case, targets[-1], every=100, dropout=0.3)
        if refused(case, whole.check):
            return
        one = run(whole, targets[-1], folder / "whole")
        cut = objective(case, targets[-1], every, dropout=0.3)
        start_counting()
        other = cut_and_continued(cut, targets, folder / "cut", list(cuts))
        assert (other.score, other.step, other.ended) == (one.score, one.step, one.ended)
        assert Spy.values.items() >= one.values.items()
        ours, theirs = (
            checkpoints.load(folder / name / CHECKPOINT, key=made.key)
            for name, made in (("whole", whole), ("cut", cut))
        )
        assert ours["epoch"] == theirs["epoch"] or other.finished_early
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            torch.testing.assert_close(theirs[part], ours[part], rtol=0, atol=0)
        for key, state in ours["callbacks"].items():
            if "RunToStep" not in key and "ModelCheckpoint" not in key and "Timer" not in key:
                assert theirs["callbacks"][key] == state


def test_an_epoch_without_a_step_ends_the_trial(tmp_path):
    case = Case(Data(1, False, 1), None, {"overfit_batches": 2, "accumulate_grad_batches": 3})
    with pytest.raises(MisconfigurationException, match="accumulate_grad_batches"):
        run(objective(case, 3), 3, tmp_path)


def test_a_dev_run_that_ends_at_exactly_a_rung_is_finished(tmp_path):
    made = objective(Case(Data(4, True, 1), 2, {"fast_dev_run": 3}), 9)
    for target in (3, 9):
        outcome = run(made, target, tmp_path)
        assert (outcome.step, outcome.ended) == (4, "fast_dev_run ended at step 4")


@pytest.mark.parametrize("epochs", [1, 2])
def test_loaders_that_are_made_anew_each_few_epochs_go_on_exactly(tmp_path, epochs):
    case = Case(Data(2, False, 1, shuffle=True), None, {"reload_dataloaders_every_n_epochs": epochs})
    scores = set()
    for targets in ((7,), (2, 5, 7), (1, 4, 6, 7)):
        made = objective(case, 7, every=1, dropout=0.3)
        for target in targets:
            last = run(made, target, tmp_path / str(len(targets)))
        scores.add(last.score)
    assert len(scores) == 1


@pytest.mark.parametrize(
    "trainer", [{"fast_dev_run": 3}, {"limit_train_batches": 3, "max_epochs": 1}, {"max_epochs": 1}]
)
def test_a_loader_without_length_goes_on_at_its_place(tmp_path, trainer):
    made = objective(Case(Data(2, False, 1, shuffle=True), None, trainer), 3)
    for target in (1, 2, 3):
        last = run(made, target, tmp_path / "rungs")
    whole = run(made, 3, tmp_path / "whole")
    assert (last.step, last.score, last.ended is None) == (2, whole.score, False)


@pytest.mark.parametrize(
    ("trainer", "says"),
    [
        ({"limit_val_batches": 0.5}, "limit_val_batches"),
        ({"max_time": {"seconds": 0}}, "max_time"),
        ({"val_check_interval": 0.25, "check_val_every_n_epoch": None}, "val_check_interval"),
    ],
)
def test_what_can_only_fail_shows_in_the_check(trainer, says):
    with pytest.raises(Exception, match=says):
        objective(Case(Data(4, True, 1), None, trainer), 9).check()
