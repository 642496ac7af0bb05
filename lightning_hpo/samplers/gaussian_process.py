"""The sampler: an Optuna study in, the next configuration out."""

import inspect
import math
import threading
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, TypeVar

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]  # it ships no types

from lightning_hpo.samplers.accidents import without_accidents
from lightning_hpo.samplers.acquisition import AcquisitionFunction, log_expected_improvement, lower_confidence_bound
from lightning_hpo.samplers.acquisition_search import Search
from lightning_hpo.samplers.arrays import Floats
from lightning_hpo.samplers.encoding import Encoding
from lightning_hpo.samplers.feasibility import Feasibility, fit_feasibility, no_objective
from lightning_hpo.samplers.local import is_stalled, local_model
from lightning_hpo.samplers.observations import Observations, is_informative, observe
from lightning_hpo.samplers.surrogate import Fitter, GaussianProcessModel, RegressorModel, fit_regressor
from lightning_hpo.space import SearchSpace, from_unit, joined

Result = TypeVar("Result")
WARPS = ("auto", "none", "half_log", "better_log", "half_rank")
# Noise variance, in units of the targets' variance, from which every second trial is optimistic, and up to which a
# stalled search looks closely: a model of few rows cannot tell noise from a gain.
_NOISY, QUIET = 1e-2, 3e-3
_SHORT, _LONG = 5, 12  # rows without a gain, beside as many as there are trials at work
_LIKELY = math.log(0.5)  # log probability of a pending row to be feasible, from which its expected value is undercut
_optimistic: AcquisitionFunction = partial(lower_confidence_bound, beta=3.0)


