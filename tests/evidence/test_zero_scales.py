"""Blocks of Q8_0 whose scale was rounded to 0: weights are small, codes tell how small."""

from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from recover.bounds.single import bounds
from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.cells import intersect_cells
from recover.quants import type_by_name
from tests.oracle import libggml
from tests.support.gguf_files import stored, write_gguf

F32Array = NDArray[np.float32]

NAME = "blk.0.ffn_up.weight"
LARGEST = 127 * 2.0**-25
"""What d = max / 127 makes of it is rounded to 0."""


def bounds_of(x: F32Array) -> tuple[F32Array, F32Array, NDArray[np.bool_]]:
    """Bounds of weights, and which of them are in blocks of scale 0."""
    raw = libggml.quantize(GGMLQuantizationType.Q8_0, x.reshape(-1, 256)).reshape(-1)
    buffer = EvidenceBuffer([Source(type_by_name("Q8_0"))])
    lower, upper = np.empty((2, x.size), np.float32)
    intersect_cells(buffer.load([raw], x.size), lower, upper)
    is_zero = (raw.reshape(-1, 34)[:, :2] == 0).all(1).repeat(32)
    return lower, upper, is_zero


@pytest.mark.parametrize("power", [-22, -26, -40, -120, -130, -140, -148])
def test_no_weight_is_outside(power: int, rng: np.random.Generator) -> None:
    """Also where the reciprocal of the scale overflows, and where weights are subnormal."""
    x = np.ldexp(rng.standard_normal(4096), power).astype(np.float32)
    lower, upper, is_zero = bounds_of(x)
    assert is_zero.mean() > 0.9 or power == -22
    assert ((lower <= x) & (x <= upper)).all()
    assert (upper[is_zero] <= 1.01 * LARGEST).all()
    assert (lower[is_zero] >= -1.01 * LARGEST).all()


def test_the_largest_scale_that_is_lost(rng: np.random.Generator) -> None:
    x = (rng.uniform(-1, 1, (64, 32)) * LARGEST).astype(np.float32)
    x[:, 0] = LARGEST
    lower, upper, is_zero = bounds_of(x.reshape(-1))
    assert is_zero.all()
    assert ((lower <= x.reshape(-1)) & (x.reshape(-1) <= upper)).all()


def test_zeros_are_within_half_a_step() -> None:
    lower, upper, is_zero = bounds_of(np.zeros(512, np.float32))
    assert is_zero.all()
    assert (upper == -lower).all()
    assert (upper <= 1.01 * 2.0**-26).all()


def test_bounds(tmp_path: Path, real_rows: F32Array) -> None:
    x = np.ascontiguousarray(real_rows[:8, :256])
    x[3] *= np.float32(1e-7)
    found = bounds([write_gguf(tmp_path / "a.gguf", {NAME: stored("Q8_0", x)})], NAME)
    assert (found.lower <= x).all()
    assert (found.upper >= x).all()
    assert (found.upper[3] - found.lower[3] <= 2.02 * LARGEST).all()
