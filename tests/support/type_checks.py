"""Checks of types that need nothing but the type (see `tests.conformance`)."""

import copy
import pickle
from itertools import pairwise

import numpy as np
import pytest

from recover.evidence.densities import correlation, likelihood, tempering
from recover.quants import (
    BlockIntervals,
    ScalarType,
    Stated,
    TensorType,
    VectorType,
    all_types,
    dequantize,
    state_all,
)


def check_what_is_stated(kind: TensorType) -> None:
    """Of any bytes: a value, bounds that hold one, and an error, or that nothing is known."""
    assert isinstance(kind, BlockIntervals)
    n_blocks = max(4096 // kind.block_size, 8)
    raw = np.random.default_rng(3).integers(0, 256, n_blocks * kind.part_size, np.uint8)
    n = n_blocks * kind.block_size
    stated = Stated(*np.full((4, n), 7, np.float32))
    with np.errstate(all="ignore"):
        state_all(raw, kind, stated)
        assert np.array_equal(stated.value, dequantize(raw, kind), equal_nan=True)
    assert (stated.lower <= stated.upper).all()
    assert (stated.variance > 0).all()
    is_bounded = np.isfinite(stated.lower) | np.isfinite(stated.upper)
    assert kind.has_cells or not is_bounded.any()
    known = is_bounded & (np.abs(stated.value) < 1e30)
    slack = 1e-5 * np.abs(stated.value[known]) + 1e-30
    assert (stated.value[known] >= stated.lower[known] - slack).all()
    assert (stated.value[known] <= stated.upper[known] + slack).all()
    assert np.isinf(stated.variance[~np.isfinite(stated.value)]).all()


def check_pickle(kind: TensorType) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(kind, protocol)) is kind
    assert copy.deepcopy([kind])[0] is kind


def check_likelihood(kind: TensorType) -> None:
    assert isinstance(kind, VectorType)
    gain, variance = likelihood(kind)
    assert 0 < gain <= 1
    assert 0 < variance < 1
    vectors = [other for other in all_types() if isinstance(other, VectorType)]
    for other in vectors:
        assert correlation(kind, other) == pytest.approx(correlation(other, kind), abs=1e-5)
        assert abs(correlation(kind, other)) <= 1


def check_what_it_counts(kind: TensorType) -> None:
    assert isinstance(kind, ScalarType | VectorType)
    assert tempering(kind, []) == 1
    shares = [tempering(kind, [kind] * n) for n in (0, 1, 3, 7, 20)]
    assert all(a >= b > 0 for a, b in pairwise(shares))
    for other in all_types():
        if isinstance(other, ScalarType | VectorType) and other is not kind:
            assert 0 < tempering(kind, [other]) <= 1
            assert 0 < tempering(kind, [other], has_cells=False) <= 3
            assert tempering(other, [kind]) == 1 or tempering(kind, [other]) == 1
