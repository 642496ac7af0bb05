"""Maximise a plain function of two bounded parameters by Bayesian optimisation: 5 spread points, then 30 chosen ones.

python examples/bayesian_function.py
"""

import optuna

from lightning_hpo.samplers import GaussianProcessSampler, predicted_best


def black_box(x: float, y: float) -> float:
    """The unknown function; within the bounds its maximum is -3, at x = 2, y = 1."""
    return -(x**2) - (y - 1) ** 2 + 1


optuna.logging.set_verbosity(optuna.logging.WARNING)
study = optuna.create_study(direction="maximize", sampler=GaussianProcessSampler(seed=0, n_startup_trials=5))
space = {"x": optuna.distributions.FloatDistribution(2, 4), "y": optuna.distributions.FloatDistribution(-3, 3)}

print("| iteration |    value |      x |      y |     best |")
for iteration in range(5 + 30):
    trial = study.ask(space)
    study.tell(trial, black_box(**trial.params))
    value, x, y = study.trials[-1].value, trial.params["x"], trial.params["y"]
    print(f"| {iteration:9d} | {value:8.4f} | {x:6.3f} | {y:6.3f} | {study.best_value:8.4f} |")

best = predicted_best(study)
print(f"best observed {study.best_params}; the model expects {best.mean:.4f} ± {best.sd:.4f} at {best.params}")
