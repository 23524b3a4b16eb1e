"""What is expected of estimates beside inputs that state intervals."""

import numpy as np
import pytest

from recover.estimators.uncorrected import UncorrectedTileEstimator
from recover.evidence.buffer import Source
from recover.quants import F32Array
from tests.support.all_sets import stored_as
from tests.support.foreign_modules import rounded


def drawn(n_rows: int, row_length: int) -> F32Array:
    rng = np.random.default_rng(2)
    return rounded(rng.standard_normal((n_rows, row_length)).astype(np.float32), "BF16")


@pytest.mark.parametrize("row_length", [32, 256, 1024])
def test_scales_of_one_largest_weight_share_their_errors(row_length: int) -> None:
    """Rows of 32 are the blocks of Q8_0: both inputs say the same of all weights."""
    x = drawn(65536 // row_length, row_length)
    error, expected = merge(x, ["LLM.int8", "Q8_0"], "linear")
    assert expected == pytest.approx(error, rel=0.05)


@pytest.mark.parametrize("method", ["linear", "midpoint"])
@pytest.mark.parametrize("names", [["INT8-rows", "torchao-int8"], ["MLX4-g64", "INT4-g128"]])
def test_cells_tell_what_rounding_to_alike_steps_leaves(method: str, names: list[str]) -> None:
    """Steps are nearly alike, so that the errors of both are not independent."""
    error, expected = merge(drawn(128, 1024), names, method)
    assert expected == pytest.approx(error, rel=0.03)


@pytest.mark.parametrize("method", ["linear", "midpoint"])
def test_some_superblocks_tell_what_all_do(method: str) -> None:
    """Of 1024 superblocks 128 are looked at; rows are of many sizes."""
    sizes = np.exp2(np.random.default_rng(3).uniform(-6, 0, (256, 1))).astype(np.float32)
    x = rounded(drawn(256, 1024) * sizes, "BF16")
    names = ["NF4-nested", "Q4_K"]
    some, whole = merge(x, names, method), [merge(part, names, method) for part in np.split(x, 16)]
    assert some[1] == pytest.approx(sum(each[1] for each in whole), rel=0.02)


@pytest.mark.parametrize("method", ["linear", "midpoint"])
def test_deviations_have_the_errors_that_are_expected(method: str) -> None:
    """The sum of their squares, of stacks of tensors as well."""
    x = drawn(64, 1024)
    tensors = [stored_as("NF4-nested", x), stored_as("Q4_K", x)]
    out, deviation = np.empty((2, x.size), np.float32)
    estimator = UncorrectedTileEstimator([Source(each.type) for each in tensors], method)
    tallies = estimator.estimate_each(tensors, 0, x.size, 4, out, deviation)
    squares = np.square(deviation.astype(np.float64)).reshape(4, -1).sum(1)
    assert tallies[:, 0] == pytest.approx(squares, rel=1e-4)


def merge(x: F32Array, names: list[str], method: str) -> tuple[float, float]:
    """The square error of an estimate, and the expected one."""
    tensors = [stored_as(name, x) for name in names]
    out = np.empty(x.size, np.float32)
    estimator = UncorrectedTileEstimator([Source(each.type) for each in tensors], method)
    tally = estimator.estimate(tensors, 0, x.size, out)
    return float(np.sum((out - x.reshape(-1)) ** 2.0)), tally.variance
