"""What a person reads last after a mistake in a call: the value, and what to write."""

import enum
import inspect
import warnings
from dataclasses import dataclass, field
from typing import get_args

import lightning.pytorch as pl
import numpy as np
import pytest
from optuna import create_study
from optuna.distributions import FloatDistribution
from optuna.samplers import TPESampler
from torch import nn

from lightning_hpo import (
    ASHATuner,
    BayesianTuner,
    FullBudget,
    HyperbandTuner,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    Tuner,
    choice,
)
from lightning_hpo.space import when
from lightning_hpo.tuners.options import Options
from tests.support.small import Data, Net

LR = {"lr": "loguniform(1e-3, 1e-1)"}
HERE = {"root": "/dev/null/nowhere", "verbose": False, "monitor": "val_loss"}


def hyperband(**options):
    return HyperbandTuner(LR, **{"max_steps": 9, **HERE, **options})


def tuned(**options):
    return RandomTuner(LR, **{"max_steps": 9, "n_trials": 2, **HERE, **options})


def searched(space):
    return RandomTuner(space, max_steps=9, n_trials=2, **HERE)


def fitted(space, model=Net, **options):
    return searched(space).fit(model, **{"datamodule": Data, **options})


def begun(space, start):
    return RandomTuner(space, max_steps=9, n_trials=2, start=start, **HERE).fit(Net, datamodule=Data)


class Misshapen(Net):
    def __init__(self, lr=0.1):
        super().__init__(lr)
        self.net = nn.Linear(3, 10)


@dataclass
class Opt:
    lr: float = 0.1


@dataclass
class Cfg:
    opt: Opt = field(default_factory=Opt)


CFG = Cfg()


class Nested(Net):
    def __init__(self, cfg=CFG, other=None):
        super().__init__(cfg.opt.lr)


class Colour(enum.Enum):
    RED = 1


