"""What other tools show of the same small search: ``python benchmarks/watching_peers.py ray | keras | optuna | ours``.

A network on scikit-learn's digits, learning rate and width, 9 trials of at most 9 epochs of which early ones are
stopped. What each prints, and which pages it serves, is described in ``benchmarks/watching.md``.

Needs ``pip install "ray[tune]" keras keras-tuner optuna-dashboard`` for the others.
"""

import argparse
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

EPOCHS, TRIALS = 9, 9


def data():
    images, labels = load_digits(return_X_y=True)
    images = (images / 16).astype(np.float32)
    return images[:1400], labels[:1400], images[1400:], labels[1400:]


def epochs_of(lr: float, width: int):
    """Train with torch; yield the loss on held-out digits after each epoch."""
    import torch
    from torch import nn

    x, y, held_x, held_y = map(torch.tensor, data())
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
    for _ in range(EPOCHS):
        for begin in range(0, len(x), 32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[begin : begin + 32]), y[begin : begin + 32]).backward()
            optimizer.step()
        time.sleep(0.3)  # long enough to be watched
        with torch.no_grad():
            yield float(nn.functional.cross_entropy(net(held_x), held_y))


def ray() -> None:
    import ray as ray_package
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    def train(config):
        for loss in epochs_of(config["lr"], config["width"]):
            tune.report({"val_loss": loss})

    ray_package.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    tune.Tuner(
        train,
        param_space={"lr": tune.loguniform(1e-3, 1), "width": tune.choice([16, 32])},
        tune_config=tune.TuneConfig(
            metric="val_loss", mode="min", num_samples=TRIALS, scheduler=ASHAScheduler(max_t=EPOCHS, grace_period=1)
        ),
    ).fit()


def keras() -> None:
    os.environ.setdefault("KERAS_BACKEND", "torch")
    import keras as keras_package
    import keras_tuner

    def build(hp):
        net = keras_package.Sequential(
            [keras_package.layers.Dense(hp.Choice("width", [16, 32]), "relu"), keras_package.layers.Dense(10)]
        )
        net.compile(
            keras_package.optimizers.SGD(hp.Float("lr", 1e-3, 1, sampling="log"), momentum=0.9),
            keras_package.losses.SparseCategoricalCrossentropy(from_logits=True),
        )
        return net

    x, y, held_x, held_y = data()
    with tempfile.TemporaryDirectory() as folder:
        tuner = keras_tuner.Hyperband(build, "val_loss", max_epochs=EPOCHS, factor=3, directory=folder)
        tuner.search(x, y, validation_data=(held_x, held_y), verbose=1)
        tuner.results_summary(3)


def optuna() -> None:
    import optuna as optuna_package

    def objective(trial):
        params = trial.suggest_float("lr", 1e-3, 1, log=True), trial.suggest_categorical("width", [16, 32])
        for epoch, loss in enumerate(epochs_of(*params), start=1):
            trial.report(loss, epoch)
            if trial.should_prune():
                raise optuna_package.TrialPruned
        return loss

    study = optuna_package.create_study(
        study_name="digits", storage="sqlite:///digits.db", pruner=optuna_package.pruners.HyperbandPruner(1, EPOCHS)
    )
    study.optimize(objective, n_trials=TRIALS)
    print("optuna-dashboard sqlite:///digits.db")


def ours() -> None:
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    from lightning_hpo import HyperbandTuner

    kept: dict = {}

    def train(job, params):
        """Go on where the trial's last job has ended."""
        fit = kept.setdefault(job.trial, enumerate(epochs_of(params["lr"], params["width"]), start=1))
        return next(loss for epoch, loss in fit if epoch == job.max_steps)

    space = {"lr": "loguniform(1e-3, 1)", "width": "choice(16, 32)"}
    HyperbandTuner(space, max_epochs=EPOCHS, min_epochs=1, name="digits").optimize(train)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tool", choices=["ray", "keras", "optuna", "ours"])
    tool = parser.parse_args().tool
    for package in {"ray": ["ray"], "keras": ["keras", "keras-tuner"], "optuna": ["optuna"]}.get(tool, []):
        print(package, version(package))
    globals()[tool]()
