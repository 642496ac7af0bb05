"""What a report costs: ``python benchmarks/report.py``. CPU of one page, with and without loading, and its size."""

import datetime
import logging
import time
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

SPACE = {
    "lr": FloatDistribution(1e-5, 1e-1, log=True),
    "weight_decay": FloatDistribution(0, 1),
    "width": IntDistribution(16, 512),
    "activation": CategoricalDistribution(("relu", "gelu", "tanh")),
    "batch_size": CategoricalDistribution((16, 32, 64)),
}
RUNGS = (3, 9, 27, 81)


def study_of(count: int) -> optuna.Study:
    """A study as AsyncHyperband leaves it: of three trials one is promoted."""
    logging.getLogger("optuna").setLevel(logging.WARNING)
    rng = np.random.default_rng(0)
    study = optuna.create_study(study_name="report")
    began = datetime.datetime(2026, 1, 1)
    trials = []
    for number in range(count):
        params = {
            "lr": float(10 ** rng.uniform(-5, -1)),
            "weight_decay": float(rng.random()),
            "width": int(rng.integers(16, 513)),
            "activation": str(rng.choice(["relu", "gelu", "tanh"])),
            "batch_size": int(rng.choice([16, 32, 64])),
        }
        score = float(np.log10(params["lr"] * 300) ** 2 + params["weight_decay"])
        reached = RUNGS[: 1 + next(level for level in range(4) if level == 3 or rng.random() > 1 / 3)]
        values = {step: score + 10 / step for step in reached}
        state = TrialState.COMPLETE if len(reached) == len(RUNGS) else TrialState.PRUNED
        trial = create_trial(
            params=params, distributions=SPACE, value=values[reached[-1]], intermediate_values=values, state=state
        )
        trial.datetime_start = began + datetime.timedelta(seconds=number)
        trial.datetime_complete = trial.datetime_start + datetime.timedelta(seconds=float(rng.exponential(5)))
        trials.append(trial)
    study.add_trials(trials)
    scheduler = {"type": "AsyncHyperband", "max_steps": 81, "min_steps": 3, "eta": 3, "mode": "min"}
    study.set_user_attr("lightning_hpo", {"monitor": "val_loss", "scheduler": scheduler})
    return study


if __name__ == "__main__":
    begun = time.process_time()
    from lightning_hpo.reporting.report import to_html
    from lightning_hpo.reporting.run_view import view_run

    loading = time.process_time() - begun
    print("trials   CPU s, first page   CPU s, another page   MB")
    for trials in (1000, 100, 10_000):
        kept = study_of(trials)
        times, page = [], ""
        for _ in range(2):
            begun = time.process_time()
            page = to_html(view_run(kept, Path("report")))
            times.append(time.process_time() - begun + loading)
            loading = 0.0
        print(f"{trials:>6,} {times[0]:>19.2f} {times[1]:>21.2f} {len(page.encode()) / 1e6:>6.2f}")
