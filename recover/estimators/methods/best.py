"""The finest input alone, dequantized: what every other tool does."""

import numpy as np
from numpy.typing import NDArray

from recover.estimators._combine import take_finest
from recover.estimators._request import Request, fill_deviation
from recover.estimators._variances import add_variance, group_variances
from recover.estimators.tally import ALONE, VARIANCE
from recover.evidence.buffer import Evidence
from recover.quants import GROUP, F32Array

SUMMARY = "the finest input alone, decoded"
TAKES_FIRST = True


def estimate_each(
    evidence: Evidence, out: F32Array, tallies: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    take_finest(evidence, out)
    variance = np.empty(out.size // GROUP, np.float32)
    for k in range(tallies.shape[1] - ALONE):
        group_variances(evidence, k, variance)
        add_variance(variance, tallies, ALONE + k)
        if k == evidence.finest:
            add_variance(variance, tallies, VARIANCE)
            fill_deviation(request, variance)
