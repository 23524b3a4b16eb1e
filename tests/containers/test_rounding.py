"""Arithmetic of encoders: which numbers are rounded to a stored one, which quotients to a code."""

import numpy as np
import pytest

from recover.containers.huggingface.formats._arithmetic import edges, rounded_to
from recover.containers.huggingface.formats._grid import rounding_interval
from tests.support.foreign_modules import FLOATS


@pytest.mark.parametrize(("kind", "infinity"), [("F16", 0x7C00), ("BF16", 0x7F80)])
def test_numbers_lie_half_way_to_their_neighbours(kind: str, infinity: int) -> None:
    bits = np.arange(1, infinity - 1, dtype=np.uint16)
    below, middle, above = (
        (bits + np.uint16(shift)).view(FLOATS[kind]).astype(np.float64) for shift in (0xFFFF, 0, 1)
    )
    small, large = rounding_interval(kind, middle)
    assert np.array_equal(small, (below + middle) / 2)
    assert np.array_equal(large, (above + middle) / 2)


@pytest.mark.parametrize("kind", ["F16", "BF16"])
def test_rounds_as_floats_do(kind: str) -> None:
    numbers = np.random.default_rng(0).normal(0, 100, 10_000).astype(np.float32)
    expected = numbers.astype(FLOATS[kind]).astype(np.float64)
    assert np.array_equal(rounded_to(kind, numbers.astype(np.float64)), expected)


@pytest.mark.parametrize("kind", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("zero", [-100, 0, 77])
def test_codes_lie_between_their_edges(kind: str, zero: int) -> None:
    dtype = FLOATS[kind]
    rng = np.random.default_rng(1)
    quotients = rng.uniform(-128 - zero, 127 - zero, 100_000)
    total = quotients.astype(np.float32).astype(dtype) + dtype(zero)
    codes = np.clip(np.rint(total.astype(np.float32)), -128, 127).astype(np.int64)
    between = edges(kind, -128, 256, np.array([zero]))[0]
    padded = np.concatenate([[-np.inf], between, [np.inf]])
    assert np.all(padded[codes + 128] <= quotients + 1e-4)
    assert np.all(quotients - 1e-4 <= padded[codes + 129])
