"""Soundness: the original lies in its cell, without exception. libggml encodes, we bound."""

import numpy as np
import pytest
from numpy.typing import NDArray

from recover.evidence.buffer import EvidenceBuffer, Source
from recover.evidence.cells import intersect_cells
from recover.quants import TILE, ScalarType, all_types
from tests.oracle import libggml
from tests.oracle.weights import SYNTHETIC, sentence_encoder_weights
from tests.support.draws import KINDS, ROW, draw

SCALAR = [t for t in all_types() if isinstance(t, ScalarType)]
WITH_EXTREMES = [t for t in SCALAR if t.extremes]
confining = pytest.mark.parametrize(
    ("kind", "imatrix"),
    [
        pytest.param(kind, imatrix, id=f"{kind.name}-{'imatrix' if imatrix else 'plain'}")
        for kind in SCALAR
        for imatrix in (False, True)
        # what promises nothing with an importance matrix has a test of its own below
        if not (imatrix and kind.refits_scale_with_imatrix)
    ],
)


def count_violations(
    kind: ScalarType, x: NDArray[np.float32], imatrix: NDArray[np.float32] | None
) -> tuple[int, float]:
    """Originals outside their cell, and the share of two-sided cells."""
    raw = libggml.quantize(kind.type_id, x.reshape(-1, ROW), imatrix)
    buffer = EvidenceBuffer([Source(kind)])
    lower, upper = np.empty((2, x.size), np.float32)
    for start in range(0, x.size, TILE):
        end = min(start + TILE, x.size)
        evidence = buffer.load([raw[kind.n_bytes(start) : kind.n_bytes(end)]], end - start)
        intersect_cells(evidence, lower[start:end], upper[start:end])
    outside = int(np.count_nonzero((x < lower) | (x > upper)))
    return outside, float(np.mean(np.isfinite(lower) & np.isfinite(upper)))


@confining
def test_originals_lie_in_their_cells(
    kind: ScalarType, imatrix: bool, rng: np.random.Generator
) -> None:
    weights = rng.lognormal(size=ROW).astype(np.float32) if imatrix else None
    for what in KINDS:
        x = draw(what, 64 * ROW, rng)
        n_outside, two_sided = count_violations(kind, x, weights)
        assert n_outside == 0, what
        if what == "normal":
            assert two_sided > 0.4


@pytest.mark.parametrize("kind", [kind for kind in SCALAR if kind.name.endswith("_K")])
@pytest.mark.parametrize("amplitude", [3e-6, 1e-4, 1e-3])
def test_cells_hold_where_nearest_int_wraps(
    kind: ScalarType, amplitude: float, rng: np.random.Generator
) -> None:
    """Runs of nearly equal weights far from zero, next to such that are not so far."""
    shape = 64, ROW // 32, 32
    for largest in (1, 30, 1000):
        offsets = largest * rng.random(shape[:2])
        spread = amplitude * 10.0 ** rng.uniform(-2, 0, shape[:2])
        x = spread[..., None] * rng.standard_normal(shape) - offsets[..., None]
        x[:, ::4] = x[:, ::4] * 1e-3
        assert count_violations(kind, x.astype(np.float32).reshape(-1), None)[0] == 0


