"""Schedulers: which trial gets how many steps next. Pure functions of the table of trials.

A scheduler is frozen configuration. ``next(rows)`` reads the whole table and names the next job, or None while nothing
can be started; the search is over when nothing can be started and nothing runs. A job that died has not written its
value, so the same call hands it out again.

Symbols, as in Li et al. 2018, *Hyperband: A Novel Bandit-Based Approach to Hyperparameter Optimization*, Algorithm 1:

=======  ==================================================================================================
R        ``max_steps``, the full budget of one trial in optimizer steps
r        ``min_steps``, the smallest budget a trial is judged at
eta      of ``eta`` trials in a rung one is promoted
s_max    the largest s with r * eta**s <= R; there are s_max + 1 brackets, s = s_max, ..., 0
n_i      trials in rung i: floor(n * eta**-i) with n = ceil((s_max + 1) / (s + 1) * eta**s)
r_i      steps at which rung i is judged: R * eta**(i - s), rounded, so the last rung is exactly R
=======  ==================================================================================================
"""

from lightning_hpo.records import Job, Mode
from lightning_hpo.schedulers.asynchronous import ASHA, AsyncHyperband
from lightning_hpo.schedulers.base import Bracket, Coverage, Planning, Retiring, Rung, Scheduler
from lightning_hpo.schedulers.confirmed import Confirmed
from lightning_hpo.schedulers.full_budget import FullBudget
from lightning_hpo.schedulers.halving import Hyperband, SuccessiveHalving
from lightning_hpo.schedulers.stopping import MedianStopping

__all__ = [
    "ASHA",
    "AsyncHyperband",
    "Bracket",
    "Confirmed",
    "Coverage",
    "FullBudget",
    "Hyperband",
    "Job",
    "MedianStopping",
    "Mode",
    "Planning",
    "Retiring",
    "Rung",
    "Scheduler",
    "SuccessiveHalving",
]
