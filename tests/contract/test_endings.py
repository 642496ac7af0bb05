"""An outcome says where the Trainer stood, what was measured where, and why the job ended."""

import lightning.pytorch as pl
import optuna
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger

from lightning_hpo import RandomTuner, checkpoints
from lightning_hpo.errors import WRONG_CALL, ParameterMismatchError, exit_code
from lightning_hpo.records import CHECKPOINT, Task
from lightning_hpo.schedulers import Job
from lightning_hpo.training.objective import Objective
from tests.support.idioms import BATCHES, Data, Net, R, TwoOptimizers
from tests.training.test_exact import Crash

SPACE = {"lr": "loguniform(1e-3, 1e-1)"}


class WithLr(Net):
    def __init__(self, lr=0.1):
        super().__init__()
        self.save_hyperparameters()


def run(folder, *, model=Net, data=Data, target=R, **trainer):
    objective = Objective(
        model, lambda trial: {}, data=data, monitor="val_loss", max_steps=R, trainer=trainer, checkpoint_every=3
    )
    return objective.run(Task(Job(target, trial=0), {}, folder))


class Stops(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 7:
            trainer.should_stop = True


class Worse(Net):
    """Its validation loss only grows."""

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.trainer.global_step))


@pytest.mark.parametrize(
    ("trainer", "step", "ended"),
    [
        ({}, R, "budget"),
        ({"max_epochs": 2}, 2 * BATCHES, f"max_epochs=2 reached at step {2 * BATCHES}"),
        ({"max_epochs": 2, "check_val_every_n_epoch": 5}, 2 * BATCHES, f"max_epochs=2 reached at step {2 * BATCHES}"),
        ({"fast_dev_run": True}, 1, "fast_dev_run ended at step 1"),
        ({"fast_dev_run": 3}, 3, "fast_dev_run ended at step 3"),
        ({"max_time": {"seconds": 0}}, 0, "max_time reached at step 0"),
        ({"callbacks": [Stops()]}, 7, "stopped by a callback or the module at step 7"),
        ({"callbacks": [EarlyStopping("val_loss", patience=1)]}, 2 * BATCHES, "EarlyStopping at step 10"),
        ({"callbacks": [EarlyStopping("val_loss", patience=1)], "min_steps": 18}, 18, "EarlyStopping at step 18"),
        ({"min_epochs": 50}, R, "budget"),
        ({"limit_train_batches": 2, "check_val_every_n_epoch": 100}, R, "budget"),
    ],
)
def test_the_outcome_names_the_step_and_the_reason(tmp_path, trainer, step, ended):
    outcome = run(tmp_path, model=Worse, **trainer)
    saved = checkpoints.load(tmp_path / CHECKPOINT)
    assert (outcome.step, outcome.ended, saved["global_step"]) == (step, ended, step)
    assert outcome.score == outcome.values[step] == float(step)
    assert outcome.finished_early == (ended != "budget")


def test_a_job_that_ended_is_not_trained_again(tmp_path):
    first = run(tmp_path, model=Worse, callbacks=[EarlyStopping("val_loss", patience=1)])
    again = run(tmp_path, model=Worse, callbacks=[EarlyStopping("val_loss", patience=1), Crash(0)])
    assert (again.step, again.ended, again.score) == (first.step, first.ended, first.score)


def test_two_optimizers_may_overshoot_and_the_step_is_true(tmp_path):
    assert run(tmp_path, model=TwoOptimizers, target=5).step == 6


def test_min_epochs_does_not_hold_back_a_rung(tmp_path):
    assert run(tmp_path, target=4, min_epochs=4).step == 4


class DiesInValidation(Callback):
    def __init__(self, step=2 * BATCHES):
        self.step = step

    def on_validation_start(self, trainer, pl_module):
        if trainer.global_step == self.step:
            raise RuntimeError("killed")


def test_a_validation_that_a_kill_prevented_is_repeated(tmp_path):
    whole = run(tmp_path / "whole")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="killed"):
            run(tmp_path / "cut", callbacks=[DiesInValidation()])
    cut = run(tmp_path / "cut")
    assert cut.score == whole.score
    assert {step: value for step, value in whole.values.items() if step >= 2 * BATCHES} == cut.values
    rows = [(tmp_path / name / "metrics.csv").read_text().splitlines() for name in ("whole", "cut")]
    assert sorted(rows[0]) == sorted(rows[1])