def real_weights() -> NDArray[np.float32]:
    """Trained weights of a sentence encoder, whole rows."""
    weights = np.concatenate([w.reshape(-1) for w in sentence_encoder_weights()])
    return weights[: weights.size // (512 * ROW) * (512 * ROW)]


@pytest.mark.slow
@confining
def test_originals_lie_in_their_cells_long(
    kind: ScalarType, imatrix: bool, rng: np.random.Generator
) -> None:
    """More than 10^8 weights per format, with and without an importance matrix."""
    n_weights, real = 0, real_weights()
    while n_weights < 10**8:
        start = n_weights % real.size
        for what in (*KINDS, "real"):
            x = real[start : start + 512 * ROW] if what == "real" else draw(what, 512 * ROW, rng)
            weights = rng.lognormal(size=ROW).astype(np.float32) if imatrix else None
            n_outside, _ = count_violations(kind, x, weights)
            assert n_outside == 0, what
            n_weights += x.size


def test_refitted_scales_do_break_the_cells(rng: np.random.Generator) -> None:
    """Why legacy types with an imatrix must not be given cells."""
    x = draw("normal", 64 * ROW, rng)
    weights = rng.lognormal(size=ROW).astype(np.float32)
    refitted = [kind for kind in SCALAR if kind.refits_scale_with_imatrix]
    assert {kind.name for kind in refitted} == {"Q4_0", "Q4_1", "Q5_0", "Q5_1"}
    for kind in refitted:
        assert count_violations(kind, x, weights)[0] > 0
        raw = libggml.quantize(kind.type_id, x.reshape(-1, ROW), weights)
        evidence = EvidenceBuffer([Source(kind, has_cells=False)]).load(
            [raw[: kind.n_bytes(TILE)]], TILE
        )
        lower, upper = np.empty((2, TILE), np.float32)
        intersect_cells(evidence, lower, upper)
        assert np.all(np.isneginf(lower) & np.isposinf(upper))


@pytest.mark.parametrize("what", SYNTHETIC)
@pytest.mark.parametrize("kind", WITH_EXTREMES, ids=lambda kind: kind.name)
def test_cells_of_extreme_weights_hold_whatever_the_weights(
    kind: ScalarType, what: str, rng: np.random.Generator
) -> None:
    x = SYNTHETIC[what](rng, (64, ROW))
    assert count_violations(kind, x.reshape(-1), None)[0] == 0


@pytest.mark.parametrize("kind", WITH_EXTREMES, ids=lambda kind: kind.name)
def test_extreme_weights_are_known_but_for_rounding(
    kind: ScalarType, rng: np.random.Generator
) -> None:
    """Those that alone have the code that the block's extreme one must have."""
    x = draw("normal", 16 * ROW, rng)
    raw = libggml.quantize(kind.type_id, x.reshape(-1, ROW), None)
    lower, upper = np.empty((2, x.size), np.float32)
    intersect_cells(EvidenceBuffer([Source(kind)]).load([raw], x.size), lower, upper)
    known = upper - lower < 2.5e-3 * np.abs(x).reshape(-1, 32).max(axis=1).repeat(32)
    per_block = known.reshape(-1, 32).sum(axis=1)
    assert per_block.max() == len(kind.extremes)
    assert 0.4 < per_block.mean() / len(kind.extremes) < 1
    blocks = x.reshape(-1, 32)
    ends = [blocks.min(axis=1, keepdims=True), blocks.max(axis=1, keepdims=True)]
    assert np.all(~known.reshape(-1, 32) | (blocks == ends[0]) | (blocks == ends[1]))


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
@pytest.mark.parametrize("what", SYNTHETIC)
def test_cells_of_4_bit_floats_hold_whatever_the_weights(
    name: str, what: str, rng: np.random.Generator
) -> None:
    """Levels that overflow, clipped, smallest and wrapped scales, zeros, constant rows."""
    kind = next(kind for kind in SCALAR if kind.name == name)
    x = SYNTHETIC[what](rng, (32, ROW))
    x[0, ::640] = np.finfo(np.float32).max * np.float32(-1)
    x[1, ::640] = 1e30
    assert count_violations(kind, x.reshape(-1), None)[0] == 0


@pytest.mark.parametrize("name", ["MXFP4", "NVFP4"])
def test_cells_of_4_bit_floats_end_half_way(name: str) -> None:
    """Weights on the middle between two levels and next to it, for every power of two."""
    kind = next(kind for kind in SCALAR if kind.name == name)
    levels = kind.levels[:15]
    middles = (levels[1:] + levels[:-1]) / 2
    places = np.concatenate([middles, np.nextafter(middles, -99), np.nextafter(middles, 99)])
    groups = np.full((4, 16), 12, np.float32)  # the last weight of each sets the scale
    groups[:3, :14] = places.reshape(3, 14)
    rows = groups.reshape(1, 64) * np.exp2(np.arange(-125, 15))[:, None]
    x = np.tile(rows, (1, ROW // 64)).astype(np.float32)
    assert count_violations(kind, x.reshape(-1), None)[0] == 0
