"""Types of arrays that the samplers share."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Groups: TypeAlias = NDArray[np.intp]
"""Index of the length-scale group of each column."""
