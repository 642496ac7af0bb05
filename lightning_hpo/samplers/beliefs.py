"""Beliefs of the model of a study: the best point, the importance of parameters, and slices with uncertainty.

All functions take a study and read it with the study's own :class:`GaussianProcessSampler` (or a default one, if the
study was made with another sampler), so they work on any finished study.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from optuna.study import Study, StudyDirection
from optuna.trial import TrialState

from lightning_hpo.atomic import replacing
from lightning_hpo.samplers.acquisition import expected_improvement
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.feasibility import fit_feasibility
from lightning_hpo.samplers.gaussian_process import QUIET, GaussianProcessSampler
from lightning_hpo.samplers.observations import observe
from lightning_hpo.samplers.surrogate import Fitter, GaussianProcessModel, RegressorModel
from lightning_hpo.text import masked

_EI_CANDIDATES = 2048


@dataclass(frozen=True)
class Prediction:
    """Prediction of the model for a configuration.

    Args:
        params: the configuration, of the parameters that all trials share and that have more than one value.
        mean: predicted noise-free objective, in its own units.
        sd: standard deviation of that prediction, in the same units.
    """

    params: dict[str, Any]
    mean: float
    sd: float


@dataclass(frozen=True)
class Recommendation:
    """The trial to take.

    Args:
        trial: its number.
        params: all its parameters.
        rule: "best value" or "model's mean".
    """

    trial: int
    params: dict[str, Any]
    rule: str


@dataclass(frozen=True)
class Slice:
    """The prediction along one parameter, through the predicted best configuration.

    Args:
        name: the parameter.
        values: of the parameter, in order.
        mean: predicted noise-free objective, shape (m,).
        sd: its standard deviation, shape (m,).
        log: whether the parameter is on a logarithmic scale.
    """

    name: str
    values: list[Any]
    mean: Floats
    sd: Floats
    log: bool


def predicted_best(study: Study) -> Prediction:
    """Return the evaluated configuration of which the model expects most, with its prediction.

    Under noise this is a better recommendation than ``study.best_trial``, whose value is partly luck.

    Args:
        study: with one objective and at least one trial that ended.

    Raises:
        ValueError: if there is nothing to model.
    """
    model = _model(study)
    unit = model.units[int(np.argmin(model.means))]
    mean, sd = _predict(study, model, unit[None])
    return Prediction(model.encoding.decode(unit), float(mean[0]), float(sd[0]))


def recommended(study: Study) -> Recommendation:
    """Return the trial to take, and the rule that chose it.

    Without noise it is the best trial. Where the fitted noise is above 0.3 % of the variance of the (transformed)
    values, it is the trial of whose configuration the model expects most: the best of many noisy values is partly luck.

    Args:
        study: with one objective and at least one trial that ended.

    Raises:
        ValueError: if there is nothing to model.
    """
    model, best, rule = _model(study), study.best_trial, "best value"
    if isinstance(model, GaussianProcessModel) and model.process.hyperparameters.noise > QUIET:
        complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        known = [
            trial
            for trial in complete
            if model.encoding.holds(trial.params) and all(value <= 0 for value in trial.constraints.values())
        ]
        if known:
            means, _ = model.posterior(model.encoding.encode([trial.params for trial in known]))
            best, rule = known[int(np.argmin(means))], "model's mean"
    return Recommendation(best.number, dict(best.params), rule)


def importance(study: Study) -> dict[str, float]:
    """Return each parameter's share of the model's sensitivity, 1/ℓ, the largest first; the shares add up to 1.

    A parameter with a long length scale ℓ (in units of its range) hardly changes the objective. It says how wiggly the
    objective is along a parameter, as automatic relevance determination does (Rasmussen & Williams, section 5.1).

    Args:
        study: with one objective and at least one trial that ended.

    Raises:
        ValueError: if there is nothing to model, or the study's sampler uses another surrogate.
    """
    model = _model(study)
    if isinstance(model, RegressorModel):
        message = "`importance` needs the built-in Gaussian process: this sampler has `surrogate` set."
        raise ValueError(message)  # the study's sampler is at fault, not a type
    sensitivity = 1.0 / model.lengthscales
    shares = zip(model.encoding.names, (sensitivity / sensitivity.sum()).tolist(), strict=True)
    return dict(sorted(shares, key=lambda share: -share[1]))


def slices(study: Study, points: int = 50) -> dict[str, Slice]:
    """Return the prediction along each parameter, the others at the predicted best configuration.

    Args:
        study: with one objective and at least one trial that ended.
        points: per continuous parameter, ≥ 2; the others have one per value.

    Raises:
        ValueError: if there is nothing to model, or ``points`` < 2.
    """
    if points < 2:
        raise ValueError(f"`points` must be >= 2, got {points}.")
    model = _model(study)
    best = model.units[int(np.argmin(model.means))]
    found = {}
    for i, (name, column) in enumerate(zip(model.encoding.names, model.encoding.columns, strict=True)):
        positions = column.positions if column.kind != "continuous" else column.nearest(np.linspace(0.0, 1.0, points))
        rows = np.repeat(best[None], len(positions), axis=0)
        rows[:, i] = positions
        mean, sd = _predict(study, model, rows)
        values = [column.decode(float(position)) for position in positions]
        found[name] = Slice(name, values, mean, sd, bool(getattr(column.distribution, "log", False)))
    return found


def plot_slices(study: Study, path: str | Path | None = None, points: int = 50) -> Any:
    """Draw the slices of a study: the mean, and a band of two standard deviations.

    Args:
        study: with one objective and at least one trial that ended.
        path: where to save the figure; nowhere if None.
        points: per continuous parameter, ≥ 2.

    Returns:
        The ``matplotlib.figure.Figure``.

    Raises:
        ImportError: without matplotlib.
        ValueError: if there is nothing to model.
    """
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415  # an optional extra
    except ImportError as error:
        raise ImportError("plot_slices needs matplotlib: pip install 'lightning-hpo-suite[plot]'") from error
    drawn = list(slices(study, points).values())
    figure = Figure(figsize=(3.2 * len(drawn), 3.0), layout="constrained")
    for axes, part in zip(np.atleast_1d(figure.subplots(1, len(drawn), sharey=True)), drawn, strict=True):
        if all(isinstance(value, int | float) and not isinstance(value, bool) for value in part.values):
            axes.plot(part.values, part.mean)
            axes.fill_between(part.values, part.mean - 2 * part.sd, part.mean + 2 * part.sd, alpha=0.25)
            axes.set_xscale("log" if part.log else "linear")
        else:
            axes.errorbar(
                [str(masked(part.name, value)) for value in part.values], part.mean, yerr=2 * part.sd, fmt="o"
            )
        axes.set_xlabel(part.name)
    figure.axes[0].set_ylabel("objective (mean ± 2 sd)")
    if path is not None:
        with replacing(Path(path)) as file:
            figure.savefig(file, format=Path(path).suffix[1:] or "png")
    return figure


def expected_improvement_share(study: Study, seed: int = 0) -> float:
    """Return the largest expected improvement left, as a share of the range of the observed values.

    A study may stop when the share is small: the model then expects next to nothing of one more trial. Both are taken
    in the model's (transformed) units, where a few diverged trials do not widen the range.

    Args:
        study: with one objective and at least one trial that ended.
        seed: of the candidates at which it is evaluated, besides those around the best trials.

    Returns:
        A number ≥ 0; infinite if all observed values are equal, as nothing is known about the range then.

    Raises:
        ValueError: if there is nothing to model.

    Source:
        Stopping at small EI: Nguyen et al. 2017, arXiv 1709.05501.
    """
    model = _model(study)
    sampler = _sampler(study)
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    observations = observe(study.get_trials(deepcopy=False), model.encoding, sign, -1)
    values = observations.values
    targets = model.targets.forward(values[~np.isnan(values)])
    if not len(targets) or np.ptp(targets) == 0:
        return float("inf")
    rng = np.random.default_rng([seed, len(values)])
    rows = model.encoding.place(rng.random((_EI_CANDIDATES, len(model.encoding))))
    units = np.concatenate([rows, sampler.suggest(study, model)[None]])
    feasibility = fit_feasibility(Fitter("none", components=False), model.encoding, observations)  # as the sampler's
    feasible = np.exp(feasibility.log_probability(units))
    return float((expected_improvement(*model.posterior(units), model.best)[0] * feasible).max() / np.ptp(targets))


def _sampler(study: Study) -> GaussianProcessSampler:
    return study.sampler if isinstance(study.sampler, GaussianProcessSampler) else GaussianProcessSampler(seed=0)


def _model(study: Study) -> GaussianProcessModel | RegressorModel:
    return _sampler(study).model(study)


def _predict(study: Study, model: GaussianProcessModel | RegressorModel, units: Floats) -> tuple[Floats, Floats]:
    """Return mean and sd in the objective's units: the transform is undone at the mean and an sd on either side."""
    mean, sd = model.posterior(units)
    low, middle, high = (model.targets.inverse(mean + shift * sd) for shift in (-1.0, 0.0, 1.0))
    sign = -1.0 if study.direction == StudyDirection.MAXIMIZE else 1.0
    return sign * middle, 0.5 * (high - low)
