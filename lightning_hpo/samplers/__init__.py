"""Samplers: where to look next, and what the model of a study believes."""

from lightning_hpo.samplers.beliefs import (
    Prediction,
    Slice,
    expected_improvement_share,
    importance,
    plot_slices,
    predicted_best,
    slices,
)
from lightning_hpo.samplers.gaussian_process import GaussianProcessSampler
from lightning_hpo.samplers.kernel_density import KernelDensitySampler

__all__ = [
    "GaussianProcessSampler",
    "KernelDensitySampler",
    "Prediction",
    "Slice",
    "expected_improvement_share",
    "importance",
    "plot_slices",
    "predicted_best",
    "slices",
]