# What is typed, and words of the last line.
MISTAKES = {
    # words of other tools
    "metric": (lambda: hyperband(metric="val_loss"), "no argument 'metric': write monitor='val_loss'."),
    "objective": (lambda: tuned(objective="val_loss"), "write monitor='val_loss'."),
    "direction": (lambda: hyperband(direction="maximize"), "no argument 'direction': write mode='max'."),
    "minimize": (lambda: tuned(minimize=False), "write mode='max'."),
    "goal": (lambda: tuned(goal="minimize"), "write mode='min'."),
    "n_trials_hyperband": (lambda: hyperband(n_trials=50), "HyperbandTuner plans its trials by itself"),
    "num_samples_hyperband": (lambda: hyperband(num_samples=50), "ASHATuner and RandomTuner take n_trials"),
    "num_samples": (lambda: tuned(num_samples=50), "no argument 'num_samples': write n_trials=50."),
    "max_trials": (lambda: BayesianTuner(LR, max_steps=9, max_trials=5), "write n_trials=5."),
    "n_trials_population": (lambda: PopulationTuner(LR, max_steps=9, n_trials=5), "write population_size=5."),
    "epochs": (lambda: tuned(epochs=3), "no argument 'epochs': write max_epochs=3."),
    "two_budgets": (lambda: tuned(max_epochs=3), "`max_samples`; got max_steps=9 and max_epochs=3."),
    "min_epochs": (lambda: RandomTuner(LR, max_epochs=9, min_epochs=1, n_trials=2), "only HyperbandTuner and"),
    "epochs_of_a_scheduler": (lambda: Tuner(LR, FullBudget(9, 2), max_epochs=3), "unit='epochs')"),
    "max_t": (lambda: ASHATuner(LR, max_t=81), "no argument 'max_t': write max_steps=81."),
    "grace_period": (lambda: hyperband(grace_period=3), "write min_steps=3."),
    "min_steps_random": (lambda: tuned(min_steps=3), "only HyperbandTuner and ASHATuner judge trials"),
    "reduction_factor": (lambda: hyperband(reduction_factor=4), "write eta=4."),
    "points_to_evaluate": (lambda: tuned(points_to_evaluate=[{"lr": 0.1}]), "no argument 'points_to_evaluate': "),
    "x0": (lambda: tuned(x0=[0.1]), "no argument 'x0': write start=[{...}]."),
    "start_dictionary": (lambda: tuned(start={"lr": 0.1}), "`start` must be a list, start=[{'lr': 1e-3}, ...], or 'de"),
    "start_text": (lambda: tuned(start="default"), "or 'defaults', got 'default'"),
    "start_name": (lambda: tuned(start=[{"lrr": 0.1}]), "names 'lrr', which is not in the space. Did you mean 'lr'?"),
    "start_full_name": (lambda: tuned(start=[{"model.lrr": 0.1}]), "not in the space. Did you mean 'model.lr'?"),
    "start_other_name": (lambda: tuned(start=[{"width": 3}]), "not in the space. The space has lr."),
    "n_splits": (lambda: tuned(n_splits=5), "no argument 'n_splits': write folds=5."),
    "start_value": (lambda: tuned(start=[{"lr": 1}]), "`start[0]`: 'lr' is 1, which is not in its space: loguniform(0"),
    "start_many": (lambda: tuned(start=[{}] * 3), "`start` has 3 points, but the search starts only 2 trials"),
    "start_function": (lambda: tuned(start="defaults").optimize(lambda *_: 1.0), "a plain function has none: give a"),
    "start_outside": (lambda: begun({"lr": "uniform(0, 0.01)"}, "defaults"), "'lr' is 0.1, which is not in its space"),
    "start_none": (lambda: begun({"step_log": ["a"]}, "defaults"), "none of step_log has a default value: give a"),
    "start_study": (lambda: OptunaTuner(LR, max_steps=9, n_trials=2, study=create_study(), start=[{}]), "study.enq"),
    "warm_start": (lambda: tuned(warm_start="runs/a"), "no argument 'warm_start': write from_run='runs/a'."),
    "from_run": (lambda: tuned(from_run=["runs/a"]), "`from_run` must be the folder of a run, such as 'runs/earlier'"),
    "from_run_pbt": (lambda: PopulationTuner(LR, max_steps=9, interval=3, from_run="a"), "means nothing for a popul"),
    "n_jobs": (lambda: tuned(n_jobs=4), "no argument 'n_jobs': write workers=4."),
    "max_concurrent_trials": (lambda: hyperband(max_concurrent_trials=2), "write workers=2."),
    "gpus": (lambda: tuned(gpus=2), "write devices_per_trial=2."),
    "resources": (lambda: tuned(resources_per_trial={"gpu": 1}), "write devices_per_trial=..."),
    "accelerator": (lambda: tuned(accelerator="gpu"), "the Trainer: trainer={'accelerator': 'gpu'}"),
    "precision": (lambda: tuned(precision="bf16-mixed"), "the Trainer: trainer={'precision': 'bf16-mixed'}"),
    "limit": (lambda: tuned(limit_train_batches=3), "the Trainer: trainer={'limit_train_batches': 3}"),
    "pruner": (lambda: hyperband(pruner=None), "only OptunaTuner has a pruner"),
    "pruner_random": (lambda: tuned(pruner=None), "only OptunaTuner has a pruner"),
    "study": (lambda: tuned(study=None), "only OptunaTuner takes a study"),
    "scheduler": (lambda: tuned(scheduler=None), "write Tuner(space, scheduler)"),
    "search_alg": (lambda: tuned(search_alg=TPESampler()), "no argument 'search_alg': write sampler=..."),
    "algorithm": (lambda: tuned(algorithm="tpe"), "write sampler='tpe'."),
    "study_name": (lambda: tuned(study_name="a"), "write name='a'."),
    "experiment": (lambda: tuned(experiment_name="a"), "write name='a'."),
    "local_dir": (lambda: tuned(local_dir="out"), "write root='out'."),
    "default_root_dir": (lambda: tuned(default_root_dir="out"), "write root='out'."),
    "random_state": (lambda: tuned(random_state=3), "write seed=3."),
    "time_budget_s": (lambda: tuned(time_budget_s=60), "write timeout=60."),
    "max_failures": (lambda: tuned(max_failures=2), "write max_failed=2."),
    "checkpoint_freq": (lambda: tuned(checkpoint_freq=10), "write checkpoint_every=10."),
    "resume": (lambda: tuned(resume=True), "the same call continues a run that was stopped"),
    "early_stopping": (lambda: tuned(early_stopping=True), "trainer={'callbacks': [EarlyStopping(...)]}"),
    "patience": (lambda: tuned(patience=3), "trainer={'callbacks': [EarlyStopping(...)]}"),
    "param_space": (lambda: RandomTuner(param_space=LR, max_steps=9, n_trials=2), "is the first argument: {'lr'"),
    "datamodule": (lambda: tuned(datamodule=Data), "it belongs to fit: tuner.fit(Model, datamodule=Data)"),
    "quiet": (lambda: tuned(quiet=True), "write verbose=False."),
    "perturbation": (lambda: PopulationTuner(LR, max_steps=9, perturbation_interval=3), "write interval=3."),
    "interval_random": (lambda: tuned(interval=3), "only PopulationTuner has an interval"),
    "n_startup_trials": (lambda: hyperband(n_startup_trials=5), "an argument of BayesianTuner, or of a sampler"),
    # near and far names
    "moniter": (lambda: tuned(moniter="val_loss"), "no argument 'moniter'. Did you mean 'monitor'?"),
    "n_trail": (lambda: RandomTuner(LR, max_steps=9, n_trail=3), "Did you mean 'n_trials'?"),
    "totalsteps": (lambda: tuned(totalsteps=3), "Did you mean 'total_steps'?"),
    "worker": (lambda: OptunaTuner(LR, max_steps=9, n_trials=2, worker=3), "Did you mean 'workers'?"),
    "banana": (lambda: tuned(banana=3), "RandomTuner has no argument 'banana'; nothing was started"),
    # missing and extra arguments
    "no_max_steps": (lambda: HyperbandTuner(LR, monitor="val_loss"), "is missing: give one of `max_steps`, "),
    "no_n_trials": (lambda: RandomTuner(LR, max_steps=9), "`n_trials` is missing in RandomTuner: say how many trials"),
    "no_space": (lambda: RandomTuner(max_steps=9, n_trials=2), "`space` is missing in RandomTuner: name the hyper"),
    "no_scheduler": (lambda: Tuner(LR), "`scheduler` is missing in Tuner: say which trial gets how many steps"),
    "by_position": (lambda: RandomTuner(LR, 9, 2), "takes space by position and all else by name, e.g. max_steps=9"),
    "fit_by_position": (lambda: tuned().fit(Net, Data), "fit takes model by position and all else by name, e.g. data"),
    "loaders_by_position": (lambda: tuned().fit(Net, [], []), "e.g. train_dataloaders=..., val_dataloaders=..."),
    "no_model": (lambda: tuned().fit(), "`model` is missing: give the class of a LightningModule"),
    "fit_loaders": (lambda: tuned().fit(Net, dataloader=[]), "write train_dataloaders=..., val_dataloaders="),
    "fit_loader": (lambda: tuned().fit(Net, train_loader=[]), "val_dataloaders=..., or datamodule=Data"),
    "fit_train_only": (lambda: tuned().fit(Net, train_dataloaders=[1]), "`val_dataloaders` is missing: give loaders"),
    "fit_both": (lambda: tuned().fit(Net, datamodule=Data, train_dataloaders=[1]), "are both given: leave one of th"),
    "fit_class": (lambda: tuned().fit(Net, train_dataloaders=Data, val_dataloaders=Data), "write datamodule=..."),
    "fit_number": (lambda: tuned().fit(Net, train_dataloaders=3, val_dataloaders=3), "must be a loader, or a function"),
    "data_object": (lambda: fitted({"data.batch_size": [8]}, datamodule=Data()), "give the class of a data module, or"),
    "fit_data": (lambda: tuned().fit(Net, data=Data), "no argument 'data': write datamodule=..."),
    "fit_ckpt": (lambda: tuned().fit(Net, ckpt_path="a.ckpt"), "every trial starts from scratch"),
    "fit_trainer": (lambda: tuned().fit(Net, trainer=None), "give Trainer arguments to the tuner: trainer={"),
    "fit_workers": (lambda: tuned().fit(Net, workers=2), "no argument 'workers': give it to the tuner's constructor"),
    "fit_instance": (lambda: tuned().fit(Net(), datamodule=Data), "must be a class or function that builds a new"),
    "no_function": (lambda: tuned().optimize(), "`function` is missing in optimize: give a function of a job"),
    "one_argument": (lambda: tuned().optimize(lambda params: 1.0), "optimize` calls <lambda>(job, params), but it"),
    "no_monitor": (lambda: tuned(monitor=None).fit(Net), "`monitor` is missing: name a metric"),
    # values of arguments
    "trainer": (lambda: tuned(trainer=pl.Trainer(logger=False)), "must be a dictionary of Trainer arguments, got a T"),
    "trainer_class": (lambda: tuned(trainer=pl.Trainer), "must be a dictionary of Trainer arguments, got a class"),
    "mode": (lambda: tuned(mode="maximize"), "'max'"),
    "steps_text": (lambda: tuned(max_steps="9"), "`max_steps` must be an int >= 1, got '9'"),
    "steps_zero": (lambda: tuned(max_steps=0), "`max_steps` must be an int >= 1, got 0"),
    "seed": (lambda: tuned(seed=-1), "`seed` must be an int >= 0, got -1"),
    "workers_zero": (lambda: tuned(workers=0), "`workers` must be an int >= 1, got 0"),
    "sampler_text": (lambda: tuned(sampler="tpe"), "`sampler` must be an Optuna sampler, got 'tpe'"),
    "sampler_bayes": (lambda: BayesianTuner(LR, max_steps=9, n_trials=2, sampler=TPESampler()), "RandomTuner(sampler="),
    "population_workers": (lambda: PopulationTuner(LR, max_steps=9, interval=3, population_size=1), "int >= 2, got 1"),
    # spaces
    "pair": (lambda: searched({"lr": (1e-5, 1e-1)}), "Write 'loguniform(1e-05, 0.1)' or 'choice(1e-05, 0.1)'"),
    "pair_of_ints": (lambda: searched({"k": (1, 8)}), "Write 'int(1, 8)' or 'choice(1, 8)'"),
    "triple": (lambda: searched({"k": (1, 2, 4)}), "is a tuple. Write 'choice(1, 2, 4)' for one of its items"),
    "dictionary": (lambda: searched({"lr": {"low": 1e-5, "high": 0.1, "log": True}}), "'loguniform(1e-05, 0.1)'"),
    "wandb": (lambda: searched({"lr": {"values": [0.1, 0.2]}}), "Write 'choice(0.1, 0.2)'"),
    "nested_space": (lambda: searched({"model": {"lr": "uniform(0, 1)"}}), "names with dots, e.g. 'model.lr': ..."),
    "fixed_text": (lambda: searched({"act": "relu"}), "A fixed text is written choice('relu')"),
    "lambda": (lambda: searched({"lr": lambda: 0.1}), "has no name in a study. Write lightning_hpo.choice(first=...)"),
    "empty_list": (lambda: searched({"lr": []}), "is empty. Write the values to choose from, e.g. [16, 32, 64]"),
    "object": (lambda: searched({"loss": [nn.MSELoss(), nn.L1Loss()]}), "Give it one: lightning_hpo.choice(first="),
    "log_zero": (lambda: searched({"lr": "loguniform(0, 1)"}), "a logarithmic range needs low > 0, got 0"),
    "builder": (lambda: searched({"lr": "log_uniform(1e-5, 1)"}), "Did you mean 'loguniform'?"),
    "randint": (lambda: searched({"k": "integer(1, 4)"}), "'integer' is unknown; use uniform(low, high)"),
    "reversed": (lambda: searched({"lr": "uniform(1, 0)"}), "low 1 is above high 0"),
    "list_space": (lambda: searched(["lr"]), "`space` must map names to distributions"),
    "no_names": (lambda: searched({}), "`space` is empty: name at least one hyperparameter"),
    "bare_condition": (lambda: searched({"a": [1, 2], "b": "uniform(0, 1) if c == 1"}), "'c', which is not in the"),
    "twice": (lambda: searched({"lr": [1, 2], "model.lr": [1, 2]}), "names 'model.lr' twice"),
    "label": (lambda: searched({"a": choice(**{"a b": 1})}), "must be one word of letters, digits and _"),
    # names of the space
    "batch_size": (lambda: fitted({"batch_size": [8, 16]}), "Data has the argument 'batch_size': write 'data.batch_s"),
    "datamodule_name": (lambda: fitted({"datamodule.batch_size": [8]}), "write 'data.batch_size'"),
    "optimizer_lr": (lambda: fitted({"optimizer.lr": [0.1]}), "Net has the argument 'lr': write 'model.lr'"),
    "data_lr": (lambda: fitted({"data.lr": [0.1]}), "write 'model.lr'"),
    "clip": (lambda: fitted({"gradient_clip_val": [0.1]}), "Trainer has the argument 'gradient_clip_val': write 'trai"),
    "learning_rate": (lambda: fitted({"learning_rate": [0.1]}), "Net has no argument 'learning_rate'. It takes lr, "),
    "no_data": (lambda: fitted({"data.size": [1]}, datamodule=None), "Pass `datamodule=`"),
    "max_steps_name": (lambda: fitted({"trainer.max_steps": [1]}), "it is the budget: give `max_steps` to the tuner"),
    "no_such_key": (lambda: fitted({"model.cfg.opt.lt": [1.0]}, Nested), "Opt has no 'lt'; it has lr."),
    "no_default": (lambda: fitted({"model.other.lr": [1.0]}, Nested), "no default value of 'other' to change 'lr' in"),
    "inside_number": (lambda: fitted({"model.lr.low": [1.0]}), "float has no 'low'"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_with_what_to_write(mistake):
    typed, words = MISTAKES[mistake]
    with pytest.raises((TypeError, ValueError)) as caught:
        typed()
    (last,) = [note for note in getattr(caught.value, "__notes__", ["none"]) if note.startswith("lightning_hpo: ")]
    assert words in last or words in str(caught.value), last
    assert "correct the call and run it again" in last
    assert "same command" not in last
    assert "__init__" not in last
    assert "unexpected keyword" not in last


def switches(tuner):
    """Names of the boolean options of a tuner."""
    own = {name: given.annotation for name, given in inspect.signature(tuner).parameters.items()}
    return [name for name, kind in {**Options.__annotations__, **own}.items() if bool in (kind, *get_args(kind))]


@pytest.mark.parametrize("tuner", [RandomTuner, HyperbandTuner, ASHATuner, BayesianTuner, OptunaTuner, PopulationTuner])
def test_a_switch_is_true_or_false(tuner):
    names = switches(tuner)
    assert {"allow_changed", "isolate", "keep_checkpoints", "overwrite", "shared", "stop_on_nan", "verbose"} <= {*names}
    assert ("synchronous" in names, "median_stopping" in names) == (tuner is PopulationTuner, tuner is BayesianTuner)
    trials = {"n_trials": 2} if tuner in (RandomTuner, BayesianTuner, OptunaTuner) else {}
    for name in names:
        for value, meant in (("no", False), (2, True)):
            with pytest.raises(ValueError, match=rf"`{name}` (must be True.*: write {name}={meant}|means nothing for)"):
                tuner(LR, max_steps=400, monitor="val_loss", **trials, **{name: value})


def test_a_switch_may_be_a_bool_of_numpy_or_a_number():
    for value in (np.True_, np.False_, 0, 1):
        tuned(shared=value, verbose=value)


def test_there_are_at_least_eighty():
    assert len(MISTAKES) >= 80


def test_a_shape_error_in_the_check_is_a_mistake_of_the_call(tmp_path):
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        RandomTuner(LR, max_steps=3, n_trials=2, monitor="val_loss", root=tmp_path, verbose=False).fit(
            Misshapen, datamodule=Data
        )
    last = caught.value.__notes__[-1]
    assert "correct the call and run it again" in last
    assert "same command" not in last


def test_correct_arguments_are_accepted(tmp_path):
    class Own(Tuner):
        def __init__(self, space, **anything):
            super().__init__(space, FullBudget(1, 2), **anything)

    made = Own({"x": FloatDistribution(0, 1), "act": nn.ReLU, "c": Colour.RED}, root=tmp_path, verbose=False)
    got = made.optimize(lambda job, params, more=0: params["x"])
    assert got.best_params["act"] is nn.ReLU
    assert got.best_params["c"] is Colour.RED
    with pytest.raises(TypeError, match="Own has no argument 'metric': write monitor='a'."):
        Own({"x": "uniform(0, 1)"}, metric="a")


def test_a_list_of_two_ends_is_warned_of():
    with pytest.warns(UserWarning, match=r"is a choice of two values. .* write 'loguniform\(0.0001, 0.1\)'; for the"):
        searched({"lr": [1e-4, 1e-1]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        searched({"lr": choice(1e-4, 1e-1), "dropout": [0.1, 0.5], "k": [1, 1000]})


def test_the_last_line_keeps_semicolons():
    with pytest.raises(ValueError, match="the condition 'a; b' cannot be read") as caught:
        searched({"x": when("a; b", 1)})
    assert "'a; b' cannot be read; nothing was started" in caught.value.__notes__[-1]
