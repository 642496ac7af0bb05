"""What a Gaussian process believes at the end of a search: the best configuration, and which parameters matter."""

import contextlib
import math
from pathlib import Path

import optuna
from optuna.trial import TrialState

from lightning_hpo import samplers  # its names, which load scipy, are imported at their first use
from lightning_hpo.reporting.console import Console
from lightning_hpo.reporting.events import Event, SearchEnded
from lightning_hpo.text import listed


class Beliefs:
    """Prints what the model of a study expects, and draws its slices; an observer.

    Args:
        study: of the search.
        folder: of the run; ``slices.png`` is written there, if matplotlib is installed.
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
        spread = f" ± {best.sd:.2g}" if math.isfinite(best.sd) else ""
        line(f"the model expects most of {listed(best.params)}: {best.mean:.5g}{spread}")
        with contextlib.suppress(ValueError):  # another surrogate has no length scales
            shares = ", ".join(f"{name} {share:.0%}" for name, share in samplers.importance(study).items())
            line(f"how much each parameter matters to it: {shares}")
        with contextlib.suppress(ImportError):  # matplotlib is an extra
            samplers.plot_slices(study, self._folder / "slices.png")
            line(f"slices through the model: {self._folder / 'slices.png'}")


def has_choice(study: optuna.Study) -> bool:
    """Whether a parameter has more than one value: else there is nothing to model."""
    trials = study.get_trials(deepcopy=False)
    return any(not distribution.single() for trial in trials for distribution in trial.distributions.values())
