"""What a Gaussian process believes at the end of a search: the best configuration, and which parameters matter."""

import contextlib
import json
import math
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import TrialState

from lightning_hpo import samplers  # its names, which load scipy, are imported at their first use
from lightning_hpo.atomic import atomic_write
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Event, SearchEnded
from lightning_hpo.reporting.model_figure import SLICES
from lightning_hpo.text import HIDDEN, hide_passwords, is_secret, listed


class Beliefs:
    """Prints what the model of a study expects, and draws its slices; an observer.

    Args:
        study: of the search.
        folder: of the run; ``slices.png`` is written there, if matplotlib is installed, and ``slices.json``
            for the report.
        console: prints lines.
    """

    def __init__(self, study: optuna.Study, folder: Path, console: Console) -> None:
        self._study = study
        self._folder = folder
        self._console = console

    def on(self, event: Event) -> None:
        """Print and draw when the search is over."""
        if not isinstance(event, SearchEnded):
            return
        study, line = self._study, self._console.line
        if not study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) or not has_choice(study):
            return
        try:
            best = samplers.predicted_best(study)
        except ValueError as error:  # the space has changed, and the trials share no parameter
            line(f"the model cannot judge all trials together: {error}")
            return
        trials = study.get_trials(deepcopy=False)
        names = {name for trial in trials for name, values in trial.distributions.items() if not values.single()}
        if lost := ", ".join(sorted(names - best.params.keys())):
            line(f"the model is of the parameters that all trials have, so not of {lost}")
        spread = f" ± {best.sd:.2g}" if math.isfinite(best.sd) else ""
        line(f"the model expects most of {listed(best.params)}: {best.mean:.5g}{spread}")
        chosen = samplers.recommended(study)
        if chosen.trial == study.best_trial.number:
            line(f"it recommends trial {chosen.trial}, the best value")
        else:
            line(f"the values are noisy: it recommends trial {chosen.trial} ({listed(chosen.params)}) by its mean")
        with contextlib.suppress(ValueError):  # another surrogate has no length scales
            shares = ", ".join(f"{name} {share:.0%}" for name, share in samplers.importance(study).items())
            line(f"how much each parameter matters to it: {shares}")
        self._keep_slices()
        with contextlib.suppress(ImportError):  # matplotlib is an extra
            samplers.plot_slices(study, self._folder / "slices.png")
            line(f"slices through the model: {self._folder / 'slices.png'}")

    def _keep_slices(self) -> None:
        """Write the slices for the report, a secret by its place among the choices."""
        kept = [
            {
                "name": name,
                "values": [
                    f"{HIDDEN} {index + 1}" if is_secret(name, value) else _plain(value)
                    for index, value in enumerate(part.values)
                ],
                "mean": part.mean.tolist(),
                "sd": part.sd.tolist(),
                "log": part.log,
            }
            for name, part in samplers.slices(self._study).items()
        ]
        trials = len(self._study.get_trials(deepcopy=False))
        atomic_write(self._folder / SLICES, json.dumps({"trials": trials, "slices": kept}))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else hide_passwords(str(value))


def has_choice(study: optuna.Study) -> bool:
    """Whether a parameter has more than one value: else there is nothing to model."""
    trials = study.get_trials(deepcopy=False)
    return any(not distribution.single() for trial in trials for distribution in trial.distributions.values())
