"""The finest input alone, dequantized: what every other tool does."""

import numpy as np

from recover.estimators._combine import group_variances, sum_variance, take_finest
from recover.estimators._request import Request, fill_deviation
from recover.estimators.tally import Tally
from recover.evidence.buffer import Evidence
from recover.quants import GROUP, F32Array

SUMMARY = "the finest input alone, decoded"
TAKES_FIRST = True


def estimate(evidence: Evidence, out: F32Array, tally: Tally, request: Request) -> None:
    """See `recover.estimators`."""
    take_finest(evidence, out)
    variance = np.empty(out.size // GROUP, np.float32)
    for k in range(tally.n_inputs):
        group_variances(evidence, k, variance)
        tally.alone[k] += sum_variance(variance)
        if k == evidence.finest:
            tally.variance += sum_variance(variance)
            fill_deviation(request, variance)
