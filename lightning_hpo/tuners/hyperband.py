"""Tuners that stop early: asynchronous Hyperband, with a model where looks are dear, and ASHA."""

from typing import Unpack

from lightning_hpo.errors import explained
from lightning_hpo.samplers import KernelDensitySampler
from lightning_hpo.schedulers import ASHA, AsyncHyperband
from lightning_hpo.schedulers.direction import direction
from lightning_hpo.space import Space
from lightning_hpo.tuners.base import Tuner
from lightning_hpo.tuners.options import Options, refuse_unknown, refuse_wrong_limits

_RANDOM = 1 / 3  # share of trials that no sampler proposes, as in BOHB (Falkner et al. 2018, Algorithm 2)


class HyperbandTuner(Tuner):
    """Asynchronous Hyperband with a model: many configurations for a few steps, the best of them for more.

    No worker ever waits. New trials start in brackets, from one that judges after ``min_steps`` to one that trains to
    ``max_steps`` at once, as a hedge: where short runs mislead, the later brackets find what the earlier ones missed.

    Args:
        space: as for :class:`Tuner`.
        max_steps: full budget of a trial, in optimizer steps.
        min_steps: the smallest budget a trial is judged at. Default: ``max_steps / eta**3``, which gives four brackets.
        eta: of ``eta`` trials one is promoted.
        iterations: how many times to run all brackets (:class:`~lightning_hpo.AsyncHyperband`). Default: once; with
            ``total_steps`` as often as it takes to spend them; with ``timeout`` alone without end.
        **options: as for :class:`Tuner`. ``sampler`` proposes two thirds of the trials, and learns from the highest
            rung with enough values; the others are drawn at random (BOHB's rule). Default:
            :class:`~lightning_hpo.KernelDensitySampler`, for trials that enter above the lowest rung only. Those at the
            lowest are all random: looks are cheap there, and a model of short runs leads astray where they mislead.

    Source: Li et al. 2018 (JMLR 18-185) and 2020 (arXiv 1810.05934); Falkner et al. 2018 (arXiv 1807.01774).
    """

    def __init__(
        self,
        space: Space,
        *,
        max_steps: int,
        min_steps: int | None = None,
        eta: int = 3,
        iterations: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            refuse_unknown(type(self), options)
            refuse_wrong_limits(options)
            mode = options["mode"] = direction(options.get("monitor"), options.get("mode"))
            least = _least(max_steps, min_steps, eta)
            total = options.get("total_steps")
            if iterations is None and total is not None:
                once = sum(bracket.steps for bracket in AsyncHyperband(max_steps, least, eta, mode).plan())
                iterations = total // once + 2  # one more than it takes: trials that fail leave their steps to others
            elif iterations is None and options.get("timeout") is None:
                iterations = 1
            self._cautious = options.get("sampler") is None
            if self._cautious:
                options["sampler"] = KernelDensitySampler(options.get("seed", 0))
            super().__init__(space, AsyncHyperband(max_steps, least, eta, mode, iterations), **options)
            self._lowest = self.plan()[0].rungs[0].max_steps

    def _random_share(self, steps: int) -> float:
        return 1.0 if self._cautious and steps == self._lowest else _RANDOM


class ASHATuner(Tuner):
    """ASHA: a trial is promoted as soon as it is among the best 1/eta of its rung; no worker ever waits.

    The simplest of the tuners that stop early, and the fastest where short runs tell the truth. Where they may mislead,
    :class:`HyperbandTuner` is the safer choice.

    Args:
        space: as for :class:`Tuner`.
        max_steps: full budget of a trial, in optimizer steps.
        min_steps: the smallest budget a trial is judged at. Default: ``max_steps / eta**3``, which gives four rungs.
        eta: of ``eta`` trials one is promoted.
        n_trials: configurations to start. Default: as many as spend about the steps of :class:`HyperbandTuner`; with
            ``total_steps`` as many as it takes to spend them; with ``timeout`` alone without end.
        **options: as for :class:`Tuner`. ``sampler`` proposes two thirds of the trials, as for :class:`HyperbandTuner`.
            Default: all at random, since every look is as cheap as any.

    Source: Li et al. 2020 (arXiv 1810.05934), Algorithm 2.
    """

    def __init__(
        self,
        space: Space,
        *,
        max_steps: int,
        min_steps: int | None = None,
        eta: int = 3,
        n_trials: int | None = None,
        **options: Unpack[Options],
    ) -> None:
        with explained(None):
            refuse_unknown(type(self), options)
            refuse_wrong_limits(options)
            mode = options["mode"] = direction(options.get("monitor"), options.get("mode"))
            least = _least(max_steps, min_steps, eta)
            total = options.get("total_steps")
            bracket = ASHA(max_steps, least, eta, mode).plan()[0]
            if n_trials is None and total is not None:
                n_trials = (total // bracket.steps + 2) * bracket.trials
            elif n_trials is None and options.get("timeout") is None:
                n_trials = len(bracket.rungs) * bracket.trials
            super().__init__(space, ASHA(max_steps, least, eta, mode, n_trials), **options)

    def _random_share(self, steps: int) -> float:
        return _RANDOM


def _least(max_steps: int, min_steps: int | None, eta: int) -> int:
    """``min_steps``, or its default where it is not given; the scheduler says what is wrong with an argument."""
    if min_steps is not None or not (isinstance(max_steps, int) and isinstance(eta, int)):
        return 1 if min_steps is None else min_steps
    return max(max_steps // max(eta, 1) ** 3, 1)
