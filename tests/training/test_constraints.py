"""Constraints: the answer of every tuner is feasible, and so are promotions, donors and most suggestions of a model."""

import lightning.pytorch as pl
import numpy as np
import optuna
import pytest
import torch
import yaml

from lightning_hpo import (
    ASHA,
    ASHATuner,
    BayesianTuner,
    Hyperband,
    HyperbandTuner,
    MedianStopping,
    OptunaTuner,
    PopulationTuner,
    RandomTuner,
    StudyMismatchError,
    SuccessiveHalving,
    Tuner,
)
from lightning_hpo.records import Row
from lightning_hpo.samplers import GaussianProcessSampler
from lightning_hpo.schedulers.population import truncate
from lightning_hpo.testing.schedulers import simulate
from tests.training.test_tuners import recorded

SPACE = {"lr": "uniform(0, 1)"}


class Toy(pl.LightningModule):
    """The loss is least at a learning rate of 0.2, and one below 0.5 is infeasible."""

    def __init__(self, lr=0.7):
        super().__init__()
        self.save_hyperparameters()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def train_dataloader(self):
        return torch.utils.data.DataLoader(torch.zeros(4, 1), batch_size=1)

    val_dataloader = train_dataloader

    def training_step(self, batch, batch_idx):
        return (self.weight * batch).sum()

    def validation_step(self, batch, batch_idx):
        lr = self.optimizers().param_groups[0]["lr"]
        self.log_dict({"val_loss": (lr - 0.2) ** 2, "too_low": 0.5 - lr})

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.lr)


def options(root, **more):
    trainer = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0}
    return {"monitor": "val_loss", "constraints": ["too_low"], "root": root, "name": "s", "verbose": False,
            "trainer": trainer, **more}  # fmt: skip


TUNERS = {
    "random": lambda **more: RandomTuner(SPACE, max_steps=2, n_trials=8, **more),
    "hyperband": lambda **more: HyperbandTuner(SPACE, max_steps=4, eta=2, **more),
    "asha": lambda **more: ASHATuner(SPACE, max_steps=4, eta=2, n_trials=8, **more),
    "halving": lambda **more: Tuner(SPACE, SuccessiveHalving(4, eta=2), **more),
    "bayesian": lambda **more: BayesianTuner(SPACE, max_steps=2, n_trials=10, n_startup_trials=4, **more),
    "optuna": lambda **more: OptunaTuner(SPACE, max_steps=2, n_trials=8, **more),
    "population": lambda **more: PopulationTuner(SPACE, population_size=4, interval=2, max_steps=8, **more),
}


@pytest.mark.parametrize("name", TUNERS)
def test_the_answer_of_every_tuner_is_feasible(tmp_path, name):
    result = TUNERS[name](**options(tmp_path)).fit(Toy)
    rows = result.trials()
    assert min(row.score for row in rows if row.score is not None) < 0.08 < result.best_score  # there is a better one
    assert result.best_params["lr"] >= 0.5
    assert yaml.safe_load((tmp_path / "s" / "best.yaml").read_text())["model"]["lr"] >= 0.5
    assert all(row.feasible == (row.params["lr"] >= 0.5) for row in rows if row.values)
    if name == "population":
        copied = [row for row in rows if row.parent is not None and rows[row.parent].home != row.home]
        assert copied
        assert all(rows[row.parent].feasible for row in copied)


def test_a_continued_search_equals_the_uninterrupted_one(tmp_path):
    def search(name, n_trials):
        return BayesianTuner(
            SPACE, max_steps=1, n_trials=n_trials, n_startup_trials=4, **options(tmp_path, name=name)
        ).fit(Toy)

    for n_trials in (3, 7):
        parts = search("parts", n_trials)
    assert recorded(parts) == recorded(search("whole", 7))
    table = parts.dataframe()
    assert (
        list(table["feasible"])
        == [row.params["lr"] >= 0.5 for row in parts.rows]
        == list(table["constraints_too_low"] <= 0)
    )
    assert "<button>too_low</button>" in (tmp_path / "parts" / "report.html").read_text()
    with pytest.raises(StudyMismatchError, match="constraints"):
        BayesianTuner(SPACE, max_steps=1, n_trials=7, **options(tmp_path, name="whole", constraints=[])).fit(Toy)


def test_violations_are_kept_for_each_rung(tmp_path):
    tuner = ASHATuner({"lr": "uniform(0.1, 0.4)"}, max_steps=4, eta=2, n_trials=4, **options(tmp_path))
    rows = tuner.fit(Toy).trials()
    assert max(len(row.values) for row in rows) > 1
    assert [set(row.violations) for row in rows] == [set(row.values) for row in rows]


def test_wrong_names_are_refused_before_training(tmp_path):
    with pytest.raises(TypeError, match=r"`constraints` must be a list of names .* \['too_big'\], got \[1\]"):
        RandomTuner(SPACE, max_steps=1, n_trials=1, **options(tmp_path, constraints=[1]))
    with pytest.raises(
        ValueError, match="`constraints` 'too_lov' is not logged in validation"
    ):  # a text is a list of one
        RandomTuner(SPACE, max_steps=1, n_trials=1, **options(tmp_path, constraints="too_lov")).fit(Toy)


@pytest.mark.parametrize(
    "scheduler", [SuccessiveHalving(9), ASHA(9, n_trials=18), Hyperband(9), MedianStopping(9, n_trials=18, interval=3)]
)
def test_an_infeasible_trial_takes_no_place_of_a_feasible_one(scheduler):
    """Even trials are infeasible, and better than all others."""

    class Marking:
        max_steps, mode = scheduler.max_steps, "min"

        def next(self, rows):
            return scheduler.next([marked(row) for row in rows])

        def retired(self, rows):
            return scheduler.retired([marked(row) for row in rows])

    def marked(row):
        violations = {} if row.number % 2 else dict.fromkeys(row.values, 1.0)
        return Row(row.number, row.params, row.values, row.target, state=row.state, feasible=not violations,
                   violations=violations)  # fmt: skip

    rows = simulate(Marking(), lambda number, step: number / 100 - (1 if number % 2 == 0 else 0)).rows
    continued = [row.number for row in rows if len(row.values) > 1]
    assert continued
    allowed = [0, 2, 4, 6, 8] if isinstance(scheduler, MedianStopping) else []  # it stops none before five are known
    assert [number for number in continued if number % 2 == 0] == allowed


def test_an_infeasible_member_is_no_donor():
    scores = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4}
    assert truncate(scores, quantile=0.5, violations={0: 1.0, 1: 0.5}) == ([1, 0], [2, 3])
    assert truncate(scores, quantile=0.5, violations=dict.fromkeys(scores, 1.0)) == ([2, 3], [])


@pytest.mark.parametrize("kind", ["value", "label"])
def test_a_gaussian_process_keeps_to_the_feasible_half(kind):
    def objective(trial):
        x, y = (trial.suggest_float(name, 0, 1) for name in "xy")
        trial.set_constraint("low", 0.5 - x if kind == "value" else float(x < 0.5))
        return (x - 0.2) ** 2 + (y - 0.7) ** 2

    study = optuna.create_study(sampler=GaussianProcessSampler(seed=0))
    study.optimize(objective, n_trials=50)
    assert np.mean([trial.constraints["low"] > 0 for trial in study.trials[20:]]) <= 0.25
    assert study.best_value == pytest.approx(0.09, abs=5e-3)
    assert study.best_trial.params["x"] >= 0.5
