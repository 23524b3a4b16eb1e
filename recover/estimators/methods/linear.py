"""The mean of the inputs, weighted by inverse variance, per group of 16 weights.

Where the rounding errors of the inputs are independent these are the best linear weights, and they
need no ground truth: the variance of an input is its type's `noise` times its squared scale. (A
least-squares fit to the truth finds the same weights to two digits.) With a calibration its factors
are taken instead, one per input and tensor.
"""

import numpy as np
from numpy.typing import NDArray

from recover.estimators._combine import combine, combine_weighted, sum_variance
from recover.estimators._request import Request, fill_deviation
from recover.evidence.buffer import Evidence
from recover.quants import GROUP, F32Array

SEES_CONFLICTS = False
CALIBRATED = "weights"


def estimate(
    evidence: Evidence, out: F32Array, tally: NDArray[np.float64], request: Request
) -> None:
    """See `recover.estimators`."""
    variance = np.empty(out.size // GROUP, np.float32)
    if evidence.weights.size:
        combine_weighted(evidence, out, variance, tally)
    else:
        combine(evidence, out, variance, tally)
    tally[0] += sum_variance(variance)
    fill_deviation(request, variance)
