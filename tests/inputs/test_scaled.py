"""Scales that a folder does not hold, found beside an input of the original's."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.scaled import ScaledMatrix, Scales
from recover.evidence.intervals import Intervals
from recover.inputs.scaled import (
    SCALINGS,
    ByNorm,
    ByRows,
    compare_norms,
    norm_scales,
    shared_scales,
)
from recover.quants import F32Array, quantize, type_by_name
from tests.support.encoders import awq
from tests.support.foreign_modules import module_of, n_outside, rounded, state
from tests.support.layer_inputs import Block, synthetic_block
from tests.support.stated_intervals import tensor_of

N = 4096


def bounds(w: F32Array, name: str) -> Any:
    intervals = Intervals()
    intervals.look_at([tensor_of(quantize(w, type_by_name(name)), name, w.size)])
    return intervals.bound


def read(quantized: awq.AwqBlock, name: str) -> ScaledMatrix:
    module = module_of(quantized.arrays[name], {"quant_method": "awq"})
    found = read_matrix(replace(module, name=f"layer.{name}"))
    assert isinstance(found, ScaledMatrix)
    return found


def norms(seed: int, kind: str = "BF16") -> tuple[F32Array, F32Array]:
    """A norm, and float16 scales."""
    rng = np.random.default_rng(seed)
    norm = rounded(rng.uniform(0.05, 3, N).astype(np.float32), kind)
    return norm, awq.half(np.exp(rng.normal(0, 0.5, N)))


@pytest.fixture(scope="module")
def block() -> tuple[Block, awq.AwqBlock]:
    original = synthetic_block(np.random.default_rng(5))
    return original, awq.quantize(original)


@pytest.mark.parametrize("kind", ["F32", "BF16"])
@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("offset", [0, 1])
def test_a_norm_tells_scales_but_for_rounding(kind: str, dtype: str, offset: float) -> None:
    norm, scales = norms(1, kind)
    stored = rounded(rounded(rounded(norm, dtype) / scales, dtype) - np.float32(offset), dtype)
    found = norm_scales(norm, stored, dtype, offset)
    off = np.abs(found.values / scales - 1)
    assert (off <= 3 * found.deviations).all()
    assert np.sqrt(np.mean(np.square(off / found.deviations))) > 0.2  # nor are they far too wide
    if (dtype, offset) == ("F16", 0):
        assert off.max() < 1e-3
    assert compare_norms(norm, stored, dtype, offset) == "scaled"


@pytest.mark.parametrize("dtype", ["F16", "BF16", "F32"])
@pytest.mark.parametrize("offset", [0, 1])
def test_norms_that_are_only_rounded_are_plain(dtype: str, offset: float) -> None:
    norm, _ = norms(2, "F32")
    stored = rounded(norm - np.float32(offset), dtype)
    assert compare_norms(norm, stored, dtype, offset) == "plain"


def test_norms_of_another_revision_are_neither() -> None:
    norm, _ = norms(3)
    rng = np.random.default_rng(4)
    other = rounded(norm * (1 + 0.005 * rng.standard_normal(N)).astype(np.float32), "F16")
    assert compare_norms(norm, other, "F16") == "other"


def test_norms_of_no_size_tell_nothing() -> None:
    norm = np.array([1, 0, 1, 1, -1, 1, np.nan, 1], np.float32)
    stored = np.array([0.5, 0.5, 0, -0.5, -0.5, np.inf, 1, np.nan], np.float32)
    found = norm_scales(norm, stored, "F16")
    assert np.array_equal(np.isfinite(found.deviations), [1, 0, 0, 0, 1, 0, 0, 0])
    assert np.isfinite(found.values).all()


@pytest.mark.parametrize(("before", "after"), [("ffn_up", "ffn_down"), ("attn_v", "attn_output")])
@pytest.mark.parametrize(("name", "most"), [("Q4_K", 0.009), ("Q8_0", 0.003)])
def test_rows_and_columns_tell_their_scales(
    block: tuple[Block, awq.AwqBlock], before: str, after: str, name: str, most: float
) -> None:
    original, quantized = block
    first, second = original.matrices[before], original.matrices[after]
    norm = {"ffn_up": "ffn_norm", "attn_v": "attn_norm"}[before]
    columns = norm_scales(original.norms[norm], quantized.norms[norm], "F16")
    front = read(quantized, before).with_scales(columns)
    behind = read(quantized, after).with_scales(None)
    found = shared_scales(behind, bounds(second, name), front, bounds(first, name))
    off = found.values / quantized.columns[after] - 1
    assert np.sqrt(np.mean(np.square(off))) < most
    assert (np.abs(off) < 4 * found.deviations).all()
    assert (np.abs(off) > 3 * found.deviations).mean() < 0.01
    for each, w in ((front, first), (behind, second)):
        scales = (columns, found) if each is front else (found, None)
        matrix = ScaledMatrix(each.stored).with_scales(*scales)
        assert n_outside(state(matrix), rounded(w, "F16")) <= 1e-5 * w.size
    alone = shared_scales(behind, bounds(second, name))
    assert (np.abs(alone.values / quantized.columns[after] - 1) < 4.5 * alone.deviations).all()


def test_matrices_that_have_nothing_in_common_tell_no_scales(
    block: tuple[Block, awq.AwqBlock],
) -> None:
    original, quantized = block
    behind = read(quantized, "ffn_down").with_scales(None)
    zeros = np.zeros_like(original.matrices["ffn_down"])
    found = shared_scales(behind, bounds(zeros, "Q4_0"))
    assert np.isinf(found.deviations).all()
    assert np.isfinite(found.values).all()


def test_every_matrix_has_its_scales_from_one_place() -> None:
    seen: list[str] = []
    for each in SCALINGS:
        seen += each.columns if isinstance(each, ByNorm) else [each.columns]
    doubles = {name for name in seen if seen.count(name) > 1}
    assert doubles == {"attn_output"}  # of v, or of the last rows of q, k and v in one
    assert {each.rows for each in SCALINGS if isinstance(each, ByRows)} <= set(seen)


def test_scales_are_those_of_the_encoder() -> None:
    known = Scales(np.full(256, 2, np.float32), np.zeros(256, np.float32))
    rng = np.random.default_rng(6)
    w = awq.half(rng.standard_normal((64, 256)) / 50)
    arrays = awq.pack(awq.grid_of(w * 2))
    found = read_matrix(module_of(arrays, {"quant_method": "awq"}))
    assert isinstance(found, ScaledMatrix)
    assert n_outside(state(found.with_scales(known)), w) == 0
    rows = Scales(np.full(64, 0.5, np.float32), np.zeros(64, np.float32))
    assert n_outside(state(found.with_scales(None, rows)), w) == 0
