"""The finest input alone, dequantized: what every other tool does."""

import numpy as np
from numpy.typing import NDArray

from recover.estimators._combine import group_variances, sum_variance, take_finest
from recover.estimators._request import Request, fill_deviation
from recover.evidence.buffer import Evidence
from recover.quants import GROUP, F32Array

SEES_CONFLICTS = False
CALIBRATED = None


def estimate(
    evidence: Evidence, out: F32Array, tally: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    take_finest(evidence, out)
    variance = np.empty(out.size // GROUP, np.float32)
    for k in range(tally.size - 2):
        group_variances(evidence, k, variance)
        tally[2 + k] += sum_variance(variance)
        if k == evidence.finest:
            tally[0] += sum_variance(variance)
            fill_deviation(request, variance)
