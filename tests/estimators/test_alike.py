"""What is expected of the mean of inputs that round to the same multiples."""

import numpy as np
import pytest

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.quants import F32Array
from tests.support.all_sets import stored_as
from tests.support.foreign_modules import rounded


@pytest.mark.parametrize("row_length", [32, 256, 1024])
def test_scales_of_one_largest_weight_share_their_errors(row_length: int) -> None:
    """Rows of 32 are the blocks of Q8_0: both inputs say the same of all weights."""
    rng = np.random.default_rng(2)
    x = rounded(rng.standard_normal((65536 // row_length, row_length)).astype(np.float32), "BF16")
    error, expected = merge(x)
    assert expected == pytest.approx(error, rel=0.05)


def merge(x: F32Array) -> tuple[float, float]:
    """The square error of the mean, and the expected one."""
    tensors = [stored_as("LLM.int8", x), stored_as("Q8_0", x)]
    out = np.empty(x.size, np.float32)
    estimator = UncorrectedTileEstimator([Source(each.type) for each in tensors], "linear")
    tally = estimator.estimate(tensors, 0, x.size, out)
    return float(np.sum((out - x.reshape(-1)) ** 2.0)), tally.variance