def test_the_score_of_a_rung_is_never_an_earlier_validation(tmp_path):
    """The kill comes between the checkpoint at the rung and the validation there; there was one at the epoch's end."""
    with pytest.raises(RuntimeError, match="killed"):
        run(tmp_path / "cut", model=Worse, target=BATCHES + 3, callbacks=[DiesInValidation(BATCHES + 3)])
    cut = run(tmp_path / "cut", model=Worse, target=BATCHES + 3)
    assert (cut.step, cut.score) == (BATCHES + 3, BATCHES + 3)


def test_a_job_whose_value_was_not_recorded_gives_its_best_validation_again(tmp_path):
    objective = Objective(
        Worse, lambda trial: {}, data=Data, monitor="val_loss", max_steps=R, score="best", checkpoint_every=3
    )
    first, again = (objective.run(Task(Job(2 * BATCHES, trial=0), {}, tmp_path)) for _ in range(2))
    assert (again.step, again.score, again.scored_from) == (first.step, first.score, first.scored_from)
    assert first.score == BATCHES  # at the end of the first epoch


class Epochs(Net):
    def __init__(self):
        super().__init__()
        self.seen = []

    def configure_optimizers(self):
        self.known = self.trainer.max_epochs
        return super().configure_optimizers()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", float(self.known))


@pytest.mark.parametrize(
    ("trainer", "epochs"),
    [({}, 5), ({"accumulate_grad_batches": 2}, 8), ({"limit_train_batches": 2}, 11), ({"max_epochs": 3}, 3)],
)
@pytest.mark.parametrize("target", [3, R])
def test_max_epochs_is_what_the_budget_makes_in_every_rung(tmp_path, trainer, epochs, target):
    assert run(tmp_path, model=Epochs, target=target, **trainer).score == epochs


def test_max_epochs_of_a_stream_is_refused_with_the_remedy(tmp_path):
    from tests.support.idioms import Endless

    with pytest.raises(Exception, match="trainer.max_epochs` is not known.*limit_train_batches"):
        RandomTuner(SPACE, monitor="val_loss", max_steps=4, n_trials=1, root=tmp_path, verbose=False).fit(
            lambda lr: Epochs(), datamodule=Endless
        )


class Misspelt(Callback):
    def on_validation_end(self, trainer, pl_module):
        trainer.callback_metrics["val_los"]


class NoCopy(Callback):
    def __deepcopy__(self, memo):
        raise TypeError("cannot be copied")


@pytest.mark.parametrize(
    ("trainer", "message"),
    [
        ({"barebones": True}, "barebones=True"),
        ({"limit_val_batches": 0}, "limit_val_batches=0"),
        ({"limit_train_batches": 0.0}, "limit_train_batches=0.0"),
        ({"val_check_interval": 50}, "val_check_interval"),
        ({"callbacks": [EarlyStopping("val_los")]}, "val_los"),
        ({"callbacks": [ModelCheckpoint(monitor="val_los")]}, "val_los"),
        ({"callbacks": [Misspelt()]}, "val_los"),
        ({"callbacks": [NoCopy()]}, "copied"),
    ],
)
def test_a_mistake_in_trainer_shows_once_before_training(tmp_path, trainer, message):
    tuner = RandomTuner(
        SPACE, monitor="val_loss", max_steps=4, n_trials=2, root=tmp_path, name="run", trainer=trainer, verbose=False
    )
    with pytest.raises(Exception, match=message):
        tuner.fit(WithLr, datamodule=Data)
    assert not (tmp_path / "run").exists()


def test_a_model_with_keyword_arguments_that_refuses_one_shows_before_training(tmp_path):
    def build(**arguments):
        return WithLr(**arguments)

    tuner = RandomTuner({"rate": "uniform(0, 1)"}, monitor="val_loss", max_steps=4, n_trials=2, root=tmp_path)
    with pytest.raises(ValueError, match="rate"):
        tuner.fit(build, datamodule=Data)


