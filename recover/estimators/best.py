"""The finest input alone, dequantized: what every other tool does."""

import numpy as np
from numpy.typing import NDArray

from recover._jit import kernel
from recover.estimators._combine import scalar_variance, take_first
from recover.evidence import Evidence
from recover.quants import F32Array

SEES_CONFLICTS = False


@kernel
def estimate(evidence: Evidence, out: F32Array, tally: NDArray[np.float64]) -> None:
    """See `recover.estimators`."""
    n_scalars = evidence.codes.shape[0]
    for g in range(out.size // 16):
        take_first(evidence, g, out)
        for k in range(n_scalars):
            tally[2 + k] += 16 * scalar_variance(evidence, k, g)
        for v in range(evidence.values.shape[0]):
            tally[2 + n_scalars + v] += 16 * np.float64(evidence.variance[v, g])
        if n_scalars > 0:
            tally[0] += 16 * scalar_variance(evidence, 0, g)
        else:
            tally[0] += 16 * np.float64(evidence.variance[0, g])