class GaussianProcessSampler(BaseSampler):
    """Bayesian optimisation with a Gaussian process and log expected improvement.

    The sampler holds no state that matters: a suggestion is a function of the seed, the trial's number and the table of
    trials, so a study that is resumed in a new process continues exactly as if it had not been interrupted (with one
    worker).

    * Any mixture of float, log, integer, stepped and categorical parameters. Choices that are all numbers count as
      ordered. A parameter that not every trial has is modelled on the trials that have it, given the parameters that
      the trial already holds; also where a single trial lacks it that failed before it asked for it.
    * The kernel is Matérn 5/2, and gains an additive or a quadratic component where trials speak for it:
      :mod:`lightning_hpo.samplers.kernel`.
    * Pruned and paused trials count with their last reported value at its step; failed, NaN and infinite ones as
      infeasible, unless no trial near them fails: see :mod:`lightning_hpo.samplers.observations` for the rules.
    * Expected improvement takes the best mean for granted. Where there is noise (above 1 % of the targets' variance) it
      keeps to the neighbourhood of a draw that may be lucky, so every second trial goes where the mean less three
      standard deviations is lowest. Several acquisition functions in one search: Cowen-Rivers et al. 2022,
      arXiv 2012.03826.
    * A search without noise that has stalled looks closely: every second trial is of a model of the best
      row's neighbourhood (:mod:`lightning_hpo.samplers.local`), which gains the last digits. After a longer stall every
      fourth is the best configuration with one parameter changed, which leaves its basin where parameters act alone.
    * Parallel workers get distinct points: a trial without a value counts with the model's expectation, which a
      suggestion is to improve on. To other processes its place is known once it holds its parameters.
    * A warm start needs nothing special: ``study.enqueue_trial(params)`` tries a guess first (parameters that it
      leaves open are chosen given the rest), ``study.add_trials(earlier.trials)`` learns from an earlier study.

    Args:
        seed: keys all random numbers, with the trial's number; an integer ≥ 0, or None for a new seed.
        n_startup_trials: as many trials are spread over each parameter's range (a Latin hypercube keyed by seed and
            trial number) before the model takes over; ≥ 1. A conditional parameter starts with half as many.
        warp: the transform of the objective's worse or better half: "none", "half_log", "better_log", "half_rank", or
            "auto", which chooses among the first three by marginal likelihood. See
            :mod:`lightning_hpo.samplers.targets`.
        surrogate: any scikit-learn regressor with ``predict(X, return_std=True)``, used instead of the built-in
            Gaussian process (without gradients, so the search is over candidates only).
        acquisition: of :mod:`lightning_hpo.samplers.acquisition`, or alike, for every trial; None for log expected
            improvement, and the bound in turn where there is noise.
        constraints_func: must be None: constraints are those of each trial (``trial.set_constraint(name, value)``, kept
            where they are <= 0), and are modelled: :mod:`lightning_hpo.samplers.feasibility`.
        space: a parsed space with conditions (:func:`lightning_hpo.space.parse_space`): one model of all branches, see
            :mod:`lightning_hpo.samplers.encoding`. A tuner gives its own. None models each branch by itself.

    Raises:
        TypeError: if ``seed`` or ``n_startup_trials`` is no integer, or ``surrogate`` cannot fit and predict.
        ValueError: if an argument is out of range; at the first suggestion, if the study has several objectives.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(sampler=GaussianProcessSampler(seed=0))
        >>> study.optimize(lambda trial: trial.suggest_float("x", -5.0, 5.0) ** 2, n_trials=20)
        >>> study.best_value < 1e-4
        True

    Source:
        Rasmussen & Williams 2006; Hvarfner et al. 2024 (arXiv 2402.02229); Ament et al. 2023 (arXiv 2310.20708).
    """

    learns_from_partial_runs = True
    """A tuner shows it every value of every trial: the step is part of the model."""

    def __init__(
        self,
        seed: int | None = None,
        *,
        n_startup_trials: int = 10,
        warp: str = "auto",
        surrogate: Any = None,
        acquisition: AcquisitionFunction | None = None,
        constraints_func: None = None,
        space: SearchSpace | None = None,
    ) -> None:
        if seed is None:
            seed = int(np.random.SeedSequence().generate_state(1)[0])
        self.seed = _integer("seed", seed, 0)
        self.n_startup_trials = _integer("n_startup_trials", n_startup_trials, 1)
        if warp not in WARPS:
            raise ValueError(f"`warp` must be one of {', '.join(map(repr, WARPS))}, got {warp!r}.")
        if surrogate is not None and not _predicts_spread(surrogate):
            raise TypeError(
                "`surrogate` must be a scikit-learn regressor whose predict takes return_std=True, such as "
                f"GaussianProcessRegressor(), got {surrogate!r}."
            )
        if acquisition is not None and not callable(acquisition):
            raise TypeError(
                "`acquisition` must be a function of lightning_hpo.samplers.acquisition, or alike, got "
                f"{acquisition!r}."
            )
        if constraints_func is not None:
            raise ValueError(
                "`constraints_func` is not supported. Write trial.set_constraint(name, value) in the objective: a "
                "trial is feasible where all values are <= 0."
            )
        self.warp, self.surrogate, self.acquisition = warp, surrogate, acquisition
        self.space = space
        self._fitter, self._label_fitter = Fitter(warp), Fitter("none", components=False)
        self._suggested: dict[int, dict[str, Any]] = {}  # by the trial's number; read only while the trial lacks it

    def reseed_rng(self) -> None:
        """Do nothing: random numbers are keyed by the trial's number, so no two workers share a stream."""

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the parameters that all informative trials have, with one distribution each."""
        del trial
        _sign(study)
        if self._branches:
            return {name: distribution for name, distribution in self._branches.items() if not distribution.single()}
        return _shared_space(study.get_trials(deepcopy=False))

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Suggest the parameters that all trials share, jointly; nothing during start-up."""
        sign = _sign(study)
        if not search_space:
            return {}
        encoding = Encoding(self._branches or search_space)

        def suggest() -> dict[str, Any]:
            trials = study.get_trials(deepcopy=False)
            observations = observe(trials, encoding, sign, trial.number)
            if len(observations) < self.n_startup_trials:
                return {}
            # What this process has suggested to trials that have not asked for all of it yet, as in another thread.
            missing = {other.number for other in trials if not encoding.holds(other.params)} - {trial.number}
            self._suggested = {number: params for number, params in self._suggested.items() if number in missing}
            elsewhere = encoding.encode([params for params in self._suggested.values() if encoding.holds(params)])
            observations = replace(observations, pending=np.concatenate([observations.pending, elsewhere]))
            given = trial.system_attrs.get("fixed_params", {})
            params = encoding.decode(self._suggest(encoding, observations, given, trial.number, ""))
            self._suggested[trial.number] = params
            return params

        return _single_threaded(suggest)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Suggest one parameter: spread during start-up, else by a model of the trials that have it.

        The model is over all parameters that those trials share. Those that this trial already holds are fixed, the
        others are chosen jointly, so parameters of one branch are tuned together although they are asked separately.
        """
        sign = _sign(study)
        column = Encoding({param_name: param_distribution}).columns[0]
        trials = study.get_trials(deepcopy=False)
        holders = [
            other
            for other in trials
            if other.number != trial.number
            and is_informative(other)
            and param_name in other.params
            and column.holds(other.params[param_name])
        ]
        ended = sum(is_informative(other) for other in trials)
        if ended < self.n_startup_trials or len(holders) < max(1, self.n_startup_trials // 2):
            return self._spread(trial.number, param_name, param_distribution)
        space = _shared_space(holders) | trial.distributions | {param_name: param_distribution}
        shared = {
            name: distribution
            for name, distribution in space.items()
            if all(name in other.params for other in holders) and not distribution.single()
        }
        given = trial.system_attrs.get("fixed_params", {}) | trial.params
        encoding = Encoding(shared)
        observations = observe(trials, encoding, sign, trial.number)
        if not len(observations):  # their other parameters have left this trial's ranges
            encoding = Encoding({param_name: param_distribution})
            observations = observe(holders, encoding, sign, trial.number)
        unit = self._suggest(encoding, observations, given, trial.number, param_name)
        return encoding.decode(unit)[param_name]

    def model(self, study: Study) -> GaussianProcessModel | RegressorModel:
        """Return the model of the parameters that all trials of a study share, each over the values of all of them.

        Args:
            study: with one objective.

        Raises:
            ValueError: if no trial has ended or reported a value yet, or the trials share no parameter.
        """
        sign = _sign(study)
        trials = study.get_trials(deepcopy=False)
        space: Mapping[str, BaseDistribution] = (
            self._branches
            or _shared_space([trial for trial in trials if trial.state != TrialState.FAIL], widest=True)
            or _shared_space(trials, widest=True)
        )
        if not space:
            raise ValueError("the study has no finished trials that share a parameter with more than one value.")
        encoding = Encoding(space)
        return _single_threaded(lambda: self._fit(encoding, observe(trials, encoding, sign, -1), -1))

    @property
    def _branches(self) -> SearchSpace | None:
        """The space, if it has conditions."""
        return self.space if self.space is not None and self.space.conditions else None

    def suggest(self, study: Study, model: GaussianProcessModel | RegressorModel) -> Floats:
        """Return where the expected improvement is largest (or the acquisition function that was chosen).

        As search columns of the model's encoding, shape (d,).
        """
        number = len(study.get_trials(deepcopy=False))
        rng = np.random.default_rng([self.seed, number, zlib.crc32(b"")])
        return _single_threaded(
            Search(model, self.acquisition or log_expected_improvement, model.units, {}, rng).maximise
        )

    def _suggest(
        self, encoding: Encoding, observations: Observations, given: Mapping[str, Any], number: int, name: str
    ) -> Any:
        fixed = {
            i: float(column.encode([given[key]])[0])
            for i, (key, column) in enumerate(zip(encoding.names, encoding.columns, strict=True))
            if key in given and column.holds(given[key])
        }
        if len(fixed) == len(encoding):
            return encoding.encode([given])[0]
        rng = np.random.default_rng([self.seed, number, zlib.crc32(name.encode())])

        def suggest() -> Any:
            model = self._fit(encoding, observations, number)
            feasibility = fit_feasibility(self._label_fitter, encoding, observations, number)
            return _next_configuration(
                model, observations, feasibility, acquisition=self.acquisition, fixed=fixed, number=number, rng=rng
            )

        return _single_threaded(suggest)

    def _fit(
        self, encoding: Encoding, observations: Observations, number: int
    ) -> GaussianProcessModel | RegressorModel:
        observations = without_accidents(self._label_fitter, encoding, observations)
        if self.surrogate is None:
            return self._fitter.model(encoding, observations)
        seed = np.random.SeedSequence([self.seed, number + 1]).generate_state(1)[0]
        return fit_regressor(self.surrogate, encoding, observations, int(seed))

    def _spread(self, number: int, name: str, distribution: BaseDistribution) -> Any:
        """A cell of a Latin hypercube (McKay, Beckman & Conover 1979): each block of trials visits each cell once."""
        key = zlib.crc32(name.encode())
        block, place = divmod(number, self.n_startup_trials)
        cells = np.random.default_rng([self.seed, block, key]).permutation(self.n_startup_trials)
        jitter = np.random.default_rng([self.seed, number, key, 1]).random()
        return from_unit(distribution, (cells[place] + jitter) / self.n_startup_trials)


def _next_configuration(
    model: GaussianProcessModel | RegressorModel,
    observations: Observations,
    feasibility: Feasibility,
    *,
    acquisition: AcquisitionFunction | None,
    fixed: Mapping[int, float],
    number: int,
    rng: np.random.Generator,
) -> Floats:
    """Return the search columns of the next configuration, shape (d,).

    Args:
        model: of the rows.
        observations: the rows.
        feasibility: of configurations.
        acquisition: for every suggestion; None for those above.
        fixed: column index -> position, for columns that are already decided.
        number: of the trial.
        rng: of this suggestion.
    """
    known = np.concatenate([observations.units, observations.pending])
    expected = observations.pending[feasibility.log_probability(observations.pending) > _LIKELY]
    if len(expected):  # else a batch gathers where the first of it will be better than the best row
        model = replace(model, best=min(model.best, float(model.posterior(expected)[0].min())))
    noise = model.process.hyperparameters.noise if isinstance(model, GaussianProcessModel) else QUIET
    function = acquisition or (_optimistic if noise > _NOISY and number % 2 else log_expected_improvement)
    if not feasibility.known:
        function = no_objective
    search = partial(Search, function=function, known=known, fixed=fixed, rng=rng, feasibility=feasibility)
    whole = search(model)
    if function is log_expected_improvement and noise < QUIET and not (acquisition or fixed):
        values = np.where(observations.candidates(), observations.values, np.nan)
        unit, at_work = None, len(observations.pending)  # so many rows were suggested before the last ones were known
        if number % 4 == 1 and is_stalled(values, _LONG + at_work):
            unit = whole.jump(observations.units[int(np.nanargmin(values))])
        elif number % 2 == 0 and is_stalled(values, _SHORT + at_work):
            local = local_model(model.encoding, observations, values)
            unit = None if local is None else search(local).maximise()
        if unit is not None and not whole.is_known(unit):
            return unit
    return whole.maximise()


def _shared_space(trials: Sequence[FrozenTrial], widest: bool = False) -> dict[str, BaseDistribution]:
    """The parameters that all informative trials have, with equal distributions; those that had none yet say nothing.

    With ``widest``, distributions that differ are joined where that can be done; else the parameter is left out.

    A trial that failed before it asked for all counts too: the parameters that it asked for may have made it fail.
    """
    chosen = [trial for trial in trials if is_informative(trial) and trial.params]
    if not chosen:
        return {}
    space: dict[str, BaseDistribution | None] = {**chosen[-1].distributions}
    for trial in chosen:
        others = trial.distributions
        for name, own in space.items():
            if (other := others.get(name)) is not own and other != own:
                space[name] = joined(own, other) if widest and own is not None and other is not None else None
    return {name: own for name, own in sorted(space.items()) if own is not None and not own.single()}


def _sign(study: Study) -> float:
    if len(study.directions) > 1:
        raise ValueError(
            f"GaussianProcessSampler optimises one objective, the study has {len(study.directions)}. "
            "Use optuna.samplers.GPSampler or TPESampler for several."
        )
    return -1.0 if study.directions[0] == StudyDirection.MAXIMIZE else 1.0


def _predicts_spread(surrogate: Any) -> bool:
    if isinstance(surrogate, type) or not all(hasattr(surrogate, name) for name in ("fit", "predict", "get_params")):
        return False
    parameters = inspect.signature(surrogate.predict).parameters.values()
    return any(found.name == "return_std" or found.kind == inspect.Parameter.VAR_KEYWORD for found in parameters)


def _integer(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be an integer >= {least}, got {value!r}.")
    return int(value)


@lru_cache(maxsize=1)
def _threads() -> ThreadpoolController:
    return ThreadpoolController()


_alone = threading.RLock()  # the number of threads is the process's: a single thread at a time changes it


def _single_threaded(work: Callable[[], Result]) -> Result:
    """Run with a single BLAS thread: more threads slow small matrices down, and change the order of sums."""
    with _alone, _threads().limit(limits=1, user_api="blas"):
        return work()