@pytest.mark.parametrize("name", ["BatchSizeFinder", "LearningRateFinder"])
def test_callbacks_that_change_what_is_recorded_are_refused(tmp_path, name):
    trainer = {"callbacks": [getattr(pl.callbacks, name)()]}
    tuner = RandomTuner(SPACE, monitor="val_loss", max_steps=4, n_trials=2, root=tmp_path, trainer=trainer)
    with pytest.raises(ParameterMismatchError, match="into the space"):
        tuner.fit(WithLr, datamodule=Data)


def test_a_progress_bar_of_the_user_is_kept(tmp_path):
    assert run(tmp_path, callbacks=[TQDMProgressBar()], target=3).step == 3


class Marks(Net):
    stages: list = []  # shared on purpose

    def setup(self, stage):
        with self.file.open("a") as file:
            file.write(f"{getattr(stage, 'value', stage)}\n")


@pytest.mark.filterwarnings("ignore:'lr' is in the space, but nothing")
def test_the_check_and_the_jobs_set_up_for_fit_only(tmp_path):
    Marks.file = tmp_path / "stages"
    RandomTuner(SPACE, monitor="val_loss", max_steps=4, n_trials=1, root=tmp_path, verbose=False).fit(
        lambda lr: Marks(), datamodule=Data
    )
    assert set(Marks.file.read_text().split()) == {"fit"}


@pytest.mark.parametrize("logger", [None, CSVLogger])
def test_a_model_checkpoint_keeps_one_file_in_the_folder_of_the_trial(tmp_path, logger):
    kept = ModelCheckpoint(monitor="val_loss", save_top_k=1)
    given = {} if logger is None else {"logger": logger(tmp_path / "logs")}
    for target in (3, BATCHES, 8, R):
        run(tmp_path / "0002", target=target, callbacks=[kept], **given)
    files = list((tmp_path / "0002").rglob("*.ckpt"))
    assert len([file for file in files if file.name.startswith("epoch=")]) == 1
    assert {file.parent.name for file in files if file.name.startswith("epoch=")} == {"checkpoints"}
    assert not (tmp_path / "0002" / "0002").exists()
    assert not list((tmp_path / "logs").rglob("*.ckpt"))


def test_two_threads_do_not_train_at_the_same_time(tmp_path):
    """They would share the global random numbers."""
    objective = Objective(WithLr, SPACE, data=Data, monitor="val_loss", max_steps=R, root=tmp_path)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    with pytest.raises(RuntimeError, match="n_jobs=1"):
        study.optimize(objective, n_trials=4, n_jobs=2)


class Learned(torch.nn.Module):
    """A loss with a parameter and a count."""

    def __init__(self):
        super().__init__()
        self.log_scale = torch.nn.Parameter(torch.zeros(1))
        self.calls = 0

    def forward(self, scores, labels):
        self.calls += 1
        return torch.nn.functional.cross_entropy(scores * self.log_scale.exp(), labels)


class WithDefaultLoss(Net):
    starts: list = []  # shared on purpose

    def __init__(self, lr=0.1, loss=Learned()):  # noqa: B008  # what people write
        super().__init__()
        self.save_hyperparameters()
        self.learned = loss

    def loss(self, batch):
        return self.learned(self.net(batch[0]), batch[1])

    def on_train_start(self):
        WithDefaultLoss.starts.append((self.learned.calls, float(self.learned.log_scale.detach())))


@pytest.mark.filterwarnings("ignore:'lr' is in the space, but nothing", "ignore:Attribute 'loss' is an instance of")
def test_a_default_argument_that_is_a_module_is_not_shared_among_trials(tmp_path):
    WithDefaultLoss.starts.clear()
    RandomTuner(SPACE, monitor="val_loss", max_steps=4, n_trials=3, root=tmp_path, verbose=False).fit(
        WithDefaultLoss, datamodule=Data
    )
    assert WithDefaultLoss.starts == [(0, 0.0)] * 3


def test_an_error_of_the_check_is_a_wrong_call(tmp_path):
    class Raises(WithLr):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("boom")

    tuner = RandomTuner(SPACE, monitor="val_loss", max_steps=4, n_trials=3, root=tmp_path, verbose=False)
    with pytest.raises(RuntimeError, match="boom") as caught:
        tuner.fit(Raises, datamodule=Data)
    assert exit_code(caught.value) == WRONG_CALL
    assert caught.value.__notes__[-1].startswith("lightning_hpo: RuntimeError: boom")
    assert caught.value.__notes__[-1].endswith("correct the call and run it again.")
