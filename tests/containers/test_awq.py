"""AWQ: what its codes prove once the scales of columns and rows are known."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from recover.containers.huggingface.formats import read_matrix
from recover.containers.huggingface.scaled import ScaledMatrix, Scales, UnscaledMatrix
from recover.errors import SafetensorsError
from tests.golden.foreign_files import load
from tests.support.encoders import awq
from tests.support.foreign_modules import heavy_tailed, module_of, n_outside, rounded, state
from tests.support.layer_inputs import Block, synthetic_block

MODULES = {"attn_q": "q_proj", "attn_k": "k_proj"}
AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "group_size": 128}
Arrays = dict[str, Any]
GOLDEN = load("awq")


def read(arrays: Arrays, name: str = "down_proj") -> ScaledMatrix:
    found = read_matrix(replace(module_of(arrays, AWQ), name=f"layer.{name}"))
    assert isinstance(found, ScaledMatrix)
    return found


def exact(values: Any) -> Scales:
    return Scales(values, np.zeros_like(values))


def true_matrix(quantized: awq.AwqBlock, name: str) -> UnscaledMatrix:
    columns, rows = exact(quantized.columns[name]), exact(quantized.rows[name])
    return read(quantized.arrays[name], MODULES.get(name, name)).with_scales(columns, rows)


@pytest.fixture(scope="module")
def block() -> tuple[Block, awq.AwqBlock]:
    original = synthetic_block(np.random.default_rng(1))
    return original, awq.quantize(original)


@pytest.mark.parametrize("case", GOLDEN)
def test_reads_what_auto_awq_wrote(case: str) -> None:
    arrays, original, decoded, config, _ = GOLDEN[case]
    name = "v_proj" if "clipped" in case else "q_proj"
    found = read_matrix(replace(module_of(arrays, config), name=name))
    assert isinstance(found, ScaledMatrix)
    stated = state(found.stored)
    assert np.array_equal(stated.value, decoded.reshape(-1))
    assert n_outside(stated, original.astype(np.float32)) == 0
    assert np.isinf(stated.upper).any() == ("clipped" in case)


def test_scaled_weights_are_what_the_codes_stand_for(block: tuple[Block, awq.AwqBlock]) -> None:
    rng = np.random.default_rng(2)
    grid = awq.grid_of(awq.half(heavy_tailed(rng, 24, 256)))
    steps = grid.steps.repeat(128, 1)
    expected = (grid.codes - grid.zeros.repeat(128, 1)) * steps
    matrix = read(awq.pack(grid), "q_proj").stored
    stated = state(matrix)
    assert np.array_equal(stated.value, expected.reshape(-1))
    np.testing.assert_allclose(stated.variance, np.square(steps.reshape(-1)) / 12, rtol=1e-6)
    np.testing.assert_allclose(stated.upper - stated.lower, steps.reshape(-1), rtol=0.06)
    for start, end in ((5, 6), (100, 900), (253, 3 * 256 + 7), (24 * 256 - 1, 24 * 256)):
        for one, other in zip(state(matrix, start, end), stated, strict=True):
            assert np.array_equal(one, other[start:end])


def test_without_scales_nothing_is_known(block: tuple[Block, awq.AwqBlock]) -> None:
    matrix = read(block[1].arrays["ffn_gate"])
    stated = state(matrix)
    assert not matrix.has_cells
    assert np.isinf(stated.variance).all()
    assert np.isneginf(stated.lower).all()
    assert np.isposinf(stated.upper).all()


def test_originals_lie_in_their_cells(block: tuple[Block, awq.AwqBlock]) -> None:
    original, quantized = block
    for name, w in original.matrices.items():
        matrix = true_matrix(quantized, name)
        assert matrix.has_cells
        stated = state(matrix)
        assert n_outside(stated, rounded(w, matrix.seen_as)) == 0, name
        error = np.square(stated.value - w.reshape(-1), dtype=np.float64).mean()
        assert 0.9 < stated.variance.mean(dtype=np.float64) / error < 1.1, name
        is_open = np.isinf(stated.upper) | np.isinf(stated.lower)
        assert is_open.any() == (name not in MODULES)


def test_the_largest_weight_may_be_beyond_the_last_cell() -> None:
    # the range is rounded down, and so is a fifteenth of it: 15.51 steps above code 0
    rng = np.random.default_rng(7)
    step = rng.uniform(1, 2, 40_000) * 2.0**-7
    low = -(rng.integers(6, 10, step.size) + rng.uniform(0.48, 0.5, step.size)) * step
    ends = np.stack([low, low + 15 * step], axis=1)
    w = awq.half(np.pad(ends, ((0, 0), (0, 126))))
    grid = awq.grid_of(w)
    beyond = w[:, 1] / grid.steps[:, 0] + grid.zeros[:, 0]
    assert beyond.max() > 15.508
    assert n_outside(state(read(awq.pack(grid), "k_proj").stored), w) == 0


def test_both_ends_of_clipped_groups_are_open() -> None:
    # 7.4999 steps to both sides: the highest code is 14, where 15 could be
    step = awq.half(np.array(0.01, np.float32))
    w = np.linspace(-7.49, 7.49, 128, dtype=np.float32)[None].repeat(8, 0) * step
    grid = awq.grid_of(awq.half(w))
    grid = grid._replace(codes=np.minimum(grid.codes, 14))
    for name, top in (("up_proj", 14), ("q_proj", None)):
        stated = state(read(awq.pack(grid), name).stored)
        codes = grid.codes.reshape(-1)
        assert np.array_equal(np.isposinf(stated.upper), codes == top)
        assert np.array_equal(np.isneginf(stated.lower), (codes == 0) & (top is not None))


@pytest.mark.parametrize("sign", [-1, 1])
def test_groups_of_one_sign_are_cut_off(sign: int) -> None:
    rng = np.random.default_rng(3)
    w = awq.half(sign * rng.uniform(0.2, 0.3, (8, 128)).astype(np.float32))
    stated = state(read(awq.pack(awq.grid_of(w)), "q_proj").stored)
    assert n_outside(stated, w) == 0
    assert np.isinf(stated.upper if sign > 0 else stated.lower).any()


def test_bounds_are_as_wide_as_scales_are_uncertain(block: tuple[Block, awq.AwqBlock]) -> None:
    quantized = block[1]
    name = "ffn_up"
    true = state(true_matrix(quantized, name))
    columns, rows = quantized.columns[name], quantized.rows[name]
    off = Scales(columns * np.float32(1.02), np.full_like(columns, 0.01))
    other = Scales(rows * np.float32(0.98), np.full_like(rows, 0.01))
    wide = state(read(quantized.arrays[name]).with_scales(off, other))
    assert (wide.lower <= true.lower).all()
    assert (wide.upper >= true.upper).all()
    assert (wide.upper - wide.lower <= 1.3 * (true.upper - true.lower) + 0.08).all()
    exactly = state(read(quantized.arrays[name]).with_scales(exact(off.values), exact(rows)))
    wider = Scales(off.values, np.full_like(columns, 0.02))
    unsure = state(read(quantized.arrays[name]).with_scales(wider, exact(rows)))
    added = np.square(exactly.value) * 0.02**2
    np.testing.assert_allclose(unsure.variance, exactly.variance + added, rtol=1e-4)


@pytest.mark.parametrize(("value", "deviation"), [(1, np.inf), (0, 0), (np.nan, 0), (-1, 0)])
def test_scales_that_are_not_known_prove_nothing(
    block: tuple[Block, awq.AwqBlock], value: float, deviation: float
) -> None:
    matrix = read(block[1].arrays["attn_v"])
    columns = Scales(np.ones(256, np.float32), np.zeros(256, np.float32))
    columns.values[5], columns.deviations[5] = value, deviation
    stated = state(matrix.with_scales(columns))
    for each, is_known in ((stated.variance, np.isfinite), (stated.lower, np.isfinite)):
        assert not is_known(each.reshape(256, 256)[:, 5]).any()
    assert np.isfinite(stated.variance.reshape(256, 256)[:, 6:]).all()
    assert np.isfinite(stated.value).all()


def test_steps_that_say_nothing_prove_nothing(block: tuple[Block, awq.AwqBlock]) -> None:
    arrays = dict(block[1].arrays["attn_q"])
    arrays["scales"] = arrays["scales"].copy()
    arrays["scales"][0, :4] = 0, np.inf, np.nan, -1
    stated = state(read(arrays, "q_proj").stored)
    for each in (stated.lower, stated.upper, stated.variance):
        assert np.isinf(each.reshape(256, 256)[:4, :128]).all()
        assert np.isfinite(each.reshape(256, 256)[4:]).all()


def test_what_auto_round_exports_is_not_scaled(
    block: tuple[Block, awq.AwqBlock],
) -> None:
    arrays = block[1].arrays["attn_q"]
    found = read_matrix(module_of(arrays, AWQ | {"iters": 200}))
    assert found is not None
    assert "AutoRound" in found.label
    stated, scaled = state(found), state(read(arrays).stored)
    assert np.array_equal(stated.value, scaled.value)
    assert np.isfinite(stated.variance).all()


class TestRefusals:
    def refused(self, arrays: Arrays, settings: Arrays, words: str) -> None:
        with pytest.raises(SafetensorsError, match=words):
            read_matrix(module_of(arrays, settings))

    def test_other_layouts(self, block: tuple[Block, awq.AwqBlock]) -> None:
        arrays = block[1].arrays["attn_q"]
        for version in ("gemv", "gemv_fast", "marlin", 3):
            self.refused(arrays, AWQ | {"version": version}, "version gemm")
        self.refused(arrays, AWQ | {"bits": 3}, "4 bits")
        llm_awq = {"scaled_zeros": arrays["scales"], "scales": arrays["scales"]}
        self.refused(llm_awq | {"qweight": np.zeros((64, 256), np.int16)}, {}, "layout of llm-awq")

    def test_shapes_that_do_not_fit(self, block: tuple[Block, awq.AwqBlock]) -> None:
        arrays = block[1].arrays["ffn_down"]
        rng = np.random.default_rng(4)
        for leaf, array in arrays.items():
            for axis in range(array.ndim):
                n = array.shape[axis]
                cut = array.take(np.arange(int(rng.integers(1, n))), axis)
                self.refused(arrays | {leaf: cut}, AWQ, "layer")
                self.refused(arrays | {leaf: np.repeat(array, 2, axis)}, AWQ, "layer")
            self.refused(arrays | {leaf: array[..., None]}, AWQ, leaf)
            self.refused(arrays | {leaf: array[:0]}, AWQ, leaf)
            self.refused(arrays | {leaf: array.astype(np.int8)}, AWQ, leaf)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
def test_many_originals_lie_in_their_cells(kind: str) -> None:
    n = 0
    for seed in range(5):
        block = synthetic_block(np.random.default_rng(seed), 512, 1024)
        block = block._replace(
            matrices={name: rounded(w, kind) for name, w in block.matrices.items()}
        )
        quantized = awq.quantize(block)
        for name, w in block.matrices.items():
            matrix = true_matrix(quantized, name)
            assert n_outside(state(matrix), rounded(w, matrix.seen_as)) == 0, name
            n += w.size
    assert n > 10_000_000
