"""Public name of :mod:`lightning_hpo.study.lineage`."""

from lightning_hpo.study.lineage import *  # noqa: F403
