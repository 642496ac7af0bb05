"""Samplers: where to look next."""

from lightning_hpo.samplers.gaussian_process import GaussianProcessSampler

__all__ = ["GaussianProcessSampler"]
