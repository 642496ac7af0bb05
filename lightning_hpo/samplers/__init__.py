"""Samplers choose the next configuration; beliefs read the model of a study. Names are imported at their first use."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_hpo.samplers.beliefs import (
        Prediction as Prediction,
    )
    from lightning_hpo.samplers.beliefs import (
        Recommendation as Recommendation,
    )
    from lightning_hpo.samplers.beliefs import (
        Slice as Slice,
    )
    from lightning_hpo.samplers.beliefs import (
        expected_improvement_share as expected_improvement_share,
    )
    from lightning_hpo.samplers.beliefs import (
        importance as importance,
    )
    from lightning_hpo.samplers.beliefs import (
        plot_slices as plot_slices,
    )
    from lightning_hpo.samplers.beliefs import (
        predicted_best as predicted_best,
    )
    from lightning_hpo.samplers.beliefs import (
        recommended as recommended,
    )
    from lightning_hpo.samplers.beliefs import (
        slices as slices,
    )
    from lightning_hpo.samplers.gaussian_process import GaussianProcessSampler as GaussianProcessSampler
    from lightning_hpo.samplers.kernel_density import KernelDensitySampler as KernelDensitySampler
    from lightning_hpo.samplers.multi_fidelity import MultiFidelitySampler as MultiFidelitySampler

_NAMES = {
    "beliefs": "Prediction Recommendation Slice expected_improvement_share importance plot_slices predicted_best "
    "recommended slices",
    "gaussian_process": "GaussianProcessSampler",
    "kernel_density": "KernelDensitySampler",
    "multi_fidelity": "MultiFidelitySampler",
}
_HOMES = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = [*_HOMES]  # noqa: PLE0604  # one list of public names


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
